"""The first product: what it computes, in which thread, and that the check beside it keeps its order."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import _keras, models
from tfopt.curvature import HessianOperator, known_products
from tfopt.curvature.background import started
from tfopt.curvature.parts import BLOCK, Parts
from tfopt.curvature.recently_used import RecentlyUsed
from tfopt.curvature.split import SplitFunction

pytestmark = pytest.mark.self_checked


def make_operator(self_check=True, **options):
    model = models.mlp((3,), (5,), 2, seed=0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 2, 20)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return HessianOperator(model, loss, x, y, self_check=self_check, **options)


@pytest.fixture
def calls(monkeypatch):
    """The threads in which functions of products were called, in order."""
    found = []
    original = SplitFunction.__call__

    def call(self, *arguments):
        found.append(threading.current_thread())
        return original(self, *arguments)

    monkeypatch.setattr(SplitFunction, "__call__", call)
    monkeypatch.setattr(known_products, "_products", RecentlyUsed(8))  # other tests may have checked the same function
    return found


@pytest.mark.parametrize("batch_size", [20, 8])
def test_the_check_evaluates_four_times_and_the_product_once_for_each_batch(calls, batch_size):
    matrix = make_operator(batch_size=batch_size)
    vector = np.ones(matrix.shape[0], "float32")
    first = matrix @ vector
    num_batches = len(matrix.objective.probe.batches)
    assert len(calls) == 4 + num_batches
    assert [thread is threading.main_thread() for thread in calls].count(False) == 1
    calls.clear()
    np.testing.assert_array_equal(first, matrix @ vector)
    np.testing.assert_array_equal(first, make_operator(self_check=False, batch_size=batch_size) @ vector)
    assert len(calls) == 2 * num_batches
    assert matrix.num_matvecs == 2


def test_a_product_in_a_run_is_checked_too(calls):
    matrix = make_operator(batch_size=8)
    vector = np.ones(matrix.shape[0], "float32")
    with matrix.shared():
        first = matrix @ vector
    assert len(calls) == 4  # those of the check
    np.testing.assert_allclose(first, matrix @ vector, rtol=1e-5, atol=1e-7)


def test_a_thread_keeps_the_device_and_waits_for_its_end():
    with tf.device("/CPU:0"), started(lambda: (threading.current_thread(), tf.constant(1.0).device)) as wait:
        pass
    thread, device = wait()
    assert thread is not threading.main_thread()
    assert not thread.is_alive()
    assert device.endswith("CPU:0")


def test_a_thread_chooses_no_device_where_the_caller_has_none():
    """The device is part of what TensorFlow compiles for."""
    with started(lambda: _keras.context.context().device_name) as wait:
        pass
    assert (wait() or "") == (_keras.context.context().device_name or "") == ""


def test_a_tape_of_the_caller_sees_what_is_computed():
    x = tf.Variable(2.0)
    with tf.GradientTape() as tape:
        with started(lambda: x * x) as wait:
            pass
        y = wait()
    assert float(tape.gradient(y, x)) == 4.0


def test_errors_of_the_caller_come_first():
    def fail():
        raise ValueError("in the thread")

    with started(fail) as wait, pytest.raises(ValueError, match="in the thread"):
        wait()
    with pytest.raises(KeyError, match="outside"), started(fail):
        raise KeyError("outside")


def test_vectors_in_parts_compute_as_arrays_do():
    rng = np.random.default_rng(0)
    shapes = [(BLOCK + 3,), (2, 3), (), (0, 4)]
    arrays = [[rng.normal(size=shape).astype(dtype) for shape in shapes] for dtype in ("float64", "float32")]
    one, other = (np.concatenate([part.reshape(-1) for part in parts]).astype("float64") for parts in arrays)
    a, b = Parts([tf.constant(part) for part in arrays[0]]), Parts(arrays[1])
    assert a.size == one.size
    assert a @ b == pytest.approx(one @ other, rel=1e-12)
    combined = (a + b.times(3.0) - a * b) * abs(b)
    expected = (one + 3 * other - one * other) * abs(other)
    assert combined.length == pytest.approx(np.linalg.norm(expected), rel=1e-12)
    assert combined.sum() == pytest.approx(expected.sum(), rel=1e-9)
    assert a.is_finite
    assert a.any()
    assert not (a - a).any()
    assert not Parts([arrays[0][0], [np.inf]]).is_finite
