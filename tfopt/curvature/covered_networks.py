"""The networks, losses and penalties that the strong-convexity theorem covers; all others raise an error."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfopt import _keras
from tfopt._keras import Functional
from tfopt.curvature.objective import Objective

# The negative slopes of activation functions; 0.2 is Keras's default for leaky_relu.
_ACTIVATIONS: tuple[tuple[Any, list[float]], ...] = (
    (keras.activations.linear, []),
    (keras.activations.relu, [0.0]),
    (keras.activations.leaky_relu, [0.2]),
)
_DTYPES = ("float32", "float64")


class NotCoveredError(ValueError):
    """The strong-convexity theorem does not cover a network, its loss or its data.

    Args:
        why: The reason, a clause without a full stop.

    Attributes:
        why: The reason.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"The strong-convexity certificate does not cover this: {why}. It covers chains of Dense layers without "
            "biases (or one hidden layer, with the same L2 penalty on its biases), with linear, relu or leaky_relu "
            "activations and a linear output, all in float32 or float64, the loss 'mse', and the same L2 penalty on "
            "every kernel. "
            "tfopt.curvature.HessianOperator measures the curvature of any model"
        )


def read_network(model: Any) -> list[Any]:
    """Return the steps of a chain, from input to output: Flatten and Dense layers, and negative slopes (floats)."""
    # Linear activations add no step. Raises NotCoveredError for a model that is not a chain that the theorem covers.
    steps: list[Any] = []
    rank = None
    _check_layer(model, f"the model {model.name!r} ({type(model).__name__})")
    for layer in _chain(model):
        name = f"the layer {layer.name!r} ({type(layer).__name__})"
        _check_is_layer(layer)
        _check_layer(layer, name)
        if type(layer) is keras.layers.InputLayer:
            rank = len(layer.batch_shape)
            _check_input(layer, name)
        elif type(layer) is keras.layers.Flatten:
            rank = 2
            steps.append(layer)
        elif type(layer) is keras.layers.Dense:
            if rank != 2:
                raise NotCoveredError(f"{name} is applied along the last of {rank} axes")
            if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
                raise NotCoveredError(f"{name} has low-rank or quantized weights")
            steps += [layer, *_slopes(layer.activation, f"the activation of {name}")]
        else:
            steps += _slopes(layer, name)
    _check_weights(model, steps)
    return steps


def dense_layers(steps: list[Any]) -> list[Any]:
    """Return the Dense layers among the steps of `read_network`."""
    return [step for step in steps if type(step) is keras.layers.Dense]


def _check_is_layer(operation: Any) -> None:
    # Functions of keras.ops, and operators on Keras tensors, are operations without a layer.
    if not isinstance(operation, keras.layers.Layer):
        raise NotCoveredError(
            f"the operation {operation.name!r} ({type(operation).__name__}) is not a layer. If it only changes the "
            "inputs, apply it to the data, outside the model. In place of a function such as keras.ops.relu, use a "
            "layer such as keras.layers.ReLU"
        )


def _check_layer(layer: Any, name: str) -> None:
    # If products and sums are rounded to 16 bits, the network computes another function.
    policy = layer.dtype_policy
    for dtype in (layer.compute_dtype, layer.variable_dtype):
        if dtype not in _DTYPES:
            raise NotCoveredError(f"{name} has the dtype policy {policy.name!r}, and not float32 or float64")
    if "call" in vars(layer):
        raise NotCoveredError(f"{name} has a `call` that replaces that of its class")
    if getattr(layer, "activity_regularizer", None) is not None:
        raise NotCoveredError(f"{name} has an activity regulariser")


def _check_input(layer: Any, name: str) -> None:
    dtype = keras.backend.standardize_dtype(layer.dtype)
    if dtype != "bool" and "int" not in dtype and dtype not in _DTYPES:
        raise NotCoveredError(f"{name} takes inputs of dtype {dtype}")


def _check_weights(model: Any, steps: list[Any]) -> None:
    dense = dense_layers(steps)
    if not dense:
        raise NotCoveredError("the model has no Dense layer")
    if isinstance(steps[-1], float):
        raise NotCoveredError("the output has an activation")
    biased = [layer.name for layer in dense if layer.use_bias]
    if biased and len(dense) > 2:
        raise NotCoveredError(f"the layer {biased[0]!r} has a bias, in a network of {len(dense) - 1} hidden layers")
    owners: dict[int, str] = {}
    for layer in dense:
        for name, variable in (("kernel", layer.kernel), ("bias", layer.bias)):
            if variable is None:
                continue
            if not isinstance(variable, keras.Variable):
                raise NotCoveredError(f"the {name} of {layer.name!r} is computed from other weights")
            # Compare the tf.Variables, because two Keras variables can share one.
            owner = owners.setdefault(id(variable.value), layer.name)
            if owner != layer.name:
                raise NotCoveredError(f"the layers {owner!r} and {layer.name!r} share a {name}")
    others = [variable.path for variable in model.trainable_variables if id(variable.value) not in owners]
    if others:
        raise NotCoveredError(f"{others[0]} is trainable, and is neither a kernel nor a bias of the chain")


