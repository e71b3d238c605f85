"""Some rows of data: inputs, targets and weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Batch:
    """Some rows of a probe."""

    x: Any  # The inputs in the form that the model takes: a tensor, or a tuple, list or dictionary of tensors
    y: Any  # Targets in such a form; None without targets
    sample_weight: Any  # Weights of the rows; None without weights
    num_rows: int  # Number of rows

    @property
    def tensors(self) -> tuple[Any, Any, Any]:
        """The inputs, targets and weights."""
        return self.x, self.y, self.sample_weight

    def rows(self, start: int, stop: int) -> "Batch":
        """Return the batch of rows `start` to `stop` - 1, or to the last row."""
        x, y, sample_weight = (map_arrays(lambda leaf: leaf[start:stop], part) for part in self.tensors)
        return Batch(x, y, sample_weight, min(stop, self.num_rows) - start)

    def take(self, indices: Any) -> "Batch":
        """Return the batch of the rows with these indices, in this order."""
        x, y, sample_weight = (map_arrays(lambda leaf: tf.gather(leaf, indices), part) for part in self.tensors)
        return Batch(x, y, sample_weight, len(indices))


def map_arrays(function: Callable[[Any], Any], part: Any) -> Any:
    """Apply a function to each array of a nested structure; None stays None."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else function(leaf), part)


def join(batches: Sequence[Batch]) -> Batch:
    """Join batches whose rows have the same shapes to one batch."""

    def concatenate(*leaves: Any) -> Any:
        return None if leaves[0] is None else tf.concat(leaves, axis=0)

    columns = zip(*(batch.tensors for batch in batches), strict=True)
    tensors = (keras.tree.map_structure(concatenate, *column) for column in columns)
    return Batch(*tensors, num_rows=sum(batch.num_rows for batch in batches))


def form_of(tensors: Any) -> tuple[Any, ...]:
    """Return the shape and dtype of each tensor of a nested structure; None for None."""
    leaves = tf.nest.flatten(tensors)
    return tuple(None if leaf is None else (tuple(leaf.shape), leaf.dtype) for leaf in leaves)


def row_form(batch: Batch) -> tuple[Any, ...]:
    """Return the shape and dtype of a row of each tensor; rows of equal form can be joined."""
    leaves = [leaf for leaf in tf.nest.flatten(batch.tensors) if leaf is not None]
    return tuple((tuple(leaf.shape[1:]), leaf.dtype) for leaf in leaves)
