"""Build Horovod for the installed TensorFlow: `python -m tfopt.distributed.build_horovod`."""
