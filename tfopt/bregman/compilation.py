"""Compilation of functions of tensors."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt import _keras

__all__ = ["compiled"]


def compiled(function: Callable[..., Any], *, by_xla: bool = True) -> Any:
    """Return a `tf.function` that retraces for each combination of shapes; XLA fuses it if `by_xla`."""
    # XLA factorises matrices slowly on CPUs: pass by_xla=False for functions that do so.
    made = tf.function(function, jit_compile=by_xla, autograph=False)
    _keras.without_retracing_warning.set(made, True)  # Many networks and shapes are expected here.
    return made
