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


def traced(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], Any]:
    """Return a function of nested structures like `arguments` (tensors and None), compiled at once, and its graph."""
    leaves = tf.nest.flatten(arguments)

    def of_tensors(*tensors: Any) -> Any:
        given = iter(tensors)
        filled = [None if leaf is None else next(given) for leaf in leaves]
        return function(*tf.nest.pack_sequence_as(arguments, filled))

    specs = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in leaves if leaf is not None]
    concrete = compiled(of_tensors).get_concrete_function(*specs)
    call = rewritten(concrete, 1)
    return lambda *given: call(*(leaf for leaf in tf.nest.flatten(given) if leaf is not None)), concrete.graph


def rewritten(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    """Return a compiled function whose graph TensorFlow rewrites `times` times before the first call, at most once."""
    # TensorFlow's default is twice, which takes up to a quarter of the first call. The second time brings no product
    # more speed. A function that is called a few times needs none.
    context = _keras.context.context()
    config = type(context.config)()
    config.CopyFrom(context.config)
    options = config.graph_options.rewrite_options
    if times == 0:
        options.disable_meta_optimizer = True
    else:
        options.meta_optimizer_iterations = options.ONE
    chosen = type(context.function_call_options)(config_proto=config)

    def call(*arguments: Any) -> Any:
        before = context.function_call_options
        context.function_call_options = chosen  # a setting of this thread
        try:
            return function(*arguments)
        finally:
            context.function_call_options = before

    return call
