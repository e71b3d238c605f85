"""Callbacks that measure the same loss on the same data trace the model once for all of them."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale
from tfopt.callbacks._shared_objective import has_same_data
from tfopt.curvature import Probe, batch_function, known_products

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) + RNG.normal(size=(16, 1))).astype("float32")


class Counted(keras.layers.Dense):
    num_traces = 0

    def call(self, inputs):
        Counted.num_traces += 1
        return super().call(inputs)


def traces(make_callbacks):
    """The number of traces of the model's call by the callbacks, and the callbacks after `fit`."""
    known_products._products.clear()
    batch_function._known.clear()
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(2, "tanh", name="hidden"), Counted(1, name="out")]
    model = keras.Sequential([keras.Input((3,)), *layers], name="model")
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(X, Y, verbose=0)
    Counted.num_traces, callbacks = 0, make_callbacks()
    model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    return Counted.num_traces, callbacks


PROBE = Probe(X, Y)
MAKE = (lambda data: Convexity(data, self_check=False), GradientBreakdown, GradientNoiseScale)
WAYS = {
    "one probe": lambda: (PROBE, PROBE, PROBE),
    "the same arrays": lambda: ((X, Y), (X, Y), (X, Y)),
    "equal data": lambda: ((X, Y), (X.copy(), Y.copy()), tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)),
}


@pytest.fixture(scope="module")
def alone():
    """The number of traces and the histories of the callbacks, each in a `fit` of its own."""
    found = [traces(lambda make=make: [make(PROBE)]) for make in MAKE]
    return [count for count, _ in found], [callback.history for _, (callback,) in found]


@pytest.mark.parametrize("way", WAYS)
def test_callbacks_on_one_probe_share_one_objective(way, alone):
    found, callbacks = traces(lambda: [make(data) for make, data in zip(MAKE, WAYS[way](), strict=True)])
    (curvature, breakdown, noise), histories = alone
    # Curvature needs all that a breakdown needs, and so does noise; besides, it needs the gradients of groups.
    assert found == curvature + noise - breakdown
    assert len({id(callback._shared.objective) for callback in callbacks}) == 1
    for callback, history in zip(callbacks, histories, strict=True):
        for name in history.keys() - {"seconds", "setup_seconds"}:
            np.testing.assert_equal(callback.history[name], history[name], err_msg=name)


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ((X, Y), {"batch_norm": "moving"}),
        ((X, Y), {"loss": "mae"}),
        ((X, Y), {"batch_size": 8}),
        ((X, Y, np.ones(16)), {}),
        ((X, Y + 1), {}),
        ((X, Y.astype("float64")), {}),
        ((X[:12], Y[:12]), {}),
    ],
)
def test_other_losses_and_data_are_not_shared(data, options):
    callbacks = [GradientBreakdown((X, Y)), GradientBreakdown(data, log_name="other", **options)]
    _, callbacks = traces(lambda: callbacks)
    assert callbacks[0]._shared.objective is not callbacks[1]._shared.objective


def test_copies_hold_no_compiled_functions():
    _, (callback,) = traces(lambda: [GradientBreakdown(PROBE)])
    assert copy.deepcopy(callback)._shared is None


def test_text_and_missing_parts_are_compared():
    words = np.array([["a"], ["b"]])
    assert has_same_data(Probe(words), Probe(words.copy()))
    assert not has_same_data(Probe(words), Probe(words[::-1]))
    assert not has_same_data(Probe(X, Y), Probe(X))
