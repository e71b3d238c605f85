"""Check that the loss of a batch is the mean of the losses of its rows; gradients of single rows assume it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._variables import flatten
from tfopt.curvature.batch import Batch, join, map_arrays, row_form
from tfopt.curvature.batch_sizes import BatchSizeError
from tfopt.curvature.objective import Objective

# The largest number of groups in a mixed batch. It is small, so that one row with a mask changes the mean visibly, and
# odd, so that groups with opposite gradients do not cancel.
MOST_GROUPS = 15
TOLERANCE = 1e-3
FLOAT8_TOLERANCE = 0.2  # float8 rounds this much without any mask; half precision is computed in float32

RowRange = tuple[int, int, int]  # the index of a batch, the first row of a group in it, and one past the last row
Evaluation = tuple[float, np.ndarray]  # a loss and its gradient, a vector of n entries


class Evaluations(Sequence[Evaluation]):
    """Loss and gradient of each group, computed on access, at the weights at construction; kept if `is_kept`."""

    def __init__(
        self, objective: Objective, batches: list[Batch], ranges: list[RowRange], is_kept: bool = False
    ) -> None:
        self.objective, self._batches, self._ranges = objective, batches, ranges
        self._values = objective.values()
        self._is_kept = is_kept
        self._kept: dict[int, tuple[float, list[Any]]] = {}  # in the dtype of the variables, which needs less memory

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: Any) -> Any:
        loss, gradient = self._kept.get(index) or self._compute(index)
        return loss, flatten(gradient)

    def _compute(self, index: int) -> tuple[float, list[Any]]:
        number, start, stop = self._ranges[index]
        loss, gradient = self.objective.batch_gradient(self._values, self._batches[number].rows(start, stop).tensors)
        found = float(loss), gradient
        if self._is_kept:
            self._kept[index] = found
        return found


class NotAMeanError(ValueError):
    """The loss of a batch is not the mean of the losses of its rows."""


class RowMeanCheck:
    """Compare loss and gradient of mixed batches with the means over the groups of rows in them."""

    # A mixed batch joins groups from the whole probe, which reveals masks that differ only between batches. Each group
    # is in one or two mixed batches. If groups have several rows, the joined rows are also redistributed at random,
    # which reveals masks that differ only within groups. Groups whose rows have different shapes are not mixed.
    def __init__(self, objective: Objective, batches: Sequence[Batch], ranges: Sequence[RowRange]) -> None:
        self._objective, self._batches, self._ranges = objective, batches, ranges
        self._values = objective.values()
        self._float8 = [
            layer.path for layer in _keras.flatten_layers(objective.model)() if layer.quantization_mode == "float8"
        ]
        self._tolerance = FLOAT8_TOLERANCE if self._float8 else TOLERANCE

    def __call__(self, evaluations: Sequence[Evaluation] | None) -> None:
        """Check all groups of all ranks.

        Args:
            evaluations: Loss and gradient of each group of this rank. None if the caller measures another loss (batch
                statistics in place of moving averages); then only redistributed rows are compared.

        Raises:
            NotAMeanError: The loss is not a mean over rows; all ranks raise it.
            ValueError: The loss is not finite; all ranks raise it.
        """
        rng = np.random.default_rng(0)
        verdicts = [self._compare(mixture, evaluations, rng) for mixture in self._mixtures(rng)]
        verdict = max([*verdicts, self._compare_ranks()])
        if evaluations is None and verdict == INFINITE:
            verdict = EQUAL  # the caller measures another loss, which may be finite
        found = set(self._objective.communicator.allgather_object(verdict, "the loss of groups"))
        if OTHER in found:
            rounding = (
                f"; the rounding of the float8 layers {', '.join(self._float8)}, which is coarse: measure the model as "
                "it was before `quantize` to rule it out"
            )
            raise NotAMeanError(
                "`loss` must be a mean over rows, so that gradients of single rows are defined. Received: a loss whose "
                "gradient on a batch is not the mean of the gradients of its rows. Possible causes: a reduction other "
                "than 'sum_over_batch_size'; masks or `ignore_class`, which give some rows fewer entries than others; "
                "a model or loss that mixes the rows of a batch (batch statistics in a layer that is not Keras's "
                "BatchNormalization, contrastive losses, attention over the batch); the states of a stateful recurrent "
                "layer, which belong to places in the batch (call its `reset_state()`)"
                f"{rounding if self._float8 else ''}"
            )
        if INFINITE in found:
            raise ValueError("`model` must have a finite loss and gradient on the data. Received: NaN or infinity")

    def _mixtures(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """Yield lists of indices of groups whose rows can be joined, until each group was in one."""
        by_form: dict[Any, dict[int, list[int]]] = {}
        for index, (number, start, stop) in enumerate(self._ranges):
            by_form.setdefault(row_form(self._batches[number]), {}).setdefault(stop - start, []).append(index)
        for by_size in by_form.values():
            for size, indices in by_size.items():
                order = rng.permutation(indices).tolist()
                if len(order) == 1:  # no other group has this size
                    order += [others[0] for other, others in by_size.items() if other != size][:1]
                most = max(self._batches[self._ranges[index][0]].num_rows for index in indices) // size
                count = min(MOST_GROUPS, max(most, 2), len(order))
                count -= count > 2 and count % 2 == 0
                # All mixtures have the same size, because each size compiles another program.
                for start in range(0, len(order), count):
                    first = min(start, len(order) - count)
                    yield order[first : first + count]

    def _compare(self, mixture: list[int], evaluations: Sequence[Evaluation] | None, rng: np.random.Generator) -> int:
        groups = [self._rows(index) for index in mixture]
        rows = join(groups)
        count = max(len(mixture), 2)
        is_lone = len(mixture) < count
        has_several = rows.num_rows > len(mixture)  # some group has several rows
        if rows.num_rows < 2 or (evaluations is None and not has_several):
            return EQUAL
        try:
            whole = self._evaluate(rows)
        except BatchSizeError:
            return self._compare_dealt(groups, rows, rng)
        verdict = EQUAL
        if evaluations is not None and not is_lone:
            verdict = self._judge(whole, (evaluations[index] for index in mixture), [g.num_rows for g in groups])
        if has_several:
            dealt, size = rng.permutation(rows.num_rows), rows.num_rows // count
            parts = [dealt[at * size : (at + 1) * size] for at in range(count - 1)] + [dealt[(count - 1) * size :]]
            anew = (self._evaluate(rows.take(part)) for part in parts)
            verdict = max(verdict, self._judge(whole, anew, [len(part) for part in parts]))
        return verdict

    def _compare_dealt(self, groups: list[Batch], rows: Batch, rng: np.random.Generator) -> int:
        # The model takes only batches of the size of a group. The groups and their rows, dealt anew to as many groups,
        # must have the same mean.
        dealt = np.array_split(rng.permutation(rows.num_rows), len(groups))
        anew = [self._evaluate(rows.take(part)) for part in dealt]
        whole = float(np.mean([value for value, _ in anew])), np.mean([gradient for _, gradient in anew], axis=0)
        return self._judge(whole, (self._evaluate(group) for group in groups), [group.num_rows for group in groups])

    def _compare_ranks(self) -> int:
        # Compare with a group of the next rank whose rows have the same shapes.
        ranks = self._objective.communicator
        if ranks.size == 1:
            return EQUAL
        mine = self._rows(0) if self._ranges else None
        arrays = None if mine is None else (mine.num_rows, *(map_arrays(np.asarray, part) for part in mine.tensors))
        everyone = ranks.allgather_object(arrays, "a group of each rank")
        if mine is None:
            return EQUAL
        for step in range(1, ranks.size):
            other = everyone[(ranks.rank + step) % ranks.size]
            if other is None:
                continue
            theirs = Batch(*(map_arrays(tf.convert_to_tensor, part) for part in other[1:]), num_rows=other[0])
            if row_form(theirs) == row_form(mine):
                groups, joined = [mine, theirs], join([mine, theirs])
                try:
                    whole = self._evaluate(joined)
                except BatchSizeError:
                    is_even = mine.num_rows == theirs.num_rows
                    return self._compare_dealt(groups, joined, np.random.default_rng(0)) if is_even else EQUAL
                parts = (self._evaluate(group) for group in groups)
                return self._judge(whole, parts, [group.num_rows for group in groups])
        return EQUAL

    def _rows(self, index: int) -> Batch:
        number, start, stop = self._ranges[index]
        return self._batches[number].rows(start, stop)

    def _evaluate(self, rows: Batch) -> Evaluation:
        value, gradient = self._objective.batch_gradient(self._values, rows.tensors)
        return float(value), flatten(gradient)

    def _judge(self, whole: Evaluation, parts: Iterable[Evaluation], weights: list[int]) -> int:
        value, gradient = whole
        mean_value = mean_size = mean_square = 0.0
        mean, weighted = np.zeros_like(gradient), np.empty_like(gradient)
        for weight, (part, of_part) in zip(np.divide(weights, sum(weights)), parts, strict=True):
            mean_value, mean_size = mean_value + weight * part, mean_size + weight * abs(part)
            mean_square += weight * float(of_part @ of_part)
            mean += np.multiply(of_part, weight, out=weighted)
        # If gradients cancel, the rounding error is still that of a mean of independent gradients.
        expected = math.sqrt(mean_square / len(weights)) if math.isfinite(mean_square) else math.inf
        scale = max(float(np.linalg.norm(gradient)), float(np.linalg.norm(mean)), expected)
        if not math.isfinite(scale + abs(value) + mean_size):
            return INFINITE
        has_mean_gradient = np.linalg.norm(gradient - mean) <= self._tolerance * scale
        has_mean_value = abs(value - mean_value) <= self._tolerance * max(abs(value), mean_size)
        return EQUAL if has_mean_gradient and has_mean_value else OTHER


def depends_on_batch_size(objective: Objective) -> bool:
    """Return, on all ranks alike, whether the loss of a batch changes where each of its rows is there twice."""
    # Means do not change, also those over entries without masks, and those with batch statistics. Sums do, and so do
    # losses of pairs of rows.
    verdict = any(_changes_if_doubled(objective, batch) for batch in objective.probe.batches[:1])
    return any(objective.communicator.allgather_object(verdict, "the loss of rows that are there twice"))


def _changes_if_doubled(objective: Objective, batch: Batch) -> bool:
    values = objective.values()
    once = float(objective.batch_gradient(values, batch.tensors)[0])  # the gradient is compiled already
    try:
        twice = float(objective.batch_gradient.loss(values, join([batch, batch]).tensors))
    except Exception:
        return False  # The model takes only batches of this size.
    return abs(twice - once) > TOLERANCE * max(abs(once), abs(twice))


EQUAL, INFINITE, OTHER = 0, 1, 2  # the whole equals the mean of its parts; undecided (not finite); it differs
