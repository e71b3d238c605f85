"""A model as a function of its inputs and weights, called as `fit` calls it, without noise."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import FuncGraph, get_stateless_scope
from tfopt.curvature.calls_in_fit import CallsInFit, has_own_code
from tfopt.curvature.forward_mode import measuring
from tfopt.curvature.held_variables import holding
from tfopt.curvature.model_checks import check_keeps_weights


class ForwardPass:
    """A model as a function, without noise.

    Args:
        model: The model.
        batch_norm: "batch" to call it as `fit` does, with `training=True`, so that batch normalisation uses the batch's
            statistics wherever it does so in `fit`; "moving" to call it as `predict` does.
        dtype: "float64" to compute in float64; None for the model's dtype.
    """

    def __init__(self, model: Any, batch_norm: str, dtype: str | None) -> None:
        self._model, self._batch_norm, self._dtype = model, batch_norm, dtype
        self._calls_in_fit: dict[Any, CallsInFit] = {}

    @contextlib.contextmanager
    def at(
        self, variables: Sequence[Any], values: Sequence[Any], sources: Sequence[Any] | None = None
    ) -> Iterator[None]:
        """Within this context variables have other values, and no variable of the model changes."""
        # `sources` are the variables by whose values the caller differentiates; None means all `variables`.
        pairs = list(zip(variables, values, strict=True))
        known = {id(variable) for variable in variables}
        others = [v for v in self._model.variables if tf.as_dtype(v.dtype).is_floating and id(v) not in known]
        if self._dtype is not None:
            pairs += [(variable, tf.cast(variable.value, self._dtype)) for variable in others]
        else:  # Keras's regularisation takes values from its stateless scope only, and finds None there.
            pairs += [
                (variable, tf.convert_to_tensor(variable.value))
                for variable in others
                if variable.regularizer is not None
            ]
        sources = variables if sources is None else sources
        with measuring(self._dtype), holding(pairs, sources, lambda: self.at(variables, values, sources)):
            yield

    def predict(self, x: Any) -> Any:
        """Return the model's outputs for the inputs of rows."""
        return self._measured(self._call, x)

    def custom_loss(self, x: Any, y: Any, sample_weight: Any) -> Any:
        """Return the loss of the model's own `compute_loss`, a scalar tensor, for data cast as in `fit`."""
        dtype = self._dtype or keras.config.floatx()
        x, y, sample_weight = keras.tree.map_structure(lambda leaf: _cast(leaf, dtype), (x, y, sample_weight))
        return self._measured(self._loss, x, y, sample_weight)

    def changed_shapes(self) -> str:
        """Return a text on layers that return another shape without noise than in training; "" if none do."""
        changed = [text for calls in self._calls_in_fit.values() for text in calls.changed_shapes]
        if not changed:
            return ""
        return (
            f"`model` must keep its shapes without noise. Received: {', '.join(dict.fromkeys(changed))}. "
            "Let the random layers return the shape of training with training=False too, such as by a central crop, "
            "or move them into the tf.data pipeline."
        )

    def _call(self, x: Any, training: bool) -> Any:
        # Like `fit` and `predict`, pass `training` only to a model with this argument; else layers use their defaults.
        return self._model(x, training=training) if _keras.call_has_training_arg(self._model) else self._model(x)

    def _loss(self, x: Any, y: Any, sample_weight: Any, training: bool) -> Any:
        return _keras.compute_loss(self._model)(x, y, self._call(x, training), sample_weight, training=training)

    def _measured(self, function: Callable[..., Any], *tensors: Any) -> Any:
        training = self._batch_norm == "batch"
        calls = self._trace_fit(function, tensors) if training and has_own_code(self._model) else None
        scope, variables = get_stateless_scope(), self._model.trainable_variables
        before = [scope.get_current_value(variable) for variable in variables]
        with measuring(self._dtype, calls):
            result = function(*tensors, training=training)
        check_keeps_weights(variables, before, [scope.get_current_value(variable) for variable in variables])
        return result

    def _trace_fit(self, function: Callable[..., Any], tensors: tuple[Any, ...]) -> CallsInFit:
        """Return the recorded calls of layers in training, from a graph that never runs."""
        leaves = keras.tree.flatten(tensors)
        key = (function.__name__, *(None if leaf is None else (str(leaf.shape), leaf.dtype) for leaf in leaves))
        if key not in self._calls_in_fit:
            calls = CallsInFit()
            with FuncGraph("as_in_fit").as_default() as graph, self.at([], []):
                placeholders = keras.tree.map_structure(_placeholder, tensors)
                with measuring(self._dtype, calls):
                    function(*placeholders, training=True)
            calls.finish(graph)
            self._calls_in_fit[key] = calls
        self._calls_in_fit[key].start()
        return self._calls_in_fit[key]


def _cast(tensor: Any, dtype: str) -> Any:
    return tf.cast(tensor, dtype) if tensor is not None and tensor.dtype.is_floating else tensor


def _placeholder(tensor: Any) -> Any:
    return None if tensor is None else tf.compat.v1.placeholder(tensor.dtype, tensor.shape)
