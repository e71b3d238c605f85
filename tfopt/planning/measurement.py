"""Runs of the measurement: spectrum, gradient noise and possible gain, each on rows of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._variables import flatten
from tfopt.curvature.batch import Batch
from tfopt.curvature.groups import Groups
from tfopt.curvature.operator import CurvatureOperator
from tfopt.curvature.probe import Probe
from tfopt.planning import budget
from tfopt.planning.budget import FEWEST_MATVECS, GRADIENTS_IN_A_PRODUCT, Costs, Effort
from tfopt.planning.dealt_rows import DealtRows
from tfopt.planning.spectral_measure import SpectralMeasure, newton_step, run_lanczos

# Float32 resolves no curvature below this fraction of the largest.
SMALLEST_CURVATURE = 1e-6
# If a machine slows down, a run may end after this many products for a vector.
FEWEST_LATE_MATVECS = 10


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
    """Measures runs within time limits; `displacement` is first weights minus the model's, of shape (n,), or None."""

    def __init__(
        self, operator: CurvatureOperator, rows: DealtRows, displacement: np.ndarray | None, seed: int
    ) -> None:
        self._operator, self._rows, self._displacement, self._seed = operator, rows, displacement, seed
        self._ranks = operator.objective.communicator
        self._previous_step: np.ndarray | None = None
        self._first: tuple[int, Any] | None = None  # The gradients of the first run, and on how many batches.

    @property
    def batch_size(self) -> int:
        """Largest number of rows in a batch, of any rank."""
        return self._rows.batch_size

    @property
    def _num_vectors(self) -> int:
        return 3 if self._displacement is None else 4

    def guess_costs(self) -> tuple[float, Costs]:
        """Return the seconds of a first gradient, which is traced, and costs that follow from a second one."""
        objective = self._operator.objective.over(Probe.from_batches(self._rows.batches(0, 1)))
        first, again = (self._agreed_seconds(objective.loss_and_gradient) for _ in range(2))
        # The gradients of groups, their check, and that of the mean of all.
        return first, Costs(4.0 * again, GRADIENTS_IN_A_PRODUCT * again, self._num_vectors)

    def costs(self, smaller: tuple[Costs, int] | None = None) -> Costs:
        """Measure the seconds of gradients and of a product on a batch, without their compilation."""
        # The first call of gradients on other batches compiles. Then `smaller`, the costs on batches of fewer rows and
        # their number, is a bound.
        batches = self._rows.batches(0, 1)
        operator = self._operator.over(Probe.from_batches(batches))
        vector = np.ones(operator.shape[0], operator.dtype)
        with operator.shared():
            operator.matvec(vector)
            product = self._agreed_seconds(lambda: np.asarray(operator.matvec(vector)))
        gradients = self._agreed_seconds(lambda: self._gradients_of(batches, 0))
        if smaller is not None:
            gradients = min(gradients, smaller[0].gradients * self.batch_size / smaller[1])
        return Costs(gradients, product, self._num_vectors)

    def _agreed_seconds(self, action: Callable[[], object]) -> float:
        # All ranks must choose the same effort.
        begin = budget.clock()
        action()
        return float(max(self._ranks.allgather_object(budget.clock() - begin, "seconds")))

    def run(self, index: int, effort: Effort, seconds: float | None = None) -> RunResult:
        """Measure run `index`, in about `seconds`, or longer for the fewest products; None sets no time limit."""
        begin = budget.clock()
        batches = self._rows.batches(index, effort.num_batches)
        operator = self._operator.over(Probe.from_batches(batches))
        loss, gradient, noise, trace, num_rows = self._gradients_of(batches, index)
        normal = np.random.default_rng([self._seed, index]).standard_normal(operator.shape[0])
        vectors = {"counts": normal, "noise": noise, "gradient": gradient}
        initial_loss = loss
        with operator.shared():
            gain_elsewhere = self._gain(operator, gradient)
            if self._displacement is not None:
                moved = np.asarray(operator.matvec(self._displacement.astype(operator.dtype)), np.float64)
                vectors["start"] = gradient + moved
                initial_loss = self._initial_loss(operator, self._displacement)
            found = {}
            for number, (name, vector) in enumerate(vectors.items(), start=1):
                is_over = None if seconds is None else self._clock(begin, number / len(vectors) * seconds)
                result = run_lanczos(operator, vector, effort.num_matvecs, is_over)
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

    def _gradients_of(self, batches: Sequence[Batch], index: int) -> tuple[float, np.ndarray, np.ndarray, float, int]:
        # The costs were measured on the first batches of the first run, which need not be computed again.
        if index == 0 and self._first is not None and self._first[0] == len(batches):
            return self._first[1]
        found = self._gradient_and_noise(batches, index)
        if index == 0:
            self._first = len(batches), found
        return found

    def _clock(self, begin: float, seconds: float) -> Callable[[int], bool]:
        # If the machine has become much slower, a vector gets fewer products.
        def is_over(count: int) -> bool:
            passed = budget.clock() - begin
            limit = seconds if count >= FEWEST_MATVECS else 2.0 * seconds
            is_late = count >= FEWEST_LATE_MATVECS and passed > limit
            return any(self._ranks.allgather_object(is_late, "seconds"))

        return is_over

    def check(self) -> None:
        """Raise ValueError unless the loss is finite and a mean over rows."""
        largest = max(self._rows.batches(0), key=lambda batch: batch.num_rows)
        objective = self._operator.objective.over(Probe.from_batches([largest]))
        value, gradient = objective.loss_and_gradient()
        if not (np.isfinite(value) and np.isfinite(flatten(gradient)).all()):
            raise ValueError(f"`model` must have a finite loss and gradient on the data. Received: a loss of {value:g}")
        Groups(objective, self._rows.group_size, has_all_rows=True).check()

    def check_products(self) -> None:
        """Check the first product, as every `CurvatureOperator` does, and no other one if that says all."""
        operator = self._operator.over(Probe.from_batches(self._rows.batches(0, 1)))
        operator.matvec(np.ones(operator.shape[0], operator.dtype))
        if not operator.must_check_all_rows:
            self._operator = operator

    def adopt(self, other: "RunMeasurer") -> None:
        """Go on with the operator that another measurer has checked."""
        self._operator = other._operator

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
