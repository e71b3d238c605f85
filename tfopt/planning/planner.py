"""From a Keras model to a plan: a fit, then a search."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tfopt._checks import as_items, check_choice, check_integer, check_number, check_shape
from tfopt._progress import Progress
from tfopt.curvature import Objective
from tfopt.curvature.objective import check_objective
from tfopt.nqm.algorithm import FAMILIES
from tfopt.planning.budget import Budget
from tfopt.planning.fit import check_budget, check_examples, fit_noisy_quadratic
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit
from tfopt.planning.plan import BatchSizePlan
from tfopt.planning.prediction import find_best, intervals

LARGEST_PLANNED = 2**16
# The search for a family takes about this many seconds in its first call, which compiles. Fits leave them at most half
# of the time.
SECONDS_OF_A_FAMILY = 5.0
FAMILIES_BY_DEFAULT = ("sgd", "momentum", "ema")
PLAN_OPTIONS = ("batch_sizes", "families", "largest_momentum", "confidence", "num_draws")


def plan_batch_size(
    objective: Objective,
    target_loss: float | None = None,
    budget_seconds: float | None = 45.0,
    *,
    progress: bool | None = None,
    seed: int = 0,
    **options: Any,
) -> BatchSizePlan:
    """Predict steps to a target loss for every batch size, from a noisy quadratic fitted to a Keras model.

    Train a short pilot to about the target, and pass the weights before the pilot as `initial_weights`; see
    `fit_noisy_quadratic`.

    Args:
        objective: An `Objective` on the training data, or on a random part of them, see `fit_noisy_quadratic`.
        target_loss: The training loss to reach, with dropout off and regularisation included. It must lie above the
            fitted quadratic's floor. None (default) means the model's current loss if `initial_weights` is given;
            otherwise a tenth of the way up from the floor to the quadratic's loss now.
        budget_seconds: Time limit in seconds, > 0, compilation included, or None for no limit. Default 45. Five seconds
            for each family, but at most half of the time, are for the search; the fit has the rest, see
            `fit_noisy_quadratic`. If time ends in the search, intervals rest on fewer draws (at least 20), and a
            warning names families that were left out: `plan_from_fit(plan.fit, families=...)` adds them.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.
        seed: Seed of all randomness, an integer >= 0. Default 0.
        **options: Options of `plan_from_fit`: `batch_sizes`, `families`, `largest_momentum`, `confidence` and
            `num_draws`; and of `fit_noisy_quadratic`: `initial_weights`, `num_examples`, `self_check`, and more.

    Returns:
        The plan.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the fit raises one. If the target is out of the fit's range, the
            error holds the fit in its attribute `fit`, for `plan_from_fit`.
        RuntimeError: The matrix's products are wrong, see `tfopt.curvature.GaussNewtonOperator`.

    Example:
        >>> import numpy as np
        >>> from tfopt import models
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((4096, 4))
        >>> y = x.sum(axis=1, keepdims=True) + rng.standard_normal((4096, 1))
        >>> model = models.mlp(4, (), 1, seed=0)
        >>> plan = plan_batch_size(Objective(model, "mse", (x, y)), families=["sgd"], num_draws=20)
        >>> bool(plan.steps["sgd"].value[0] > plan.steps["sgd"].value[-1])
        True
        >>> model.compile(plan.make_optimizer(batch_size=64), loss="mse")
    """
    plan_options = {name: options.pop(name) for name in PLAN_OPTIONS if name in options}
    check_options(**plan_options, seed=seed)
    if target_loss is not None:
        check_number("target_loss", target_loss)
    check_objective(objective)
    check_options(**plan_options, num_examples=check_examples(options.get("num_examples"), objective.num_rows))
    check_budget(budget_seconds)
    chosen = plan_options.get("families", FAMILIES_BY_DEFAULT)
    reserved = 0.0 if budget_seconds is None else min(SECONDS_OF_A_FAMILY * len(chosen), 0.5 * budget_seconds)
    budget = Budget(budget_seconds, objective.communicator, reserved)
    fit = fit_noisy_quadratic(objective, budget, seed=seed, progress=progress, **options)
    budget.release()
    try:
        return _plan(fit, budget, target_loss, **plan_options, seed=seed, progress=progress)
    except ValueError as error:
        error.fit = fit  # type: ignore[attr-defined]
        error.add_note("The error keeps the fit: plan_from_fit(error.fit, target_loss=...) plans from it.")
        raise


def plan_from_fit(
    fit: NoisyQuadraticFit,
    target_loss: float | None = None,
    *,
    batch_sizes: Sequence[int] | None = None,
    families: Sequence[str] = FAMILIES_BY_DEFAULT,
    largest_momentum: float = 0.9,
    confidence: float = 0.9,
    num_draws: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> BatchSizePlan:
    """Predict steps to a target loss for every batch size, from a noisy quadratic that is already fitted.

    Args:
        fit: A result of `fit_noisy_quadratic`.
        target_loss: The training loss to reach, as for `plan_batch_size`. None (default) means the model's loss at the
            fit if the fit had `initial_weights`; otherwise a tenth of the way up from the quadratic's floor to its
            loss at the fit.
        batch_sizes: B, distinct integers >= 1, in rising order, three or more. None (default) means all powers of two
            up to the fit's N, or 65,536.
        families: Kinds of algorithms, of "sgd", "momentum", "nesterov", "ema" and "momentum_ema", see
            `tfopt.nqm.optimize`. Default ("sgd", "momentum", "ema").
        largest_momentum: Largest momentum to try, in [0, 1). Default 0.9.
        confidence: Confidence level of the intervals, in (0, 1). Default 0.9.
        num_draws: Number of draws of the fit's runs with replacement, an integer >= 20. Default 100.
        seed: Seed of the draws, an integer >= 0. Default 0.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.

    Returns:
        The plan.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; the message says in which range the target must be.

    Example:
        >>> plan_from_fit(fit, target_loss=0.1).suggest()  # doctest: +SKIP
    """
    if not isinstance(fit, NoisyQuadraticFit):
        raise TypeError(f"`fit` must be a result of fit_noisy_quadratic. Received: {fit!r}")
    return _plan(
        fit,
        None,
        target_loss,
        batch_sizes=batch_sizes,
        families=families,
        largest_momentum=largest_momentum,
        confidence=confidence,
        num_draws=num_draws,
        seed=seed,
        progress=progress,
    )


def _plan(
    fit: NoisyQuadraticFit,
    budget: Budget | None,
    target_loss: float | None,
    *,
    batch_sizes: Sequence[int] | None = None,
    families: Sequence[str] = FAMILIES_BY_DEFAULT,
    largest_momentum: float = 0.9,
    confidence: float = 0.9,
    num_draws: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> BatchSizePlan:
    sizes, families = check_options(
        batch_sizes, families, largest_momentum, confidence, num_draws, seed, fit.num_examples
    )
    target = _check_target(target_loss, fit)

    def is_over() -> bool:
        return budget is not None and budget.left() < 0.0

    curves, steps, critical = {}, {}, {}
    with Progress(f"steps to a loss of {target:.4g}", progress) as bar:
        for family in _in_time(families, budget):
            bar.show(family)
            best = find_best(fit, family, sizes, target, largest_momentum)
            curves[family] = replace(best, batch_size=sizes.astype(np.float64), target_loss=target)
            bar.show(f"{family}, intervals")
            steps[family], critical[family] = intervals(fit, best, sizes, target, confidence, num_draws, seed, is_over)
    curves = {family: curves[family] for family in families if family in curves}
    scale = fit.interval(lambda part: part.noise_scale, confidence, max(num_draws, 100), seed)
    return BatchSizePlan(fit, target, sizes, curves, steps, critical, scale, largest_momentum)


def _in_time(families: tuple[str, ...], budget: Budget | None) -> Iterator[str]:
    """Yield families as long as their searches are likely to end in time, at least one; warn of the others."""
    if budget is None or budget.seconds is None:
        yield from families
        return
    slowest, left_out = 0.0, []
    # Suggestions are for momentum, unless the user chooses another family.
    for family in sorted(families, key=lambda name: name != "momentum"):
        begin = budget.left()
        if slowest > 0.0 and begin < slowest - 0.1 * budget.seconds:
            left_out.append(family)
            continue
        yield family
        slowest = max(slowest, begin - budget.left())
    if left_out:
        warnings.warn(
            f"`budget_seconds` ended before the search for {', '.join(left_out)}. Received: "
            f"budget_seconds={budget.seconds:g}. plan_from_fit(plan.fit, families={left_out}) searches them",
            stacklevel=4,
        )


def check_options(
    batch_sizes: Any = None,
    families: Any = FAMILIES,
    largest_momentum: Any = 0.0,
    confidence: Any = 0.5,
    num_draws: Any = 20,
    seed: Any = 0,
    num_examples: float = math.inf,
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
    check_number("confidence", confidence, minimum=0.0, maximum=1.0, exclusive_minimum=True, exclusive_maximum=True)
    check_integer("num_draws", num_draws, minimum=20)
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


def _check_target(target_loss: Any, fit: NoisyQuadraticFit) -> float:
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
