"""Where larger batches stop paying, and the fewest steps that any algorithm could take."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, least_squares

from tfopt._checks import check_choice, check_number
from tfopt.nqm._checks import check_kind, check_values
from tfopt.nqm.algorithm import check_batch_size
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.search import OptimalSettings

DEFINITIONS = ("examples", "steps", "asymptotes")


@dataclass(frozen=True)
class CriticalBatchSize:
    """A critical batch size, with the numbers that it comes from.

    Attributes:
        batch_size: The critical batch size.
        definition: "examples", "steps" or "asymptotes", see `critical_batch_size`.
        least_examples: The fewest examples (steps times batch size) on the curve, reached at small batches.
        fewest_steps: The fewest steps on the curve, reached at large batches.
        hyperbola: The batch size Bc of the hyperbola steps = s (1 + Bc / B) that fits the curve best in logarithms.
        fit_error: By how much that hyperbola misses the steps, root mean square of the logarithms: 0.1 is about 10%.
    """

    batch_size: float
    definition: str
    least_examples: float
    fewest_steps: float
    hyperbola: float
    fit_error: float


def critical_batch_size(curve: Any, definition: str = "examples") -> CriticalBatchSize:
    """Return the batch size from which on larger batches save few steps.

    Three definitions that agree only where the curve is a hyperbola steps = s (1 + Bc / B), which it is not:
    where the examples used are twice the fewest ("examples"); where the steps are twice the fewest ("steps"); the
    fewest examples divided by the fewest steps ("asymptotes"). The curve is interpolated in logarithms.

    Args:
        curve: What `optimize` returned, or a pair of batch sizes and steps, of shape (k,) each with k >= 3. It should
            begin where steps fall in proportion to the batch size, and end where they hardly fall any more.
        definition: "examples" (default), "steps" or "asymptotes".

    Returns:
        The critical batch size.

    Raises:
        TypeError: `curve` is neither.
        ValueError: The curve is too short, or does not reach twice the fewest; the message says which end is missing.

    Example:
        >>> sizes = 2.0 ** np.arange(-10, 20)
        >>> round(critical_batch_size((sizes, 100 * (1 + 64 / sizes))).batch_size)
        64
    """
    sizes, steps = _check_curve(curve)
    check_choice("definition", definition, DEFINITIONS)
    examples = sizes * steps
    fit = least_squares(
        lambda logs: _log_hyperbola(logs, np.log(sizes)) - np.log(steps), np.log([steps.min(), examples.min()])
    )
    # What the hyperbola misses is smooth, and is interpolated.
    missed = PchipInterpolator(np.log(sizes), -fit.fun)

    def log_steps(log_size: float) -> float:
        return float(_log_hyperbola(fit.x, log_size) + missed(log_size))

    if definition == "examples":
        level = np.log(2.0 * examples.min())
        found = _crossing(lambda log_size: log_steps(log_size) + log_size - level, sizes, examples, "larger")
    elif definition == "steps":
        level = np.log(2.0 * steps.min())
        found = _crossing(lambda log_size: log_steps(log_size) - level, sizes[::-1], steps[::-1], "smaller")
    else:
        found = examples.min() / steps.min()
    return CriticalBatchSize(
        batch_size=float(found),
        definition=definition,
        least_examples=float(examples.min()),
        fewest_steps=float(steps.min()),
        hyperbola=float(np.exp(fit.x[1] - fit.x[0])),
        fit_error=float(np.sqrt(np.mean(fit.fun**2))),
    )


def information_bound(problem: NoisyQuadratic, batch_size: Any, target_loss: float) -> np.ndarray:
    """Return the number of steps that no algorithm can beat, even one that knows the problem.

    Gradients at any point tell theta's distance to the optimum along direction i with variance c_i / h_i^2 an example.
    With E theta_i(0)^2 = m_i known beforehand, n examples leave a loss of 1/2 sum_i h_i m_i / (1 + n m_i h_i^2 / c_i),
    which a Kalman filter's gain attains for Gaussian noise. The bound is the smallest n that brings it to the target,
    over B.

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


def _log_hyperbola(logs: np.ndarray, log_size: Any) -> Any:
    return np.logaddexp(logs[0], logs[1] - log_size)


def _crossing(excess: Callable[[float], float], sizes: np.ndarray, values: np.ndarray, missing: str) -> float:
    # From their minimum on, the values rise from left to right, up to twice the minimum and beyond.
    level = 2.0 * values.min()
    above = np.flatnonzero((values >= level) & (np.arange(len(values)) > np.argmin(values)))
    if not len(above):
        raise ValueError(
            f"`curve` must reach {level:g}, twice its fewest, and ends at {values[-1]:g}: add {missing} batch sizes"
        )
    before, after = np.log(sizes[above[0] - 1 : above[0] + 1])
    return float(np.exp(brentq(excess, before, after) if excess(after) > 0 else after))


def _check_curve(curve: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(curve, OptimalSettings):
        curve = curve.batch_size, curve.steps
    if not isinstance(curve, (tuple, list)) or len(curve) != 2:
        raise TypeError(
            f"`curve` must be what `optimize` returned, or a pair of batch sizes and steps. Received: {curve!r}"
        )
    sizes, steps = (check_values("curve", part) for part in curve)
    if sizes.ndim != 1 or sizes.shape != steps.shape or len(sizes) < 3:
        raise ValueError(
            "`curve` must hold three or more batch sizes and as many steps. Received shapes "
            f"{sizes.shape} and {steps.shape}"
        )
    if not ((sizes > 0) & (steps > 0)).all() or len(set(sizes)) < len(sizes):
        raise ValueError(
            "`curve` must hold distinct batch sizes > 0 and steps > 0; none are taken where the target is not "
            "below the initial loss"
        )
    order = np.argsort(sizes)
    return sizes[order], steps[order]
