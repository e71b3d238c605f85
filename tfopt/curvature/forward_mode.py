"""Replace parts of Keras and TensorFlow in a thread that measures, so that models compute as measurements need."""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import (
    AutocastScope,
    BaseImagePreprocessingLayer,
    ConvLSTM,
    ConvLSTMCell,
    Operation,
    ag_ctx,
    autograph_util,
    gen_image_ops,
    gen_nn_ops,
    is_default,
    nn_impl,
    nn_ops,
    polymorphic_function,
)
from tfopt.curvature.calls_in_fit import CallsInFit
from tfopt.curvature.linear_resizing import resize_by_matrices
from tfopt.curvature.max_pooling import pool_by_mask
from tfopt.curvature.model_checks import NotBuiltError
from tfopt.curvature.precision import policy_to_measure
from tfopt.curvature.softmax_targets import with_check
from tfopt.curvature.stand_ins import StandIns

# TensorFlow has only first derivatives of these operations, which are linear in the image.
RESIZING = ("resize_nearest_neighbor", "resize_bilinear", "resize_bicubic", "scale_and_translate")
# In these layers and cells `training` only turns noise on.
NOISY = (
    BaseImagePreprocessingLayer,  # the base class of all random augmentations
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Attention,
    keras.layers.SimpleRNN,
    keras.layers.SimpleRNNCell,
    keras.layers.GRU,
    keras.layers.GRUCell,
    keras.layers.LSTM,
    keras.layers.LSTMCell,
    ConvLSTM,
    ConvLSTMCell,
)


@dataclass
class _Measurement:
    """The settings of a thread that measures: a dtype, None for the layers' own, and the recorded calls of `fit`."""

    dtype: str | None
    calls: CallsInFit | None = None


_current: ContextVar[_Measurement | None] = ContextVar("tfopt measurement", default=None)


@contextlib.contextmanager
def measuring(dtype: str | None, calls: CallsInFit | None = None) -> Iterator[None]:
    """Within this context, models, losses and regularisers compute without noise and twice differentiably."""
    # Noise is off even for `training=True`. Half precision becomes float32. `dtype` is that of all layers, None for
    # their own; `calls` calls the model's layers, None leaves this to them.
    # The autocast scope reaches variables of networks outside the model, such as those inside a loss.
    reading = contextlib.nullcontext() if dtype is None else AutocastScope(dtype)
    with _entered(_Measurement(dtype, calls)), reading:
        yield


@contextlib.contextmanager
def _entered(measurement: _Measurement) -> Iterator[None]:
    with _STAND_INS.installed():
        token = _current.set(measurement)
        try:
            yield
        finally:
            _current.reset(token)


# --- `training`


def _without_noise(original: Any) -> Any:
    """Return a stand-in for a layer's `call`, with `training=False`."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _current.get() is None:
            return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        bound.arguments["training"] = False
        return original(*bound.args, **bound.kwargs)

    return call


def _called_as_it_is(original: Any) -> Any:
    """Return a stand-in for the `call` of a class whose base class is called without noise: the original."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    return call


def _in_the_middle(original: Any) -> Any:
    """Return a stand-in for the method that draws the position of a crop: a measurement crops the middle."""

    @functools.wraps(original)
    def draw(self: Any, data: Any, training: bool = True, seed: Any = None) -> Any:
        if _current.get() is None or not training:
            return original(self, data, training, seed)
        shape = (data["images"] if isinstance(data, dict) else data).shape
        free = shape[self.height_axis] - self.height, shape[self.width_axis] - self.width
        if min(free) <= 0:  # nothing is drawn
            return original(self, data, training, seed)
        return tuple(number // 2 for number in free)

    return draw


def _as_in_fit(original: Any) -> Any:
    """Return a stand-in for the method that calls a layer with its final `training` argument."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        measurement = _current.get()
        if measurement is None or measurement.calls is None or not isinstance(self, keras.layers.Layer):
            return original(self, *args, **kwargs)
        return measurement.calls.call(original, self, args, kwargs)

    return call


def _without_dropout(original: Any) -> Any:
    """Return a stand-in for the function that TensorFlow's and Keras's dropout functions call: the identity."""

    @functools.wraps(original)
    def dropout(x: Any, *args: Any, **kwargs: Any) -> Any:
        return original(x, *args, **kwargs) if _current.get() is None else tf.identity(x)

    return dropout


# --- variables


def _without_building(original: Any) -> Any:
    """Return a stand-in for the method that creates a layer's variables at its first call: it refuses to."""

    # A layer that is neither built nor used holds no trained weights. Only a call of the model shows which are used.
    @functools.wraps(original)
    def maybe_build(self: Any, call_spec: Any) -> None:
        # Keras's default `build` creates no variables.
        if _current.get() is not None and not self.built and not is_default(self.build):
            raise NotBuiltError(f"the layer {self.name!r}, which the model calls and which is not built")
        original(self, call_spec)

    return maybe_build


# --- dtypes

_POLICY = _keras.layer_dtype_policy.name


class _PolicyStandIn:
    """The dtype policy of a layer: the measured one in a thread that measures, else the layer's own."""

    def __init__(self, _: None) -> None:
        pass

    def __get__(self, layer: Any, kind: Any = None) -> Any:
        if layer is None or _POLICY not in vars(layer):
            raise AttributeError(_POLICY)
        measurement = _current.get()
        return vars(layer)[_POLICY] if measurement is None else policy_to_measure(layer, measurement.dtype)

    def __set__(self, layer: Any, policy: Any) -> None:
        vars(layer)[_POLICY] = policy


# --- means and variances


def _exact_moments(original: Any) -> Any:
    """Return a stand-in for `tf.nn.moments` that can be differentiated twice."""

    # Keras computes batch, layer and group normalisation with `tf.nn.moments`, which stops the gradient at the mean
    # inside the variance. The first derivative stays right, and the second one is silently wrong.
    @functools.wraps(original)
    def moments(x: Any, axes: Any, shift: Any = None, name: Any = None, keep_dims: Any = None, **kwargs: Any) -> Any:
        if _current.get() is None:
            return original(x, axes, shift, name, keep_dims, **kwargs)
        keepdims = bool(kwargs.get("keepdims") or keep_dims)
        x = tf.convert_to_tensor(x)
        wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
        mean = tf.reduce_mean(wide, axes, keepdims=True)
        variance = tf.reduce_mean(tf.math.squared_difference(wide, mean), axes, keepdims=keepdims)
        mean = mean if keepdims else tf.reshape(mean, tf.shape(variance))
        return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)

    return moments


