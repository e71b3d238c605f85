"""How a model is run while it is measured: everything is put back afterwards."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


@contextlib.contextmanager
def measuring(model: Any, batch_norm: str, dtype: str | None) -> Iterator[None]:
    """Within this context, let a model that is called with `training=False` compute as measurements need it.

    Args:
        model: The model.
        batch_norm: "batch" to normalise by the batch's statistics, "moving" by moving averages.
        dtype: The dtype in which all layers compute; None for their own.

    Yields:
        Nothing.
    """
    with _batch_statistics(model if batch_norm == "batch" else None), _computing_in(model, dtype), _exact_moments():
        yield


@contextlib.contextmanager
def _batch_statistics(model: Any) -> Iterator[None]:
    """Let batch normalisation use the batch's statistics while all other layers predict."""
    all_layers = [] if model is None else model._flatten_layers()
    layers = [layer for layer in all_layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in layers:
        object.__setattr__(layer, "call", _training_call(layer.call))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _training_call(call: Any) -> Any:
    signature = inspect.signature(call)

    def train(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["training"] = True
        return call(*bound.args, **bound.kwargs)

    return train


@contextlib.contextmanager
def _computing_in(model: Any, dtype: str | None) -> Iterator[None]:
    """Let all layers compute in another dtype."""
    layers = list(model._flatten_layers()) if dtype is not None else []
    kept = [layer._dtype_policy for layer in layers]
    for layer in layers:
        layer._dtype_policy = keras.DTypePolicy(dtype)
    try:
        yield
    finally:
        for layer, policy in zip(layers, kept, strict=True):
            layer._dtype_policy = policy


@contextlib.contextmanager
def _exact_moments() -> Iterator[None]:
    """Let means and variances be differentiable twice.

    `tf.nn.moments`, in which Keras computes batch, layer and group normalisation, stops the gradient at the mean inside
    the variance. That leaves the first derivative as it is, and makes the second one wrong, without a word.
    """
    kept = tf.nn.moments
    tf.nn.moments = _moments
    try:
        yield
    finally:
        tf.nn.moments = kept


def _moments(x: Any, axes: Any, shift: Any = None, keepdims: bool = False, name: str | None = None) -> tuple[Any, Any]:
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    mean = tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=keepdims)
    mean = mean if keepdims else tf.reshape(mean, tf.shape(variance))
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)
