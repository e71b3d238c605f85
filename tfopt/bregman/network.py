"""A Keras model read as a chain: preparation of the inputs, then Dense layers with activations between them."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt.bregman.activations import Activation
from tfopt.bregman.keras_layers import (
    CAN_BE_TRAINED,
    activation_of,
    check_dense,
    check_precision,
    output_activation_of,
    refusal,
)

__all__ = ["Architecture", "DenseChain", "weights_to_arrays"]

_ROUNDING = {tf.bfloat16: 2.0**-7, tf.float16: 2.0**-10, tf.float32: 2.0**-23, tf.float64: 2.0**-52}
_PREPARATION = (keras.layers.Flatten, keras.layers.Rescaling, keras.layers.Normalization)


@dataclass(frozen=True)
class Architecture:
    """The key of compiled passes through rows: everything they depend on except shapes.

    Attributes:
        activations: h_1 to h_(L-1).
        uses_bias: Whether each Dense layer has a bias.
        dtype: Dtype of the weights, in which training computes.
    """

    activations: tuple[Activation, ...]
    uses_bias: tuple[bool, ...]
    dtype: Any

    def forward(self, inputs: Any, weights: list[tuple[Any, Any]]) -> list[Any]:
        """Return the pre-activations Z_1 to Z_L, Z_l = A_(l-1) W_l + b_l, for A_0 of shape `(rows, widths[0])`."""
        kernel, bias = weights[0]
        pre_activations = [tf.matmul(inputs, kernel) + bias]
        for activation, (kernel, bias) in zip(self.activations, weights[1:], strict=True):
            pre_activations.append(tf.matmul(activation(pre_activations[-1]), kernel) + bias)
        return pre_activations


@dataclass(frozen=True)
class InputCast:
    """The cast of a nested model: it casts its inputs to the dtype of its `Input`."""

    name: str
    dtype: Any

    def __call__(self, inputs: Any) -> Any:
        """Return inputs of any shape in the dtype of the `Input`."""
        return tf.cast(inputs, self.dtype)


@dataclass(frozen=True)
class DenseChain:
    """The layers that training works on.

    Attributes:
        model: The Keras model.
        preparation: Layers that prepare the inputs, in their order.
        layers: The Dense layers 1 to L.
        activations: h_1 to h_(L-1).
        output_activation: Activation after the last Dense layer: "linear", "softmax" or "sigmoid".
    """

    model: Any
    preparation: tuple[Any, ...]
    layers: tuple[Any, ...]
    activations: tuple[Activation, ...]
    output_activation: str

    @classmethod
    def from_model(cls, model: Any) -> "DenseChain":
        """Read a built Keras model; raise an error that names the layer if it cannot be trained."""
        if not isinstance(model, keras.Model):
            raise TypeError(f"`model` must be a Keras model. Received: {model!r} of type {type(model).__name__}")
        preparation: list[Any] = []
        dense: list[Any] = []
        after: list[list[Any]] = []  # Steps after each Dense layer: (layer, activation or Keras function).
        for layer in _chain_of(model):
            if isinstance(layer, keras.layers.InputLayer):
                continue
            if not isinstance(layer, keras.layers.Layer | InputCast):
                raise ValueError(refusal(layer, "is not a layer, such as keras.layers.Rescaling or keras.layers.ReLU"))
            if isinstance(layer, InputCast):
                if not dense:
                    preparation.append(layer)
                elif layer.dtype not in (tf.float32, tf.float64):
                    raise ValueError(refusal(layer, f"has an Input of {layer.dtype.name}, which rounds activations"))
                continue
            if dense or type(layer) is keras.layers.Dense:
                check_precision(layer)
            if type(layer) is keras.layers.Dense:  # A subclass may compute something else.
                check_dense(layer, dense)
                dense.append(layer)
                after.append([(layer, layer.activation)])
            elif isinstance(layer, _PREPARATION) and not dense:
                preparation.append(layer)
            elif isinstance(layer, keras.layers.Flatten) and dense:
                continue  # Rows are already flat.
            elif not dense:
                raise ValueError(refusal(layer, "comes before the first Dense layer"))
            else:
                after[-1].append((layer, layer))
        if not dense:
            raise ValueError(f"The model {model.name!r} has no Dense layer. {CAN_BE_TRAINED}")
        if len({id(layer) for layer in dense}) < len(dense):
            raise ValueError(f"The model {model.name!r} uses a Dense layer twice. {CAN_BE_TRAINED}")
        hidden = tuple(activation_of(steps) for steps in after[:-1])
        return cls(model, tuple(preparation), tuple(dense), hidden, output_activation_of(after[-1]))

    @property
    def dtype(self) -> Any:
        """Dtype of the weights, in which training computes."""
        return tf.as_dtype(self.layers[0].kernel.dtype)

    @property
    def input_dtype(self) -> Any:
        """Dtype that the model's `Input` casts to."""
        return tf.as_dtype(self.model.inputs[0].dtype)

    @property
    def input_rounding(self) -> float:
        """Relative rounding of the inputs: that of the coarsest floating dtype that they pass through."""
        casts = [self.input_dtype, self.dtype, *(p.dtype for p in self.preparation if isinstance(p, InputCast))]
        return max(_ROUNDING.get(dtype, 0.0) for dtype in casts)

    @property
    def architecture(self) -> Architecture:
        """The key of compiled passes."""
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
        """Number of inputs that may have their own units: the channels if `Flatten` made the rows, else all."""
        shape, width = self.model.input_shape, self.widths[0]
        for layer in self.preparation:
            if isinstance(layer, keras.layers.Flatten) and len(shape) > 2:
                channels = shape[1 if layer.data_format == "channels_first" else -1]
                return channels if channels and width % channels == 0 else width
        return width

    def prepare(self, inputs: Any) -> Any:
        """Return A_0, shape `(rows, widths[0])`, for inputs of shape `(rows, *input_shape)`."""
        x = tf.cast(inputs, self.input_dtype)  # The model's Input casts too.
        x = x if self.preparation else tf.cast(x, self.dtype)
        for layer in self.preparation:
            x = tf.cast(layer(x), self.dtype)
        return tf.reshape(x, (-1, self.widths[0]))

    def read_weights(self) -> list[tuple[Any, Any]]:
        """Return tensors `(kernel, bias)`, shapes `(inputs, outputs)` and `(outputs,)`; a missing bias is zeros."""
        return [
            (
                tf.identity(layer.kernel.value),
                tf.identity(layer.bias.value) if layer.use_bias else tf.zeros(layer.units, self.dtype),
            )
            for layer in self.layers
        ]

    def write_weights(self, weights: list[tuple[Any, Any]]) -> None:
        """Assign weights, as from `read_weights`, to the model."""
        for layer, (kernel, bias) in zip(self.layers, weights, strict=True):
            layer.kernel.assign(kernel)
            if layer.use_bias:
                layer.bias.assign(bias)


