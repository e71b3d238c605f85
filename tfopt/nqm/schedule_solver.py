"""Minimises the final loss of SGD over the rates of a piecewise constant schedule."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from tfopt.nqm.algorithm import largest_stable_learning_rate
from tfopt.nqm.kernels import CompiledByShape, problem_tensors
from tfopt.nqm.problem import NoisyQuadratic

OPTIONS = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 30}
RANGE = 1e8  # a rate is at least the limit of stability divided by this


class ScheduleSolver:
    """Minimises the final loss for any number of steps, each time from the last solution.

    Args:
        problem: The problem.
        batch_size: B.
        num_pieces: Largest number of pieces.
        power: p.

    Attributes:
        logarithms: Those of the last solution's rates, from which the next one starts.
    """

    def __init__(self, problem: NoisyQuadratic, batch_size: float, num_pieces: int, power: float) -> None:
        self._num_pieces = num_pieces
        # Just below the limit, where the noise still has a steady state.
        self._limit = float(np.log(largest_stable_learning_rate(problem, preconditioner_power=power) * (1.0 - 1e-9)))
        self.logarithms = np.zeros(0)
        parts = problem_tensors(problem)
        scaled = parts[0] ** (1.0 - power)
        self._slowest = float(tf.reduce_min(scaled))
        self._arguments = (*parts, scaled, tf.constant(batch_size, tf.float64))

    def solve(self, num_steps: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Minimise the final loss of some steps.

        Args:
            num_steps: How many.

        Returns:
            The pieces' lengths and rates, of shape (min(num_pieces, num_steps),), and the final loss.
        """
        count = min(self._num_pieces, num_steps)
        ends = np.round(np.arange(1, count + 1) * (num_steps / count)).astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        tensor = tf.constant(lengths, tf.float64)

        def loss_and_gradient(rates: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = _schedule_kernel()(tf.constant(rates), tensor, *self._arguments)
            return float(loss.numpy()), gradient.numpy()

        bounds = [(self._limit - np.log(RANGE), self._limit)] * count
        found = min(
            (
                minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=OPTIONS)
                for start in self._starts(count, num_steps)
            ),
            key=lambda result: result.fun,
        )
        self.logarithms = found.x
        return lengths, np.exp(found.x), float(np.exp(found.fun))

    def _starts(self, count: int, num_steps: int) -> list[np.ndarray]:
        if len(self.logarithms) == count:
            return [self.logarithms]
        # The limit at first, then the hyperbola of an average over all examples since.
        places = (np.arange(count) + 0.5) / count
        decay = -np.log1p(places * num_steps * self._slowest * np.exp(self._limit))
        return [self._limit + np.maximum(decay, -0.5 * np.log(RANGE)), np.full(count, self._limit - 1.0)]


# Logarithm of the final loss and its gradient in the logarithms of the rates.
@functools.cache
def _schedule_kernel() -> Callable[..., Any]:
    @CompiledByShape
    def kernel(logs, lengths, curvature, starts, noises, scaled, batch_size):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            tape.watch(logs)
            rates = tf.exp(logs)[:, None]
            x = rates * scaled
            # (1 - x)^2 = 1 - x (2 - x); exactly 0 would have no logarithm.
            shrink = lengths[:, None] * tf.math.log1p(-tf.minimum(x * (2.0 - x), 1.0 - 1e-15))
            after = tf.cumsum(shrink, axis=0, exclusive=True, reverse=True)
            added = rates * (scaled / curvature) / (curvature * (2.0 - x)) * -tf.math.expm1(shrink)
            moments = tf.reduce_sum(added * tf.exp(after), axis=0) / batch_size
            loss = tf.reduce_sum(starts * tf.exp(tf.reduce_sum(shrink, axis=0)) + noises * moments)
            result = tf.math.log(loss)
        return result, tape.gradient(result, logs)

    return kernel
