"""Which networks, losses and penalties the strong-convexity theorem covers; all others are refused, and told why."""

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.models import Functional

from tfopt.curvature.probe_loss import ProbeLoss

_ACTIVATIONS = (keras.activations.linear, keras.activations.relu, keras.activations.leaky_relu)


class NotCoveredError(ValueError):
    """The theorem says nothing of a network, its loss or its data.

    Args:
        why: What it does not cover.

    Attributes:
        why: The same.
    """

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"The strong-convexity certificate does not cover this: {why}. It covers chains of Dense layers without "
            "biases (or one hidden layer, with the same L2 penalty on its biases), with linear, relu or leaky_relu "
            "activations and a linear output, the loss 'mse', and the same L2 penalty on every kernel. "
            "tfopt.curvature.HessianOperator measures the curvature of any model"
        )


def dense_layers(model: Any) -> list[Any]:
    """Return the Dense layers of a chain.

    Args:
        model: A Keras model.

    Returns:
        The layers, from the input to the output.

    Raises:
        NotCoveredError: The model is no chain that the theorem covers.
    """
    dense: list[Any] = []
    is_linear = True
    rank = None
    for layer in _chain(model):
        name = f"the layer {layer.name!r} ({type(layer).__name__})"
        if type(layer) is keras.layers.InputLayer:
            rank = len(layer.batch_shape)
        elif type(layer) is keras.layers.Flatten:
            rank = 2
        elif type(layer) is keras.layers.Dense:
            if rank != 2:
                raise NotCoveredError(f"{name} is applied along the last of {rank} axes")
            if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
                raise NotCoveredError(f"{name} has low-rank or quantized weights")
            dense.append(layer)
            is_linear = _is_linear(layer.activation, f"the activation of {name}")
        else:
            is_linear = _is_linear(layer, name) and is_linear
        if getattr(layer, "activity_regularizer", None) is not None:
            raise NotCoveredError(f"{name} has an activity regulariser")
    if not dense:
        raise NotCoveredError("the model has no Dense layer")
    if not is_linear:
        raise NotCoveredError("the output has an activation")
    biased = [layer.name for layer in dense if layer.use_bias]
    if biased and len(dense) > 2:
        raise NotCoveredError(f"the layer {biased[0]!r} has a bias, in a network of {len(dense) - 1} hidden layers")
    return dense


def _chain(model: Any) -> Iterator[Any]:
    # The layers from the input to the output, each once.
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        model = model._functional
    if not (isinstance(model, Functional) and type(model).call is Functional.call):
        raise NotCoveredError(f"{type(model).__name__} is neither Sequential nor made of inputs and outputs")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise NotCoveredError(f"the model has {len(model.inputs)} inputs and {len(model.outputs)} outputs")
    layers: list[Any] = []
    tensors = list(model.outputs)
    while tensors:
        if len(tensors) > 1:
            raise NotCoveredError(f"the layer {layers[-1].name!r} joins {len(tensors)} tensors")
        layer, node, _ = tensors[0]._keras_history
        if any(layer is other for other in layers):
            raise NotCoveredError(f"the layer {layer.name!r} is used twice")
        layers.append(layer)
        tensors = layer._inbound_nodes[node].input_tensors
    return reversed(layers)


def _is_linear(activation: Any, name: str) -> bool:
    # What is neither linear nor a (leaky) ReLU of slopes up to 1 is refused.
    if type(activation) is keras.layers.Activation:
        activation = activation.activation
    if type(activation) is keras.layers.ReLU:
        if activation.max_value is None and not activation.threshold and 0 <= activation.negative_slope <= 1:
            return False
    elif type(activation) is keras.layers.LeakyReLU:
        if abs(activation.negative_slope) <= 1:
            return False
    elif activation in _ACTIVATIONS:
        return activation is keras.activations.linear
    raise NotCoveredError(f"{name} is {getattr(activation, '__name__', type(activation).__name__)}")


def check_loss(probe_loss: ProbeLoss) -> None:
    """Check that what is minimised is a plain mean squared error and regularisers.

    Args:
        probe_loss: The loss and its data.

    Raises:
        NotCoveredError: It is not.
    """
    objective = probe_loss.objective
    model, loss, weights = objective.model, objective.given_loss, None
    if type(model).train_step is not keras.Model.train_step or "train_step" in vars(model):
        raise NotCoveredError("the model has a training step of its own")
    if loss is None:
        compiled_loss = getattr(model, "_compile_loss", None)
        is_own = type(model).compute_loss is not keras.Model.compute_loss or "compute_loss" in vars(model)
        if compiled_loss is None or is_own:
            raise NotCoveredError("the model computes a loss of its own")
        loss, weights = compiled_loss._user_loss, compiled_loss._user_loss_weights
        if weights is not None and keras.tree.flatten(weights) != [1.0]:
            raise NotCoveredError(f"the loss has the weights {weights}")
    flat = keras.tree.flatten(loss)
    found = keras.losses.get(flat[0]) if len(flat) == 1 else loss
    mean = getattr(found, "reduction", None) in ("sum_over_batch_size", "mean", "mean_with_sample_weight")
    is_mse = found is keras.losses.mean_squared_error or (type(found) is keras.losses.MeanSquaredError and mean)
    if not is_mse:
        raise NotCoveredError(f"the loss is {getattr(found, 'name', None) or getattr(found, '__name__', found)!r}")
    if any(batch.sample_weight is not None for batch in probe_loss.probe.batches):
        raise NotCoveredError("the data have sample weights")


def common_l2(layers: list[Any]) -> float:
    """Return the coefficient of the L2 penalty that all kernels, and all biases that there are, have in common.

    Args:
        layers: Dense layers.

    Returns:
        The coefficient.

    Raises:
        NotCoveredError: They have none in common.
    """
    found = {}
    for layer in layers:
        found[f"{layer.name}/kernel"] = _l2_of(layer.kernel, f"the kernel of {layer.name!r}")
        if layer.use_bias:
            found[f"{layer.name}/bias"] = _l2_of(layer.bias, f"the bias of {layer.name!r}")
    if len(set(found.values())) > 1:
        raise NotCoveredError(f"the L2 penalties differ: {found}")
    return next(iter(found.values()))


def _l2_of(variable: Any, name: str) -> float:
    # The variable's own regulariser is the one in the loss; a layer's argument is only read when it is built.
    regularizer = variable.regularizer
    is_l2 = type(regularizer) is keras.regularizers.L2 or (
        type(regularizer) is keras.regularizers.L1L2 and float(regularizer.l1) == 0.0
    )
    if not is_l2 or float(regularizer.l2) <= 0.0:
        kind = "no penalty" if regularizer is None or is_l2 else type(regularizer).__name__
        raise NotCoveredError(
            f"{name} has {kind} in place of an L2 penalty (an optimizer's weight_decay does not count)"
        )
    return float(regularizer.l2)