def _chain_of(model: Any) -> list[Any]:
    # Return the layers in the order of computation, with nested models unfolded. Each layer has one input and one
    # consumer.
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built: begin it with keras.Input(...), or call it on data once"
        )
    if isinstance(model, keras.Sequential):
        layers = list(model.layers)
    elif _keras.operations_by_depth(model, None) is not None and hasattr(model, "operations"):
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise ValueError(
                f"The model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs. "
                + CAN_BE_TRAINED
            )
        layers = _functional_layers(model)
    else:
        raise ValueError(
            f"The model {model.name!r} ({type(model).__name__}) computes by Python code that cannot be read as layers. "
            f"Use keras.Sequential or the functional form. {CAN_BE_TRAINED}"
        )
    unfolded = []
    for layer in layers:
        if isinstance(layer, keras.Model):
            inner = _chain_of(layer)
            unfolded += [InputCast(layer.name, tf.as_dtype(layer.inputs[0].dtype)), *inner]
        else:
            unfolded.append(layer)
    return unfolded


def weights_to_arrays(weights: list[tuple[Any, Any]], dtype: Any = None) -> list[list[np.ndarray]]:
    """Copy weights, as from `DenseChain.read_weights`, to NumPy arrays, of their own dtype or of `dtype`."""
    return [[np.array(part, dtype) for part in pair] for pair in weights]


def _functional_layers(model: Any) -> list[Any]:
    # Go from the output back to the input: one layer makes each tensor from one tensor.
    layers = []
    tensor = model.outputs[0]
    while True:
        layer, node_index, _ = _keras.keras_history(tensor)
        layers.append(layer)
        inputs = _keras.inbound_nodes(layer)[node_index].input_tensors
        if not inputs:
            break
        if len(inputs) > 1:
            raise ValueError(refusal(layer, f"joins {len(inputs)} inputs"))
        tensor = inputs[0]
    if tensor is not model.inputs[0]:
        raise ValueError(f"The output of the model {model.name!r} does not depend on its input")
    return layers[::-1]
