"""Compilation of functions of tensors."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfopt import _keras


def compiled(function: Callable[..., Any], *, by_xla: bool = False) -> Any:
    """Return a `tf.function` that retraces for each combination of shapes; XLA fuses it if `by_xla`."""
    # XLA factorises matrices slowly on CPUs: leave by_xla=False for functions that do so.
    made = tf.function(function, jit_compile=by_xla or None, autograph=False)
    _keras.without_retracing_warning.set(made, True)  # Many models and shapes in one program are expected.
    return made
