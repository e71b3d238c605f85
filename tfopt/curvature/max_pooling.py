"""Pool by maxima with derivatives of derivatives that cost no more than the pooling."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

from tfopt._keras import gen_nn_ops

_is_once: ContextVar[bool] = ContextVar("tfopt differentiated once", default=False)


@contextlib.contextmanager
def differentiated_once() -> Iterator[None]:
    """Within this context maxima stay TensorFlow's own operation, whose first derivative is the fastest."""
    token = _is_once.set(True)
    try:
        yield
    finally:
        _is_once.reset(token)


def pool_by_mask(
    pool: Any,
    input: Any,
    ksize: Any,
    strides: Any,
    padding: Any,
    explicit_paddings: Any = (),
    data_format: str = "NHWC",
    name: Any = None,
) -> Any:
    """Return what `pool`, TensorFlow's operation with these arguments, returns, computed with a mask where possible."""
    # TensorFlow's second derivative of the pooling takes longer than the convolutions around it. The mask marks the
    # entry of each window to which TensorFlow's first derivative belongs, so that all derivatives are the same. Times
    # the number of entries in a window, it makes the window's mean a sum. Products with its zeros are 0 also for
    # infinite entries. The casts keep derivatives from passing through the mask, which is constant between kinks.
    images = tf.convert_to_tensor(input)
    pooled = pool(images, ksize, strides, padding, explicit_paddings, data_format, name)
    if _is_once.get() or data_format != "NHWC" or not _is_divided(images, ksize, strides, padding):
        return pooled
    chosen = gen_nn_ops.max_pool_grad(images, pooled, tf.ones_like(pooled), ksize, strides, padding)
    mask = tf.cast(tf.cast(chosen, tf.bool), images.dtype) * (ksize[1] * ksize[2])
    return gen_nn_ops.avg_pool(tf.math.multiply_no_nan(images, mask), ksize, strides, padding)


def _is_divided(images: Any, ksize: Any, strides: Any, padding: Any) -> bool:
    """Return whether windows do not overlap, hold no padding, and lie along height and width of float images."""
    extents = list(images.shape[1:3]) if images.shape.rank == 4 else [None]
    if None in extents or padding not in ("VALID", "SAME") or images.dtype not in (tf.float32, tf.float64):
        return False
    is_whole = padding == "VALID" or (extents[0] % ksize[1] == extents[1] % ksize[2] == 0)
    return is_whole and ksize[0] == ksize[3] == 1 and list(ksize) == list(strides)
