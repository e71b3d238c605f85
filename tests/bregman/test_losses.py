"""Updates of the outputs, for every loss, against generic minimisers."""

import bregman_oracles as oracles
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.bregman import losses

OURS = {
    "squared": losses.squared_error,
    "unit_hinge": losses.hinge(0.0),
    "hinge": losses.hinge(-1.0),
    "binary": losses.binary_crossentropy,
    "categorical": losses.categorical_crossentropy,
}
UPDATES = {
    name: tf.function(loss.update, jit_compile=True, autograph=False, reduce_retracing=True)
    for name, loss in OURS.items()
}


def targets_of(name, rows, rng):
    if name == "categorical":
        return np.eye(4)[rng.integers(0, 4, rows)]
    return rng.integers(0, 2, (rows, 4)).astype(float) if name != "squared" else rng.normal(size=(rows, 4))


def update(name, u, y, beta, dtype=tf.float64):
    return UPDATES[name](tf.constant(u, dtype), tf.constant(y, dtype), tf.constant(beta, dtype)).numpy()


@pytest.mark.parametrize("name", OURS)
def test_values_and_gradients(name):
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 2, (50, 4)), targets_of(name, 50, rng)
    values = OURS[name].value(tf.constant(z), tf.constant(y)).numpy()
    np.testing.assert_allclose(values, [oracles.LOSSES[name](*pair) for pair in zip(z, y, strict=True)], rtol=1e-12)
    gradients = OURS[name].gradient(tf.constant(z), tf.constant(y)).numpy()
    step = 1e-6 * rng.normal(size=z.shape)
    ends = [[oracles.LOSSES[name](*pair) for pair in zip(z + s * step, y, strict=True)] for s in (1, -1)]
    np.testing.assert_allclose((gradients * step).sum(1), (np.array(ends[0]) - ends[1]) / 2, atol=1e-11)


@pytest.mark.parametrize("beta", [1e-4, 0.01, 0.3, 1.0, 100.0])
@pytest.mark.parametrize("name", OURS)
def test_the_minimum_is_found(name, beta):
    rng = np.random.default_rng(1)
    u, y = rng.normal(0, 3, (40, 4)), targets_of(name, 40, rng)
    z = update(name, u, y, beta)
    for row in range(40):
        lowest = oracles.lowest_output_cost(name, y[row], u[row], beta)
        assert oracles.output_cost(name, z[row], y[row], u[row], beta) <= lowest + 1e-9 * (1 + abs(lowest))


@pytest.mark.parametrize("beta", [1e-4, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", ["squared", "binary", "categorical"])
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_the_gradient_vanishes(name, beta, dtype):
    # loss'(z) + 2 beta (z - u) = 0: what makes a full step of the multiplier minus the loss's gradient.
    rng = np.random.default_rng(2)
    u, y = rng.normal(0, 4, (300, 4)), targets_of(name, 300, rng)
    z = update(name, u, y, beta, dtype)
    gradient = OURS[name].gradient(tf.constant(z), tf.constant(y, dtype)).numpy()
    tolerance = 2e-5 if dtype == tf.float32 else 1e-10
    np.testing.assert_allclose(gradient + 2 * beta * (z - u), 0, atol=tolerance * (1 + beta))


def test_far_starts_converge_at_small_penalties():
    # Undamped Newton fails here for most rows.
    rng = np.random.default_rng(3)
    u, y = rng.normal(0, 60, (500, 10)), np.eye(10)[rng.integers(0, 10, 500)]
    z = update("categorical", u, y, 1e-3)
    gradient = losses.categorical_crossentropy.gradient(tf.constant(z), tf.constant(y)).numpy() + 2e-3 * (z - u)
    assert np.abs(gradient).max() < 1e-9


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(OURS)),
    seed=st.integers(0, 2**31 - 1),
    beta=st.floats(1e-4, 1e4),
    scale=st.floats(0.01, 100.0),
)
def test_never_raises_its_objective(name, seed, beta, scale):
    rng = np.random.default_rng(seed)
    u, y = rng.normal(0, scale, (3, 4)), targets_of(name, 3, rng)
    z = update(name, u, y, beta)
    for row in range(3):
        before = oracles.output_cost(name, u[row], y[row], u[row], beta)
        assert oracles.output_cost(name, z[row], y[row], u[row], beta) <= before * (1 + 1e-12) + 1e-12
