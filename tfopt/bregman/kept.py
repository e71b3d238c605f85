"""Variables that are kept for the rows of a chunk, in memory that is allocated once."""

from typing import Any, NamedTuple

import tensorflow as tf

__all__ = ["Kept", "Variables"]


class Variables(NamedTuple):
    """The variables of a chunk; layers are counted from 0."""

    z: tuple[Any, ...]  # Z of each layer, shape (rows, width).
    a: tuple[Any, ...]  # A of each hidden layer, shape (rows, width).
    linear: tuple[Any, ...]  # "admm": lambda of each layer; "bregman": of the last layer; "none": ().
    hidden: tuple[Any, ...]  # "admm": mu of each hidden layer; else ().


class Kept:
    """The variables of one chunk, zeros at first.

    A pass creates new tensors. If these replaced the old tensors, each pass would leave holes in the heap. The C
    library's allocator cannot fill a hole with an aligned block of the same size. It held more than twice the state
    when TensorFlow called that allocator directly (without oneDNN, as on CPUs without AVX-512 VNNI). Therefore new
    values are copied into memory that is allocated once, before the first pass.

    Args:
        widths: Width of each variable.
        num_rows: Rows of the chunk, padding counted.
        dtype: Dtype of the variables.
    """

    def __init__(self, widths: Variables, num_rows: int, dtype: Any) -> None:
        # With a leading axis of 1, a whole variable is one slice, which is copied at once. `tf.zeros` would share
        # memory between variables.
        zero = tf.constant(0, dtype)
        self._held = [
            [tf.Variable(tf.fill((1, num_rows, width), zero), trainable=False) for width in kind] for kind in widths
        ]

    def read(self) -> Variables:
        """Return the current values as tensors that share the memory; release them before the next `write`."""
        return Variables(*(tuple(tf.squeeze(part.read_value_no_copy(), 0) for part in kind) for kind in self._held))

    def write(self, changed: Any) -> None:
        """Copy new values, in the order of `Variables`; `()` leaves a variable unchanged."""
        for kind, news in zip(self._held, changed, strict=True):
            for part, new in zip(kind, news, strict=True):
                if not isinstance(new, tuple):
                    tf.raw_ops.ResourceScatterUpdate(resource=part.handle, indices=[0], updates=new[None])