def _chain(model: Any) -> Iterator[Any]:
    # Returns the layers from the input to the output, each once.
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        model = _keras.functional(model)
    if not (isinstance(model, Functional) and type(model).call is Functional.call):
        raise NotCoveredError(f"{type(model).__name__} is neither Sequential nor a functional model")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise NotCoveredError(f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs")
    layers: list[Any] = []
    tensors = list(model.outputs)
    while tensors:
        if len(tensors) > 1:
            raise NotCoveredError(f"{layers[-1].name!r} ({type(layers[-1]).__name__}) joins {len(tensors)} tensors")
        layer, node, _ = _keras.keras_history(tensors[0])
        if any(layer is other for other in layers):
            raise NotCoveredError(f"{layer.name!r} ({type(layer).__name__}) is used twice")
        layers.append(layer)
        tensors = _keras.inbound_nodes(layer)[node].input_tensors
    return reversed(layers)


def _slopes(activation: Any, name: str) -> list[float]:
    # Returns the negative slope of a (leaky) ReLU in a list, and an empty list for a linear activation.
    while isinstance(activation, keras.layers.Layer):
        _check_layer(activation, name)
        if type(activation) is not keras.layers.Activation:
            break
        activation = activation.activation
    if type(activation) is keras.layers.ReLU:
        if activation.max_value is None and not activation.threshold and 0 <= activation.negative_slope <= 1:
            return [float(activation.negative_slope)]
    elif type(activation) is keras.layers.LeakyReLU and abs(activation.negative_slope) <= 1:
        return [float(activation.negative_slope)]
    for function, slopes in _ACTIVATIONS:
        if activation is function:
            return slopes
    raise NotCoveredError(f"{name} is {getattr(activation, '__name__', type(activation).__name__)}")


def check_loss(objective: Objective) -> str:
    """Return the dtype of the error, "float32" or "float64"; NotCoveredError unless the loss is mse and penalties."""
    model, loss, weights = objective.model, objective.batch_loss.given_loss, None
    if type(model).train_step is not keras.Model.train_step or "train_step" in vars(model):
        raise NotCoveredError("the model overrides `train_step`")
    if any(type(layer).losses is not keras.layers.Layer.losses for layer in _keras.flatten_layers(model)()):
        raise NotCoveredError("a layer of the model overrides `losses`")
    if loss is None:
        compiled_loss = _keras.compile_loss(model, None)
        is_own = type(model).compute_loss is not keras.Model.compute_loss or "compute_loss" in vars(model)
        if compiled_loss is None or is_own:
            raise NotCoveredError("the model computes its own loss")
        loss, weights = _keras.user_loss(compiled_loss), _keras.user_loss_weights(compiled_loss)
        if weights is not None and keras.tree.flatten(weights) != [1.0]:
            raise NotCoveredError(f"the loss has the weights {weights}")
    flat = keras.tree.flatten(loss)
    found = keras.losses.get(flat[0]) if len(flat) == 1 else loss
    mean = getattr(found, "reduction", None) in ("sum_over_batch_size", "mean", "mean_with_sample_weight")
    is_mse = found is keras.losses.mean_squared_error or (type(found) is keras.losses.MeanSquaredError and mean)
    if not is_mse:
        raise NotCoveredError(f"the loss is {getattr(found, 'name', None) or getattr(found, '__name__', found)!r}")
    dtype = found.dtype if isinstance(found, keras.Loss) else keras.config.floatx()
    if dtype not in _DTYPES:
        raise NotCoveredError(f"the loss is computed in {dtype}")
    if any(batch.sample_weight is not None for batch in objective.probe.batches):
        raise NotCoveredError("the data have sample weights")
    return dtype


def common_l2(layers: list[Any]) -> float:
    """Return the common L2 coefficient of all kernels and biases of Dense layers; NotCoveredError if they differ."""
    found = {}
    for layer in layers:
        found[f"{layer.name}/kernel"] = _l2_of(layer.kernel, f"the kernel of {layer.name!r}")
        if layer.use_bias:
            found[f"{layer.name}/bias"] = _l2_of(layer.bias, f"the bias of {layer.name!r}")
    if len(set(found.values())) > 1:
        raise NotCoveredError(f"the L2 penalties differ: {found}")
    return next(iter(found.values()))


def _l2_of(variable: Any, name: str) -> float:
    # The loss contains the variable's regulariser. The layer's argument is only read when the layer is built.
    regularizer = variable.regularizer
    is_l2 = type(regularizer) is keras.regularizers.L2 or (
        type(regularizer) is keras.regularizers.L1L2 and float(regularizer.l1) == 0.0
    )
    if not is_l2:
        kind = "no penalty" if regularizer is None else type(regularizer).__name__
        raise NotCoveredError(
            f"{name} has {kind} in place of an L2 penalty (an optimizer's weight_decay does not count)"
        )
    # Keras rounds the coefficient to float32, also in float64 models. Processors may set denormal numbers to zero.
    given = float(regularizer.l2)
    with np.errstate(over="ignore"):
        rounded = float(np.float32(given))
    if not np.finfo(np.float32).tiny <= rounded < np.inf:
        raise NotCoveredError(f"{name} has no penalty: the coefficient {given:g} is {rounded:g} in float32")
    return min(given, rounded)
