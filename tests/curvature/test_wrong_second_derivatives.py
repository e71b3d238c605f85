"""Functions whose first derivative is right and whose second one is not: each is refused before the first product."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from applied import Applied

from tfopt.curvature import HessianOperator

pytestmark = pytest.mark.self_checked


def cubed(slope):
    """Return x -> x^3, whose gradient is 3 x^2 computed as 3 x slope(x)."""

    @tf.custom_gradient
    def cube(x):
        return x**3, lambda upstream: 3 * upstream * x * slope(x)

    return cube


def shrunk(part):
    """Return the identity, whose derivative is too small by a fraction `part`."""
    return lambda x: x + part * (tf.stop_gradient(x) - x)


@tf.custom_gradient
def reversed_at_second_order(x):
    @tf.custom_gradient
    def twice(x):
        return 2 * x, lambda upstream: -2 * upstream

    return x**2, lambda upstream: upstream * twice(x)


@tf.custom_gradient
def noisy_at_second_order(x):
    @tf.custom_gradient
    def twice(x):
        return 2 * x, lambda upstream: 2 * upstream * (1 + 0.1 * tf.random.normal(tf.shape(x), dtype=x.dtype))

    return x**2, lambda upstream: upstream * twice(x)


@tf.custom_gradient
def swapped_rows(x):
    """Return x^2 / 2, whose second derivative takes the vector from another row."""

    @tf.custom_gradient
    def same(x):
        return tf.identity(x), lambda upstream: tf.reverse(upstream, [0])

    return x**2 / 2, lambda upstream: upstream * same(x)


@tf.custom_gradient
def wrong_for_one_unit(x):
    mask = tf.constant([[0.0, 0.0, 1.0, 0.0]], x.dtype)
    return x**2, lambda upstream: 2 * upstream * (mask * tf.stop_gradient(x) + (1 - mask) * x)


@tf.custom_gradient
def not_finite_at_second_order(x):
    @tf.custom_gradient
    def twice(x):
        return 2 * x, lambda upstream: upstream * 2 * x / x  # not a number for x = 0

    return x**2, lambda upstream: upstream * twice(x)


def of_some_rows(x):
    """Return x^2 with a lost second derivative where the first unit is above a bound."""
    stopped = tf.custom_gradient(lambda x: (x**2, lambda upstream: 2 * upstream * tf.stop_gradient(x)))
    return tf.where(x[:, :1] > 0.35, stopped(x), x**2)


FUNCTIONS = {
    "lost": (cubed(tf.stop_gradient), "are wrong"),
    "wrong by a few percent": (cubed(shrunk(0.1)), "are wrong"),
    "wrong by a percent": (cubed(shrunk(0.04)), "are wrong"),
    "too large": (cubed(shrunk(-0.5)), "are wrong"),
    "reversed": (reversed_at_second_order, "are wrong"),
    "random": (noisy_at_second_order, "(are wrong|another product)"),
    "of another row": (swapped_rows, "are wrong"),
    "of one unit": (wrong_for_one_unit, "are wrong"),
    "of some rows": (of_some_rows, "are wrong"),
    "not finite": (not_finite_at_second_order, "are not finite"),
    "straight through": (lambda x: tf.grad_pass_through(lambda x: tf.round(4 * x) / 4)(x) * x, "are wrong"),
    "random loss": (lambda x: x + 1e-3 * tf.random.normal(tf.shape(x), dtype=x.dtype), "another product"),
    "no second derivative": (
        lambda x: x + tf.raw_ops.FakeQuantWithMinMaxArgs(inputs=tf.cast(x, "float32")),
        "silently",
    ),
}


def make_operator(function):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(4, activation="tanh"), Applied(function), keras.layers.Dense(2)]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype("float32"), rng.uniform(0.1, 0.9, (40, 2)).astype("float32")
    x[7] = 0.0  # tanh is zero there; in none of the rows of a check of a few rows
    return HessianOperator(keras.Sequential([keras.Input((3,)), *layers]), "mse", x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_second_derivative_is_refused(name):
    function, words = FUNCTIONS[name]
    matrix = make_operator(function)
    with pytest.raises(RuntimeError, match=words):
        matrix @ np.ones(matrix.shape[0], "float32")


@pytest.mark.parametrize(
    "function",
    [cubed(tf.identity), tf.nn.relu, tf.abs, lambda x: tf.maximum(x, 0.1)],
    ids=["cube", "relu", "abs", "max"],
)
def test_a_right_one_is_not(function):
    matrix = make_operator(function)
    assert np.isfinite(matrix @ np.ones(matrix.shape[0], "float32")).all()
