"""The trace of a matrix that is known only by its products."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfopt._checks import check_integer
from tfopt._record import Record
from tfopt.curvature.linear_map import as_linear_map


@dataclass(frozen=True)
class Estimate(Record):
    """A mean over random draws.

    Attributes:
        value: The mean.
        standard_error: Standard error of the mean; NaN for a single draw.
        num_draws: Number of draws.
        batch_norm: How batch normalisation was computed, "batch" or "moving"; None for a matrix without a model.
    """

    value: float
    standard_error: float
    num_draws: int
    batch_norm: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, draws: Any, batch_norm: str | None = None) -> "Estimate":
        """Return the mean of draws.

        Args:
            draws: Independent draws, of shape (k,) with k >= 1.
            batch_norm: How batch normalisation was computed, "batch" or "moving"; None (default) without a model.

        Returns:
            The mean, and its standard error: the sample's standard deviation over the square root of k.
        """
        draws = np.asarray(draws, np.float64)
        error = draws.std(ddof=1) / np.sqrt(len(draws)) if len(draws) > 1 else np.nan
        return cls(float(draws.mean()), float(error), len(draws), batch_norm)


def trace(operator: Any, num_matvecs: int = 30, seed: int = 0) -> Estimate:
    """Estimate the trace of a symmetric matrix: the mean of z'Az over random signs z (Hutchinson, 1990).

    A single draw is exact for a diagonal matrix. In general the variance of one draw is twice the sum of the squares of
    the off-diagonal entries.

    Args:
        operator: A symmetric matrix, as `extremal_eigenvalues` takes it.
        num_matvecs: Number of draws, with one product each, >= 1. Default 30.
        seed: Seed of the signs, an integer >= 0. Default 0.

    Returns:
        The estimate with its standard error.

    Raises:
        TypeError: `operator` is not a matrix.
        ValueError: An argument is out of its range.

    Example:
        >>> trace(np.diag([1.0, 2.0, 5.0]), num_matvecs=2)
        Estimate(value=8.0, standard_error=0.0, num_draws=2)
    """
    linear = as_linear_map(operator)
    check_integer("num_matvecs", num_matvecs, minimum=1)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    draws = []
    with linear.shared():
        for _ in range(num_matvecs):
            signs = rng.choice(np.array([-1.0, 1.0], linear.dtype), linear.size)
            draws.append(signs.astype(np.float64) @ np.asarray(linear.matvec(signs), np.float64))
    return Estimate.of(draws, linear.batch_norm)
