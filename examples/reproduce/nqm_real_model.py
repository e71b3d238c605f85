"""How well does a noisy quadratic fitted to a network predict its training? Predicted beside measured steps.

There are two networks on 50,000 rows or more: a regression on a teacher network, and a classification of `higgs_like`.
Each is trained for one short pilot, and the noisy quadratic is fitted at its end. The fit predicts the steps from the
first weights to the pilot's loss at every batch size, with plain SGD and with momentum. Then the network is trained at
11 batch sizes, with the plan's momentum, tuned rates and several seeds. No number of the prediction is tuned.

With `--data fashion_mnist` the networks are an MLP and a small convnet on images, with batches of 8 to 4,096 and three
seeds at full size, and without other pilots. A run resumes after an interruption.

The rules for the table: a critical batch size held within a factor of 2, and partly within 4; steps held if all of them
are within a factor of 2, and partly within 4.

The results also hold the simple noise scale. They hold fits without a pilot, and after shorter and longer pilots,
because the spectrum moves along training. They hold the plan's schedule in real training, against the best constant
rate.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from finished_cells import FinishedCells
from real_training import Measured, Task, Trainings, measure
from reproduction import Reproduction, start

from tfopt import _plotting, datasets
from tfopt.curvature import Objective
from tfopt.models import convnet, mlp
from tfopt.planning import BatchSizePlan, fit_noisy_quadratic, plan_from_fit

FAMILIES = ("sgd", "momentum")
PILOTS = (0.25, 0.5, 2.0)  # Lengths, in units of the usual pilot.
SCHEDULE_BATCH_SIZE = 16


def teacher_task(num_rows: int, seed: int) -> Task:
    """Make a regression: a network of 32 hidden units learns one of 16, with noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, 20)).astype("float32")
    y = mlp(20, (16,), 1, seed=seed + 5).predict(x, batch_size=5000, verbose=0)
    y = (y - y.mean()) / y.std() + 0.3 * rng.standard_normal(y.shape)
    model = mlp(20, (32,), 1, seed=seed + 1)
    return Task("teacher network", model, keras.losses.MeanSquaredError(), x, y.astype("float32"), 0.05)


def higgs_task(num_rows: int, seed: int) -> Task:
    """Make a classification: a network of 32 hidden units on the synthetic substitute for HIGGS."""
    x, y = datasets.make_higgs_like(num_rows, seed)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = mlp(28, (32,), 2, seed=seed + 1)
    return Task("higgs_like", model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x, y, 0.3)


def image_tasks(data: datasets.Dataset, seed: int) -> list[Task]:
    """Make two classifications of images: by an MLP, and by a small convnet."""
    loss, y = keras.losses.SparseCategoricalCrossentropy(from_logits=True), data.y_train.astype("int32")
    flat = data.flattened()
    dense = mlp(flat.input_shape, (64,), data.num_classes, seed=seed + 1)
    convolutional = convnet(data.input_shape, (8, 16), data.num_classes, seed=seed + 1)
    return [
        Task("MLP", dense, loss, flat.x_train, y, 0.05),
        Task("convnet", convolutional, loss, data.x_train, y, 0.05, jit_compile=False, num_evaluated=2048),
    ]


@dataclass
class Outcome:
    """All results of one task.

    Attributes:
        task: The network and its data.
        plan: The prediction.
        measured: Measured steps, by family.
        others: Plans from other pilots, by length; None if the target lies below the fitted floor.
        schedule: Measured steps with the plan's schedule, and with the best constant rate.
    """

    task: Task
    plan: BatchSizePlan
    measured: dict[str, Measured] = field(default_factory=dict)
    others: dict[float, BatchSizePlan | None] = field(default_factory=dict)
    schedule: tuple[float, float] = (np.nan, np.nan)


def pilot(task: Task, epochs: float, seed: int) -> None:
    """Train the network for a few epochs, or a fraction of one."""
    keras.utils.set_random_seed(seed)
    task.model.compile(keras.optimizers.SGD(task.pilot_rate), task.loss)
    rows = int(min(epochs, 1) * len(task.x))
    task.model.fit(task.x[:rows], task.y[:rows], batch_size=64, epochs=max(round(epochs), 1), verbose=0)


