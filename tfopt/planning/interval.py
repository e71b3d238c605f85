"""Bootstrap intervals from a few independent runs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, t

from tfopt._record import Record

FEWEST_DRAWS = 20


@dataclass(frozen=True, eq=False, repr=False)
class Interval(Record):
    """An estimate of a number or an array, with a confidence interval.

    Attributes:
        value: The estimate.
        low: The lower end, of the estimate's shape.
        high: The upper end, of the estimate's shape.
        confidence: The probability that the interval holds the true value, in (0, 1).
    """

    value: Any
    low: Any
    high: Any
    confidence: float

    def __repr__(self) -> str:
        if np.ndim(self.value):
            return f"Interval of shape {np.shape(self.value)} of confidence {self.confidence:g}"
        return describe(self, "infinity")


def bootstrap(
    function: Callable[[np.ndarray], Any],
    num_runs: int,
    confidence: float,
    num_draws: int,
    seed: int,
    is_over: Callable[[], bool] = lambda: False,
) -> Interval:
    """Estimate `function` of indices of runs, with an interval from `num_draws` draws of runs with replacement."""
    # The draws end early where `is_over`, but not before there are enough of them.
    rng = np.random.default_rng(seed)
    value = function(np.arange(num_runs))
    replicates: list[Any] = []
    while len(replicates) < num_draws and not (len(replicates) >= FEWEST_DRAWS and is_over()):
        replicates.append(function(rng.integers(num_runs, size=num_runs)))
    low, high = expanded_percentiles(np.array(replicates), num_runs, confidence)
    return Interval(value, low, high, confidence)


def expanded_percentiles(replicates: np.ndarray, num_runs: int, confidence: float) -> tuple[Any, Any]:
    """Return both ends, of shape (...), of the interval from replicates of shape (num_draws, ...)."""
    # This is the expanded percentile interval (Hesterberg, "What teachers should know about the bootstrap", The
    # American Statistician 69, 2015, section 5.3.1). Student's t and the factor n / (n - 1) of the variance move the
    # quantiles outwards, because intervals from few runs are too narrow otherwise. Infinity counts as the largest
    # number, and NaN as both ends.
    expanded = math.sqrt(num_runs / (num_runs - 1)) * t.ppf(0.5 + 0.5 * confidence, num_runs - 1)
    tail = float(norm.sf(expanded))
    # Ends are order statistics, because no interpolation between a number and infinity makes sense.
    last = len(replicates) - 1
    low = np.sort(np.where(np.isnan(replicates), -np.inf, replicates), axis=0)[math.floor(tail * last)]
    high = np.sort(np.where(np.isnan(replicates), np.inf, replicates), axis=0)[math.ceil((1.0 - tail) * last)]
    return (low, high) if replicates.ndim > 1 else (float(low), float(high))


def describe(interval: Interval, infinity: str) -> str:
    """Return an interval of a number as text, with a word for infinity: "value (low to high)"; "unknown" for NaN."""

    def short(number: float) -> str:
        if math.isinf(number):
            return infinity if number > 0 else f"minus {infinity}"
        return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"

    if math.isnan(interval.value):
        return "unknown"
    return f"{short(interval.value)} ({short(interval.low)} to {short(interval.high)})"
