"""The scatter of the gradients of single rows and of batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._checks import as_items, check_flag, check_integer, check_number
from tfopt._record import Record
from tfopt.communicator import Communicator
from tfopt.curvature.hessian import HessianOperator
from tfopt.curvature.linear_map import as_vector
from tfopt.curvature.probe import Batch
from tfopt.curvature.probe_loss import ProbeLoss
from tfopt.curvature.row_means import Evaluation, RowMeanCheck, RowRange, evaluation
from tfopt.curvature.trace import Estimate

KEPT_BYTES = 2**28  # limit up to which the gradients of all groups are cached in place of computed twice


@dataclass(frozen=True)
class GradientNoise(Record):
    """The scatter of gradients over a probe.

    With g_i the gradient of group i of B rows, of M groups, and g their mean: C = B sum_i (g_i - g)(g_i - g)' / (M - 1)
    estimates the covariance of the gradient of a single row.

    Attributes:
        covariance_trace: tr C.
        hessian_covariance_trace: tr(H C), with H the Hessian on the probe; None unless it was requested.
        projections: d'C d for each direction d of norm 1, a list.
        squared_gradient_norm: |g|^2.
        noise_scale_standard_error: Standard error of `noise_scale`, in rows, by leaving out each group in turn
            (jackknife); NaN if the probe is too small.
        gradient: g, a vector of n entries.
        num_rows: Number of rows in all groups (N).
        group_size: B.
        batch_norm: How batch normalisation was computed: "batch" or "moving".
        precision: How layers were computed: "model", "float32" or "bfloat16", as in `HessianOperator.precision`.
    """

    covariance_trace: Estimate
    hessian_covariance_trace: Estimate | None
    projections: list[Estimate]
    squared_gradient_norm: float
    noise_scale_standard_error: float
    gradient: np.ndarray = field(repr=False)
    num_rows: int
    group_size: int
    batch_norm: str
    precision: str = "model"

    def batch_variance(self, batch_size: int, num_rows: int | None = None) -> float:
        """Return the mean squared distance between the gradients of a batch and of all rows: tr C / B (1 - B / N).

        Args:
            batch_size: Rows in a batch (B), an integer >= 1.
            num_rows: Number of rows from which batches are drawn without replacement (N). None (default) means
                infinitely many rows, or drawing with replacement.

        Returns:
            The variance; 0 if the batch is all rows.

        Raises:
            ValueError: `batch_size` is larger than `num_rows`.
        """
        check_integer("batch_size", batch_size, minimum=1)
        correction = 1.0
        if num_rows is not None:
            check_integer("num_rows", num_rows, minimum=1)
            if batch_size > num_rows:
                raise ValueError(f"`batch_size` must be at most `num_rows`. Received: {batch_size} of {num_rows}")
            correction = 1.0 - batch_size / num_rows
        return self.covariance_trace.value / batch_size * correction

    @property
    def noise_scale(self) -> float:
        """The simple noise scale tr C / |G|^2, in rows (McCandlish et al., arXiv 1812.06162, equation 2.9).

        |G|^2 is the squared gradient norm of infinitely many rows, estimated as |g|^2 - tr C / N. The noise scale is
        NaN if this estimate is not positive, because the probe is then too small.
        """
        signal = self.squared_gradient_norm - self.covariance_trace.value / self.num_rows
        return self.covariance_trace.value / signal if signal > 0 else float("nan")


def gradient_noise(
    model: keras.Model,
    loss: Any = None,
    x: Any = None,
    y: Any = None,
    sample_weight: Any = None,
    *,
    group_size: int = 1,
    directions: Any = (),
    num_hessian_groups: int = 0,
    batch_size: int | None = None,
    batch_norm: str = "batch",
    self_check: bool = True,
    seed: int = 0,
    communicator: Communicator | None = None,
) -> GradientNoise:
    """Measure the scatter of gradients over a probe.

    Groups are consecutive rows of the probe, which must be in random order. Rows that do not fill a group are left out.
    Standard errors assume independent groups. Regularisation adds the same term to every gradient, and no scatter.

    Args:
        model: A Keras model with its variables, compiled or not.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or what `Probe` takes as its `x`.
        y: As `Probe` takes it.
        sample_weight: As `Probe` takes it.
        group_size: Rows in a group (B), an integer >= 1. Default 1: gradients of single rows. These do not exist for a
            model that normalises by batch statistics, which needs larger groups.
        directions: Vectors of n entries, or lists of arrays shaped like the variables, of any norm but 0, on which to
            project gradients.
        num_hessian_groups: Number of groups from which to estimate tr(H C), with one Hessian product each; 0 (default)
            leaves tr(H C) out.
        batch_size: As `Probe` takes it.
        batch_norm: "batch" (default) or "moving", as for `HessianOperator`.
        self_check: Whether to check the first Hessian product, as `HessianOperator` does. Default True.
        seed: Seed of the choice of groups for tr(H C), an integer >= 0. Default 0.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`. The groups of all
            ranks are combined.

    Returns:
        The scatter.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; there are fewer than two groups; the loss is not a mean over rows
            (other reductions, masks, layers or losses that mix rows); `group_size` is 1 for a model that normalises by
            batch statistics; or TensorFlow's gradient is wrong, because targets of a categorical cross-entropy do not
            sum to 1.
        RuntimeError: Products with the Hessian are wrong, see `HessianOperator`.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.zeros((1, 1))])
        >>> noise = gradient_noise(model, "mse", np.array([[1.0], [1.0]]), np.array([[1.0], [2.0]]))
        >>> noise.squared_gradient_norm, noise.covariance_trace.value
        (9.0, 2.0)
    """
    check_integer("num_hessian_groups", num_hessian_groups, minimum=0)
    check_flag("self_check", self_check)
    rng = np.random.default_rng(check_integer("seed", seed, minimum=0))
    probe_loss = ProbeLoss.of(
        model, loss, x, y, sample_weight, batch_size=batch_size, batch_norm=batch_norm, communicator=communicator
    )
    groups = Groups(probe_loss, group_size)
    noise = groups.noise(directions)
    if not num_hessian_groups:
        return noise
    hessian = HessianOperator(
        model, loss, probe_loss.probe, batch_norm=batch_norm, self_check=self_check, communicator=communicator
    )
    draws = np.array(list(groups.curved(hessian, noise.gradient, num_hessian_groups, rng)))
    return replace(noise, hessian_covariance_trace=Estimate.of(groups.factor * draws))


def simple_noise_scale(small_squared_norm: float, big_squared_norm: float, small_size: int, big_size: int) -> float:
    """Return the noise scale from the mean squared norms of gradients of two batch sizes.

    E|G_B|^2 = |G|^2 + tr C / B, at two sizes, gives both unknowns (McCandlish et al., arXiv 1812.06162, appendix A.1):
    tr C = (|G_b|^2 - |G_B|^2) / (1/b - 1/B) and |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b).

    Args:
        small_squared_norm: Mean of |G_b|^2 over batches of the smaller size.
        big_squared_norm: Mean of |G_B|^2 over batches of the larger size.
        small_size: The smaller size (b), an integer >= 1.
        big_size: The larger size (B).

    Returns:
        tr C / |G|^2, in rows; NaN if the estimate of |G|^2 is not positive.

    Raises:
        TypeError: A size is not an integer, or a norm is not a number.
        ValueError: `big_size` is not above `small_size`, or a norm is negative or not finite.

    Example:
        >>> simple_noise_scale(3.0, 2.0, small_size=1, big_size=2)
        2.0
    """
    check_integer("small_size", small_size, minimum=1)
    check_integer("big_size", big_size, minimum=small_size + 1)
    check_number("small_squared_norm", small_squared_norm, minimum=0.0)
    check_number("big_squared_norm", big_squared_norm, minimum=0.0)
    covariance_trace = (small_squared_norm - big_squared_norm) / (1 / small_size - 1 / big_size)
    signal = (big_size * big_squared_norm - small_size * small_squared_norm) / (big_size - small_size)
    return float(covariance_trace / signal) if signal > 0 else float("nan")


class Groups:
    """The gradients of all groups of rows of a probe, one after the other.

    Args:
        probe_loss: The loss and its data.
        size: Rows in a group, an integer >= 1.
        has_all_rows: Whether the last group of each batch also takes the remaining rows, and a batch of fewer than
            `size` rows is a group. Otherwise these rows are left out.

    Attributes:
        count: Number of groups (M), over all ranks.
        sizes: Rows in each group of this rank.
        factor: B M / (M - 1), which turns mean squared distances into a variance of single rows.

    Raises:
        ValueError: There are fewer than two groups; or groups are single rows of a model that normalises by batch
            statistics.
    """

    def __init__(self, probe_loss: ProbeLoss, size: int, *, has_all_rows: bool = False) -> None:
        self._loss, self._size = probe_loss, check_integer("group_size", size, minimum=1)
        self._ranks = probe_loss.communicator
        self._normalizes = probe_loss.objective.batch_norm == "batch" and _has_batch_norm(probe_loss.objective.model)
        smallest = min([size, *(batch.num_rows for batch in probe_loss.probe.batches if has_all_rows)])
        if smallest == 1 and self._normalizes:
            raise ValueError(
                "Single rows have no gradients if batches are normalised by their own statistics. Received: "
                "group_size=1 and batch_norm='batch' for a model with BatchNormalization. Use batch_norm='moving', or "
                "larger groups"
            )
        self._is_checked = False
        self._batches = [batch for batch in probe_loss.probe.batches if has_all_rows or batch.num_rows >= size]
        self._ranges: list[RowRange] = []
        for number, batch in enumerate(self._batches):
            starts = list(range(0, max(batch.num_rows - size, 0) + 1, size))
            last = batch.num_rows if has_all_rows else starts[-1] + size
            self._ranges += [(number, *ends) for ends in zip(starts, [*starts[1:], last], strict=True)]
        self.sizes = [stop - start for _, start, stop in self._ranges]
        (count,) = self._ranks.allreduce_sum([tf.constant(len(self._ranges), tf.int64)], name="groups")
        self.count = int(count)
        if self.count < 2:
            raise ValueError(
                f"`x` must have at least two groups of `group_size` rows, each within a batch. Received: {self.count} "
                f"groups of group_size={size} rows in batches of {max(b.num_rows for b in probe_loss.probe.batches)}"
            )
        # The factor divides by M - 1, and each square then is one draw of an unbiased mean.
        self.factor = size * self.count / (self.count - 1)

    def noise(self, directions: Any = ()) -> GradientNoise:
        """Return the scatter at the model's weights, without tr(H C); `directions` as in `gradient_noise`."""
        size = sum(int(v.shape.num_elements()) for v in self._loss.values())
        units = _units(directions, size)
        evaluations = self.evaluations()
        mean = self._mean((gradient for _, gradient in evaluations), size)
        self.check(evaluations)
        draws = []
        for _, gradient in evaluations:
            away = gradient - mean
            draws.append([away @ away, away @ mean, *(units @ away) ** 2])
        table = tf.constant(np.array(draws).reshape(len(draws), 2 + len(units)))
        squares, alignments, *projected = self._ranks.allgather(table, name="draws").numpy().T
        return GradientNoise(
            covariance_trace=Estimate.of(self.factor * squares),
            hessian_covariance_trace=None,
            projections=[Estimate.of(self.factor * column) for column in projected],
            squared_gradient_norm=float(mean @ mean),
            noise_scale_standard_error=_jackknife(squares, alignments, float(mean @ mean), self._size),
            gradient=mean,
            num_rows=self.count * self._size,
            group_size=self._size,
            batch_norm=self._loss.objective.batch_norm,
            precision=self._loss.objective.precision,
        )

    def evaluations(self) -> Sequence[Evaluation]:
        """Return loss and gradient (n entries) of each group of this rank: cached up to 256 MiB, else recomputed."""
        computed = _Evaluations(self._loss, self._batches, self._ranges)
        num_bytes = 8 * len(self._ranges) * sum(int(v.shape.num_elements()) for v in self._loss.values())
        return list(computed) if num_bytes <= KEPT_BYTES else computed

    def _mean(self, gradients: Iterable[np.ndarray], size: int) -> np.ndarray:
        total = np.zeros(size)
        for gradient in gradients:
            total += gradient
        (total,) = self._ranks.allreduce_sum([tf.constant(total)], name="mean_gradient")
        return total.numpy() / self.count

    def check(self, evaluations: Sequence[Evaluation] | None = None) -> None:
        """Check once that the loss is a mean over rows, which all estimates here assume; ValueError if it is not."""
        # If batches are normalised by their own statistics, the check uses moving averages instead. `evaluations` is
        # the result of the method of this name; None computes it.
        if self._is_checked:
            return
        loss, own = self._loss, evaluations
        if self._normalizes:
            loss, own = loss.with_moving_averages(), None
        elif own is None:
            own = self.evaluations()
        RowMeanCheck(loss, self._batches, self._ranges)(own)
        self._is_checked = True

    def curved(
        self, hessian: HessianOperator, mean: np.ndarray, count: int, rng: np.random.Generator
    ) -> Iterator[float]:
        """Yield (g_i - g)' H (g_i - g) for `count` random groups of all ranks, with g = `mean`, on every rank."""
        counts = self._ranks.allgather_object(len(self._ranges), "groups")
        owners = [(rank, index) for rank, owned in enumerate(counts) for index in range(owned)]
        evaluations = _Evaluations(self._loss, self._batches, self._ranges)
        with hessian.shared():
            for chosen in rng.choice(len(owners), min(count, len(owners)), replace=False):
                rank, index = owners[chosen]
                is_mine = rank == self._ranks.rank
                away = evaluations[index][1] - mean if is_mine else np.zeros_like(mean)
                (shared,) = self._ranks.allreduce_sum([tf.constant(away)], name="away")
                away = shared.numpy()
                yield float(away @ np.asarray(hessian.matvec(away.astype(hessian.dtype)), np.float64))


class _Evaluations(Sequence[Evaluation]):
    """Loss and gradient of each group, computed on access, at the weights at construction."""

    def __init__(self, loss: ProbeLoss, batches: list[Batch], ranges: list[RowRange]) -> None:
        self._loss, self._batches, self._ranges = loss, batches, ranges
        self._values = loss.values()

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: Any) -> Any:
        number, start, stop = self._ranges[index]
        return evaluation(self._loss, self._values, self._batches[number].rows(start, stop))


def _jackknife(squares: np.ndarray, alignments: np.ndarray, squared_norm: float, size: int) -> float:
    """Return the standard error of the noise scale, in rows; NaN for two groups, or if a noise scale is NaN."""
    # Without group i the mean gradient is g - (g_i - g) / (M - 1), and the sum of squares is less by
    # |g_i - g|^2 M / (M - 1). `squares` holds |g_i - g|^2, of shape (M,); `alignments` (g_i - g)'g, of shape (M,);
    # `squared_norm` is |g|^2, and `size` the rows in a group.
    count = len(squares)
    if count < 3:
        return float("nan")
    covariance_traces = size * (squares.sum() - squares * count / (count - 1)) / (count - 2)
    norms = squared_norm - 2 * alignments / (count - 1) + squares / (count - 1) ** 2
    signals = norms - covariance_traces / ((count - 1) * size)
    scales = covariance_traces / np.where(signals > 0, signals, np.nan)
    return float(np.sqrt((count - 1) * scales.var()))


def _units(directions: Any, size: int) -> np.ndarray:
    listed = as_items("directions", directions, "hold vectors")
    units = np.empty((len(listed), size))
    for index, direction in enumerate(listed):
        vector = as_vector("directions", direction)
        if vector.shape != (size,):
            raise ValueError(f"`directions` must be vectors of {size} entries. Received: shape {vector.shape}")
        norm = np.linalg.norm(vector)
        if not (np.isfinite(norm) and norm > 0.0):
            raise ValueError(f"`directions` must be finite and not zero. Received: a vector of norm {norm}")
        units[index] = vector / norm
    return units


def _has_batch_norm(model: Any) -> bool:
    kind = keras.layers.BatchNormalization  # a frozen layer uses its moving averages
    return any(isinstance(layer, kind) and layer.trainable for layer in model._flatten_layers())
