"""The mean of gradients over all ranks: dense, sparse, compressed."""

from typing import Any

import tensorflow as tf

from tfopt.communicator import Communicator
from tfopt.numerics import densify

# Below this size an embedding's gradient is averaged as a dense one. Sending the whole table costs less than asking how
# many rows each rank has changed.
SMALLEST_SPARSE_BYTES = 2**16


def mean_gradients(
    gradients: list[Any],
    variables: list[Any],
    communicator: Communicator,
    compression: str | None = None,
    extras: tuple[Any, ...] = (),
) -> list[Any]:
    """Return the means over all ranks, of the gradients and then of the extras; one grouped operation per dtype."""
    # Gradients are tensors, `tf.IndexedSlices` or None. Means of sparse gradients are dense for small tables, and
    # `tf.IndexedSlices` with unique rows for large ones. "float16" compression sends float32 and float64 gradients in
    # 16 bits. Extras are averaged together with the dense gradients, and never compressed.
    means: list[Any] = list(gradients)
    dense, sparse = [], []
    for index, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
        if gradient is None:
            continue
        if isinstance(gradient, tf.IndexedSlices):
            if variable.shape.num_elements() * gradient.dtype.size > SMALLEST_SPARSE_BYTES:
                sparse.append(index)
                continue
            means[index] = tf.cast(densify(gradient, variable.shape), gradient.dtype)
        dense.append(index)
    averaged = _mean_dense([means[p] for p in dense], communicator, compression, extras)
    for index, mean in zip(dense, averaged, strict=False):
        means[index] = mean
    for index, mean in zip(
        sparse,
        _mean_sparse([gradients[p] for p in sparse], [variables[p].shape for p in sparse], communicator, compression),
        strict=True,
    ):
        means[index] = mean
    return [*means, *averaged[len(dense) :]]


def multiply(gradient: Any, factor: int) -> Any:
    """Return a dense or sparse gradient times a factor."""
    if factor == 1:
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor


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
    # Gather rows if this moves fewer bytes than averaging the whole table. The decision uses sums over all ranks, so
    # that all ranks decide alike.
    if not gradients:
        return []
    merged = [merge_rows(gradient) for gradient in gradients]
    # The last number counts the ranks. A rank without data takes part in sums, but not in gathering.
    counts = tf.stack([*(tf.size(gradient.indices, tf.int64) for gradient in merged), tf.constant(1, tf.int64)])
    (totals,) = communicator.allreduce_sum([counts], name="num_rows")
    all_there = tf.equal(totals[-1], communicator.size)
    means = []
    for index, (gradient, shape) in enumerate(zip(merged, shapes, strict=True)):
        row_bytes = shape[1:].num_elements() * gradient.dtype.size
        gathered_bytes = totals[index] * (row_bytes + gradient.indices.dtype.size)
        dense_bytes = 2 * shape.num_elements() * gradient.dtype.size  # A ring sends and receives each entry once.

        def gather(gradient: Any = gradient, index: int = index) -> tuple[Any, Any]:
            values = communicator.allgather(gradient.values, name=f"rows.{index}")
            indices = communicator.allgather(gradient.indices, name=f"indices.{index}")
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
    """Sum the rows of a sparse gradient that have equal indices, so that each index occurs once."""
    indices, positions = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(indices))
    return tf.IndexedSlices(values, indices, gradient.dense_shape)
