"""Candidates for the best settings of each batch size, as points with their steps to the target."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Candidates:
    """Points and their steps to the target, which a search replaces in place.

    Attributes:
        points: Of shape (batch sizes, starts, free settings).
        steps: Of shape (batch sizes, starts); infinity for never, or if undecided.
    """

    points: np.ndarray
    steps: np.ndarray

    def best_first(self, count: int) -> "Candidates":
        """Return the best `count` candidates of each batch size, fewest steps first; ties keep their order."""
        order = np.argsort(self.steps, axis=1, kind="stable")[:, :count]
        points = np.take_along_axis(self.points, order[:, :, None], axis=1)
        return Candidates(points, np.take_along_axis(self.steps, order, axis=1))

    def take(self, rows: np.ndarray) -> "Candidates":
        """Return a copy of the candidates of some batch sizes."""
        return Candidates(self.points[rows], self.steps[rows])

    def join(self, other: "Candidates") -> "Candidates":
        """Return these candidates followed by others of the same batch sizes."""
        points = np.concatenate([self.points, other.points], axis=1)
        return Candidates(points, np.concatenate([self.steps, other.steps], axis=1))
