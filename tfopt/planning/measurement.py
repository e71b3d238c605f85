"""Runs of the measurement: spectrum, gradient noise and possible gain, each on rows of its own."""

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

# Intervals from fewer runs would mean little.
FEWEST_RUNS = 4
FEWEST_MATVECS = 20
# Float32 resolves no curvature below this fraction of the largest.
SMALLEST_CURVATURE = 1e-6
# A short budget is divided among this many runs.
SIZED_FOR = 6
# A run splits its rows into at least this many groups, for their gradients.
NUM_GROUPS = 32
# A product uses at most this many rows at once.
LARGEST_BATCH = 512


@dataclass(frozen=True)
class Effort:
    """The amount of work in one run.

    Attributes:
        num_matvecs: Products for each vector.
        num_batches: Batches of rows, on which gradients and products are computed.
    """

    num_matvecs: int
    num_batches: int


@dataclass(frozen=True)
class RunResult:
    """The measured values of one run. Measures are of a matrix's spectrum, see `SpectralMeasure`.

    Attributes:
        counts: Measure of a vector of independent standard normal entries; its expected masses count eigenvalues.
        noise: Measure of a random vector whose covariance is that of a single row's gradient.
        gradient: Measure of the gradient at the model's weights.
        start: Measure of the quadratic's gradient at the weights where training starts.
        gain_elsewhere: Decrease of this run's quadratic by the step to the previous run's minimum; NaN in the first
            run.
        num_rows: Number of rows measured.
        covariance_trace: Trace of the covariance of a single row's gradient.
        loss: Loss at the model's weights.
        initial_loss: Loss at the weights where training starts.
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


class DealtRows:
    """All rows of this rank in shuffled pieces of equal size, and the share of each run.

    Attributes:
        piece_size: Rows in a piece.
        group_size: Rows in a group of gradients; a piece holds several groups.
        batch_size: Rows in a batch, which is several pieces.
        num_batches: Batches of each run, on each rank.
    """

    def __init__(
        self,
        probe: Probe,
        num_runs: int,
        are_shared: bool,
        rng: np.random.Generator,
        communicator: Communicator,
    ) -> None:
        # With `are_shared` every run has all rows, in place of its own share. All ranks deal in the same way.
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
        self.group_size = 1 << (group.bit_length() - 1)  # Powers of two leave few rows over.
        self.piece_size = size = size // self.group_size * self.group_size
        pieces = [b.rows(at, at + size) for b in probe.batches for at in range(0, b.num_rows - size + 1, size)]
        fewest = min(communicator.allgather_object(len(pieces), "pieces"))
        if size < 2 or fewest < 2 * num_runs:
            raise ValueError(
                f"`data` must have batches of equal size and two rows or more, several for each of {num_runs} runs. "
                f"Received: {probe!r}, from which only {fewest} pieces of {size} rows can be cut"
            )
        self._are_shared, self._num_own = are_shared, fewest // num_runs
        count = fewest if are_shared else self._num_own
        num_batches = -(-count // max(LARGEST_BATCH // size, 1))
        self._num_in_batch = count // num_batches
        self.num_batches, self.batch_size = num_batches, self._num_in_batch * size
        self._pieces = [pieces[at] for at in rng.permutation(len(pieces))]
        self._seed = int(rng.integers(2**31))

    def pieces(self, index: int, count: int) -> list[Batch]:
        """Return the pieces of run `index`, those of at most `count` batches."""
        most = self.num_batches * self._num_in_batch
        if not self._are_shared:
            mine = self._pieces[index * self._num_own :][:most]
        else:
            # Each run shuffles the rows again, because equal groups in all runs would have equal errors.
            whole, size = join(self._pieces), self.piece_size
            order = np.random.default_rng([self._seed, index]).permutation(whole.num_rows)[: most * size]
            parts = (map_arrays(lambda leaf: tf.gather(leaf, order), part) for part in whole.tensors)
            whole = Batch(*parts, num_rows=most * size)
            mine = [whole.rows(at, at + size) for at in range(0, most * size, size)]
        return mine[: count * self._num_in_batch]

    def batches(self, index: int, count: int) -> list[Batch]:
        """Return the rows of `pieces` in at most `count` batches of equal size, for products."""
        pieces, each = self.pieces(index, count), self._num_in_batch
        return [join(pieces[at : at + each]) for at in range(0, len(pieces), each)]


class RunMeasurer:
    """Measures runs within a time limit; `displacement` is first weights minus the model's, of shape (n,), or None."""

    def __init__(
        self, operator: CurvatureOperator, rows: DealtRows, displacement: np.ndarray | None, seed: int
    ) -> None:
        self._operator, self._rows, self._displacement, self._seed = operator, rows, displacement, seed
        self._ranks = operator.communicator
        self._previous_step: np.ndarray | None = None

    def choose_effort(self, most: Effort, seconds: float) -> Effort:
        """Return the effort of each run, at most `most`, so that `SIZED_FOR` runs take about `seconds`."""
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
        # Returns the seconds for the gradients of a batch and for a product with it, without compilation.
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

    def run(self, index: int, effort: Effort, seconds: float | None = None) -> RunResult:
        """Measure run `index`, in about `seconds`, or longer for the fewest products; None sets no time limit."""
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
            for number, (name, vector) in enumerate(vectors.items(), start=1):
                end = None if seconds is None else begin + number / len(vectors) * seconds
                result = run_lanczos(operator, vector, effort.num_matvecs, self._clock(end))
                found[name] = SpectralMeasure.from_lanczos(result, float(vector @ vector))
                if name == "gradient" and result is not None:
                    self._previous_step = newton_step(result, float(np.linalg.norm(vector)), SMALLEST_CURVATURE)
        found.setdefault("start", found["gradient"])
        return RunResult(
            **found,
            gain_elsewhere=gain_elsewhere,
            num_rows=num_rows,
            covariance_trace=trace,
            loss=loss,
            initial_loss=initial_loss,
        )

    def _gain(self, operator: CurvatureOperator, gradient: np.ndarray) -> float:
        # Returns how much the step to the previous run's minimum lowers the quadratic of these rows.
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
        """Return whether any rank has used more seconds than its budget, the same on every rank."""
        return any(self._ranks.allgather_object(seconds > budget, "seconds"))

    def check(self) -> None:
        """Raise ValueError unless the loss is finite and a mean over rows."""
        loss = self._operator.probe_loss.over(Probe.of(self._rows.pieces(0, 1)[:1]))
        value, gradient = loss.loss_and_gradient()
        if not (np.isfinite(value) and np.isfinite(flatten(gradient)).all()):
            raise ValueError(f"`model` must have a finite loss and gradient on `data`. Received: a loss of {value:g}")
        Groups(loss, self._rows.group_size).check()

    def _gradient_and_noise(
        self, pieces: Sequence[Batch], index: int
    ) -> tuple[float, np.ndarray, np.ndarray, float, int]:
        # With M groups of b rows and random signs s_j, the vector sqrt(b / (M - 1)) sum_j s_j (g_j - g) has the
        # covariance C of a single row.
        size = self._rows.group_size
        groups = Groups(self._operator.probe_loss.over(Probe.of(pieces)), size)
        evaluations = groups.evaluations()
        groups.check(evaluations)
        rng = np.random.default_rng([self._seed, index, self._ranks.rank, 1])
        signed = total = np.zeros(self._operator.shape[0])
        scalars = np.zeros(4)  # These are sums of losses, squared norms and signs, and the number of groups.
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
    """Return arrays or tensors joined to one float64 vector."""
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])
