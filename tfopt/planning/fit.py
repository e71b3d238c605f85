"""The fit of a noisy quadratic to a Keras model's loss, at the model's weights."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt._checks import check_choice, check_flag, check_integer, check_number
from tfopt._progress import Progress
from tfopt._variables import flatten, trained_variables
from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective
from tfopt.curvature.model_checks import has_batch_norm
from tfopt.curvature.objective import check_objective
from tfopt.curvature.operator import CurvatureOperator
from tfopt.planning.budget import FEWEST_RUNS, PLANNED, SIZED_FOR, Budget, Costs, Effort
from tfopt.planning.dealt_rows import DealtRows
from tfopt.planning.measurement import SMALLEST_CURVATURE, RunMeasurer, RunResult
from tfopt.planning.noisy_quadratic_fit import NoisyQuadraticFit
from tfopt.planning.sizing import size_fit
from tfopt.planning.spectral_measure import Bins

MATRICES = {"gauss_newton": GaussNewtonOperator, "hessian": HessianOperator}


def fit_noisy_quadratic(
    objective: Objective,
    budget_seconds: float | Budget | None = 30.0,
    *,
    initial_weights: Sequence[Any] | None = None,
    num_examples: float | None = None,
    matrix: str = "gauss_newton",
    num_runs: int = 8,
    num_matvecs: int = 50,
    num_rows_per_run: int = 8192,
    num_bins: int = 64,
    self_check: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> NoisyQuadraticFit:
    """Fit the noisy quadratic model to a Keras model's loss, at the model's weights.

    The fit models the loss as L(w) + g'd + 1/2 d'H d, with the model's gradient g and Gauss-Newton matrix H. It models
    the noise of mini-batch gradients by a covariance C / B, which it measures on single rows at the model's weights. If
    training starts elsewhere, pass its first weights as `initial_weights`. Train a short pilot to about the target
    loss, and fit there. Curvature and noise near the end of training determine the number of steps and the batch sizes,
    and at the beginning both can differ by large factors.

    The fit needs the spectrum of H, C and g: how many eigenvalues H has at each curvature, and how much of the noise
    and of the gradient lies along their eigenvectors. Lanczos's iteration measures these without any eigenvector, from
    three vectors: a random one; a randomly signed sum of gradients, whose covariance is C; and the gradient. Each run
    uses its own random vectors and its own rows. If all rows of the training data are at most `num_rows_per_run`, and
    time allows it, every run uses all of them, and `NoisyQuadraticFit.sampling` is 0. Curvature and gradient of a run
    come from the same rows, so that their sampling errors cancel in part. The remaining bias is measured: each run
    tries the minimum of the previous run on its own rows.

    The model keeps its weights and its compilation. Dropout is off, and its noise is not part of the fit.

    Args:
        objective: An `Objective` of all trainable variables on the training data, or on a random part of them. The fit
            uses the rows of all ranks, and shuffles them, whatever batches they come in. A model with batch
            normalisation needs `batch_norm="moving"`: the fit compares small groups of rows, whose own statistics
            differ from those of a batch.
        budget_seconds: Time limit in seconds, > 0, compilation included. In a short time the fit uses fewer rows,
            products and runs, and the result depends on the clock. If not even the smallest fit (4 runs of 64 rows,
            with 20 products for each vector) is done in time, an error says so after a few seconds, and how much time
            is enough. A machine that slows down during the fit may exceed the limit; then a warning says so. None sets
            no limit, and the result depends on the seed alone. Default 30. (`plan_batch_size` passes the `Budget` that
            it has begun.)
        initial_weights: The weights at which training starts, as `model.get_weights()` returns them. None (default)
            means the current weights.
        num_examples: N, the number of rows that training draws its batches from, of all ranks. None (default) means the
            rows of `objective`; `math.inf` means an endless stream.
        matrix: "gauss_newton" (default), which has no negative curvature, or "hessian", whose negative part is left
            out.
        num_runs: Largest number of independent runs, an integer >= 4. Default 8.
        num_matvecs: Largest number of products with H, for each of three or four vectors in a run, an integer >= 2.
            Default 50.
        num_rows_per_run: Largest number of rows in a run, of all ranks, an integer >= 16; but at least a batch (of up
            to 512 rows) on every rank. Default 8192. A model with many more parameters needs many rows, because
            directions that the rows do not show look flat.
        num_bins: Number of bins of log curvature, over six decades, an integer >= 2. Default 64.
        self_check: Whether to check the first product, as `GaussNewtonOperator` does. Default True.
        seed: Seed of all randomness, an integer >= 0. Default 0.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.

    Returns:
        The fit.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; there are too few rows; the loss is no mean over rows; the loss has
            no curvature; or `budget_seconds` is too short.
        RuntimeError: The matrix's products are wrong, see `GaussNewtonOperator`.

    Example:
        >>> from tfopt import models
        >>> rng = np.random.default_rng(0)
        >>> x = rng.standard_normal((512, 4))
        >>> y = x.sum(axis=1, keepdims=True) + rng.standard_normal((512, 1))
        >>> model = models.mlp(4, (), 1, seed=0)
        >>> fit = fit_noisy_quadratic(Objective(model, "mse", (x, y)))
        >>> bool(0.5 < fit.floor < 1.5), fit.num_runs
        (True, 8)

    References:
        Zhang et al.: Which algorithmic choices matter at which batch sizes? Insights from a noisy quadratic model.
        NeurIPS 2019, arXiv:1907.04164. The fit to a network is not from there.
    """
    if not isinstance(budget_seconds, Budget):
        check_budget(budget_seconds)
    check_objective(objective)
    budget = budget_seconds if isinstance(budget_seconds, Budget) else Budget(budget_seconds, objective.communicator)
    check_choice("matrix", matrix, tuple(MATRICES))
    check_integer("num_runs", num_runs, minimum=FEWEST_RUNS)
    check_integer("num_matvecs", num_matvecs, minimum=2)
    check_integer("num_rows_per_run", num_rows_per_run, minimum=16)
    check_integer("num_bins", num_bins, minimum=2)
    check_flag("self_check", self_check)
    check_integer("seed", seed, minimum=0)
    caller = 3 if budget is budget_seconds else 2  # Its place in the stack, for warnings.
    check_all_variables(objective, caller + 1)
    operator = MATRICES[matrix](objective, self_check=self_check)
    examples = check_examples(num_examples, objective.num_rows)
    # Runs share all rows if the data are all rows of the training, and few enough.
    are_shared = examples == objective.num_rows <= num_rows_per_run
    displacement = None if initial_weights is None else _displacement(objective, initial_weights)

    def make(largest_batch: int) -> tuple[RunMeasurer, Effort]:
        rng, ranks = np.random.default_rng(seed), objective.communicator
        rows = DealtRows(objective.probe, num_runs, are_shared, rng, ranks, largest_batch)
        wanted = max(num_rows_per_run // (rows.batch_size * ranks.size), 1)
        effort = Effort(num_matvecs, rows.num_batches if are_shared else min(wanted, rows.num_batches))
        return RunMeasurer(operator, rows, displacement, seed), effort

    with Progress("fitting a noisy quadratic", progress) as bar:
        measurer, most, costs = size_fit(make, budget, num_runs, bar)
        runs = _measure(measurer, most, costs, num_runs, budget, bar)
    if budget.seconds is not None and budget.elapsed > 1.2 * budget.seconds:
        warnings.warn(
            f"The fit took {budget.elapsed:.3g} s, because the machine became slower than at its beginning. Received: "
            f"budget_seconds={budget.seconds:g}. The fit is as good as any of its size",
            stacklevel=caller,
        )
    return _assemble(runs, operator, examples, displacement is not None, num_bins, budget)


def check_budget(budget_seconds: Any) -> None:
    """Raise unless a time limit is a number of seconds > 0, or None."""
    if budget_seconds is not None:
        check_number("budget_seconds", budget_seconds, minimum=0.0, exclusive_minimum=True)


def _measure(
    measurer: RunMeasurer, most: Effort, costs: Costs | None, num_runs: int, budget: Budget, bar: Progress
) -> list[RunResult]:
    runs: list[RunResult] = []
    if costs is None:
        for index in range(num_runs):
            bar.show(f"run {index + 1} of {num_runs}, after {budget.elapsed:.0f} s")
            runs.append(measurer.run(index, most))
        return runs
    slowest, share = 0.0, math.inf
    for index in range(num_runs):
        left = budget.left()
        if index >= FEWEST_RUNS and slowest > left:
            break
        # Later runs are shorter if the first ones took longer than planned.
        share = min(share, max(PLANNED * left, 0.0) / max(min(SIZED_FOR, num_runs) - index, 1))
        bar.show(f"run {index + 1} of {num_runs}, after {budget.elapsed:.0f} s")
        runs.append(measurer.run(index, costs.affordable(most, share), share))
        slowest = max(slowest, left - budget.left())
    return runs


def _assemble(
    runs: list[RunResult],
    operator: CurvatureOperator,
    examples: float,
    is_displaced: bool,
    num_bins: int,
    budget: Budget,
) -> NoisyQuadraticFit:
    bins = Bins.around([measure for run in runs for measure in run.measures], num_bins, SMALLEST_CURVATURE)
    filled = [[bins.fill(measure) for measure in (run.counts, run.noise, run.start)] for run in runs]
    counts, noise, start = (np.array([run[kind][1] for run in filled]) for kind in range(3))
    below = np.array([[run[kind][0] for kind in (1, 2)] for run in filled])
    whole = below + np.stack([noise.sum(axis=1), start.sum(axis=1)], axis=1)
    smallest = bins.edges[0]
    return NoisyQuadraticFit(
        curvature=bins.curvature,
        counts=counts,
        noise=noise,
        start=start,
        flat_share=np.divide(below, whole, out=np.zeros_like(below), where=whole > 0.0),
        loss=np.array([run.loss for run in runs]),
        squared_gradient_norm=np.array([run.gradient.masses.sum() for run in runs]),
        gain=np.array([0.5 * run.gradient.moment(-1, smallest) for run in runs]),
        gain_elsewhere=np.array([run.gain_elsewhere for run in runs]),
        noise_gain=np.array([0.5 * run.noise.moment(-1, smallest) for run in runs]),
        sampling=np.array([1.0 / run.num_rows - 1.0 / examples for run in runs]),
        initial_loss=np.array([run.initial_loss for run in runs]),
        covariance_trace=np.array([run.covariance_trace for run in runs]),
        num_examples=examples,
        num_rows=sum(run.num_rows for run in runs),
        num_parameters=operator.shape[0],
        is_displaced=is_displaced,
        batch_norm=operator.batch_norm,
        seconds=budget.elapsed,
        precision=operator.precision,
    )


def check_all_variables(objective: Any, stacklevel: int) -> None:
    """Raise unless `objective` is an `Objective` of all trainable variables; warn of batches' own statistics."""
    trained = trained_variables(check_objective(objective).model.trainable_variables)
    if len(objective.variables) < len(trained):
        raise ValueError(
            "`objective` must be a function of all trainable variables, which training moves. Received: "
            f"{len(objective.variables)} of {len(trained)}. Freeze the others to fit a part of the model"
        )
    if objective.batch_norm == "batch" and has_batch_norm(objective.model):
        warnings.warn(
            "`objective` normalises each group of a few rows by its own statistics, and so has more noise than larger "
            "batches. Make it with batch_norm='moving'",
            stacklevel=stacklevel,
        )


