"""Activation functions, and the update of pre-activations: an exact minimisation for each entry.

    z* = argmin_z  gamma (a - h(z))^2 + beta (z - m)^2

Piecewise linear h: on each piece the objective is a parabola, and the cheapest of the pieces' minimisers is the global
minimiser (Taylor et al. 2016, section 4 and its appendix). Smooth h: a grid covers the interval that must contain the
minimiser, and safeguarded Newton steps start from its two lowest valleys.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from tfopt._checks import check_number

__all__ = ["Activation", "clip", "gelu", "identity", "leaky_relu", "relu", "sigmoid", "softplus", "tanh"]

_NUM_GRID_POINTS = 49
_NUM_NEWTON_STEPS = 20


def as_scalar(value: Any, dtype: Any) -> Any:
    """Return a scalar tensor; a Python number keeps all its digits, where `tf.cast` first rounds to float32."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)


@dataclass(frozen=True)
class Activation:
    """An activation function h, applied to each entry.

    Attributes:
        name: Name for messages and checkpoints.
        function: Computes h(z).
        pieces: For a piecewise linear h: `(from, to, slope, offset)` of each piece, h(z) = slope * z + offset.
        derivatives: For a smooth h: computes `(h(z), h'(z), h''(z))`. None for a piecewise linear h.
        bend: For a smooth h: an interval outside which h is nearly linear.
    """

    name: str
    function: Callable[[Any], Any]
    pieces: tuple[tuple[float, float, float, float], ...] = ()
    derivatives: Callable[[Any], tuple[Any, Any, Any]] | None = None
    bend: tuple[float, float] = (-math.inf, math.inf)

    def __repr__(self) -> str:
        return f"Activation({self.name!r})"

    def __call__(self, z: Any) -> Any:
        """Compute h(z).

        Args:
            z: A tensor of any shape.

        Returns:
            h(z), same shape.
        """
        return self.function(z)

    def update(self, a: Any, m: Any, activation_penalty: Any, linear_penalty: Any) -> Any:
        """Minimise gamma (a - h(z))^2 + beta (z - m)^2 over z, globally, for each entry.

        For smooth h the value of the objective has a relative error of about 1e-5 in float32 and 1e-9 in float64.

        Args:
            a: The activations, any shape.
            m: The products A W, same shape.
            activation_penalty: gamma > 0.
            linear_penalty: beta > 0.

        Returns:
            The minimisers, same shape. Their objective is at most the objective of z = m.
        """
        gamma, beta = (as_scalar(penalty, m.dtype) for penalty in (activation_penalty, linear_penalty))
        if self.pieces:
            return self._cheapest_piece(a, m, gamma, beta)
        return self._search(a, m, gamma, beta)

    def _cheapest_piece(self, a: Any, m: Any, gamma: Any, beta: Any) -> Any:
        # On a piece h = s z + o, the parabola has its minimum at (gamma s (a - o) + beta m) / (gamma s^2 + beta),
        # clipped to the piece.
        best, best_cost = None, None
        for low, high, slope, offset in self.pieces:
            z = (gamma * slope * (a - offset) + beta * m) / (gamma * slope**2 + beta)
            z = tf.minimum(z, tf.constant(high, m.dtype)) if high < math.inf else z
            z = tf.maximum(z, tf.constant(low, m.dtype)) if low > -math.inf else z
            cost = gamma * (a - (slope * z + offset)) ** 2 + beta * (z - m) ** 2
            if best is None:
                best, best_cost = z, cost
            else:
                is_cheaper = cost < best_cost
                best, best_cost = tf.where(is_cheaper, z, best), tf.where(is_cheaper, cost, best_cost)
        return best

    def _cost(self, z: Any, a: Any, m: Any, gamma: Any, beta: Any) -> Any:
        return gamma * (a - self.function(z)) ** 2 + beta * (z - m) ** 2

    def _search(self, a: Any, m: Any, gamma: Any, beta: Any) -> Any:
        # The minimiser costs at most as much as z = m. Therefore |z - m| <= sqrt(gamma / beta) |a - h(m)|.
        radius = tf.sqrt(gamma / beta) * tf.abs(a - self.function(m))
        low, high = m - radius, m + radius
        first, second = self._valleys(a, m, gamma, beta, low, high)
        ends = [self._bend_of(low, high, end) for end in self.bend]
        best, best_cost = m, self._cost(m, a, m, gamma, beta)
        for start in (first, second, *ends):
            z = self._descend(start, a, m, gamma, beta, low, high)
            cost = self._cost(z, a, m, gamma, beta)
            is_cheaper = cost < best_cost
            best, best_cost = tf.where(is_cheaper, z, best), tf.where(is_cheaper, cost, best_cost)
        return best

    @staticmethod
    def _bend_of(low: Any, high: Any, end: float) -> Any:
        # Start beyond the bend, where h is nearly linear and a valley is nearly a parabola.
        far = high if end > 0 else low
        return tf.where((far > end) == (end > 0), (far + tf.constant(end, far.dtype)) / 2, far)

    def _valleys(self, a: Any, m: Any, gamma: Any, beta: Any, low: Any, high: Any) -> tuple[Any, Any]:
        # Find the two lowest local minima on a grid over the part of [low, high] where h bends.
        left, right = (tf.minimum(tf.maximum(tf.constant(end, m.dtype), low), high) for end in self.bend)
        step = (right - left) / (_NUM_GRID_POINTS - 1)
        huge = tf.fill(tf.shape(m), tf.constant(m.dtype.max, m.dtype))

        def visit(k: Any, before: Any, here: Any, best: Any, best_cost: Any, second: Any, second_cost: Any) -> Any:
            # `here` is the cost of point k - 1. The point is a valley if both neighbours cost more.
            after = tf.where(
                tf.less(k, _NUM_GRID_POINTS), self._cost(left + tf.cast(k, m.dtype) * step, a, m, gamma, beta), huge
            )
            z = left + tf.cast(k - 1, m.dtype) * step
            is_valley = (here <= before) & (here < after)
            is_best, is_second = is_valley & (here < best_cost), is_valley & (here < second_cost)
            second = tf.where(is_best, best, tf.where(is_second, z, second))
            second_cost = tf.where(is_best, best_cost, tf.where(is_second, here, second_cost))
            best, best_cost = tf.where(is_best, z, best), tf.where(is_best, here, best_cost)
            return k + 1, here, after, best, best_cost, second, second_cost

        start = (tf.constant(1), huge, self._cost(left, a, m, gamma, beta), m, huge, m, huge)
        result = tf.while_loop(lambda k, *_: k <= _NUM_GRID_POINTS, visit, start)
        return result[3], result[5]

    def _descend(self, start: Any, a: Any, m: Any, gamma: Any, beta: Any, low: Any, high: Any) -> Any:
        # Use Newton steps where the objective is convex, and Gauss-Newton steps elsewhere. A step that does not lower
        # the cost is rejected, and the next step is shorter.
        assert self.derivatives is not None
        derivatives = self.derivatives

        def step(k: Any, z: Any, cost: Any, scale: Any) -> Any:
            h, slope, bend = derivatives(z)
            gradient = beta * (z - m) - gamma * (a - h) * slope
            gauss_newton = gamma * slope**2 + beta
            newton = gauss_newton - gamma * (a - h) * bend
            curvature = tf.where(newton > 1e-3 * beta, newton, gauss_newton)
            trial = tf.clip_by_value(z - scale * gradient / curvature, low, high)
            trial_cost = self._cost(trial, a, m, gamma, beta)
            pays = trial_cost < cost
            scale = tf.where(pays, tf.minimum(4 * scale, tf.ones_like(scale)), scale / 4)
            return k + 1, tf.where(pays, trial, z), tf.where(pays, trial_cost, cost), scale

        loop = (tf.constant(0), start, self._cost(start, a, m, gamma, beta), tf.ones_like(start))
        return tf.while_loop(lambda k, *_: k < _NUM_NEWTON_STEPS, step, loop)[1]


