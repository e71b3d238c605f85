"""The gradients of groups of rows, which scatter around their mean."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._checks import check_integer
from tfopt.curvature.estimate import Estimate
from tfopt.curvature.hessian import HessianOperator
from tfopt.curvature.model_checks import has_batch_norm
from tfopt.curvature.objective import Objective
from tfopt.curvature.row_means import Evaluation, Evaluations, RowMeanCheck, RowRange

KEPT_BYTES = 2**29  # limit up to which the gradients of all groups are cached in place of computed again


class Groups:
    """The gradients of all groups of `size` consecutive rows (B) of an objective, one after the other.

    With `has_all_rows`, the last group of each batch also takes the remaining rows, and a batch of fewer rows is a
    group. Otherwise these rows are left out.

    Attributes:
        count: Number of groups (M), over all ranks.
        sizes: Rows in each group of this rank.
    """

    def __init__(self, objective: Objective, size: int, *, has_all_rows: bool = False) -> None:
        self.objective, self.size = objective, check_integer("group_size", size, minimum=1)
        self._ranks = objective.communicator
        self._normalizes = objective.batch_norm == "batch" and has_batch_norm(objective.model)
        smallest = min([size, *(batch.num_rows for batch in objective.probe.batches if has_all_rows)])
        if smallest == 1 and self._normalizes:
            raise ValueError(
                "Single rows have no gradients if batches are normalised by their own statistics. Received: "
                "group_size=1 and batch_norm='batch' for a model with BatchNormalization. Use batch_norm='moving', or "
                "larger groups"
            )
        self._is_checked = False
        self._batches = [batch for batch in objective.probe.batches if has_all_rows or batch.num_rows >= size]
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
                "`data` must have at least two groups of `group_size` rows, each within a batch. Received: "
                f"{self.count} groups of group_size={size} rows in batches of "
                f"{max(batch.num_rows for batch in objective.probe.batches)}"
            )

    def variance_of_rows(self, squares: Any) -> Estimate:
        """Return a variance of single rows, from squared distances (k,) of groups from the mean of all M groups."""
        mean = Estimate.from_draws(self.size * self.count / (self.count - 1) * np.asarray(squares))
        # Each group pulls the mean towards itself. The jackknife, which leaves out each group in turn and computes the
        # mean anew, gives the standard error of the draws times (M - 1) / (M - 2).
        pull = (self.count - 1) / (self.count - 2) if self.count > 2 else np.nan
        return replace(mean, standard_error=mean.standard_error * pull)

    def scatter(self, units: np.ndarray, evaluations: Sequence[Evaluation]) -> "Scatter":
        """Return the scatter of the gradients of all groups, along `units` too, of shape (k, n) and norm 1."""
        size = sum(int(v.shape.num_elements()) for v in self.objective.values())
        mean = self._mean((gradient for _, gradient in evaluations), size)
        self.check(evaluations)
        draws, away = [], np.empty(size)
        for _, gradient in evaluations:
            np.subtract(gradient, mean, out=away)
            draws.append([away @ away, away @ mean, *(units @ away) ** 2])
        table = tf.constant(np.array(draws).reshape(len(draws), 2 + len(units)))
        squares, alignments, *projected = self._ranks.allgather(table, name="draws").numpy().T
        return Scatter(mean, squares, alignments, projected)

    def evaluations(self) -> Sequence[Evaluation]:
        """Return loss and gradient (n entries) of each group of this rank: cached up to 512 MiB, else recomputed."""
        values = self.objective.values()
        num_bytes = len(self._ranges) * sum(int(v.shape.num_elements()) * v.dtype.size for v in values)
        return Evaluations(self.objective, self._batches, self._ranges, num_bytes <= KEPT_BYTES)

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
        objective, own = self.objective, evaluations
        if self._normalizes:
            objective, own = objective.with_moving_averages(), None
        elif own is None:
            own = self.evaluations()
        RowMeanCheck(objective, self._batches, self._ranges)(own)
        self._is_checked = True

    def curved(
        self, hessian: HessianOperator, mean: np.ndarray, count: int, rng: np.random.Generator
    ) -> Iterator[float]:
        """Yield (g_i - g)' H (g_i - g) for `count` random groups of all ranks, with g = `mean`, on every rank."""
        counts = self._ranks.allgather_object(len(self._ranges), "groups")
        owners = [(rank, index) for rank, owned in enumerate(counts) for index in range(owned)]
        evaluations = Evaluations(self.objective, self._batches, self._ranges)
        with hessian.shared():
            for chosen in rng.choice(len(owners), min(count, len(owners)), replace=False):
                rank, index = owners[chosen]
                is_mine = rank == self._ranks.rank
                away = evaluations[index][1] - mean if is_mine else np.zeros_like(mean)
                (shared,) = self._ranks.allreduce_sum([tf.constant(away)], name="away")
                away = shared.numpy()
                yield float(away @ np.asarray(hessian.matvec(away.astype(hessian.dtype)), np.float64))


@dataclass(frozen=True)
class Scatter:
    """The gradients of M groups of all ranks around their mean."""

    mean: np.ndarray  # Mean gradient g, of shape (n,)
    squares: np.ndarray  # |g_i - g|^2 of each group, of shape (M,)
    alignments: np.ndarray  # (g_i - g)'g of each group, of shape (M,)
    projected: list[np.ndarray]  # (d'(g_i - g))^2 of each group, of shape (M,), for each direction d


def jackknife(scatter: Scatter, size: int) -> float:
    """Return the standard error of the noise scale of groups of `size` rows, in rows; NaN if it is unknown."""
    # Without group i the mean gradient is g - (g_i - g) / (M - 1), and the sum of squares is less by
    # |g_i - g|^2 M / (M - 1). It is unknown for two groups, or if a noise scale without a group is unknown.
    squares, squared_norm, count = scatter.squares, float(scatter.mean @ scatter.mean), len(scatter.squares)
    if count < 3:
        return float("nan")
    covariance_traces = size * (squares.sum() - squares * count / (count - 1)) / (count - 2)
    norms = squared_norm - 2 * scatter.alignments / (count - 1) + squares / (count - 1) ** 2
    signals = norms - covariance_traces / ((count - 1) * size)
    scales = covariance_traces / np.where(signals > 0, signals, np.nan)
    return float(np.sqrt((count - 1) * scales.var()))