def check_examples(num_examples: Any, num_rows: int) -> float:
    """Return the number of rows that training draws from, >= `num_rows`, perhaps infinite; None means `num_rows`."""
    if num_examples is None:
        return float(num_rows)
    if isinstance(num_examples, float) and num_examples == math.inf:
        return math.inf
    number = check_number("num_examples", num_examples, minimum=num_rows)
    if number != int(number):
        raise ValueError(f"`num_examples` must be a whole number or infinity. Received: {num_examples!r}")
    return number


def _displacement(objective: Objective, initial_weights: Any) -> np.ndarray:
    model = objective.model
    shapes = [tuple(v.shape) for v in model.weights]
    try:
        arrays = [np.asarray(part, np.float64) for part in initial_weights]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`initial_weights` must be a result of model.get_weights(). Received: {initial_weights!r}"
        ) from error
    if [array.shape for array in arrays] != shapes:
        raise ValueError(
            f"`initial_weights` must be a result of model.get_weights(), of shapes {shapes}. "
            f"Received: {[array.shape for array in arrays]}"
        )
    by_variable = {id(v): array for v, array in zip(model.weights, arrays, strict=True)}
    displacement = flatten([by_variable[id(v)] - np.asarray(v.value, np.float64) for v in objective.variables])
    if not np.isfinite(displacement).all():
        raise ValueError("`initial_weights` and the model's weights must be finite")
    if not displacement.any():
        raise ValueError(
            "`initial_weights` must differ from the model's weights. Train a pilot in between, or pass None"
        )
    return displacement