def _tanh_derivatives(z: Any) -> tuple[Any, Any, Any]:
    h = tf.tanh(z)
    slope = 1 - h * h
    return h, slope, -2 * h * slope


def _sigmoid_derivatives(z: Any) -> tuple[Any, Any, Any]:
    h = tf.sigmoid(z)
    slope = h * (1 - h)
    return h, slope, slope * (1 - 2 * h)


def _softplus_derivatives(z: Any) -> tuple[Any, Any, Any]:
    slope = tf.sigmoid(z)
    return tf.math.softplus(z), slope, slope * (1 - slope)


def _gelu(z: Any) -> Any:
    return 0.5 * z * (1 + tf.math.erf(z * math.sqrt(0.5)))


def _gelu_derivatives(z: Any) -> tuple[Any, Any, Any]:
    # h = z Phi(z), h' = Phi + z phi, h'' = (2 - z^2) phi.
    density = tf.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    share = 0.5 * (1 + tf.math.erf(z * math.sqrt(0.5)))
    return z * share, share + z * density, (2 - z * z) * density


#: h(z) = z.
identity = Activation("identity", lambda z: z, pieces=((-math.inf, math.inf, 1.0, 0.0),))
#: The hyperbolic tangent.
tanh = Activation("tanh", tf.tanh, derivatives=_tanh_derivatives, bend=(-8.0, 8.0))
#: h(z) = 1 / (1 + exp(-z)).
sigmoid = Activation("sigmoid", tf.sigmoid, derivatives=_sigmoid_derivatives, bend=(-14.0, 14.0))
#: h(z) = log(1 + exp(z)).
softplus = Activation("softplus", tf.math.softplus, derivatives=_softplus_derivatives, bend=(-14.0, 14.0))
#: h(z) = z Phi(z), with the distribution function Phi of the standard normal distribution: the exact form.
gelu = Activation("gelu", _gelu, derivatives=_gelu_derivatives, bend=(-6.0, 6.0))


