"""Gram matrices: the weight updates need only these sums over rows, and ranks exchange only these sums.

With biases, the activations have an additional column of ones. A layer with p inputs (its bias counted) and n outputs
exchanges p (p + 1) / 2 + p n numbers, half of the symmetric A'A and all of A'Z, for any number of rows.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt._compiled import compiled
from tfopt.bregman.rows import Rows
from tfopt.communicator import Communicator

__all__ = ["Sums", "of_inputs", "of_rows", "reduce_sums"]


class Sums:
    """A'A, A'Z and a vector of scalars of one layer, summed over rows in float64.

    Attributes:
        gram: A'A, shape `(num_inputs, num_inputs)`, a bias counted as an input; None if not `with_gram`.
        cross_gram: A'Z, shape `(num_inputs, num_outputs)`.
        scalars: Shape `(num_scalars,)`; None if `num_scalars` is 0.
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
        """Add A'A (ignored if not `with_gram`), A'Z and the scalars of some rows."""
        for name, part in (("gram", gram), ("cross_gram", cross_gram), ("scalars", scalars)):
            if self._shapes[name] is not None:
                old = getattr(self, name)
                setattr(self, name, part if old is None else old + part)

    def fill(self) -> None:
        """Set missing sums to zero, on a rank that has no row of a block."""
        for name, shape in self._shapes.items():
            if shape is not None and getattr(self, name) is None:
                setattr(self, name, tf.zeros(shape, tf.float64))


def of_rows(a: Any, z: Any, mask: Any, with_bias: bool, with_gram: bool = True) -> tuple[Any, Any]:
    """Return A'A (a scalar zero if not `with_gram`) and A'Z of a chunk, float64, from its rows `a` and `z`."""
    # `a` has shape `(rows, inputs)`, `z` `(rows, outputs)`, and `mask` `(rows,)`: 1, and 0 for padding. Padding must be
    # zero in `a`. `with_bias` adds a column of ones to `a`.
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

    return compiled(count, by_xla=True)


def of_inputs(rows: Rows, num_inputs: int, with_bias: bool, communicator: Communicator) -> Any:
    """Return A_0'A_0 of all ranks' rows, float64, shape `(num_inputs, num_inputs)`; training never changes it."""
    sums = Sums(num_inputs, 1)
    for chunk in rows.all():
        sums.add(*_make_count(with_bias)(chunk.inputs, chunk.mask))
    reduce_sums(communicator, [sums], "Gram matrix of the inputs")
    return sums.gram


def reduce_sums(communicator: Communicator, sums: Sequence[Sums], name: str) -> None:
    """Sum over all ranks in place, in one grouped allreduce; `name` is for messages."""
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
    # Return the index of each entry of the full matrix in its packed lower triangle.
    rows, columns = np.indices((size, size))
    high, low = np.maximum(rows, columns), np.minimum(rows, columns)
    return high * (high + 1) // 2 + low
