"""A Keras model read as a chain: preparation of the inputs, then Dense layers with activations between them."""

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfopt.bregman import activations
from tfopt.bregman.activations import Activation

__all__ = ["Architecture", "DenseChain"]

_PREPARATION = (keras.layers.Flatten, keras.layers.Rescaling, keras.layers.Normalization)
_CAN_BE_TRAINED = (
    "BregmanTrainer takes a chain of Dense layers, with activations inline or as layers of their own, after Flatten, "
    "Rescaling or Normalization of the inputs"
)


@dataclass(frozen=True)
class Architecture:
    """What a compiled pass through rows depends on, beside shapes; it can be a key.

    Attributes:
        activations: h_1 to h_(L-1).
        uses_bias: Whether each Dense layer has a bias.
        dtype: Dtype of the weights, in which training computes.
    """

    activations: tuple[Activation, ...]
    uses_bias: tuple[bool, ...]
    dtype: Any

    def forward(self, inputs: Any, weights: list[tuple[Any, Any]]) -> list[Any]:
        """Compute the pre-activations of the network.

        Args:
            inputs: A_0, shape `(rows, widths[0])`.
            weights: As from `DenseChain.read_weights`.

        Returns:
            Z_1 to Z_L, Z_l = A_(l-1) W_l + b_l.
        """
        kernel, bias = weights[0]
        pre_activations = [tf.matmul(inputs, kernel) + bias]
        for activation, (kernel, bias) in zip(self.activations, weights[1:], strict=True):
            pre_activations.append(tf.matmul(activation(pre_activations[-1]), kernel) + bias)
        return pre_activations