def leaky_relu(negative_slope: float) -> Activation:
    """Return h(z) = z for z >= 0 and `negative_slope * z` for z < 0.

    Args:
        negative_slope: The slope for z < 0.

    Returns:
        The activation. Equal slopes return the same object.
    """
    return _leaky_relu(check_number("negative_slope", negative_slope))


@functools.lru_cache
def _leaky_relu(negative_slope: float) -> Activation:
    pieces = ((-math.inf, 0.0, negative_slope, 0.0), (0.0, math.inf, 1.0, 0.0))
    if negative_slope == 0:
        return Activation("relu", tf.nn.relu, pieces=pieces)
    name = f"leaky_relu({negative_slope:g})"
    return Activation(name, lambda z: tf.where(z >= 0, z, negative_slope * z), pieces=pieces)


def clip(maximum: float = 1.0) -> Activation:
    """Return h(z) = z clipped to [0, `maximum`].

    Args:
        maximum: The upper end, > 0. Default 1.

    Returns:
        The activation. Equal ends return the same object.
    """
    return _clip(check_number("maximum", maximum, minimum=0.0, exclusive_minimum=True))


@functools.lru_cache
def _clip(maximum: float) -> Activation:
    pieces = ((-math.inf, 0.0, 0.0, 0.0), (0.0, maximum, 1.0, 0.0), (maximum, math.inf, 0.0, maximum))
    return Activation(f"clip(0, {maximum:g})", lambda z: tf.clip_by_value(z, 0.0, maximum), pieces=pieces)


#: h(z) = max(0, z).
relu = leaky_relu(0.0)
