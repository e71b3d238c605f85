"""The fewest steps that any algorithm can take to a target loss."""

from typing import Any

import numpy as np
from scipy.optimize import brentq

from tfopt._checks import check_number
from tfopt.nqm._checks import check_kind
from tfopt.nqm.algorithm import check_batch_size
from tfopt.nqm.problem import NoisyQuadratic


def information_bound(problem: NoisyQuadratic, batch_size: Any, target_loss: float) -> np.ndarray:
    """Return the fewest steps that any algorithm can take, even one that knows the problem.

    A gradient at any point measures theta's distance to the optimum along direction i, with variance c_i / h_i^2 per
    example. If E theta_i(0)^2 = m_i is known beforehand, n examples leave a loss of 1/2 sum_i h_i m_i / (1 + n m_i
    h_i^2 / c_i), which a Kalman filter attains for Gaussian noise. The bound is the smallest n that reaches the target,
    divided by B.

    Args:
        problem: The problem.
        batch_size: B, > 0.
        target_loss: The target, > 0.

    Returns:
        Numbers of steps, not rounded, of the batch sizes' shape.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> bound = information_bound(NoisyQuadratic.power_law(), [1, 1024], target_loss=0.01)
        >>> np.ceil(bound).tolist()
        [495017.0, 484.0]
    """
    check_kind("problem", problem, NoisyQuadratic)
    sizes = check_batch_size(batch_size)
    check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    start = problem.multiplicity * problem.curvature * problem.initial_second_moment
    noisy = problem.noise_variance > 0
    gain = problem.initial_second_moment[noisy] * problem.curvature[noisy] ** 2 / problem.noise_variance[noisy]

    def excess(examples: float) -> float:
        return float(np.log(0.5 * np.sum(start[noisy] / (1.0 + examples * gain))) - np.log(target_loss))

    if problem.initial_loss <= target_loss or not start[noisy].any() or excess(0.0) <= 0:
        return np.zeros(sizes.shape)
    high = 1.0
    while excess(high) > 0:
        high *= 2.0
    return np.asarray(brentq(excess, 0.0, high, xtol=1e-12 * high, rtol=1e-14) / sizes)
