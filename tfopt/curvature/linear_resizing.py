"""Images resized by matrices, which can be differentiated as often as needed."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def resize_by_matrices(resize: Callable[[Any, Any, int], Any], images: Any, size: Any) -> Any:
    """Resize images as one of TensorFlow's operations does, with a matrix for each of the two axes.

    TensorFlow's gradients of these operations have no derivative, or one that is taken for zero without a word. The
    operations are linear in the image, one axis after the other, and what they make of unit vectors is the matrix.

    Args:
        resize: Applies the operation. It takes images, a size, and the axis (0 for height, 1 for width) along which the
            size changes; along the other axis the image is one pixel wide.
        images: Images of shape (rows, height, width, channels), a tensor of floats.
        size: New height and width.

    Returns:
        The resized images, of the images' dtype.
    """
    sizes = tf.get_static_value(size)
    for axis in (0, 1):
        # Numbers where they are known before the model is computed, so that shapes are known too.
        new = size[axis] if sizes is None else int(sizes[axis])
        old = images.shape[1 + axis] or tf.shape(images)[1 + axis]
        units = tf.reshape(tf.eye(old), [1, 1, old, old] if axis else [1, old, 1, old])  # each is a channel
        matrix = tf.reshape(resize(units, [1, new] if axis else [new, 1], axis), [new, old])
        images = tf.einsum("ij,bhjc->bhic" if axis else "ij,bjwc->biwc", tf.cast(matrix, images.dtype), images)
    return images
