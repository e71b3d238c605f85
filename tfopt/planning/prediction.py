"""Predicted steps and critical batch sizes of a fit, with their intervals."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tfopt import nqm
from tfopt.planning.interval import Interval, bootstrap
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit

# Each draw of runs tries these multiples of the best rates.
RATES_AROUND = 2.0 ** np.arange(-1.0, 1.5, 0.5)


def find_best(
    fit: NoisyQuadraticFit, family: str, sizes: Any, target: float, largest_momentum: float
) -> nqm.OptimalSettings:
    """Return the settings that take the fitted quadratic to a target above its floor in the fewest steps."""
    # The result has the effective batch sizes, and losses above the floor.
    effective = fit.effective_batch_size(sizes)
    height = target - fit.floor
    return nqm.optimize(fit.problem, family, effective, height, largest_momentum=largest_momentum, progress=False)


def intervals(
    fit: NoisyQuadraticFit,
    best: nqm.OptimalSettings,
    sizes: np.ndarray,
    target: float,
    confidence: float,
    num_draws: int,
    seed: int,
    is_over: Callable[[], bool],
) -> tuple[Interval, Interval]:
    """Return the steps at the best settings of all batch sizes, and the critical batch size, with intervals."""
    # For each draw of runs, only rates around the best ones are searched. A search of the whole space would be slow.
    settings = best.algorithm
    rates = RATES_AROUND[:, None] * settings.learning_rate
    around = nqm.Algorithm(rates, settings.momentum, settings.nesterov, settings.ema_decay)

    def predict(part: NoisyQuadraticFit) -> np.ndarray:
        steps = np.full(len(sizes), np.inf)
        if target > part.floor:
            try:
                steps = nqm.steps_to_target(part.problem, around, best.batch_size, target - part.floor).min(axis=0)
            except RuntimeError:  # The loss oscillates for too long to decide.
                steps[:] = np.nan
        return np.append(steps, _critical(sizes, steps))

    def of_runs(runs: np.ndarray) -> np.ndarray:
        return predict(fit.take(runs))

    replicates = bootstrap(of_runs, fit.num_runs, confidence, num_draws, seed, is_over)
    value = np.append(best.steps, _critical(sizes, best.steps))
    low = np.maximum(replicates.low, 0.0)  # The lower end of an unknown number is minus infinity.
    parts = [Interval(value[at], low[at], replicates.high[at], confidence) for at in (slice(-1), -1)]
    return parts[0], parts[1]


def _critical(sizes: np.ndarray, steps: np.ndarray) -> float:
    reached = np.isfinite(steps) & (steps > 0)
    if reached.sum() < 3:
        return math.nan
    try:
        return nqm.critical_batch_size((sizes[reached], steps[reached])).batch_size
    except ValueError:
        return math.inf