@dataclass(frozen=True)
class DenseChain:
    """The layers that training works on.

    Attributes:
        model: The Keras model.
        preparation: Layers that prepare the inputs, in their order.
        layers: The Dense layers 1 to L.
        activations: h_1 to h_(L-1).
        output_activation: Name of what follows the last Dense layer: "linear", "softmax" or "sigmoid".
    """

    model: Any
    preparation: tuple[Any, ...]
    layers: tuple[Any, ...]
    activations: tuple[Activation, ...]
    output_activation: str

    @classmethod
    def of(cls, model: Any) -> "DenseChain":
        """Read a model.

        Args:
            model: A built Keras model.

        Returns:
            The chain.

        Raises:
            TypeError: This is no Keras model.
            ValueError: The model is not built, or a layer, named, cannot be trained this way.
        """
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a Keras model. Received: {model!r} of type {type(model).__name__}")
        preparation: list[Any] = []
        dense: list[Any] = []
        after: list[list[Any]] = []  # what follows each Dense layer: (layer, activation or Keras function)
        for layer in _chain_of(model):
            if isinstance(layer, keras.layers.InputLayer):
                continue
            if dense or type(layer) is keras.layers.Dense:
                _check_precision(layer)
            if type(layer) is keras.layers.Dense:  # a subclass may compute something else
                _check_dense(layer, dense)
                dense.append(layer)
                after.append([(layer, layer.activation)])
            elif isinstance(layer, _PREPARATION) and not dense:
                preparation.append(layer)
            elif isinstance(layer, keras.layers.Flatten) and dense:
                continue  # rows are flat already
            elif not dense:
                raise ValueError(_refusal(layer, "comes before the first Dense layer"))
            else:
                after[-1].append((layer, layer))
        if not dense:
            raise ValueError(f"The model {model.name!r} has no Dense layer. {_CAN_BE_TRAINED}")
        if len({id(layer) for layer in dense}) < len(dense):
            raise ValueError(f"The model {model.name!r} uses a Dense layer twice. {_CAN_BE_TRAINED}")
        hidden = tuple(_activation_of(steps) for steps in after[:-1])
        return cls(model, tuple(preparation), tuple(dense), hidden, _output_activation_of(after[-1]))

    @property
    def dtype(self) -> Any:
        """Dtype of the weights, in which training computes."""
        return tf.as_dtype(self.layers[0].kernel.dtype)

    @property
    def input_dtype(self) -> Any:
        """Dtype that the model's `Input` casts to."""
        return tf.as_dtype(self.model.inputs[0].dtype)

    @property
    def architecture(self) -> Architecture:
        """What compiled passes depend on."""
        return Architecture(self.activations, self.uses_bias, self.dtype)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the prepared inputs, and of each Dense layer."""
        return (self.layers[0].kernel.shape[0], *(layer.units for layer in self.layers))

    @property
    def uses_bias(self) -> tuple[bool, ...]:
        """Whether each Dense layer has a bias."""
        return tuple(layer.use_bias for layer in self.layers)

    @property
    def num_channels(self) -> int:
        """How many inputs have a unit of their own: the channels of images, which `Flatten` has made rows; else all."""
        shape, width = self.model.input_shape, self.widths[0]
        for layer in self.preparation:
            if isinstance(layer, keras.layers.Flatten) and len(shape) > 2:
                channels = shape[1 if layer.data_format == "channels_first" else -1]
                return channels if channels and width % channels == 0 else width
        return width

    def prepare(self, inputs: Any) -> Any:
        """Prepare rows of inputs.

        Args:
            inputs: Shape `(rows, *input_shape)`.

        Returns:
            A_0, shape `(rows, widths[0])`.
        """
        x = tf.cast(inputs, self.input_dtype)  # as the model's Input does
        x = x if self.preparation else tf.cast(x, self.dtype)
        for layer in self.preparation:
            x = tf.cast(layer(x), self.dtype)
        return tf.reshape(x, (-1, self.widths[0]))

    def read_weights(self) -> list[tuple[Any, Any]]:
        """Return the model's weights.

        Returns:
            `(kernel, bias)` of each Dense layer, tensors of shapes `(inputs, outputs)` and `(outputs,)`; biases that
            the layer does not have are zeros.
        """
        return [
            (
                tf.identity(layer.kernel.value),
                tf.identity(layer.bias.value) if layer.use_bias else tf.zeros(layer.units, self.dtype),
            )
            for layer in self.layers
        ]

    def write_weights(self, weights: list[tuple[Any, Any]]) -> None:
        """Put weights into the model.

        Args:
            weights: As from `read_weights`.
        """
        for layer, (kernel, bias) in zip(self.layers, weights, strict=True):
            layer.kernel.assign(kernel)
            if layer.use_bias:
                layer.bias.assign(bias)


def _refusal(layer: Any, why: str) -> str:
    return f"The layer {layer.name!r} ({type(layer).__name__}) {why}. {_CAN_BE_TRAINED}"


def _chain_of(model: Any) -> list[Any]:
    # The layers in the order of the computation, nested models unfolded; each has one input and one consumer.
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built: begin it with keras.Input(...), or call it on data once"
        )
    if isinstance(model, keras.Sequential):
        layers = list(model.layers)
    elif hasattr(model, "_operations_by_depth") and hasattr(model, "operations"):
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"The model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs. "
                + _CAN_BE_TRAINED
            )
        layers = _functional_layers(model)
    else:
        raise ValueError(
            f"The model {model.name!r} ({type(model).__name__}) computes by Python code that cannot be read as layers. "
            f"Use keras.Sequential or the functional form. {_CAN_BE_TRAINED}"
        )
    unfolded = []
    for layer in layers:
        unfolded += _chain_of(layer) if isinstance(layer, keras.Model) else [layer]
    return unfolded


def _functional_layers(model: Any) -> list[Any]:
    # From the output back to the input: each tensor was made by one layer from one tensor.
    layers = []
    tensor = model.outputs[0]
    while True:
        layer, node_index, _ = tensor._keras_history
        layers.append(layer)
        inputs = layer._inbound_nodes[node_index].input_tensors
        if not inputs:
            break
        if len(inputs) > 1:
            raise ValueError(_refusal(layer, f"joins {len(inputs)} inputs"))
        tensor = inputs[0]
    if tensor is not model.inputs[0]:
        raise ValueError(f"The output of the model {model.name!r} does not depend on its input")
    return layers[::-1]


def _check_dense(layer: Any, before: list[Any]) -> None:
    if len(layer.input.shape) != 2:
        raise ValueError(_refusal(layer, f"takes inputs of shape {layer.input.shape}; put a Flatten before it"))
    if before and before[0].kernel.dtype != layer.kernel.dtype:
        dtypes = f"{before[0].kernel.dtype} of the first Dense layer"
        raise ValueError(_refusal(layer, f"has weights of dtype {layer.kernel.dtype}, not the {dtypes}"))
    if not layer.trainable:
        raise ValueError(_refusal(layer, "is frozen"))
    if getattr(layer, "quantization_mode", None) or getattr(layer, "lora_enabled", False):
        raise ValueError(_refusal(layer, "is quantized or has a LoRA"))
    for name in ("kernel_regularizer", "bias_regularizer", "activity_regularizer"):
        if getattr(layer, name, None) is not None:
            raise ValueError(_refusal(layer, f"has a {name}; use BregmanTrainer's `weight_decay`"))
    for name in ("kernel_constraint", "bias_constraint"):
        if getattr(layer, name, None) is not None:
            raise ValueError(_refusal(layer, f"has a {name}"))
    if tf.as_dtype(layer.kernel.dtype) not in (tf.float32, tf.float64):
        raise ValueError(_refusal(layer, f"has weights of dtype {layer.kernel.dtype}; float32 or float64 is needed"))


def _check_precision(layer: Any) -> None:
    # Training computes in the weights' dtype. A layer that computes in half precision predicts something else.
    weights = layer.kernel.dtype if type(layer) is keras.layers.Dense else "float32"
    if tf.as_dtype(layer.compute_dtype).size < tf.as_dtype(weights).size:
        why = f"has the dtype policy {layer.dtype_policy.name!r}, and so computes in {layer.compute_dtype}"
        raise ValueError(_refusal(layer, f"{why}. Set its policy to 'float32'"))


def _activation_of(steps: list[Any]) -> Activation:
    found = [(layer, activation) for layer, step in steps if (activation := _read(layer, step)) is not None]
    bent = [(layer, activation) for layer, activation in found if activation is not activations.identity]
    if len(bent) > 1:
        raise ValueError(_refusal(bent[1][0], "is a second activation after one Dense layer"))
    return bent[0][1] if bent else activations.identity


_BY_FUNCTION = {
    "linear": activations.identity,
    "relu": activations.relu,
    "leaky_relu": activations.leaky_relu(0.2),  # Keras's default slope
    "relu6": activations.clip(6.0),
    "tanh": activations.tanh,
    "sigmoid": activations.sigmoid,
    "softplus": activations.softplus,
    "gelu": activations.gelu,
}


def _read(layer: Any, step: Any) -> Activation | None:
    # What one step after a Dense layer computes.
    if isinstance(step, keras.layers.Activation):
        step = step.activation
    if isinstance(step, keras.layers.ReLU):
        top, slope, threshold = step.max_value, float(step.negative_slope or 0.0), float(step.threshold or 0.0)
        if threshold == 0 and top is None:
            return activations.leaky_relu(slope)
        if threshold == 0 and slope == 0 and top > 0:
            return activations.clip(float(top))
        raise ValueError(_refusal(layer, "is a ReLU with a threshold, or with a maximum and a slope below zero"))
    if isinstance(step, keras.layers.LeakyReLU):
        return activations.leaky_relu(float(step.negative_slope))
    if isinstance(step, keras.layers.Layer):
        raise ValueError(_refusal(layer, "cannot be trained without gradients"))
    name = getattr(step, "__name__", repr(step))
    if name not in _BY_FUNCTION or step is not keras.activations.get(name):
        known = ", ".join(_BY_FUNCTION)
        why = f"has the activation {name!r}, and its update is known for {known}, and clipped ReLUs only"
        raise ValueError(_refusal(layer, why))
    return _BY_FUNCTION[name]


def _output_activation_of(steps: list[Any]) -> str:
    names = []
    for layer, step in steps:
        function = step.activation if isinstance(step, keras.layers.Activation) else step
        name = "softmax" if isinstance(step, keras.layers.Softmax) else getattr(function, "__name__", "")
        is_of_keras = isinstance(step, keras.layers.Softmax) or function is getattr(keras.activations, name, None)
        if name not in ("linear", "softmax", "sigmoid") or not is_of_keras:
            raise ValueError(_refusal(layer, "comes last and is not linear, softmax or sigmoid"))
        if name != "linear":
            names.append((layer, name))
    if len(names) > 1:
        raise ValueError(_refusal(names[1][0], "is a second activation of the outputs"))
    return names[0][1] if names else "linear"
