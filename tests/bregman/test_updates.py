"""Updates of weights and activations against least squares, and that none raises its objective."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.bregman import updates


def test_weights_are_least_squares():
    rng = np.random.default_rng(0)
    a, z = rng.normal(size=(50, 6)), rng.normal(size=(50, 3))
    weights = updates.weight_update(tf.constant(a.T @ a), tf.constant(a.T @ z)).numpy()
    np.testing.assert_allclose(weights, np.linalg.lstsq(a, z, rcond=None)[0], rtol=1e-10)


def test_a_singular_matrix_gives_the_solution_of_minimum_norm():
    # What a pseudo-inverse gives: here 8 inputs of rank 3, and no ridge.
    rng = np.random.default_rng(1)
    a, z = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8)), rng.normal(size=(50, 2))
    gram, cross = tf.constant(a.T @ a), tf.constant(a.T @ z)
    expected = np.linalg.pinv(a, rcond=1e-8) @ z
    np.testing.assert_allclose(updates.weight_update(gram, cross).numpy(), expected, rtol=1e-6, atol=1e-8)

    def solve(gram, cross):
        return (updates.weight_update(gram, cross),)

    (compiled,) = updates.solve_compiled(tf.function(solve, autograph=False), gram, cross)
    np.testing.assert_allclose(compiled.numpy(), expected, rtol=1e-6, atol=1e-8)


def test_matrices_that_are_not_finite_give_nan():
    gram = tf.constant([[1.0, np.nan], [np.nan, 1.0]], tf.float64)
    assert np.isnan(updates.weight_update(gram, tf.ones((2, 1), tf.float64)).numpy()).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(7, 2), (2, 7), (4, 4)])
def test_activations_minimise(inputs, outputs):
    rng = np.random.default_rng(2)
    h, z, kernel = rng.normal(size=(9, inputs)), rng.normal(size=(9, outputs)), rng.normal(size=(inputs, outputs))
    beta, gamma = 0.3, 2.0
    gain = updates.activation_gain(tf.constant(kernel), beta, gamma)
    found = updates.activation_update(tf.constant(h), tf.constant(z), tf.constant(kernel), gain).numpy()
    stacked = np.concatenate([np.sqrt(beta) * kernel.T, np.sqrt(gamma) * np.eye(inputs)])
    right = np.concatenate([np.sqrt(beta) * z.T, np.sqrt(gamma) * h.T])
    np.testing.assert_allclose(found.T, np.linalg.lstsq(stacked, right, rcond=None)[0], rtol=1e-9, atol=1e-12)


positive = st.floats(1e-6, 1e6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), ridge=positive, decay=positive, rank=st.integers(1, 5))
def test_weights_never_raise_their_objective(seed, ridge, decay, rank):
    rng = np.random.default_rng(seed)
    a, z = rng.normal(size=(20, rank)) @ rng.normal(size=(rank, 5)), rng.normal(size=(20, 2))
    old, penalty = rng.normal(size=(5, 2)), np.array([decay] * 4 + [0.0])

    def cost(w):
        return np.sum((z - a @ w) ** 2) + ridge * np.sum((w - old) ** 2) + np.sum(penalty[:, None] * w**2)

    gram, cross = tf.constant(a.T @ a), tf.constant(a.T @ z)
    new = updates.weight_update(gram, cross, ridge, center=tf.constant(old), penalty=tf.constant(penalty)).numpy()
    assert cost(new) <= cost(old) * (1 + 1e-9)
    for _ in range(5):
        assert cost(new) <= cost(new + 0.1 * rng.normal(size=new.shape)) * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), beta=positive, gamma=positive)
def test_activations_never_raise_their_objective(seed, beta, gamma):
    rng = np.random.default_rng(seed)
    h, z, kernel = rng.normal(size=(6, 5)), rng.normal(size=(6, 3)), rng.normal(size=(5, 3))
    gain = updates.activation_gain(tf.constant(kernel), beta, gamma)
    new = updates.activation_update(tf.constant(h), tf.constant(z), tf.constant(kernel), gain).numpy()

    def cost(a):
        return beta * np.sum((z - a @ kernel) ** 2) + gamma * np.sum((a - h) ** 2)

    assert cost(new) <= cost(h) * (1 + 1e-7)


@pytest.mark.parametrize("step", [1, 2])
def test_the_multiplier_moves_by_its_step(step):
    new = updates.multiplier_update(tf.constant([1.0, 2.0]), tf.constant([0.5, -1.0]), 3.0, step).numpy()
    assert new.tolist() == [1 + step * 1.5, 2 - step * 3]
