"""Runs of the measurement: spectrum, gradient noise and possible gain, each on rows of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import tensorflow as tf

from tfopt._variables import flatten
from tfopt.curvature.batch import Batch
from tfopt.curvature.groups import Groups
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe import Probe
from tfopt.planning.dealt_rows import DealtRows
from tfopt.planning.spectral_measure import SpectralMeasure, newton_step, run_lanczos

# Intervals from fewer runs would mean little.
FEWEST_RUNS = 4
FEWEST_MATVECS = 20
# Float32 resolves no curvature below this fraction of the largest.
SMALLEST_CURVATURE = 1e-6
# A short budget is divided among this many runs.
SIZED_FOR = 6


@dataclass(frozen=True)
class Effort:
    """The amount of work in one run."""

    num_matvecs: int  # Products for each vector
    num_batches: int  # Batches of rows, on which gradients and products are computed


@dataclass(frozen=True)
class RunResult:
    """The measured values of one run. Measures are of a matrix's spectrum, see `SpectralMeasure`."""

    # Measure of a vector of independent standard normal entries; its expected masses count eigenvalues.
    counts: SpectralMeasure
    noise: SpectralMeasure  # Measure of a random vector whose covariance is that of a single row's gradient
    gradient: SpectralMeasure  # Measure of the gradient at the model's weights
    start: SpectralMeasure  # Measure of the quadratic's gradient at the weights where training starts
    # Decrease of this run's quadratic by the step to the previous run's minimum; NaN in the first run.
    gain_elsewhere: float
    num_rows: int  # Number of rows measured
    covariance_trace: float  # Trace of the covariance of a single row's gradient
    loss: float  # Loss at the model's weights
    initial_loss: float  # Loss at the weights where training starts

    @property
    def measures(self) -> tuple[SpectralMeasure, ...]:
        """The four measures."""
        return self.counts, self.noise, self.gradient, self.start


class RunMeasurer:
    """Measures runs within a time limit; `displacement` is first weights minus the model's, of shape (n,), or None."""

    def __init__(
        self, operator: CurvatureOperator, rows: DealtRows, displacement: np.ndarray | None, seed: int
    ) -> None:
        self._operator, self._rows, self._displacement, self._seed = operator, rows, displacement, seed
        self._ranks = operator.objective.communicator
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
        batches = self._rows.batches(0, 1)
        operator = self._operator.over(Probe.from_batches(batches))
        vector = np.ones(operator.shape[0], operator.dtype)
        seconds = np.full((2, 3), np.inf)
        operator.matvec(vector)
        with operator.shared():
            for attempt in range(3):
                begin = time.perf_counter()
                self._gradient_and_noise(batches, 0)
                middle = time.perf_counter()
                operator.matvec(vector)
                seconds[:, attempt] = middle - begin, time.perf_counter() - middle
        slowest = np.max(self._ranks.allgather_object(np.median(seconds, axis=1), "seconds"), axis=0)
        return float(slowest[0]), float(slowest[1])

    def run(self, index: int, effort: Effort, seconds: float | None = None) -> RunResult:
        """Measure run `index`, in about `seconds`, or longer for the fewest products; None sets no time limit."""
        batches = self._rows.batches(index, effort.num_batches)
        operator = self._operator.over(Probe.from_batches(batches))
        loss, gradient, noise, trace, num_rows = self._gradient_and_noise(batches, index)
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
        largest = max(self._rows.batches(0), key=lambda batch: batch.num_rows)
        objective = self._operator.objective.over(Probe.from_batches([largest]))
        value, gradient = objective.loss_and_gradient()
        if not (np.isfinite(value) and np.isfinite(flatten(gradient)).all()):
            raise ValueError(f"`model` must have a finite loss and gradient on the data. Received: a loss of {value:g}")
        Groups(objective, self._rows.group_size, has_all_rows=True).check()

    def _gradient_and_noise(
        self, batches: Sequence[Batch], index: int
    ) -> tuple[float, np.ndarray, np.ndarray, float, int]:
        # With M groups of n_j rows and random signs s_j, the vector sum_j s_j sqrt(n_j) (g_j - g) / sqrt(M - 1) has the
        # covariance C of a single row, and its mean square over signs the trace.
        groups = Groups(
            self._operator.objective.over(Probe.from_batches(batches)), self._rows.group_size, has_all_rows=True
        )
        evaluations = groups.evaluations()
        groups.check(evaluations)
        rng = np.random.default_rng([self._seed, index, self._ranks.rank, 1])
        signed = total = np.zeros(self._operator.shape[0])
        scalars = np.zeros(5)  # sums of losses, squared norms and signs, and the numbers of groups and rows
        for size, (loss, gradient) in zip(groups.sizes, evaluations, strict=True):
            sign = np.sqrt(size) * rng.choice([-1.0, 1.0])
            signed, total = signed + sign * gradient, total + size * gradient
            scalars += size * loss, size * float(gradient @ gradient), sign, 1.0, size
        sums = self._ranks.allreduce_sum([tf.constant(part) for part in (signed, total, scalars)], name="gradients")
        signed, total, scalars = (np.asarray(part) for part in sums)
        losses, squares, signs, count, num_rows = map(float, scalars)
        mean = total / num_rows
        noise = (signed - signs * mean) / np.sqrt(count - 1.0)
        trace = max(squares - num_rows * float(mean @ mean), 0.0) / (count - 1.0)
        return losses / num_rows, mean, noise, trace, int(num_rows)

    def _initial_loss(self, operator: CurvatureOperator, displacement: np.ndarray) -> float:
        objective = operator.objective
        values, at = [], 0
        for value in objective.values():
            size = int(np.prod(value.shape))
            moved = displacement[at : at + size].reshape(value.shape)
            values.append(value + tf.cast(tf.constant(moved), value.dtype))
            at += size
        return objective.loss(values)
