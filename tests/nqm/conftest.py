import os

if "PYTEST_XDIST_WORKER" in os.environ:  # whole grids of settings run: here the cheap part of optimising pays
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
