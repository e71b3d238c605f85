"""Checkpoints of a training: the states of callbacks, files of state, and their generations in a locked folder."""
