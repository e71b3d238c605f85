"""Single Keras layers: their activations, and the reasons why some cannot be trained without gradients."""

from typing import Any

import keras
import tensorflow as tf

from tfopt.bregman import activations
from tfopt.bregman.activations import Activation

__all__ = ["CAN_BE_TRAINED", "activation_of", "check_dense", "check_precision", "output_activation_of", "refusal"]

CAN_BE_TRAINED = (
    "BregmanTrainer takes a chain of Dense layers, with activations inline or as layers of their own, after Flatten, "
    "Rescaling or Normalization of the inputs"
)


def refusal(layer: Any, why: str) -> str:
    """Return a message that a layer cannot be trained, and which layers can; `why` follows the layer's name."""
    is_operation = isinstance(layer, keras.Operation) and not isinstance(layer, keras.layers.Layer)
    kind = "operation" if is_operation else "layer"
    return f"The {kind} {layer.name!r} ({type(layer).__name__}) {why}. {CAN_BE_TRAINED}"


def check_dense(layer: Any, before: list[Any]) -> None:
    """Raise `ValueError` unless a Dense layer can be trained; `before` are the Dense layers below it."""
    if len(layer.input.shape) != 2:
        raise ValueError(refusal(layer, f"takes inputs of shape {layer.input.shape}; put a Flatten before it"))
    if before and before[0].kernel.dtype != layer.kernel.dtype:
        dtypes = f"{before[0].kernel.dtype} of the first Dense layer"
        raise ValueError(refusal(layer, f"has weights of dtype {layer.kernel.dtype}, not the {dtypes}"))
    if not layer.trainable:
        raise ValueError(refusal(layer, "is frozen"))
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        raise ValueError(refusal(layer, "is quantized or has a LoRA"))
    for name in ("kernel_regularizer", "bias_regularizer", "activity_regularizer"):
        if getattr(layer, name, None) is not None:
            raise ValueError(refusal(layer, f"has a {name}; use BregmanTrainer's `weight_decay`"))
    for name in ("kernel_constraint", "bias_constraint"):
        if getattr(layer, name, None) is not None:
            raise ValueError(refusal(layer, f"has a {name}"))
    if tf.as_dtype(layer.kernel.dtype) not in (tf.float32, tf.float64):
        raise ValueError(refusal(layer, f"has weights of dtype {layer.kernel.dtype}; float32 or float64 is needed"))


def check_precision(layer: Any) -> None:
    """Raise `ValueError` if a layer computes in half precision."""
    # Training computes in the weights' dtype. A layer that computes in half precision would predict something else.
    weights = layer.kernel.dtype if type(layer) is keras.layers.Dense else "float32"
    if tf.as_dtype(layer.compute_dtype).size < tf.as_dtype(weights).size:
        why = f"has the dtype policy {layer.dtype_policy.name!r}, and so computes in {layer.compute_dtype}"
        raise ValueError(refusal(layer, f"{why}. Set its policy to 'float32'"))


def activation_of(steps: list[Any]) -> Activation:
    """Return the activation of a hidden layer; raise `ValueError` if it cannot be trained or there are two."""
    # `steps` follow the Dense layer: pairs of a layer and the activation or layer that it applies.
    found = [(layer, activation) for layer, step in steps if (activation := _read(layer, step)) is not None]
    bent = [(layer, activation) for layer, activation in found if activation is not activations.identity]
    if len(bent) > 1:
        raise ValueError(refusal(bent[1][0], "is a second activation after one Dense layer"))
    return bent[0][1] if bent else activations.identity


_BY_FUNCTION = {
    "linear": activations.identity,
    "relu": activations.relu,
    "leaky_relu": activations.leaky_relu(0.2),  # Keras's default slope is 0.2.
    "relu6": activations.clip(6.0),
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "softplus": activations.softplus,
    "gelu": activations.gelu,
}


def _read(layer: Any, step: Any) -> Activation | None:
    # Return the activation that one step after a Dense layer computes.
    if isinstance(step, keras.layers.Activation):
        step = step.activation
    if isinstance(step, keras.layers.ReLU):
        top, slope, threshold = step.max_value, float(step.negative_slope or 0.0), float(step.threshold or 0.0)
        if threshold == 0 and top is None:
            return activations.leaky_relu(slope)
        if threshold == 0 and slope == 0 and top > 0:
            return activations.clip(float(top))
        raise ValueError(refusal(layer, "is a ReLU with a threshold, or with a maximum and a slope below zero"))
    if isinstance(step, keras.layers.LeakyReLU):
        return activations.leaky_relu(float(step.negative_slope))
    if isinstance(step, keras.layers.Layer):
        raise ValueError(refusal(layer, "cannot be trained without gradients"))
    name = _name_in_keras(step)
    if name not in _BY_FUNCTION:
        known, received = ", ".join(_BY_FUNCTION), getattr(step, "__name__", repr(step))
        why = f"has the activation {received!r}. Activations with a known update are {known}, and clipped ReLUs"
        raise ValueError(refusal(layer, why))
    return _BY_FUNCTION[name]


def _name_in_keras(function: Any) -> str:
    """Return the name in `keras.activations` of a function, or "" if it is none of those that are known here."""
    for name in (*_BY_FUNCTION, "softmax"):
        # These have functions of the same names with the same defaults, except for one GELU.
        modules = (keras.activations, tf.nn, tf.math, *(() if name == "gelu" else (keras.ops,)))
        if any(function is getattr(module, name, None) for module in modules):
            return name
    return ""


def output_activation_of(steps: list[Any]) -> str:
    """Return "linear", "softmax" or "sigmoid", the activation of the outputs; raise `ValueError` for any other."""
    # `steps` follow the last Dense layer: pairs of a layer and the activation or layer that it applies.
    names = []
    for layer, step in steps:
        function = step.activation if isinstance(step, keras.layers.Activation) else step
        name = "softmax" if isinstance(step, keras.layers.Softmax) else _name_in_keras(function)
        if name not in ("linear", "softmax", "sigmoid"):
            raise ValueError(refusal(layer, "comes last and is not linear, softmax or sigmoid"))
        if name != "linear":
            names.append((layer, name))
    if len(names) > 1:
        raise ValueError(refusal(names[1][0], "is a second activation of the outputs"))
    return names[0][1] if names else "linear"
