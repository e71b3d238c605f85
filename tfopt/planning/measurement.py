"""Measuring runs: spectrum, gradient noise and what is left to gain, each time on rows of their own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.communicator import Communicator
from tfopt.curvature.gradient_noise import Groups
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe import Batch, Probe, join, map_arrays
from tfopt.planning.spectral_measure import SpectralMeasure, newton_step, run_lanczos

FEWEST_RUNS = 4  # for intervals that mean anything
FEWEST_MATVECS = 20
SMALLEST_CURVATURE = 1e-6  # of the largest, below which float32 resolves nothing
SIZED_FOR = 6  # runs, where time is short
NUM_GROUPS = 32  # of gradients in a run, at least
LARGEST_BATCH = 512  # rows of a product at once


@dataclass(frozen=True)
class Effort:
    """How much goes into one run.

    Attributes:
        num_matvecs: Products for each vector.
        num_batches: Batches of rows, on which gradients and products are computed.
    """

    num_matvecs: int
    num_batches: int


@dataclass(frozen=True)
class Run:
    """What one run has measured.

    Attributes:
        counts: Of a random vector of independent standard normal entries: expected masses count eigenvalues.
        noise: Of a random vector whose covariance is that of a single row's gradient.
        gradient: Of the gradient at the model's weights.
        start: Of the quadratic's gradient at the weights where training starts.
        gain_elsewhere: How much the step to the previous run's minimum lowers this run's quadratic; NaN where there is
            no previous run.
        num_rows: Rows that it was measured on.
        covariance_trace: Trace of the covariance of a single row's gradient.
        loss: At the model's weights.
        initial_loss: Where training starts.
    """

    counts: SpectralMeasure
    noise: SpectralMeasure
    gradient: SpectralMeasure
    start: SpectralMeasure
    gain_elsewhere: float
    num_rows: int
    covariance_trace: float
    loss: float
    initial_loss: float

    @property
    def measures(self) -> tuple[SpectralMeasure, ...]:
        """The four measures."""
        return self.counts, self.noise, self.gradient, self.start


class Rows:
    """All rows of this rank, cut into pieces of equal size in random order, and dealt to the runs.

    Args:
        probe: The rows.
        num_runs: Number of runs.
        are_shared: Whether every run may have all rows, in place of its own share of them.
        rng: Shuffles the pieces.
        communicator: The job's communicator; all ranks deal in the same way.

    Attributes:
        piece_size: Rows in a piece.
        group_size: Rows in a group of gradients, of which a piece has several.
        batch_size: Rows in a batch, which is several pieces.
        num_batches: Batches that each run has, on each rank.

    Raises:
        ValueError: There are too few rows.
    """

    def __init__(
        self,
        probe: Probe,
        num_runs: int,
        are_shared: bool,
        rng: np.random.Generator,
        communicator: Communicator,
    ) -> None:
        largest = max(batch.num_rows for batch in probe.batches)
        everyone = np.array(communicator.allgather_object((probe.num_rows, largest), "rows"))
        fewest, largest = everyone.min(axis=0).tolist()
        own = fewest // num_runs
        if own < 8:
            raise ValueError(
                f"`data` must have at least 8 rows for each of {num_runs} runs on every rank. Received: {fewest} rows"
            )
        of_a_run = fewest if are_shared else own
        size = min(LARGEST_BATCH, largest, max(own // 4, 2))
        group = max(min(of_a_run // NUM_GROUPS, size // 2), 1)
        self.group_size = 1 << (group.bit_length() - 1)  # a power of two, so that few rows are left over
        self.piece_size = size = size // self.group_size * self.group_size
        pieces = [b.rows(at, at + size) for b in probe.batches for at in range(0, b.num_rows - size + 1, size)]
        fewest = min(communicator.allgather_object(len(pieces), "pieces"))
        if size < 2 or fewest < 2 * num_runs:
            raise ValueError(
                f"`data` must have batches of equal size and two rows or more, several for each of {num_runs} runs. "
                f"Received: {probe!r}, of which {fewest} pieces of {size} rows can be cut"
            )
        self._are_shared, self._num_own = are_shared, fewest // num_runs
        count = fewest if are_shared else self._num_own
        num_batches = -(-count // max(LARGEST_BATCH // size, 1))
        self._num_in_batch = count // num_batches
        self.num_batches, self.batch_size = num_batches, self._num_in_batch * size
        self._pieces = [pieces[at] for at in rng.permutation(len(pieces))]
        self._seed = int(rng.integers(2**31))

    def pieces(self, index: int, count: int) -> list[Batch]:
        """Return the pieces of a run.

        Args:
            index: Which run.
            count: Of how many batches, at most.

        Returns:
            The pieces.
        """
        most = self.num_batches * self._num_in_batch
        if not self._are_shared:
            mine = self._pieces[index * self._num_own :][:most]
        else:  # cut anew: groups of the same rows in every run would err in the same way
            whole, size = join(self._pieces), self.piece_size
            order = np.random.default_rng([self._seed, index]).permutation(whole.num_rows)[: most * size]
            parts = (map_arrays(lambda leaf: tf.gather(leaf, order), part) for part in whole.tensors)
            whole = Batch(*parts, num_rows=most * size)
            mine = [whole.rows(at, at + size) for at in range(0, most * size, size)]
        return mine[: count * self._num_in_batch]

    def batches(self, index: int, count: int) -> list[Batch]:
        """Return the same rows in batches, for products.

        Args:
            index: Which run.
            count: How many, at most.

        Returns:
            The batches, all of one size.
        """
        pieces, each = self.pieces(index, count), self._num_in_batch
        return [join(pieces[at : at + each]) for at in range(0, len(pieces), each)]


class Measurement:
    """Measures runs within a time.

    Args:
        operator: The matrix, over any rows of this form.
        rows: The rows.
        displacement: Weights where training starts minus the model's, of shape (n,); None if it starts here.
        seed: Seed of the random vectors.
    """

    def __init__(self, operator: CurvatureOperator, rows: Rows, displacement: np.ndarray | None, seed: int) -> None:
        self._operator, self._rows, self._displacement, self._seed = operator, rows, displacement, seed
        self._ranks = operator.communicator
        self._previous_step: np.ndarray | None = None

    def choose_effort(self, most: Effort, seconds: float) -> Effort:
        """Find out how much can be done in each run.

        Args:
            most: The most that is wanted.
            seconds: The time for some more than the fewest runs.

        Returns:
            The effort.
        """
        of_gradients, of_a_product = self._time_parts()
        # All ranks must choose the same.
        seconds = min(self._ranks.allgather_object(seconds, "seconds"))
        most = Effort(*np.min(self._ranks.allgather_object(astuple(most), "effort"), axis=0).tolist())
        share, vectors = seconds / SIZED_FOR, 3 if self._displacement is None else 4
        batches = share / (of_gradients + vectors * most.num_matvecs * of_a_product)
        batches = int(np.clip(batches, 1, most.num_batches))
        matvecs = (share / batches - of_gradients) / (vectors * of_a_product)
        matvecs = int(np.clip(matvecs, min(FEWEST_MATVECS, most.num_matvecs), most.num_matvecs))
        return Effort(matvecs, batches)

    def _time_parts(self) -> tuple[float, float]:
        # Seconds for the gradients of a batch, and for its product, after they have been compiled.
        operator = self._operator.over(Probe.of(self._rows.batches(0, 1)))
        vector = np.ones(operator.shape[0], operator.dtype)
        pieces = self._rows.pieces(0, 1)
        seconds = np.full((2, 3), np.inf)
        operator.matvec(vector)
        with operator.shared():
            for attempt in range(3):
                begin = time.perf_counter()
                self._gradient_and_noise(pieces, 0)
                middle = time.perf_counter()
                operator.matvec(vector)
                seconds[:, attempt] = middle - begin, time.perf_counter() - middle
        slowest = np.max(self._ranks.allgather_object(np.median(seconds, axis=1), "seconds"), axis=0)
        return float(slowest[0]), float(slowest[1])

    def run(self, index: int, effort: Effort, seconds: float | None = None) -> Run:
        """Measure on the rows of one run.

        Args:
            index: Which run.
            effort: How much to do.
            seconds: About how long it may take, where that is more than what the fewest products take; None for any
                time.

        Returns:
            What was measured.
        """
        pieces = self._rows.pieces(index, effort.num_batches)
        operator = self._operator.over(Probe.of(self._rows.batches(index, effort.num_batches)))
        loss, gradient, noise, trace, num_rows = self._gradient_and_noise(pieces, index)
        normal = np.random.default_rng([self._seed, index]).standard_normal(operator.shape[0])
        vectors = {"counts": normal, "noise": noise, "gradient": gradient}
        initial_loss = loss
        begin = time.perf_counter()
        with operator.shared():
            gain_elsewhere = self._gain(operator, gradient)
            if self._displacement is not None:
                moved = np.asarray(operator.matvec(self._displacement.astype(operator.dtype)), np.float64)
                vectors["start"] = gradient + moved
                initial_loss = self._initial_loss(operator, self._displacement)
            found = {}
            for place, (name, vector) in enumerate(vectors.items()):
                end = None if seconds is None else begin + (place + 1) / len(vectors) * seconds
                result = run_lanczos(operator, vector, effort.num_matvecs, self._clock(end))
                found[name] = SpectralMeasure.of(result, float(vector @ vector))
                if name == "gradient" and result is not None:
                    self._previous_step = newton_step(result, float(np.linalg.norm(vector)), SMALLEST_CURVATURE)
        found.setdefault("start", found["gradient"])
        return Run(
            **found,
            gain_elsewhere=gain_elsewhere,
            num_rows=num_rows,
            covariance_trace=trace,
            loss=loss,
            initial_loss=initial_loss,
        )

    def _gain(self, operator: CurvatureOperator, gradient: np.ndarray) -> float:
        # What the previous run takes for the minimum, by the quadratic of these rows.
        step = self._previous_step
        if step is None:
            return float("nan")
        product = np.asarray(operator.matvec(step.astype(operator.dtype)), np.float64)
        return -float(gradient @ step + 0.5 * step @ product)

    def _clock(self, end: float | None) -> Callable[[int], bool] | None:
        if end is None:
            return None
        return lambda count: count >= FEWEST_MATVECS and self.is_over(time.perf_counter(), end)

    def is_over(self, seconds: float, budget: float) -> bool:
        """Say whether one of the ranks is over its time.

        Args:
            seconds: This rank's time.
            budget: This rank's limit.

        Returns:
            The same on every rank.
        """
        return any(self._ranks.allgather_object(seconds > budget, "seconds"))

    def check(self) -> None:
        """Check that the loss is finite, and a mean over rows.

        Raises:
            ValueError: It is not.
        """
        loss = self._operator.probe_loss.over(Probe.of(self._rows.pieces(0, 1)[:1]))
        value, gradient = loss.loss_and_gradient()
        if not (np.isfinite(value) and np.isfinite(flatten(gradient)).all()):
            raise ValueError(f"`model` must have a finite loss and gradient on `data`. Received: a loss of {value:g}")
        Groups(loss, self._rows.group_size).check()

    def _gradient_and_noise(
        self, pieces: Sequence[Batch], index: int
    ) -> tuple[float, np.ndarray, np.ndarray, float, int]:
        # With groups of b rows: sqrt(b / (M - 1)) sum_j s_j (g_j - g), random signs s_j, has the covariance C of a row.
        size = self._rows.group_size
        groups = Groups(self._operator.probe_loss.over(Probe.of(pieces)), size)
        evaluations = groups.evaluations()
        groups.check(evaluations)
        rng = np.random.default_rng([self._seed, index, self._ranks.rank, 1])
        signed = total = np.zeros(self._operator.shape[0])
        scalars = np.zeros(4)  # of losses, of squares, of signs, of groups
        for loss, gradient in evaluations:
            sign = rng.choice([-1.0, 1.0])
            signed, total = signed + sign * gradient, total + gradient
            scalars += loss, float(gradient @ gradient), sign, 1.0
        sums = self._ranks.allreduce_sum([tf.constant(part) for part in (signed, total, scalars)], name="gradients")
        signed, total, scalars = (np.asarray(part) for part in sums)
        losses, squares, signs, count = map(float, scalars)
        mean = total / count
        noise = np.sqrt(size / (count - 1.0)) * (signed - signs * mean)
        trace = size * max(squares - count * float(mean @ mean), 0.0) / (count - 1.0)
        return losses / count, mean, noise, trace, int(count) * size

    def _initial_loss(self, operator: CurvatureOperator, displacement: np.ndarray) -> float:
        loss = operator.probe_loss
        values, at = [], 0
        for value in loss.values():
            size = int(np.prod(value.shape))
            moved = displacement[at : at + size].reshape(value.shape)
            values.append(value + tf.cast(tf.constant(moved), value.dtype))
            at += size
        return loss.loss(values)


def flatten(parts: Sequence[Any]) -> np.ndarray:
    """Join arrays to one vector.

    Args:
        parts: Arrays or tensors.

    Returns:
        A float64 vector.
    """
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])
