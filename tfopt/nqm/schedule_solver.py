"""Minimisation of the final loss of SGD over the rates of a piecewise constant schedule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from tfopt._lazy import tf
from tfopt.nqm.constant_rate import moving_part, stable_limit
from tfopt.nqm.kernels import CompiledByShape, problem_tensors
from tfopt.nqm.problem import NoisyQuadratic

OPTIONS = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 30}
# The smallest rate is this factor below the limit of stability, and below the rate that the noise allows.
RANGE = 1e8


class ScheduleSolver:
    """A minimiser of the final loss for any number of steps, which starts from its last solution; no target is None."""

    def __init__(
        self, problem: NoisyQuadratic, batch_size: float, num_pieces: int, power: float, target: float | None = None
    ) -> None:
        problem = moving_part(problem)
        self._num_pieces = num_pieces
        # Rates stay just below the limit, because the noise has no steady state there.
        limit = stable_limit(problem, power) * (1.0 - 1e-9)
        self._limit = float(np.log(limit))
        # At the sustaining rate the noise alone keeps up the target loss: a c h^-p / 4 in each direction.
        noise = float(np.sum(problem.multiplicity * problem.noise_variance * problem.curvature**-power)) / batch_size
        lowest = problem.initial_loss if target is None else target
        sustaining = 4.0 * lowest / noise if lowest > 0 and noise > 0 else limit
        self.least_rate = min(limit, sustaining) / RANGE
        # The next solution starts from the logarithms of the rates of the last one.
        self.logarithms = np.zeros(0)
        parts = problem_tensors(problem)
        scaled = parts.curvature ** (1.0 - power)
        self._slowest = float(tf.reduce_min(scaled))
        self._arguments = (parts, scaled, tf.constant(batch_size, tf.float64))

    def lengths(self, num_steps: int) -> np.ndarray:
        """Return the lengths of the pieces, of shape (min(num_pieces, num_steps),)."""
        count = min(self._num_pieces, num_steps)
        ends = np.round(np.arange(1, count + 1) * (num_steps / count)).astype(np.int64)
        return np.diff(ends, prepend=0)

    def solve(self, num_steps: int, constant: float, constant_loss: float) -> np.ndarray:
        """Return the best rates, of shape (min(num_pieces, num_steps),), given the best constant rate and its loss."""
        tensor = tf.constant(self.lengths(num_steps), tf.float64)
        count = int(tensor.shape[0])

        def loss_and_gradient(rates: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = _schedule_kernel()(tf.constant(rates), tensor, *self._arguments)
            return float(loss.numpy()), gradient.numpy()

        bounds = [(float(np.log(self.least_rate)), self._limit)] * count

        def descend(start: np.ndarray) -> Any:
            return minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=OPTIONS)

        found = min((descend(start) for start in self._starts(count, num_steps)), key=lambda result: result.fun)
        if np.exp(found.fun) > constant_loss and np.log(constant) <= self._limit:
            found = descend(np.full(count, np.log(constant)))
        self.logarithms = found.x
        return np.exp(found.x)

    def _starts(self, count: int, num_steps: int) -> list[np.ndarray]:
        if len(self.logarithms) == count:
            return [self.logarithms]
        # The first guess is the limit, followed by the hyperbola that averages over all examples since then.
        times = (np.arange(count) + 0.5) / count
        decay = -np.log1p(times * num_steps * self._slowest * np.exp(self._limit))
        return [self._limit + np.maximum(decay, -0.5 * np.log(RANGE)), np.full(count, self._limit - 1.0)]


# Returns the logarithm of the final loss, and its gradient with respect to the logarithms of the rates.
@functools.cache
def _schedule_kernel() -> Callable[..., Any]:
    @CompiledByShape
    def kernel(logs, lengths, problem, scaled, batch_size):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            tape.watch(logs)
            rates = tf.exp(logs)[:, None]
            x = rates * scaled
            # This is log (1 - x)^2, without rounding a small x or a small 1 - x. The lower limit avoids log 0.
            rest = tf.abs(1.0 - x)
            near_one = 2.0 * tf.math.log(tf.maximum(rest, 1e-150))
            shrink = tf.where(rest < 0.5, near_one, tf.math.log1p(-tf.minimum(x * (2.0 - x), 0.75)))
            shrink = lengths[:, None] * shrink
            after = tf.cumsum(shrink, axis=0, exclusive=True, reverse=True)
            added = rates * (scaled / problem.curvature) / (problem.curvature * (2.0 - x)) * -tf.math.expm1(shrink)
            moments = tf.reduce_sum(added * tf.exp(after), axis=0) / batch_size
            transient = problem.starts * tf.exp(tf.reduce_sum(shrink, axis=0))
            loss = tf.reduce_sum(transient + problem.noises * moments)
            result = tf.math.log(loss)
        return result, tape.gradient(result, logs)

    return kernel