def make_plan(
    task: Task, run: Reproduction, folder: Path, sizes: np.ndarray, epochs: float, target: float | None
) -> BatchSizePlan | None:
    """Fit after a pilot from the first weights, and plan; None if the target lies below the quadratic's floor."""
    path = folder / f"plan_{task.name.replace(' ', '_')}_{epochs:g}.json"
    if path.exists():
        return BatchSizePlan.load(path)
    displaced, first = {}, task.model.get_weights()
    if epochs:
        pilot(task, epochs, run.seed)
        displaced = {"initial_weights": first}
    options = {"num_runs": run.choose(4, 8, 8), "num_matvecs": run.choose(10, 50, 50), "seed": run.seed}
    fit = fit_noisy_quadratic(Objective(task.model, task.loss, (task.x, task.y)), None, **options, **displaced)
    task.model.set_weights(first)
    fit = replace(fit, num_examples=np.inf)  # Batches are drawn with replacement here.
    families = FAMILIES if epochs == 1 else FAMILIES[:1]
    options = {"batch_sizes": sizes.tolist(), "families": families, "num_draws": run.choose(20, 100, 100)}
    try:
        plan = plan_from_fit(fit, target, **options)
    except ValueError:
        return None
    plan.save(path)
    return plan


def study(
    task: Task, run: Reproduction, cells: FinishedCells, sizes: np.ndarray, seeds: Sequence[int]
) -> Outcome | None:
    """Predict, then measure; None if some trainings are not finished."""
    trainings = Trainings(task)

    def target_of(task_of_target: str) -> float:
        first = task.model.get_weights()
        pilot(task, 1.0, run.seed)
        target = trainings.loss_now()  # Trainings are evaluated on the same rows.
        task.model.set_weights(first)
        return target

    def schedule_of(task_of_schedule: str) -> tuple[float, float]:
        return try_schedule(trainings, plan, target, measured["sgd"], seeds)

    target = cells.get(target_of, task_of_target=task.name)
    if target is None:
        return None
    plan = make_plan(task, run, cells.files, sizes, 1.0, None)
    assert plan is not None  # Its target is the loss at the end of the pilot.
    measured = {family: measure(trainings, plan, target, family, seeds, cells, task.name) for family in FAMILIES}
    if not all(measured.values()):
        return None
    others = {
        epochs: make_plan(task, run, cells.files, sizes, epochs, plan.target_loss)
        for epochs in ((0.0, *PILOTS) if run.data == "higgs_like" and run.size != "smoke" else ())
    }
    schedule = cells.get(schedule_of, task_of_schedule=task.name)
    if schedule is None:
        return None
    return Outcome(task, plan, measured, others, tuple(np.inf if steps is None else steps for steps in schedule))


def try_schedule(
    trainings: Trainings, plan: BatchSizePlan, target: float, sgd: Measured, seeds: Sequence[int]
) -> tuple[float, float]:
    """Stretch the plan's schedule until it reaches the target; return its steps and those of the best constant rate."""
    schedule = plan.make_schedule(SCHEDULE_BATCH_SIZE)
    constant = float(sgd.steps[plan.batch_sizes == SCHEDULE_BATCH_SIZE][0])
    for stretch in 1.05 ** np.arange(-20, 50):
        ends = np.maximum(np.cumsum(schedule.lengths) * stretch, 1).round().astype(int)

        def rate_from(step: int, ends: np.ndarray = ends) -> float:
            index = int(np.searchsorted(ends, step, side="right"))
            return float(schedule.learning_rates[min(index, len(schedule.learning_rates) - 1)])

        checks = np.unique(ends).tolist()
        losses = [trainings.losses(SCHEDULE_BATCH_SIZE, rate_from, seed, checks, 0.0, 0.0)[-1] for seed in seeds]
        if np.mean(losses) <= target:
            return float(ends[-1]), constant
    return np.inf, constant


def compare(run: Reproduction, outcome: Outcome) -> None:
    """Compare the predictions with the measurements of one task, and add the claims to the run."""
    plan, name = outcome.plan, outcome.task.name
    for family, measured in outcome.measured.items():
        predicted = plan.critical_batch_size[family]
        middle, low, high = measured.critical
        factor = max(predicted.value / middle, middle / predicted.value)
        run.compare(
            f"{name}, {family}: critical batch size",
            f"predicted {predicted!r}",
            f"{middle:.0f} ({low:.0f} to {high:.0f}); a factor of {factor:.1f}",
            factor <= 2.0,
            factor <= 4.0,
        )
        ratio = plan.steps[family].value / measured.steps
        run.compare(
            f"{name}, {family}: steps at every batch size",
            "predicted within a factor of 2",
            f"predicted / measured from {ratio.min():.2f} to {ratio.max():.2f}",
            bool((np.abs(np.log(ratio)) <= np.log(2.0)).all()),
            bool((np.abs(np.log(ratio)) <= np.log(4.0)).all()),
        )
    middle, scale = outcome.measured["sgd"].critical[0], plan.noise_scale.value
    factor = max(scale / middle, middle / scale)
    run.compare(
        f"{name}: the simple noise scale is the critical batch size of SGD",
        f"{plan.noise_scale!r}",
        f"{middle:.0f}; a factor of {factor:.1f}",
        factor <= 2.0,
        factor <= 4.0,
    )
    for epochs, other in sorted(outcome.others.items()):
        where = "without a pilot" if not epochs else f"after {epochs:g} of the pilot"
        if other is None:
            run.compare(f"{name}: fitted {where}", "a prediction", "the target lies below the floor", False)
            continue
        ratio = other.steps["sgd"].value / outcome.measured["sgd"].steps
        predicted = other.critical_batch_size["sgd"]
        factor = max(predicted.value / middle, middle / predicted.value)
        run.compare(
            f"{name}, sgd: fitted {where}",
            f"predicted critical batch size {predicted!r}",
            f"{middle:.0f}; steps predicted / measured from {ratio.min():.2f} to {ratio.max():.2f}",
            factor <= 2.0,
            factor <= 4.0,
        )
    scheduled, constant = outcome.schedule
    run.compare(
        f"{name}: the plan's schedule saves steps in real training at B = {SCHEDULE_BATCH_SIZE}",
        f"predicted {plan.make_schedule(SCHEDULE_BATCH_SIZE).num_steps:,} steps in place of "
        f"{plan.suggest(SCHEDULE_BATCH_SIZE, 'sgd').steps:,.0f}",
        f"{scheduled:,.0f} in place of {constant:,.0f}",
        scheduled <= 0.8 * constant,
        scheduled < constant,
    )


