import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers together use all cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin while they wait

import pytest

# Graphs are many small objects that live long: looking through them as often as Python does costs several percent.
gc.set_threshold(50_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _made_for_many_short_lived_graphs():
    """Garbage is not looked for among what TensorFlow's modules hold, and graphs that run a few steps run as traced.

    Optimising them takes a tenth of the time. Graphs of two ranks, of scripts and under XLA are optimised as ever, and
    so are all where pytest runs without workers.
    """
    import keras  # noqa: F401
    import tensorflow as tf

    if "PYTEST_XDIST_WORKER" in os.environ:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _graphs_of_a_module_are_freed():
    # Models and graphs are in cycles, and with the threshold above old ones are hardly ever looked through.
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _seeded():
    import keras

    keras.utils.set_random_seed(1234)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")


@pytest.fixture(autouse=True)
def _figures_closed():
    # pyplot keeps every figure, and warns at the 21st: how many tests of one
    # worker draw is chance.
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
