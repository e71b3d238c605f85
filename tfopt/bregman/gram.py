"""Gram matrices: all that the update of weights needs of the rows, and all that ranks tell each other of theirs.

With biases the activations have a further column of ones. What a layer with p inputs (its bias counted) and n outputs
hands over to be summed are p (p + 1) / 2 + p n numbers, half of the symmetric A'A and A'Z, whatever the number of rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt.bregman.compilation import compiled
from tfopt.bregman.rows import Rows
from tfopt.communicator import Communicator

__all__ = ["Sums", "of_inputs", "of_rows", "reduce_sums"]


class Sums:
    """A'A and A'Z of one layer, and some numbers beside them, summed over rows in float64.

    Args:
        num_inputs: Inputs of the layer, its bias counted.
        num_outputs: Outputs of the layer.
        with_gram: Whether A'A is wanted too.
        num_scalars: How many numbers are summed beside the matrices.

    Attributes:
        gram: A'A, shape `(num_inputs, num_inputs)`; None without it.
        cross_gram: A'Z, shape `(num_inputs, num_outputs)`.
        scalars: Shape `(num_scalars,)`; None if there are none.
    """

    def __init__(self, num_inputs: int, num_outputs: int, with_gram: bool = True, num_scalars: int = 0) -> None:
        self._shapes = {
            "gram": (num_inputs, num_inputs) if with_gram else None,
            "cross_gram": (num_inputs, num_outputs),
            "scalars": (num_scalars,) if num_scalars else None,
        }
        self.gram: Any = None
        self.cross_gram: Any = None
        self.scalars: Any = None

    def add(self, gram: Any, cross_gram: Any, scalars: Any = None) -> None:
        """Add the sums over some rows.

        Args:
            gram: A'A; not used where it is not wanted.
            cross_gram: A'Z.
            scalars: The numbers beside them.
        """
        for name, part in (("gram", gram), ("cross_gram", cross_gram), ("scalars", scalars)):
            if self._shapes[name] is not None:
                old = getattr(self, name)
                setattr(self, name, part if old is None else old + part)

    def fill(self) -> None:
        """Put zeros where nothing was added, on a rank that has no row of a block."""
        for name, shape in self._shapes.items():
            if shape is not None and getattr(self, name) is None:
                setattr(self, name, tf.zeros(shape, tf.float64))


def of_rows(a: Any, z: Any, mask: Any, with_bias: bool, with_gram: bool = True) -> tuple[Any, Any]:
    """Compute A'A and A'Z over a chunk of rows.

    Args:
        a: Activations, shape `(rows, inputs)`; rows that do not count must be zero.
        z: Shape `(rows, outputs)`.
        mask: Ones, and zeros for rows that do not count, shape `(rows,)`.
        with_bias: Whether to add a column of ones to the activations.
        with_gram: Whether to compute A'A.

    Returns:
        Two float64 tensors; the first is a scalar zero without `with_gram`.
    """
    cross_gram = tf.matmul(a, z, transpose_a=True)
    gram = tf.matmul(a, a, transpose_a=True) if with_gram else tf.zeros((), tf.float64)
    if with_bias:
        cross_gram = tf.concat([cross_gram, tf.matmul(mask[None, :], z)], axis=0)
        if with_gram:
            column = tf.matmul(a, mask[:, None], transpose_a=True)
            corner = tf.reduce_sum(mask)[None, None]
            gram = tf.concat(
                [tf.concat([gram, column], axis=1), tf.concat([tf.transpose(column), corner], axis=1)], axis=0
            )
    return tf.cast(gram, tf.float64), tf.cast(cross_gram, tf.float64)


@functools.lru_cache(maxsize=8)
def _make_count(with_bias: bool) -> Any:
    def count(a: Any, mask: Any) -> Any:
        return of_rows(a, mask[:, None], mask, with_bias)

    return compiled(count)


def of_inputs(rows: Rows, num_inputs: int, with_bias: bool, communicator: Communicator) -> Any:
    """Compute A_0'A_0 over the rows of all ranks, which training never changes.

    Args:
        rows: The rows of this process.
        num_inputs: Inputs of the first layer, its bias counted.
        with_bias: Whether there is a column of ones.
        communicator: The job's processes.

    Returns:
        Shape `(num_inputs, num_inputs)`, float64.
    """
    sums = Sums(num_inputs, 1)
    for chunk in rows.all():
        sums.add(*_make_count(with_bias)(chunk.inputs, chunk.mask))
    reduce_sums(communicator, [sums], "Gram matrix of the inputs")
    return sums.gram


def reduce_sums(communicator: Communicator, sums: Sequence[Sums], name: str) -> None:
    """Add sums up over all ranks, in one grouped allreduce.

    Args:
        communicator: The job's processes.
        sums: Of one or several layers; changed in place.
        name: For messages.
    """
    for item in sums:
        item.fill()
    if communicator.size == 1:
        return
    tensors = []
    for item in sums:
        if item.gram is not None:
            tensors.append(tf.gather(tf.reshape(item.gram, [-1]), _lower_triangle(item.gram.shape[0])))
        tensors += [part for part in (item.cross_gram, item.scalars) if part is not None]
    reduced = iter(communicator.allreduce_sum(tensors, name=name))
    for item in sums:
        if item.gram is not None:
            item.gram = tf.gather(next(reduced), _positions(item.gram.shape[0]))
        item.cross_gram = next(reduced)
        if item.scalars is not None:
            item.scalars = next(reduced)


@functools.lru_cache(maxsize=32)
def _lower_triangle(size: int) -> np.ndarray:
    rows, columns = np.tril_indices(size)
    return rows * size + columns


@functools.lru_cache(maxsize=32)
def _positions(size: int) -> np.ndarray:
    # Where each entry of the full matrix stands in its packed lower triangle.
    rows, columns = np.indices((size, size))
    high, low = np.maximum(rows, columns), np.minimum(rows, columns)
    return high * (high + 1) // 2 + low
