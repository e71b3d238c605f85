import ctypes
import gc
import os
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers together use all cores
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin while they wait
    # Most of XLA's functions run a few times, and take longer to optimise than to run.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import pytest
from costs import Costs

# Graphs are many small objects that live long: looking through them as often as Python does costs several percent.
gc.set_threshold(50_000, 20, 100)
LIBC = ctypes.CDLL(None)
GROWTH = 200 * 2**20  # bytes
MEMORY = {"at last collection": 0}


def pytest_configure(config):
    config.pluginmanager.register(Costs())


PASSES = (
    "arithmetic_optimization",
    "constant_folding",
    "dependency_optimization",
    "function_optimization",
    "implementation_selector",
    "layout_optimizer",
    "loop_optimization",
    "pin_to_host_optimization",
    "remapping",
    "scoped_allocator_optimization",
    "shape_optimization",
)


@pytest.fixture(scope="session", autouse=True)
def _made_for_many_short_lived_graphs():
    """Garbage is not looked for among what TensorFlow's modules hold, and graphs that run a few steps run as traced.

    Optimising them takes a tenth of the time. Graphs of two ranks, of scripts and under XLA are optimised as ever, and
    so are all where pytest runs without workers.
    """
    import keras  # noqa: F401
    import tensorflow as tf

    if "PYTEST_XDIST_WORKER" in os.environ:
        # Each pass by itself: without the optimiser as a whole, TensorFlow keeps 4 MB more of each graph for ever.
        tf.config.optimizer.set_experimental_options(dict.fromkeys(PASSES, False))
        tf.debugging.disable_traceback_filtering()  # which takes an eighth of the time to trace
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _unchecked():
    """Products are checked only where a test is marked `self_checked`, or asks for it."""
    from default_of_self_check import set_self_check

    set_self_check(False)
    yield
    set_self_check(True)


@pytest.fixture(scope="session", autouse=True)
def _measurements_at_every_default_time():
    """On a busy machine, measurements would exceed their share of time, and tests would depend on the clock."""
    from tfopt.callbacks import _time_share

    _time_share.FREE_SECONDS = 1e9


@pytest.fixture(autouse=True)
def _checked_where_marked(request):
    from default_of_self_check import set_self_check

    is_marked = request.node.get_closest_marker("self_checked") is not None
    if is_marked:
        set_self_check(True)
    yield
    if is_marked:
        set_self_check(False)


@pytest.fixture(autouse=True, scope="module")
def _graphs_of_a_module_are_freed():
    """Let go of what a module's tests have traced, and give the memory back to the system.

    Models and graphs are in cycles, and with the threshold above old ones are hardly ever looked through. TensorFlow
    registers every function with a gradient of its own by name, for ever, and with it the whole graph that calls it.
    """
    from tensorflow.python.framework import ops

    from tfopt.curvature import known_products

    gradients = ops.gradient_registry._registry
    before = set(gradients)
    yield
    for name in set(gradients) - before:
        if name.startswith("CustomGradient-"):
            del gradients[name]
    known_products._products.clear()
    _collect()


def _collect():
    gc.collect()
    if hasattr(LIBC, "malloc_trim"):  # glibc's alone
        LIBC.malloc_trim(0)


def _resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.fixture(autouse=True)
def _garbage_of_large_tests_is_freed():
    """A test that ends with more memory than is usual makes a collection worth its time."""
    yield
    if _resident_bytes() > MEMORY["at last collection"] + GROWTH:
        _collect()
        MEMORY["at last collection"] = _resident_bytes()


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


@pytest.fixture
def each_fit_in_its_own_process(monkeypatch):
    """A `fit` that has ended is forgotten, as if its process had ended too: the next one stands for a restart."""
    from tfopt._checkpoints import earlier_fits

    monkeypatch.setattr(earlier_fits.EarlierFits, "end", lambda self: earlier_fits._LEFT.clear())
