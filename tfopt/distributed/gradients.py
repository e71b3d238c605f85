"""The mean of gradients over all ranks: dense, sparse, compressed."""

from typing import Any

import tensorflow as tf

from tfopt.communicator import Communicator
from tfopt.numerics import densify

# The gradient of a smaller embedding table is averaged as a dense one: sending it whole costs less than asking how
# many rows each rank has touched.
SMALLEST_SPARSE_BYTES = 2**16


def mean_gradients(
    gradients: list[Any],
    variables: list[Any],
    communicator: Communicator,
    compression: str | None = None,
    extras: tuple[Any, ...] = (),
) -> list[Any]:
    """Average gradients over all ranks, the dense ones in one grouped operation for each dtype.

    Args:
        gradients: Tensors, `tf.IndexedSlices`, or None.
        variables: The variable of each gradient.
        communicator: The job's communicator.
        compression: "float16" to send float32 and float64 gradients in 16 bits, None to send them as they are.
        extras: Other tensors to be averaged along with the dense gradients, never compressed.

    Returns:
        The means, those of the extras at the end. Those of sparse gradients are dense for small tables and
        `tf.IndexedSlices` for large ones, in which each row occurs once.
    """
    means: list[Any] = list(gradients)
    dense, sparse = [], []
    for place, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        if gradient is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            if variable.shape.num_elements() * gradient.dtype.size > SMALLEST_SPARSE_BYTES:
                sparse.append(place)
                continue
            means[place] = tf.cast(densify(gradient, variable.shape), gradient.dtype)
        dense.append(place)
    averaged = _mean_dense([means[p] for p in dense], communicator, compression, extras)
    for place, mean in zip(dense, averaged, strict=False):
        means[place] = mean
    for place, mean in zip(
        sparse,
        _mean_sparse([gradients[p] for p in sparse], [variables[p].shape for p in sparse], communicator, compression),
        strict=True,
    ):
        means[place] = mean
    return [*means, *averaged[len(dense) :]]


def _mean_dense(
    gradients: list[Any], communicator: Communicator, compression: str | None, extras: tuple[Any, ...] = ()
) -> list[Any]:
    together = [*gradients, *extras]
    if compression is None or communicator.size == 1:
        return communicator.allreduce_mean(together, name="gradients")
    sent = [tf.cast(g, tf.float16) if g.dtype.size > 2 else g for g in gradients]
    means = communicator.allreduce_mean([*sent, *extras], name="gradients")
    return [tf.cast(mean, g.dtype) for mean, g in zip(means, together, strict=True)]


def _mean_sparse(
    gradients: list[Any], shapes: list[tf.TensorShape], communicator: Communicator, compression: str | None
) -> list[Any]:
    # Rows are gathered where that moves fewer bytes than averaging the whole table, as all ranks together see it.
    if not gradients:
        return []
    merged = [merge_rows(gradient) for gradient in gradients]
    # The last number counts the ranks: one that has run out of data takes part in sums, but not in gathering.
    counts = tf.stack([*(tf.size(gradient.indices, tf.int64) for gradient in merged), tf.constant(1, tf.int64)])
    (totals,) = communicator.allreduce_sum([counts], name="num_rows")
    all_there = tf.equal(totals[-1], communicator.size)
    means = []
    for place, (gradient, shape) in enumerate(zip(merged, shapes, strict=True)):
        row_bytes = shape[1:].num_elements() * gradient.dtype.size
        gathered_bytes = totals[place] * (row_bytes + gradient.indices.dtype.size)
        dense_bytes = 2 * shape.num_elements() * gradient.dtype.size  # a ring sends and receives each entry once

        def gather(gradient: Any = gradient, place: int = place) -> tuple[Any, Any]:
            values = communicator.allgather(gradient.values, name=f"rows.{place}")
            indices = communicator.allgather(gradient.indices, name=f"indices.{place}")
            together = merge_rows(tf.IndexedSlices(values / communicator.size, indices))
            return together.values, together.indices

        def reduce(gradient: Any = gradient, shape: tf.TensorShape = shape) -> tuple[Any, Any]:
            dense = tf.cast(densify(gradient, shape), gradient.dtype)
            (mean,) = _mean_dense([dense], communicator, compression)
            return mean, tf.range(shape[0], dtype=gradient.indices.dtype)

        values, indices = tf.cond(tf.logical_and(all_there, gathered_bytes < dense_bytes), gather, reduce)
        values.set_shape([None, *shape[1:]])
        means.append(tf.IndexedSlices(values, indices, tf.constant(shape.as_list(), indices.dtype)))
    return means


def merge_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Add up the rows of a sparse gradient that occur more than once.

    Args:
        gradient: The gradient.

    Returns:
        The same gradient, in which each index occurs once.
    """
    indices, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)
