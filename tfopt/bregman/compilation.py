"""How functions of tensors are compiled here."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["compiled"]


def compiled(function: Callable[..., Any], *, by_xla: bool = True) -> Any:
    """Compile a function, anew for each combination of shapes.

    Args:
        function: Takes and returns tensors.
        by_xla: Whether XLA fuses it; not where it factorises matrices, which XLA does slowly on CPUs.

    Returns:
        The `tf.function`.
    """
    made = tf.function(function, jit_compile=by_xla, autograph=False)
    made._omit_frequent_tracing_warning = True  # many networks, many shapes
    return made
