"""Checks of a plan's options, and predicted steps with their intervals."""

import math
import warnings
from typing import Any

import numpy as np

from tfopt import nqm
from tfopt._checks import as_items, check_choice, check_integer, check_number, check_shape
from tfopt.nqm.algorithm import FAMILIES
from tfopt.planning.interval import Interval
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit

LARGEST_PLANNED = 2**16
# Each draw of runs tries these multiples of the best rates.
RATES_AROUND = 2.0 ** np.arange(-1.0, 1.5, 0.5)


def check_options(
    batch_sizes: Any, families: Any, largest_momentum: Any, level: Any, draws: Any, seed: Any, num_examples: float
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Check the arguments that do not depend on the fit; return the batch sizes, and each family once."""
    # `num_examples` is infinite as long as the number of rows is unknown.
    expected = f"be a list of {', '.join(map(repr, FAMILIES))}"
    families = as_items("families", families, expected)
    if not families:
        raise ValueError(f"`families` must {expected}. Received: an empty one")
    for family in families:
        check_choice("families", family, FAMILIES)
    check_number("largest_momentum", largest_momentum, minimum=0.0, maximum=1.0, exclusive_maximum=True)
    check_number("level", level, minimum=0.0, maximum=1.0, exclusive_minimum=True, exclusive_maximum=True)
    check_integer("draws", draws, minimum=20)
    check_integer("seed", seed, minimum=0)
    if batch_sizes is None:
        most = int(min(num_examples, LARGEST_PLANNED))
        sizes = 2 ** np.arange(most.bit_length())
    else:
        sizes = np.array(check_shape("batch_sizes", batch_sizes))
    if len(sizes) < 3 or (np.diff(sizes) <= 0).any() or sizes[-1] > num_examples:
        raise ValueError(
            f"`batch_sizes` must be three or more, rising, up to the {num_examples:g} rows of the data. "
            f"Received: {sizes.tolist()}"
        )
    return sizes, tuple(dict.fromkeys(families))


def check_target(target_loss: Any, fit: NoisyQuadraticFit) -> float:
    """Return the target, or a default for None, if the fitted quadratic passes it; raise ValueError otherwise."""
    floor, start, here = fit.floor, fit.quadratic_initial_loss, float(fit.loss.mean())
    if floor < -0.5 * here < 0.0:  # A floor slightly below zero may be chance.
        warnings.warn(
            f"The fitted quadratic's minimum lies at a loss of {floor:.3g}: unless the model's loss can be negative, "
            "the quadratic overestimates the possible gain, and predicts too few steps. Fit after a longer pilot that "
            "does not end at a spike of the loss",
            stacklevel=3,
        )
    if target_loss is None:
        target_loss = here if fit.is_displaced else floor + 0.1 * (start - floor)
        if target_loss < 0.0 < here:
            raise ValueError(
                f"`target_loss` must be given: a tenth of the way up from the fitted quadratic's minimum, {floor:.4g}, "
                f"would be {target_loss:.4g}. Or train a pilot, and pass the weights before it as `initial_weights`"
            )
        if fit.is_displaced and here <= floor:
            raise ValueError(
                f"`target_loss` must be given: the model's loss, {here:.4g}, is that of the fitted quadratic's "
                "minimum, which training reaches only in the limit"
            )
    check_number("target_loss", target_loss)
    if not floor < target_loss < start:
        hint = (
            "Fit after a longer pilot, at a lower loss"
            if target_loss <= floor
            else "It is reached before the first step. Choose a lower target"
        )
        raise ValueError(
            f"`target_loss` must lie between the fitted quadratic's floor, {floor:.4g}, and its loss where training "
            f"starts, {start:.4g}. Received: target_loss={target_loss:.4g}. {hint}"
        )
    return float(target_loss)


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
    level: float,
    draws: int,
    seed: int,
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

    replicates = fit.interval(predict, level, draws, seed)
    value = np.append(best.steps, _critical(sizes, best.steps))
    low = np.maximum(replicates.low, 0.0)  # The lower end of an unknown number is minus infinity.
    parts = [Interval(value[at], low[at], replicates.high[at], level) for at in (slice(-1), -1)]
    return parts[0], parts[1]


def _critical(sizes: np.ndarray, steps: np.ndarray) -> float:
    reached = np.isfinite(steps) & (steps > 0)
    if reached.sum() < 3:
        return math.nan
    try:
        return nqm.critical_batch_size((sizes[reached], steps[reached])).batch_size
    except ValueError:
        return math.inf
