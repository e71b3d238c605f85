"""Norms that are exact for zeros, half precision and extreme magnitudes, on every Keras backend."""

import math
from collections.abc import Sequence
from typing import Any

from keras import backend, ops

Tensor = Any
"""A tensor of the running Keras backend."""


def accumulation_dtype(dtype: Any) -> str:
    """Return the floating-point type for the norms and steps of a tensor.

    Args:
        dtype: The tensor's dtype.

    Returns:
        "float32" for half-precision types, whose squares overflow or lose all digits; otherwise the dtype itself.
    """
    name = backend.standardize_dtype(dtype)
    return "float32" if name in ("float16", "bfloat16") else name


def densify(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Convert a sparse gradient to a dense tensor, and sum the rows that occur more than once.

    The gradient of an embedding lists one row for each occurrence of a token in the batch. A norm of the listed values
    without this sum is not the norm of the gradient.

    Args:
        gradient: A tensor, a `tf.IndexedSlices`, or a `keras.Variable`.
        shape: The shape of the variable. It is needed because a gradient can lose its shape when Keras undoes the
            scaling of a loss, and under `tf.distribute`.

    Returns:
        A dense tensor of this shape, in `accumulation_dtype` if rows were summed.
    """
    if backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(gradient, tf.IndexedSlices):
            values = tf.cast(gradient.values, accumulation_dtype(gradient.dtype))
            gradient = tf.math.unsorted_segment_sum(values, gradient.indices, shape[0])
    return ops.reshape(ops.convert_to_tensor(gradient), tuple(shape))


def norm(x: Tensor) -> Tensor:
    """Return the Frobenius norm of a tensor, without overflow or underflow if the norm itself can be represented.

    Squares of float32 numbers cannot overflow or underflow in float64, so the sum is computed there. Where float64 is
    not available (JAX with default settings) or is the tensor's own type, the entries are first divided by the largest
    one, which costs one more pass over the data.

    Args:
        x: Tensor of any shape and floating dtype.

    Returns:
        A scalar tensor in `accumulation_dtype(x.dtype)`: 0 for a tensor of zeros or without entries, NaN if an entry is
        infinite or NaN.
    """
    dtype = accumulation_dtype(x.dtype)
    x = ops.convert_to_tensor(x)
    if math.prod(x.shape) == 0:
        return ops.zeros((), dtype=dtype)
    if dtype == "float32" and backend.backend() != "jax":
        result = ops.cast(ops.sqrt(_sum_of_squares(ops.cast(x, "float64"))), dtype)
    else:
        result = _scaled_norm(ops.cast(x, dtype))
    return result + 0.0 * result  # changes infinity to NaN


def _scaled_norm(x: Tensor) -> Tensor:
    largest = ops.max(ops.abs(x))
    safe = ops.where(ops.equal(largest, 0.0), ops.ones_like(largest), largest)
    return largest * ops.sqrt(_sum_of_squares(x / safe))


def _sum_of_squares(x: Tensor) -> Tensor:
    """Return the sum of squares as a scalar, in two stages: over groups of 8, and then over the groups."""
    # XLA runs a reduction on several threads only if its result is large: on a CPU two stages are three times faster
    # than one. The `relu` between the stages keeps XLA from merging them.
    size = math.prod(x.shape)
    if size % 8 or size < 4096:
        return ops.sum(ops.square(x))
    groups = ops.sum(ops.square(ops.reshape(x, (size // 8, 8))), axis=1)
    return ops.sum(ops.relu(groups))


def is_inside_xla() -> bool:
    """Return whether TensorFlow is tracing a function that XLA will compile.

    Returns:
        A bool; always False on other backends.
    """
    if backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    from tfopt._keras import control_flow_util

    if tf.executing_eagerly():
        return False
    return bool(control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
