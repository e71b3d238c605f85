"""Resize images by matrix products, which can be differentiated any number of times."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def resize_by_matrices(resize: Callable[[Any, Any, int], Any], images: Any, size: Any) -> Any:
    """Resize images of shape (rows, height, width, channels) to `size`, with one matrix for each axis."""
    # TensorFlow's gradients of these operations have no derivative, or silently a zero one. The operations are linear
    # in the image, one axis after the other, and applying them to unit vectors gives the matrix. `resize` applies the
    # operation to images, a size, and the axis (0 for height, 1 for width) along which the size changes; along the
    # other axis these images are one pixel wide.
    sizes = tf.get_static_value(size)
    for axis in (0, 1):
        # Use Python numbers if they are known during the trace, so that static shapes are known too.
        new = size[axis] if sizes is None else int(sizes[axis])
        old = images.shape[1 + axis] or tf.shape(images)[1 + axis]
        units = tf.reshape(tf.eye(old), [1, 1, old, old] if axis else [1, old, 1, old])  # each is a channel
        matrix = tf.reshape(resize(units, [1, new] if axis else [new, 1], axis), [new, old])
        images = tf.einsum("ij,bhjc->bhic" if axis else "ij,bjwc->biwc", tf.cast(matrix, images.dtype), images)
    return images
