"""The trace of a matrix that is known only by its products."""

from typing import Any

import numpy as np

from tfopt._checks import check_integer
from tfopt.curvature.estimate import Estimate
from tfopt.curvature.linear_map import as_linear_map

AT_ONCE = 8  # vectors that are multiplied together


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
        for start in range(0, num_matvecs, AT_ONCE):
            count = min(AT_ONCE, num_matvecs - start)
            signs = [rng.choice(np.array([-1.0, 1.0], linear.dtype), linear.size) for _ in range(count)]
            for one, product in zip(signs, linear.matmat(np.stack(signs).T).T, strict=True):
                draws.append(one.astype(np.float64) @ np.asarray(product, np.float64))
    return Estimate.from_draws(draws, linear.batch_norm)