# --- images


def _resizing_by_matrices(original: Any) -> Any:
    """Return a stand-in for an operation that resizes images, which can be differentiated twice."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def resize(*args: Any, **kwargs: Any) -> Any:
        measurement = _current.get()
        bound = signature.bind(*args, **kwargs).arguments
        images, size = tf.convert_to_tensor(bound.pop("images")), bound.pop("size")
        if measurement is None or not images.dtype.is_floating:
            return original(images, size, **bound)

        def along(images: Any, size: Any, axis: int) -> Any:
            if "scale" not in bound:
                return original(images, size, **bound)
            # The other axis has one pixel, which is neither scaled nor moved.
            scale, translation = (tf.convert_to_tensor(bound[name]) for name in ("scale", "translation"))
            pairs = {"scale": [scale[axis], 1.0], "translation": [translation[axis], 0.0]}
            return original(
                images, size, **bound | {name: pair[::-1] if axis else pair for name, pair in pairs.items()}
            )

        wide = tf.cast(images, tf.float32) if images.dtype.size < 4 else images
        keeps_dtype = measurement.dtype is not None or original.__name__ == "resize_nearest_neighbor"
        return tf.cast(resize_by_matrices(along, wide, size), images.dtype if keeps_dtype else tf.float32)

    return resize


def _pooling_by_mask(original: Any) -> Any:
    """Return a stand-in for the operation that pools by maxima, whose second derivative is fast."""

    @functools.wraps(original)
    def max_pool(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs) if _current.get() is None else pool_by_mask(original, *args, **kwargs)

    return max_pool


# --- softmax cross-entropies


def _checking_targets(original: Any) -> Any:
    """Return a stand-in for the cross-entropy operation that checks that the targets of each row sum to 1."""

    @functools.wraps(original)
    def cross_entropy(features: Any, labels: Any, name: Any = None) -> Any:
        if _current.get() is None:
            return original(features, labels, name=name)
        return with_check(original, features, labels, name=name)

    return cross_entropy


# --- functions that users have compiled


def _traced_anew(original: Any) -> Any:
    """Return a stand-in for the call of a `tf.function` that traces it again in a thread that measures."""

    # A trace from training does not compute as measurements need, and training must not reuse a trace of a measurement.
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _current.get() is None:
            return original(self, *args, **kwargs)
        function, options = self.python_function, _keras.autograph_options(self)
        if tf.executing_eagerly():
            again = tf.function(function, autograph=_keras.autograph(self), experimental_autograph_options=options)
            _keras.without_retracing_warning.set(again, True)
            return original(again, *args, **kwargs)
        if _keras.autograph(self):
            function = autograph_util.py_func_from_autograph(function, options)
        with ag_ctx.ControlStatusCtx(ag_ctx.Status.UNSPECIFIED):  # convert also if the caller is not converted
            return function(*args, **kwargs)

    return call


_STAND_INS = StandIns((
    (polymorphic_function.Function, "__call__", _traced_anew),
    (nn_impl, "moments", _exact_moments),
    *((gen_image_ops, name, _resizing_by_matrices) for name in RESIZING),
    (gen_nn_ops, "max_pool", _pooling_by_mask),
    (gen_nn_ops, "softmax_cross_entropy_with_logits", _checking_targets),
    (keras.layers.Layer, _POLICY, _PolicyStandIn),
    (keras.layers.Layer, _keras.maybe_build.name, _without_building),
    (nn_ops, _keras.dropout.name, _without_dropout),
    (Operation, "__call__", _as_in_fit),
    (keras.layers.RandomCrop, "call", _called_as_it_is),  # must come before its base class
    (keras.layers.RandomCrop, "get_random_transformation", _in_the_middle),
    *((kind, "call", _without_noise) for kind in NOISY),
))
