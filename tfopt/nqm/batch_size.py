"""The critical batch size, above which larger batches save few steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq, least_squares

from tfopt._checks import check_choice
from tfopt._record import Record
from tfopt.nqm._checks import check_values
from tfopt.nqm.search import OptimalSettings

DEFINITIONS = ("examples", "steps", "asymptotes")


@dataclass(frozen=True)
class CriticalBatchSize(Record):
    """A critical batch size, with the numbers from which it follows.

    Attributes:
        batch_size: The critical batch size.
        definition: "examples", "steps" or "asymptotes", see `critical_batch_size`.
        least_examples: The fewest examples (steps times batch size) on the curve, reached at small batches.
        fewest_steps: The fewest steps on the curve, reached at large batches.
        hyperbola: The batch size Bc of the hyperbola steps = s (1 + Bc / B) that fits the curve best in logarithms.
        fit_error: Root mean square error of that hyperbola, in logarithms of steps: 0.1 is about 10%.
    """

    batch_size: float
    definition: str
    least_examples: float
    fewest_steps: float
    hyperbola: float
    fit_error: float


def critical_batch_size(curve: Any, definition: str = "examples") -> CriticalBatchSize:
    """Return the batch size above which larger batches save few steps.

    The three definitions agree only if the curve is a hyperbola steps = s (1 + Bc / B), and real curves are not.
    "examples": the batch size that uses twice the fewest examples. "steps": the batch size that takes twice the fewest
    steps. "asymptotes": the fewest examples divided by the fewest steps. The curve is interpolated in logarithms.

    Args:
        curve: The result of `optimize`, or a pair of batch sizes and steps, of shape (k,) each with k >= 3. It should
            begin where the steps fall in proportion to the batch size, and end where they hardly fall any more.
        definition: "examples" (default), "steps" or "asymptotes".

    Returns:
        The critical batch size.

    Raises:
        TypeError: `curve` has another type.
        ValueError: The curve is too short, or does not reach twice the fewest examples or steps; the message says at
            which end batch sizes are missing.

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
    # The residual of the hyperbola is smooth, so that it can be interpolated.
    residual = PchipInterpolator(np.log(sizes), -fit.fun)

    def log_steps(log_size: float) -> float:
        return float(_log_hyperbola(fit.x, log_size) + residual(log_size))

    if definition == "examples":
        threshold = np.log(2.0 * examples.min())
        found = _crossing(lambda log_size: log_steps(log_size) + log_size - threshold, sizes, examples, "larger")
    elif definition == "steps":
        threshold = np.log(2.0 * steps.min())
        found = _crossing(lambda log_size: log_steps(log_size) - threshold, sizes[::-1], steps[::-1], "smaller")
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


def _log_hyperbola(logs: np.ndarray, log_size: Any) -> Any:
    return np.logaddexp(logs[0], logs[1] - log_size)


def _crossing(excess: Callable[[float], float], sizes: np.ndarray, values: np.ndarray, missing: str) -> float:
    # To the right of their minimum, the values rise to twice the minimum and above.
    threshold = 2.0 * values.min()
    above = np.flatnonzero((values >= threshold) & (np.arange(len(values)) > np.argmin(values)))
    if not len(above):
        raise ValueError(
            f"`curve` must reach {threshold:g}, twice its smallest value. Received: an end at {values[-1]:g}. To "
            f"extend the curve, add {missing} batch sizes"
        )
    before, after = np.log(sizes[above[0] - 1 : above[0] + 1])
    return float(np.exp(brentq(excess, before, after) if excess(after) > 0 else after))


def _check_curve(curve: Any) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(curve, OptimalSettings):
        curve = curve.batch_size, curve.steps
    if not isinstance(curve, (tuple, list)) or len(curve) != 2:
        raise TypeError(
            f"`curve` must be the result of `optimize`, or a pair of batch sizes and steps. Received: {curve!r}"
        )
    sizes, steps = (check_values("curve", part) for part in curve)
    if sizes.ndim != 1 or sizes.shape != steps.shape or len(sizes) < 3:
        raise ValueError(
            "`curve` must hold three or more batch sizes and as many steps. Received shapes "
            f"{sizes.shape} and {steps.shape}"
        )
    if not ((sizes > 0) & (steps > 0)).all() or len(set(sizes)) < len(sizes):
        raise ValueError(
            "`curve` must hold distinct batch sizes > 0 and steps > 0. No steps are taken where the target is not "
            "below the initial loss"
        )
    order = np.argsort(sizes)
    return sizes[order], steps[order]
