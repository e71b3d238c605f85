"""What is kept for the rows of a chunk, in memory that stays where it is."""

from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["Kept", "Variables"]


class Variables(NamedTuple):
    """What is kept for the rows of a chunk; layers are counted from 0."""

    z: tuple[Any, ...]  # Z of each layer, shape (rows, width)
    a: tuple[Any, ...]  # A of each hidden layer
    linear: tuple[Any, ...]  # lambda of each layer; one, the last layer's, with "bregman"; none with "none"
    hidden: tuple[Any, ...]  # mu of each hidden layer, with "admm"


class Kept:
    """The variables of one chunk; at first zeros.

    A pass makes new tensors. If they took the place of the old ones, each pass would leave holes in the heap, all over
    the state. The C library's allocator cannot fill a hole with an aligned block of the same size: it held more than
    twice the state, where TensorFlow calls that allocator directly (without oneDNN, as on CPUs without AVX-512 VNNI).
    So new values are copied into memory that was allocated once, before the first pass.

    Args:
        widths: Width of each variable.
        num_rows: Rows of the chunk, padding counted.
        dtype: Dtype of the variables.
    """

    def __init__(self, widths: Variables, num_rows: int, dtype: Any) -> None:
        # With a leading axis of 1, the whole is one slice, which is copied at once. `tf.zeros` would share its memory.
        zero = tf.constant(0, dtype)
        self._held = [
            [tf.Variable(tf.fill((1, num_rows, width), zero), trainable=False) for width in kind] for kind in widths
        ]

    def read(self) -> Variables:
        """Return the current values, which must be let go before the next `write`.

        Returns:
            Tensors, which share the memory.
        """
        return Variables(*(tuple(tf.squeeze(part.read_value_no_copy(), 0) for part in kind) for kind in self._held))

    def write(self, changed: Any) -> None:
        """Take over new values.

        Args:
            changed: Tensors in the order of `Variables`, and `()` where nothing changed.
        """
        for kind, news in zip(self._held, changed, strict=True):
            for part, new in zip(kind, news, strict=True):
                if not isinstance(new, tuple):
                    tf.raw_ops.ResourceScatterUpdate(resource=part.handle, indices=[0], updates=new[None])
