"""How well does a noisy quadratic fitted to a network predict its training? Predicted steps beside measured ones.

Two networks on 50,000 rows or more: a regression on a teacher network, and a classification of `higgs_like`. Each is
trained for one short pilot; the noisy quadratic is fitted where the pilot ends, and says how many steps a training
from the first weights to the pilot's loss takes at every batch size, with plain SGD and with momentum. Then it is
trained so, at 11 batch sizes, with the plan's momentum, tuned rates and several seeds. No number of the prediction is
tuned.

Beside it: the simple noise scale; fits without a pilot, and after shorter and longer ones, as the spectrum moves along
training; and the plan's schedule in real training, against the best constant rate.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from reproduction import Reproduction, start
from tfopt.models import mlp

from tfopt import datasets, nqm
from tfopt.planning import BatchSizePlan, fit_noisy_quadratic

FAMILIES = ("sgd", "momentum")
RATE_STEP = 2**0.5
EVALUATED_AT = 150  # numbers of steps, in geometric progression
PILOTS = (0.25, 0.5, 2.0)  # in lengths of the usual one
SCHEDULE_AT = 16  # batch size


@dataclass
class Task:
    """A network and its data.

    Attributes:
        name: For tables and figures.
        model: The network, at its first weights.
        loss: What it minimises.
        x: Inputs.
        y: Targets.
        pilot_rate: Learning rate of the pilot.
    """

    name: str
    model: keras.Model
    loss: keras.losses.Loss
    x: np.ndarray
    y: np.ndarray
    pilot_rate: float


def teacher_task(num_rows: int, seed: int) -> Task:
    """Make a regression: a network of 32 hidden units on one of 16, with noise.

    Args:
        num_rows: Number of rows.
        seed: Seed of all randomness.

    Returns:
        The task.
    """
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, 20)).astype("float32")
    y = mlp(20, (16,), 1, seed=seed + 5).predict(x, batch_size=5000, verbose=0)
    y = (y - y.mean()) / y.std() + 0.3 * rng.standard_normal(y.shape)
    model = mlp(20, (32,), 1, seed=seed + 1)
    return Task("teacher network", model, keras.losses.MeanSquaredError(), x, y.astype("float32"), 0.05)


def higgs_task(num_rows: int, seed: int) -> Task:
    """Make a classification: a network of 32 hidden units on the stand-in for HIGGS.

    Args:
        num_rows: Number of rows.
        seed: Seed of all randomness.

    Returns:
        The task.
    """
    x, y = datasets.make_higgs_like(num_rows, seed)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    model = mlp(28, (32,), 2, seed=seed + 1)
    return Task("higgs_like", model, keras.losses.SparseCategoricalCrossentropy(from_logits=True), x, y, 0.3)


class Trainings:
    """Many trainings of one network from its first weights, each compiled to a single loop.

    Args:
        task: The network and its data.
        num_evaluated: Rows on which losses are evaluated, the first ones.
    """

    def __init__(self, task: Task, num_evaluated: int = 8192) -> None:
        self._model, self._loss = task.model, task.loss
        self._x, self._y = tf.constant(task.x), tf.constant(task.y)
        self._evaluated = self._x[:num_evaluated], self._y[:num_evaluated]
        self._start = [tf.identity(v.value) for v in task.model.trainable_variables]
        self._compiled: dict[int, Any] = {}

    def loss_now(self) -> float:
        """Return the loss at the network's weights, on the rows on which trainings are evaluated.

        Returns:
            The loss.
        """
        return float(self._loss_of([v.value for v in self._model.trainable_variables], *self._evaluated))

    def _loss_of(self, values: Sequence[Any], x: Any, y: Any) -> Any:
        with keras.StatelessScope(list(zip(self._model.trainable_variables, values, strict=True))):
            return self._loss(y, self._model(x, training=False))

    def _compile(self, batch_size: int) -> Any:
        @tf.function(jit_compile=True, autograph=False)
        def advance(values: Any, velocity: Any, rate: Any, momentum: Any, seed: Any, first: Any, stop: Any) -> Any:
            def step(at: Any, values: Any, velocity: Any) -> Any:
                picked = tf.random.stateless_uniform((batch_size,), tf.stack([seed, at]), 0, len(self._x), tf.int32)
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    loss = self._loss_of(values, tf.gather(self._x, picked), tf.gather(self._y, picked))
                velocity = [momentum * v + g for v, g in zip(velocity, tape.gradient(loss, values), strict=True)]
                return at + 1, [value - rate * v for value, v in zip(values, velocity, strict=True)], velocity

            _, values, velocity = tf.while_loop(lambda at, *_: at < stop, step, [first, values, velocity])
            return values, velocity, self._loss_of(values, *self._evaluated)

        return advance

    def losses(
        self,
        batch_size: int,
        rates: Callable[[int], float],
        seed: int,
        steps: Sequence[int],
        momentum: float,
        enough: float,
    ) -> np.ndarray:
        """Train once.

        Args:
            batch_size: B.
            rates: The learning rate from a step on.
            seed: Seed of the batches, which are drawn with replacement.
            steps: When to evaluate the loss.
            momentum: Heavy ball's momentum.
            enough: A loss at which to stop.

        Returns:
            The losses, fewer than `steps` if it was stopped or diverged; the last is repeated to the end.
        """
        if batch_size not in self._compiled:
            self._compiled[batch_size] = self._compile(batch_size)
        values, velocity = self._start, [tf.zeros_like(v) for v in self._start]
        found: list[float] = []
        first = 0
        for stop in steps:
            values, velocity, loss = self._compiled[batch_size](
                values,
                velocity,
                tf.constant(rates(first), tf.float32),
                tf.constant(momentum, tf.float32),
                tf.constant(seed),
                tf.constant(first),
                tf.constant(int(stop)),
            )
            found.append(float(loss))
            first = int(stop)
            if not np.isfinite(found[-1]) or found[-1] < enough:
                break
        return np.append(found, np.full(len(steps) - len(found), found[-1]))


@dataclass
class Measured:
    """Measured steps of one algorithm.

    Attributes:
        sizes: Batch sizes.
        steps: First passage of the loss averaged over seeds, with the best rate for each batch size.
        low: Lower end over seeds drawn with replacement, nine in ten.
        high: Upper end.
        rates: The best rates.
        critical: Critical batch size, with the ends of its interval.
    """

    sizes: np.ndarray
    steps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rates: np.ndarray
    critical: tuple[float, float, float]


def passage(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Return when a mean of losses first reaches the target, between two evaluations in logarithms.

    Args:
        steps: When the losses were evaluated, of shape (k,).
        losses: One row for each seed.
        target: The target.

    Returns:
        The number of steps; infinity for never.
    """
    mean = losses.mean(axis=0)
    reached = np.flatnonzero(mean <= target)
    if not len(reached):
        return np.inf
    place = reached[0]
    if place == 0:
        return float(steps[0])
    share = (mean[place - 1] - target) / (mean[place - 1] - mean[place])
    return float(np.exp(np.interp(share, [0, 1], np.log(steps[place - 1 : place + 1]))))


