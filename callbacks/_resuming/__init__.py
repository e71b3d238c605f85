"""What `ResumableCheckpoint` saves, compares, and refuses."""