def draw(outcomes: list[Outcome]) -> Any:
    """Return a figure of predicted lines and measured points with their intervals, one panel per task."""
    figure, panels = _plotting.make_panels(len(outcomes), height=3.5 * len(outcomes))
    for panel, outcome in zip(panels, outcomes, strict=True):
        outcome.plan.plot(panel)
        for (family, measured), marker in zip(outcome.measured.items(), "sX", strict=True):
            seen = np.isfinite(measured.steps)
            middle = measured.steps[seen]
            low, high = (np.where(np.isfinite(end[seen]), end[seen], middle) for end in (measured.low, measured.high))
            errors = np.maximum([middle - low, high - middle], 0.0)
            color = panel.lines[FAMILIES.index(family)].get_color()
            panel.errorbar(
                measured.sizes[seen], middle, errors, fmt=marker, color=color, mfc="none", label=f"{family}, measured"
            )
        panel.set_title(outcome.task.name)
        _plotting.add_legend(panel)
    return figure


def results_of(outcome: Outcome) -> dict[str, Any]:
    """Return the numbers behind the figure, in types that JSON can hold."""

    def numbers(values: Any) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in np.atleast_1d(values)]

    def predictions(plan: BatchSizePlan) -> dict[str, Any]:
        columns = {name: found.tolist() for name, found in plan.to_dataframe().items()}
        columns |= {name: numbers(found) for name, found in columns.items() if name != "family"}
        return {"target_loss": plan.target_loss, "floor": plan.fit.floor, "predictions": columns}

    measured = {
        family: {
            "steps": numbers(found.steps),
            "low": numbers(found.low),
            "high": numbers(found.high),
            "rates": numbers(found.rates),
            "critical_batch_size": numbers(found.critical),
        }
        for family, found in outcome.measured.items()
    }
    others = {f"{epochs:g}": None if plan is None else predictions(plan) for epochs, plan in outcome.others.items()}
    return {
        "plan": predictions(outcome.plan),
        "measured": measured,
        "other_pilots": others,
        "schedule": numbers(outcome.schedule),
    }


def main(argv: list[str] | None = None) -> Reproduction:
    """Predict, measure and compare."""
    title = "Steps against batch size of networks, predicted by a fitted noisy quadratic"
    run = start("nqm_real_model", title, argv, __doc__, data="higgs_like")
    if run.data == "higgs_like":
        rows = run.num_rows or run.choose(4_000, 50_000, 200_000)
        tasks = [teacher_task(rows, run.seed)]
        if run.size != "smoke":
            tasks.append(higgs_task(int(1.2 * rows), run.seed))
        sizes, seeds = run.choose([4, 7, 10], range(2, 13), range(1, 14)), run.choose(1, 4, 8)
    else:
        tasks = image_tasks(run.load(), run.seed)[: run.choose(1, 2, 2)]
        sizes, seeds = run.choose([4, 7, 10], range(3, 11), range(3, 13)), run.choose(1, 3, 3)
    cells = run.finished_cells(sizes=[*sizes], seeds=seeds)
    outcomes = [study(task, run, cells, 2 ** np.array(sizes), range(seeds)) for task in tasks]
    finished = [outcome for outcome in outcomes if outcome]
    if not finished:
        raise SystemExit(f"All trainings of a network must be finished. Finished in {run.folder}: no network")
    for outcome in finished:
        compare(run, outcome)
        run.results[outcome.task.name] = results_of(outcome)
    return run.finish(draw(finished))


if __name__ == "__main__":
    main()
