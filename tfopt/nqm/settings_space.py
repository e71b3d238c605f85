"""The settings that a search may choose, as points."""

import numpy as np

from tfopt.nqm.algorithm import Algorithm, largest_stable_learning_rate
from tfopt.nqm.problem import NoisyQuadratic

# Momentum and decay come no closer to 1 than this.
CLOSEST_TO_ONE = 1e-10


class SettingsSpace:
    """The free settings of a family as points: logarithms of a / (1 - beta), 1 - beta and 1 - gamma."""

    def __init__(self, family: str, power: float, largest_momentum: float = 1.0 - CLOSEST_TO_ONE) -> None:
        # At small batches the loss depends on learning rate and momentum almost only through a / (1 - beta).
        self.power = power
        self._least = max(1.0 - largest_momentum, CLOSEST_TO_ONE)  # This is the smallest 1 - beta.
        self.nesterov = family == "nesterov"
        self.has_momentum = family in ("momentum", "nesterov", "momentum_ema")
        self.has_average = family in ("ema", "momentum_ema")
        self.num_free = 1 + self.has_momentum + self.has_average

    def algorithm(self, points: np.ndarray) -> Algorithm:
        """Return the settings of points of shape (k, num_free)."""
        rest = np.exp(points[:, 1:])
        momentum, decay = np.zeros(len(points)), np.zeros(len(points))
        if self.has_momentum:
            momentum = 1.0 - np.clip(rest[:, 0], self._least, 1.0)
        if self.has_average:
            decay = 1.0 - np.clip(rest[:, -1], CLOSEST_TO_ONE, 1.0)
        return Algorithm(np.exp(points[:, 0]) * (1.0 - momentum), momentum, self.nesterov, decay, self.power)

    def grid(self, problem: NoisyQuadratic, sizes: np.ndarray, target: float) -> tuple[np.ndarray, ...]:
        """Return the coordinates of the first grid, whose shape depends on the family alone."""
        # The lowest rate is a fiftieth of that at which the smallest batch's noise, a c h^-p / 4 in each direction,
        # sustains the target. At the highest rate SGD is unstable along all directions.
        curvature = problem.curvature ** (1.0 - self.power)
        limit = float(largest_stable_learning_rate(problem, preconditioner_power=self.power))
        noise = float(np.sum(problem.multiplicity * problem.noise_variance * problem.curvature**-self.power))
        least = 0.02 * min(4.0 * sizes.min() * target / noise if noise else limit, limit)
        counts = {1: (128,), 2: (80, 48), 3: (36, 20, 20)}[self.num_free]
        highest = (np.log(16.0 / curvature.min()), 0.0, 0.0)[: self.num_free]
        lowest = [np.log(least)]
        if self.has_momentum:
            lowest.append(np.log(self._least))
        if self.has_average:
            lowest.append(np.log(CLOSEST_TO_ONE))
        return tuple(np.linspace(low, high, count) for low, high, count in zip(lowest, highest, counts, strict=True))