def tune(
    trainings: Trainings,
    batch_size: int,
    momentum: float,
    target: float,
    rate: float,
    longest: int,
    seeds: Sequence[int],
) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Walk from a rate to better ones, until neither neighbour is better.

    Args:
        trainings: Runs trainings.
        batch_size: B.
        momentum: Heavy ball's momentum.
        target: The loss to be reached.
        rate: Where to begin.
        longest: Most steps.
        seeds: Seeds to average over.

    Returns:
        Steps and rate of the best, when it was evaluated, and its losses, one row for each seed.
    """
    steps = np.unique(np.geomspace(1, longest, EVALUATED_AT).round().astype(int))
    done: dict[int, tuple[float, np.ndarray]] = {}

    def look_at(place: int) -> None:
        if place not in done:
            a = rate * RATE_STEP**place
            losses = [trainings.losses(batch_size, lambda _: a, s, steps, momentum, 0.9 * target) for s in seeds]
            done[place] = passage(steps, np.array(losses), target), np.array(losses)

    best = 0
    for _ in range(24):
        for place in (best - 1, best, best + 1):
            look_at(place)
        found = min(done, key=lambda place: (done[place][0], abs(place)))
        if np.isinf(done[found][0]):
            found = min(done)  # too fast, as it seems
        if found == best:
            break
        best = found
    return done[best][0], rate * RATE_STEP**best, steps, done[best][1]


def measure(trainings: Trainings, plan: BatchSizePlan, target: float, family: str, seeds: Sequence[int]) -> Measured:
    """Train at every batch size, from the largest to the smallest, with tuned rates.

    Args:
        trainings: Runs trainings.
        plan: Batch sizes, and where to begin to look for rates.
        target: The loss to be reached.
        family: "sgd" or "momentum".
        seeds: Seeds to average over.

    Returns:
        What was measured.
    """
    momenta = np.broadcast_to(plan.curves[family].algorithm.momentum, plan.batch_sizes.shape)[::-1].tolist()
    rate = float(plan.curves["sgd"].algorithm.learning_rate[-1]) * (1 - momenta[0])
    longest, found = 4000.0, []
    for size, momentum in zip(plan.batch_sizes[::-1].tolist(), momenta, strict=True):
        found.append(tune(trainings, size, momentum, target, rate, int(longest), seeds))
        if np.isfinite(found[-1][0]):
            rate, longest = found[-1][1], 6 * found[-1][0] + 30
    found = found[::-1]
    rng = np.random.default_rng(0)
    replicates = []
    for _ in range(200):
        drawn = rng.integers(len(seeds), size=len(seeds))
        steps = np.array([passage(at, losses[drawn], target) for _, _, at, losses in found])
        replicates.append(np.append(steps, critical(plan.batch_sizes, steps)))
    low, high = np.quantile(replicates, [0.05, 0.95], axis=0, method="nearest")
    steps = np.array([one[0] for one in found])
    middle = critical(plan.batch_sizes, steps)
    rates = np.array([one[1] for one in found])
    return Measured(plan.batch_sizes, steps, low[:-1], high[:-1], rates, (middle, float(low[-1]), float(high[-1])))


def critical(sizes: np.ndarray, steps: np.ndarray) -> float:
    """Return where the examples used are twice the fewest.

    Args:
        sizes: Batch sizes.
        steps: Steps to the target.

    Returns:
        The critical batch size; infinity if it lies beyond the largest, NaN for too few that reach the target.
    """
    reached = np.isfinite(steps)
    if reached.sum() < 3:
        return np.nan
    try:
        return nqm.critical_batch_size((sizes[reached], steps[reached])).batch_size
    except ValueError:
        return np.inf


@dataclass
class Outcome:
    """Everything about one task.

    Attributes:
        task: The network and its data.
        plan: The prediction.
        measured: What was measured, by family.
        others: Plans from other pilots, by their length.
        schedule: Steps with the plan's schedule, measured; and with the best constant rate.
    """

    task: Task
    plan: BatchSizePlan
    measured: dict[str, Measured] = field(default_factory=dict)
    others: dict[float, BatchSizePlan | None] = field(default_factory=dict)
    schedule: tuple[float, float] = (np.nan, np.nan)


def pilot(task: Task, epochs: float, seed: int) -> None:
    """Train the network a little, as one would.

    Args:
        task: The network and its data.
        epochs: How long; may be a fraction.
        seed: Seed of the order of rows.
    """
    keras.utils.set_random_seed(seed)
    task.model.compile(keras.optimizers.SGD(task.pilot_rate), task.loss)
    rows = int(min(epochs, 1) * len(task.x))
    task.model.fit(task.x[:rows], task.y[:rows], batch_size=64, epochs=max(round(epochs), 1), verbose=0)


def study(task: Task, run: Reproduction) -> Outcome:
    """Predict, then measure.

    Args:
        task: The network and its data.
        run: Sizes and seed.

    Returns:
        The outcome.
    """
    sizes = 2 ** np.array(run.choose([4, 7, 10], range(2, 13), range(1, 14)))
    seeds = range(run.choose(1, 4, 8))
    first, others = task.model.get_weights(), {}

    def make_plan(epochs: float, target: float | None) -> BatchSizePlan | None:
        task.model.set_weights(first)
        displaced = {}
        if epochs:
            pilot(task, epochs, run.seed)
            displaced = {"initial_weights": first}
        fit = fit_noisy_quadratic(task.model, (task.x, task.y), task.loss, None, seed=run.seed, **displaced)
        fit = replace(fit, num_examples=np.inf)  # batches are drawn with replacement here
        try:
            return BatchSizePlan.of(fit, target, batch_sizes=sizes.tolist(), families=FAMILIES)
        except ValueError:
            return None  # the target lies below the quadratic's floor

    plan = make_plan(1.0, None)
    assert plan is not None  # its target is where the pilot ended
    task.model.set_weights(first)
    trainings = Trainings(task)
    pilot(task, 1.0, run.seed)
    target = trainings.loss_now()  # of the same weights, on the rows on which trainings are evaluated
    for epochs in run.choose((), (0.0, *PILOTS), (0.0, *PILOTS)):
        others[epochs] = make_plan(epochs, plan.target_loss)
    measured = {family: measure(trainings, plan, target, family, seeds) for family in FAMILIES}
    outcome = Outcome(task, plan, measured, others)
    outcome.schedule = try_schedule(trainings, plan, target, measured["sgd"], seeds)
    return outcome


def try_schedule(
    trainings: Trainings, plan: BatchSizePlan, target: float, sgd: Measured, seeds: Sequence[int]
) -> tuple[float, float]:
    """Train with the plan's schedule, stretched until it reaches the target at its end.

    Args:
        trainings: Runs trainings.
        plan: The plan.
        target: The loss to be reached.
        sgd: Steps with constant rates.
        seeds: Seeds to average over.

    Returns:
        The steps that the schedule takes, and those of the best constant rate at the same batch size.
    """
    schedule = plan.make_schedule(SCHEDULE_AT)
    constant = float(sgd.steps[plan.batch_sizes == SCHEDULE_AT][0])
    for stretch in 1.05 ** np.arange(-20, 50):
        ends = np.unique(np.maximum(np.cumsum(schedule.lengths) * stretch, 1).round().astype(int))

        def rate_from(step: int, ends: np.ndarray = ends) -> float:
            place = int(np.searchsorted(ends, step, side="right"))
            return float(schedule.learning_rates[min(place, len(schedule.learning_rates) - 1)])

        losses = [trainings.losses(SCHEDULE_AT, rate_from, seed, ends.tolist(), 0.0, 0.0)[-1] for seed in seeds]
        if np.mean(losses) <= target:
            return float(ends[-1]), constant
    return np.inf, constant


def compare(run: Reproduction, outcome: Outcome) -> None:
    """Hold predictions against measurements.

    Args:
        run: Where the claims go.
        outcome: Of one task.
    """
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
        f"{name}: the plan's schedule saves steps in real training at B = {SCHEDULE_AT}",
        f"predicted {plan.make_schedule(SCHEDULE_AT).num_steps:,} steps in place of "
        f"{plan.suggest(SCHEDULE_AT, 'sgd').steps:,.0f}",
        f"{scheduled:,.0f} in place of {constant:,.0f}",
        scheduled <= 0.8 * constant,
        scheduled < constant,
    )


def draw(outcomes: list[Outcome]) -> Any:
    """Draw predicted lines with their intervals, and measured points with theirs.

    Args:
        outcomes: One for each panel.

    Returns:
        The figure.
    """
    figure, panels = plt.subplots(1, len(outcomes), figsize=(7 * len(outcomes), 4.8), layout="constrained")
    for panel, outcome in zip(np.atleast_1d(panels), outcomes, strict=True):
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
        panel.legend(fontsize="small")
    return figure


def results_of(outcome: Outcome) -> dict[str, Any]:
    """Return the numbers behind the figure.

    Args:
        outcome: Of one task.

    Returns:
        What JSON can hold.
    """

    def numbers(values: Any) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in np.atleast_1d(values)]

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
    others = {f"{epochs:g}": None if plan is None else plan.to_dict() for epochs, plan in outcome.others.items()}
    return {
        "plan": outcome.plan.to_dict(),
        "measured": measured,
        "other_pilots": others,
        "schedule": numbers(outcome.schedule),
    }


def main(argv: list[str] | None = None) -> Reproduction:
    """Predict and measure.

    Args:
        argv: Command-line arguments.

    Returns:
        The comparison.
    """
    title = "Steps against batch size of two networks, predicted by a fitted noisy quadratic"
    run = start("nqm_real_model", title, argv, __doc__, uses_data=False)
    rows = run.choose(4_000, 50_000, 200_000)
    outcomes = []
    tasks = [teacher_task(rows, run.seed)]
    if run.size != "smoke":
        tasks.append(higgs_task(int(1.2 * rows), run.seed))
    for task in tasks:
        outcomes.append(study(task, run))
        compare(run, outcomes[-1])
        run.results[task.name] = results_of(outcomes[-1])
    return run.finish(draw(outcomes))


if __name__ == "__main__":
    main()
