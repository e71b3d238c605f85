"""Updates of pre-activations: global minima, for every activation, against a fine grid with Brent's method."""

import bregman_oracles as oracles
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.bregman import activations

OURS = {
    "identity": activations.identity,
    "relu": activations.relu,
    "leaky_relu": activations.leaky_relu(0.2),
    "clip": activations.clip(1.0),
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "softplus": activations.softplus,
    "gelu": activations.gelu,
}
UPDATES = {
    name: tf.function(activation.update, jit_compile=True, autograph=False, reduce_retracing=True)
    for name, activation in OURS.items()
}


def update(name, a, m, gamma, beta, dtype=tf.float64):
    arguments = (tf.constant(value, dtype) for value in (a, m, gamma, beta))
    return UPDATES[name](*arguments).numpy()


@pytest.mark.parametrize("name", OURS)
def test_values_and_derivatives(name):
    z = np.linspace(-5, 5, 201)
    np.testing.assert_allclose(OURS[name](tf.constant(z)).numpy(), oracles.ACTIVATIONS[name](z), atol=1e-14)
    if OURS[name].derivatives:
        h, slope, bend = (part.numpy() for part in OURS[name].derivatives(tf.constant(z)))
        np.testing.assert_allclose(h, oracles.ACTIVATIONS[name](z), atol=1e-14)
        np.testing.assert_allclose(slope, np.gradient(h, z, edge_order=2), atol=2e-3)
        np.testing.assert_allclose(bend, np.gradient(slope, z, edge_order=2), atol=4e-3)


@pytest.mark.parametrize("ratio", [1e-3, 0.1, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("name", OURS)
def test_the_minimum_is_global(name, ratio):
    rng = np.random.default_rng(0)
    a = np.concatenate([rng.normal(0, 1, 12), rng.normal(0, 8, 12), [0, 1, 0.999, -1, 50, -50, 1.0777339560336137]])
    m = np.concatenate([rng.normal(0, 1, 12), rng.normal(0, 8, 12), [0, 0, -9, 9, -30, 30, -1.7735384253692925]])
    h = oracles.ACTIVATIONS[name]
    found = update(name, a, m, ratio, 1.0)
    for z, one_a, one_m in zip(found, a, m, strict=True):
        lowest = oracles.lowest_pre_activation_cost(h, one_a, one_m, ratio, 1.0)
        assert oracles.pre_activation_cost(h, z, one_a, one_m, ratio, 1.0) <= lowest * (1 + 1e-8) + 1e-10


@pytest.mark.parametrize("name", OURS)
def test_float32_comes_close(name):
    rng = np.random.default_rng(1)
    a, m = rng.normal(0, 2, 400), rng.normal(0, 2, 400)
    h = oracles.ACTIVATIONS[name]
    costs = [
        oracles.pre_activation_cost(h, update(name, a, m, 3.0, 1.0, dtype).astype(np.float64), a, m, 3.0, 1.0)
        for dtype in (tf.float64, tf.float32)
    ]
    assert (costs[1] <= costs[0] * (1 + 1e-4) + 1e-5).all()


numbers = st.floats(-1e3, 1e3)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(OURS)),
    a=numbers,
    m=numbers,
    gamma=st.floats(1e-6, 1e6),
    beta=st.floats(1e-6, 1e6),
)
def test_never_raises_its_objective(name, a, m, gamma, beta):
    h = oracles.ACTIVATIONS[name]
    (z,) = update(name, [a], [m], gamma, beta)
    before = oracles.pre_activation_cost(h, np.float64(m), a, m, gamma, beta)
    assert oracles.pre_activation_cost(h, z, a, m, gamma, beta) <= before * (1 + 1e-9) + 1e-9
