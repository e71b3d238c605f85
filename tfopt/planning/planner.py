"""From a Keras model to a plan: fit, then search."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from tfopt._checks import check_number
from tfopt.communicator import check_communicator
from tfopt.planning.fit import check_examples, fit_noisy_quadratic, make_probe
from tfopt.planning.plan import BatchSizePlan
from tfopt.planning.prediction import check_options


def plan_batch_size(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    target_loss: float | None = None,
    budget_seconds: float | None = 30.0,
    *,
    batch_sizes: Sequence[int] | None = None,
    families: Sequence[str] = ("sgd", "momentum", "ema"),
    largest_momentum: float = 0.9,
    level: float = 0.9,
    draws: int = 100,
    progress: bool | None = None,
    seed: int = 0,
    **fit_options: Any,
) -> BatchSizePlan:
    """Predict steps to a target loss for every batch size, from a noisy quadratic fitted to a Keras model.

    Train a short pilot to about the target, and pass the weights before the pilot as `initial_weights`; see
    `fit_noisy_quadratic`.

    Args:
        model: A Keras model with its variables, compiled or not.
        data: The training data, or a random part of them, see `fit_noisy_quadratic`.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        target_loss: The training loss to reach, with dropout off and regularisation included. It must lie above the
            fitted quadratic's floor. None (default) means the model's current loss if `initial_weights` is given;
            otherwise a tenth of the way up from the floor to the quadratic's loss now.
        budget_seconds: Approximate time limit of the fit in seconds, > 0, or None for no limit. Default 30. The search
            takes about five more seconds per family in its first call, which compiles, and two or three in later calls.
        batch_sizes: B, distinct integers >= 1, in rising order, three or more. None (default) means all powers of two
            up to N, or 65,536.
        families: Kinds of algorithms, of "sgd", "momentum", "nesterov", "ema" and "momentum_ema", see
            `tfopt.nqm.optimize`. Default ("sgd", "momentum", "ema").
        largest_momentum: Largest momentum to try, in [0, 1). Default 0.9.
        level: Confidence level of the intervals, in (0, 1). Default 0.9.
        draws: Number of draws of the fit's runs with replacement, an integer >= 20. Default 100.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.
        seed: Seed of all randomness, an integer >= 0. Default 0.
        **fit_options: Further arguments of `fit_noisy_quadratic`: `initial_weights`, `num_examples`, `self_check`, and
            more.

    Returns:
        The plan.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or the data cannot be measured. If the target is out
            of the fit's range, the error holds the fit in its attribute `fit`, for `BatchSizePlan.of`.
        RuntimeError: The matrix's products are wrong, see `tfopt.curvature.GaussNewtonOperator`.

    Example:
        >>> import numpy as np
        >>> from tfopt import models
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((4096, 4))
        >>> y = x.sum(axis=1, keepdims=True) + rng.standard_normal((4096, 1))
        >>> model = models.mlp(4, (), 1, seed=0)
        >>> plan = plan_batch_size(model, (x, y), "mse", families=["sgd"], draws=20)
        >>> bool(plan.steps["sgd"].value[0] > plan.steps["sgd"].value[-1])
        True
        >>> model.compile(plan.make_optimizer(batch_size=64), loss="mse")
    """
    check_options(batch_sizes, families, largest_momentum, level, draws, seed, math.inf)
    if target_loss is not None:
        check_number("target_loss", target_loss)
    probe = make_probe(data, seed)
    ranks = check_communicator(fit_options.get("communicator"))
    examples = check_examples(fit_options.get("num_examples"), sum(ranks.allgather_object(probe.num_rows, "rows")))
    check_options(batch_sizes, families, largest_momentum, level, draws, seed, examples)
    fit = fit_noisy_quadratic(model, probe, loss, budget_seconds, seed=seed, progress=progress, **fit_options)
    try:
        return BatchSizePlan.of(
            fit,
            target_loss,
            batch_sizes=batch_sizes,
            families=families,
            largest_momentum=largest_momentum,
            level=level,
            draws=draws,
            seed=seed,
            progress=progress,
        )
    except ValueError as error:
        error.fit = fit  # type: ignore[attr-defined]
        error.add_note("The error keeps the fit: BatchSizePlan.of(error.fit, target_loss=...) plans from it.")
        raise
