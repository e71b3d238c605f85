"""Losses, and the update of the outputs: an exact minimisation for each row.

    z* = argmin_z  loss(z, y) + beta |z - u|^2,      u = m - lambda / (2 beta)

is the minimiser of loss(z, y) + <z, lambda> + beta |z - m|^2. A loss is a sum over the outputs of a row, and over rows.
For the cross-entropies, the outputs are logits.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._checks import check_number
from tfopt.bregman.activations import as_scalar

__all__ = ["Loss", "binary_crossentropy", "categorical_crossentropy", "hinge", "squared_error"]

_NUM_NEWTON_STEPS = 60
_NUM_HALVINGS = 8


@dataclass(frozen=True)
class Loss:
    """A loss of one row of outputs, with its derivative and the update of the outputs.

    Attributes:
        name: Name for messages and checkpoints.
        value: `value(outputs, targets)`, both of shape `(rows, outputs)`: the loss of each row, shape `(rows,)`.
        gradient: `gradient(outputs, targets)`: its derivative (at a kink, a subgradient), shape `(rows, outputs)`.
        update: `update(u, targets, linear_penalty)`: the minimisers of loss(z, y) + beta |z - u|^2, for beta > 0.
        targets: Allowed targets. "real": any numbers. "shares": numbers in [0, 1]. "distribution": a distribution over
            the outputs, or labels; Keras's loss is then that of a row, and for all other kinds the mean over outputs.
            "flags": 0 and 1. "signs": -1 and 1, or 0 and 1. Labels become rows of zeros and a one, except for "real".
        is_quadratic: Whether value(b z + a, b y + a) is b^2 value(z, y) for all a and b, as for a squared error.
            Training then standardises the targets, which must be "real".
    """

    name: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], Any]
    update: Callable[[Any, Any, Any], Any]
    targets: str = "real"
    is_quadratic: bool = False

    def __repr__(self) -> str:
        return f"Loss({self.name!r})"


def _squared_update(u: Any, targets: Any, linear_penalty: Any) -> Any:
    beta = as_scalar(linear_penalty, u.dtype)
    return (targets + beta * u) / (1 + beta)


def hinge(edge: float = 0.0) -> Loss:
    """Return max(0, 1 - z) for targets of 1 and max(0, z - edge) for other targets.

    Args:
        edge: 0 (default) is the hinge of Taylor et al. 2016 for targets in {0, 1}; -1 is Keras's hinge.

    Returns:
        The loss. Equal edges return the same object.
    """
    return _hinge(check_number("edge", edge))


@functools.lru_cache
def _hinge(edge: float) -> Loss:

    def mirrored(z: Any, targets: Any) -> Any:
        # The map z -> 1 + edge - z turns max(0, z - edge) into max(0, 1 - z), and is its own inverse.
        return tf.where(targets > 0.5, z, 1 + edge - z)

    def value(outputs: Any, targets: Any) -> Any:
        return tf.reduce_sum(tf.nn.relu(1 - mirrored(outputs, targets)), axis=1)

    def gradient(outputs: Any, targets: Any) -> Any:
        slope = tf.cast(mirrored(outputs, targets) < 1, outputs.dtype)
        return tf.where(targets > 0.5, -slope, slope)

    def update(u: Any, targets: Any, linear_penalty: Any) -> Any:
        # Where the hinge is flat, keep u. Elsewhere take a step of 1 / (2 beta), but stop at the kink.
        u = mirrored(u, targets)
        step = 0.5 / as_scalar(linear_penalty, u.dtype)
        return mirrored(tf.where(u >= 1, u, tf.minimum(tf.ones_like(u), u + step)), targets)

    targets = "signs" if edge == -1.0 else "flags"
    return Loss(f"hinge on {{{edge:g}, 1}}", value, gradient, update, targets=targets)


def _binary_value(outputs: Any, targets: Any) -> Any:
    return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(targets, outputs), axis=1)


def _binary_update(u: Any, targets: Any, linear_penalty: Any) -> Any:
    # Newton's method for sigmoid(z) - y + 2 beta (z - u) = 0. The root lies in [u - (1 - y) / (2 beta), u + y / (2
    # beta)]. The sigmoid is convex below 0 and concave above. From the point of that interval nearest to 0, Newton
    # steps cannot overshoot.
    beta = as_scalar(linear_penalty, u.dtype)
    low, high = u - (1 - targets) * 0.5 / beta, u + targets * 0.5 / beta

    def is_open(k: Any, z: Any, change: Any) -> Any:
        return (k < _NUM_NEWTON_STEPS) & (change > _tolerance(u.dtype))

    def step(k: Any, z: Any, change: Any) -> Any:
        p = tf.sigmoid(z)
        new = z - (p - targets + 2 * beta * (z - u)) / (p * (1 - p) + 2 * beta)
        new = tf.minimum(tf.maximum(new, low), high)
        return k + 1, new, tf.reduce_max(tf.abs(new - z) / (1 + tf.abs(new)))

    nearest = tf.minimum(tf.maximum(tf.zeros_like(u), low), high)
    return tf.while_loop(is_open, step, (tf.constant(0), nearest, tf.constant(math.inf, u.dtype)))[1]


def _categorical_value(outputs: Any, targets: Any) -> Any:
    return tf.reduce_logsumexp(outputs, axis=1) - tf.reduce_sum(targets * outputs, axis=1)


def _categorical_update(u: Any, targets: Any, linear_penalty: Any) -> Any:
    # Newton's method with Armijo's halving, each row by itself. Let p = softmax(z), d = p + 2 beta, and g the gradient.
    # The formula of Sherman and Morrison inverts the Hessian diag(d) - p p'. The step is g / d + (p / d) (p' (g / d)) /
    # s with s = 1 - p' (p / d) = 2 beta sum(p / d). Use the last form of s: the difference would lose digits.
    beta = as_scalar(linear_penalty, u.dtype)

    def cost(z: Any) -> Any:
        return _categorical_value(z, targets) + beta * tf.reduce_sum((z - u) ** 2, axis=1)

    def is_open(k: Any, z: Any, f: Any, change: Any) -> Any:
        return (k < _NUM_NEWTON_STEPS) & (change > _tolerance(u.dtype))

    def step(k: Any, z: Any, f: Any, change: Any) -> Any:
        p = tf.nn.softmax(z)
        gradient = p - targets + 2 * beta * (z - u)
        d = p + 2 * beta
        scaled, v = gradient / d, p / d
        s = 2 * beta * tf.reduce_sum(v, axis=1, keepdims=True)
        direction = scaled + v * tf.reduce_sum(p * scaled, axis=1, keepdims=True) / s
        new, f = _halve(cost, z, f, direction, tf.reduce_sum(gradient * direction, axis=1))
        return k + 1, new, f, tf.reduce_max(tf.abs(new - z) / (1 + tf.abs(new)))

    start = (tf.constant(0), u, cost(u), tf.constant(math.inf, u.dtype))
    return tf.while_loop(is_open, step, start)[1]


def _halve(cost: Callable[[Any], Any], z: Any, f: Any, direction: Any, slope: Any) -> tuple[Any, Any]:
    # Take the first of the steps 1, 1/2, 1/4, ... that lowers a row's cost by 1e-4 of the decrease that its slope
    # predicts; if there is none, keep z. If rounding of the cost hides the predicted decrease, the row is near its
    # minimum and takes the full step.
    is_near = slope <= _epsilon(z.dtype) ** 0.5 * (1 + tf.abs(f))

    def shrink(k: Any, step: Any, best: Any, best_cost: Any, is_done: Any) -> Any:
        trial = z - step * direction
        trial_cost = cost(trial)
        accepts = tf.logical_not(is_done) & (is_near | (trial_cost <= f - 1e-4 * step * slope))
        best = tf.where(accepts[:, None], trial, best)
        return k + 1, step / 2, best, tf.where(accepts, trial_cost, best_cost), is_done | accepts

    def is_open(k: Any, step: Any, best: Any, best_cost: Any, is_done: Any) -> Any:
        return (k < _NUM_HALVINGS) & tf.logical_not(tf.reduce_all(is_done))

    start = (tf.constant(0), tf.constant(1.0, z.dtype), z, f, tf.zeros_like(f, tf.bool))
    return tf.while_loop(is_open, shrink, start)[2:4]


def _epsilon(dtype: Any) -> float:
    return float(np.finfo(dtype.as_numpy_dtype).eps)


def _tolerance(dtype: Any) -> float:
    return 8 * _epsilon(dtype)  # Of a Newton step, relative to 1 + |z|. Convergence is quadratic.


#: The sum over outputs of (z - y)^2, for targets y of any size.
squared_error = Loss(
    "squared error",
    value=lambda outputs, targets: tf.reduce_sum((outputs - targets) ** 2, axis=1),
    gradient=lambda outputs, targets: 2 * (outputs - targets),
    update=_squared_update,
    is_quadratic=True,
)
#: The sum over outputs of log(1 + exp(z)) - y z, for logits z and targets y in [0, 1].
binary_crossentropy = Loss(
    "binary cross-entropy",
    value=_binary_value,
    gradient=lambda outputs, targets: tf.sigmoid(outputs) - targets,
    update=_binary_update,
    targets="shares",
)
#: log(sum(exp(z))) - y'z, for logits z and a distribution y over the outputs, or labels.
categorical_crossentropy = Loss(
    "softmax cross-entropy",
    value=_categorical_value,
    gradient=lambda outputs, targets: tf.nn.softmax(outputs) - targets,
    update=_categorical_update,
    targets="distribution",
)
