"""SGD at a constant rate: exact second moments at any rate, and the rate with the lowest loss after some steps."""

import numpy as np
from scipy.optimize import minimize_scalar

from tfopt.nqm.algorithm import largest_stable_learning_rate
from tfopt.nqm.problem import NoisyQuadratic

NUM_GRID_RATES = 400
NUM_REFINED_MINIMA = 3
# Losses are clipped to this range, so that their logarithms are finite.
FINITE = (1e-300, 1e300)


class ConstantRate:
    """SGD at a constant rate, stable or not, with batch size B and preconditioner power p."""

    def __init__(self, problem: NoisyQuadratic, batch_size: float, power: float) -> None:
        self._problem, self._power = problem, power
        self._scaled = problem.curvature ** (1.0 - power)
        self._weights = 0.5 * problem.multiplicity * problem.curvature
        # This is the variance that a step adds, divided by the square of the rate.
        self._noise = problem.noise_variance * problem.curvature ** (-2.0 * power) / batch_size

    def losses(self, rates: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Return the losses at the ends of pieces, of shape (pieces + 1,); infinite where they overflow."""
        moments = self._problem.initial_second_moment
        found = [self._loss(moments)]
        for rate, length in zip(rates, lengths, strict=True):
            moments = self._moments(float(rate), float(length), moments)
            found.append(self._loss(moments))
        return np.array(found)

    def _loss(self, moments: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            return float(np.sum(self._weights * moments))

    def _moments(self, rate: float, num_steps: float, start: np.ndarray) -> np.ndarray:
        x = rate * self._scaled
        # This is (1 - x)^2 - 1, without rounding a small x.
        change = x * (x - 2.0)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            # This is log (1 - x)^2, without rounding a small x or a small 1 - x.
            growth = num_steps * np.where(np.abs(1.0 - x) < 0.5, 2.0 * np.log(np.abs(1.0 - x)), np.log1p(change))
            # This is the sum of the powers of (1 - x)^2 from 0 to num_steps - 1.
            powers = np.where(change == 0, num_steps, np.expm1(growth) / change)
            moved = np.where(start > 0, np.exp(growth) * start, 0.0)
            found = moved + np.where(self._noise > 0, rate * rate * self._noise * powers, 0.0)
        return np.where(np.isnan(found), np.inf, found)

    def best(self, num_steps: int, least: float) -> float:
        """Return the rate >= `least` with the lowest loss after some steps."""
        # The grid ends where all directions diverge. Its best local minima are refined.
        start = self._problem.initial_second_moment
        moving = moving_part(self._problem).curvature
        highest = 2.0 / float(moving.min() ** (1.0 - self._power))

        def log_loss(logarithm: float) -> float:
            loss = self._loss(self._moments(float(np.exp(logarithm)), float(num_steps), start))
            return float(np.log(np.clip(loss, *FINITE)))

        grid = np.linspace(np.log(least), np.log(highest), NUM_GRID_RATES)
        losses = np.array([log_loss(point) for point in grid])
        wall = np.pad(losses, 1, constant_values=np.inf)
        minima = np.flatnonzero((losses <= wall[:-2]) & (losses <= wall[2:]))
        candidates = [(losses[index], grid[index]) for index in minima]
        for index in minima[np.argsort(losses[minima])][:NUM_REFINED_MINIMA]:
            bounds = grid[max(index - 1, 0)], grid[min(index + 1, NUM_GRID_RATES - 1)]
            found = minimize_scalar(log_loss, bounds=bounds, method="bounded", options={"xatol": 1e-10})
            candidates.append((found.fun, found.x))
        return float(np.exp(min(candidates)[1]))


def moving_part(problem: NoisyQuadratic) -> NoisyQuadratic:
    """Return the problem without the directions that never move; the whole problem if none moves."""
    moves = (problem.noise_variance > 0) | (problem.initial_second_moment > 0)
    if moves.all() or not moves.any():
        return problem
    names = ("curvature", "noise_variance", "multiplicity", "initial_second_moment")
    return NoisyQuadratic(*(getattr(problem, name)[moves] for name in names))


def stable_limit(problem: NoisyQuadratic, power: float) -> float:
    """Return the rate's limit of stability over the directions that move."""
    return float(largest_stable_learning_rate(moving_part(problem), preconditioner_power=power))
