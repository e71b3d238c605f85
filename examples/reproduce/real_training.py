"""Fast repeated trainings of a network to a target loss: with tuned rates, at every batch size, over several seeds."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from finished_cells import FinishedCells

from tfopt import nqm
from tfopt.planning import BatchSizePlan

RATE_STEP = 2**0.5
NUM_EVALUATIONS = 150  # Their numbers of steps form a geometric progression.


@dataclass
class Task:
    """A network and its data.

    Attributes:
        name: For tables and figures.
        model: The network, at its first weights.
        loss: Its loss.
        x: Inputs.
        y: Targets.
        pilot_rate: Learning rate of the pilot.
        jit_compile: Whether XLA compiles the training loops. On a CPU it is slow for convolutions.
        num_evaluated: Number of first rows on which trainings are evaluated.
    """

    name: str
    model: keras.Model
    loss: keras.losses.Loss
    x: np.ndarray
    y: np.ndarray
    pilot_rate: float
    jit_compile: bool = True
    num_evaluated: int = 8192


class Trainings:
    """Many trainings of one network from its first weights, evaluated on its first rows; each is a compiled loop."""

    def __init__(self, task: Task) -> None:
        self._model, self._loss, self._jit_compile = task.model, task.loss, task.jit_compile
        self._x, self._y = tf.constant(task.x), tf.constant(task.y)
        self._evaluated = self._x[: task.num_evaluated], self._y[: task.num_evaluated]
        self._start = [tf.identity(v.value) for v in task.model.trainable_variables]
        self._compiled: dict[int, Any] = {}

    def loss_now(self) -> float:
        """Return the loss at the network's weights, on the rows on which trainings are evaluated."""
        return float(self._loss_of([v.value for v in self._model.trainable_variables], *self._evaluated))

    def _loss_of(self, values: Sequence[Any], x: Any, y: Any) -> Any:
        with keras.StatelessScope(list(zip(self._model.trainable_variables, values, strict=True))):
            return self._loss(y, self._model(x, training=False))

    def _compile(self, batch_size: int) -> Any:
        @tf.function(jit_compile=self._jit_compile, autograph=False)
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
        """Train once, with batches drawn with replacement; return the losses after some numbers of steps."""
        # Training stops at a loss below `enough`, or when it diverges. The last loss then fills the rest.
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
        low: Lower end of the 90% bootstrap interval over seeds.
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
    """Return the first passage of the mean loss (one row per seed), interpolated in log steps; infinity for never."""
    mean = losses.mean(axis=0)
    reached = np.flatnonzero(mean <= target)
    if not len(reached):
        return np.inf
    index = reached[0]
    if index == 0:
        return float(steps[0])
    fraction = (mean[index - 1] - target) / (mean[index - 1] - mean[index])
    return float(np.exp(np.interp(fraction, [0, 1], np.log(steps[index - 1 : index + 1]))))


def tune(
    trainings: Trainings,
    momentum: float,
    target: float,
    rate: float,
    longest: int,
    seeds: Sequence[int],
    batch_size: int,
    **_: Any,
) -> dict[str, Any]:
    """Move from a rate to the best one nearby; return its first passage, the rate, evaluated steps and losses."""
    steps = np.unique(np.geomspace(1, longest, NUM_EVALUATIONS).round().astype(int))
    done: dict[int, tuple[float, np.ndarray]] = {}

    def look_at(index: int) -> None:
        if index not in done:
            a = rate * RATE_STEP**index
            losses = [trainings.losses(batch_size, lambda _: a, s, steps, momentum, 0.9 * target) for s in seeds]
            done[index] = passage(steps, np.array(losses), target), np.array(losses)

    best = 0
    for _ in range(24):
        for index in (best - 1, best, best + 1):
            look_at(index)
        found = min(done, key=lambda index: (done[index][0], abs(index)))
        if np.isinf(done[found][0]):
            found = min(done)  # The rates are probably too high.
        if found == best:
            break
        best = found
    first_passage, losses = done[best]
    rate = float(rate * RATE_STEP**best)
    return {"passage": first_passage, "rate": rate, "steps": steps.tolist(), "losses": losses.tolist()}


def measure(
    trainings: Trainings,
    plan: BatchSizePlan,
    target: float,
    family: str,
    seeds: Sequence[int],
    cells: FinishedCells,
    task: str,
) -> Measured | None:
    """Train at every batch size, from the largest to the smallest, with rates tuned from the plan's; None for later."""
    momenta = np.broadcast_to(plan.curves[family].algorithm.momentum, plan.batch_sizes.shape)[::-1].tolist()
    rate = float(plan.curves["sgd"].algorithm.learning_rate[-1]) * (1 - momenta[0])
    longest, found = 4000.0, []
    for size, momentum in zip(plan.batch_sizes[::-1].tolist(), momenta, strict=True):
        train = functools.partial(tune, trainings, momentum, target, rate, int(longest), seeds)
        cell = cells.get(train, task=task, family=family, batch_size=size)
        if cell is None:
            return None
        # JSON has no infinity.
        first_passage = np.inf if cell["passage"] is None else cell["passage"]
        found.append((first_passage, cell["rate"], np.array(cell["steps"]), np.array(cell["losses"], float)))
        if np.isfinite(first_passage):
            rate, longest = cell["rate"], 6 * first_passage + 30
    return summarise(plan.batch_sizes, found[::-1], target, len(seeds))


def summarise(sizes: np.ndarray, found: list[tuple], target: float, num_seeds: int) -> Measured:
    """Return the measured steps at each batch size with intervals, given passages, rates, steps and losses."""
    rng = np.random.default_rng(0)
    replicates = []
    for _ in range(200):
        drawn = rng.integers(num_seeds, size=num_seeds)
        steps = np.array([passage(at, losses[drawn], target) for _, _, at, losses in found])
        replicates.append(np.append(steps, critical(sizes, steps)))
    low, high = np.quantile(replicates, [0.05, 0.95], axis=0, method="nearest")
    steps = np.array([one[0] for one in found])
    middle = critical(sizes, steps)
    rates = np.array([one[1] for one in found])
    return Measured(sizes, steps, low[:-1], high[:-1], rates, (middle, float(low[-1]), float(high[-1])))


def critical(sizes: np.ndarray, steps: np.ndarray) -> float:
    """Return the batch size that uses twice the fewest examples; infinity if above the largest, NaN if unknown."""
    reached = np.isfinite(steps)
    if reached.sum() < 3:
        return np.nan
    try:
        return nqm.critical_batch_size((sizes[reached], steps[reached])).batch_size
    except ValueError:
        return np.inf
