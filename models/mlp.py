"""The multilayer perceptron, plain or residual."""

import numbers
from collections.abc import Sequence
from typing import Any

import keras

from tfopt._checks import as_items, check_flag, check_integer, check_number, check_shape
from tfopt.models._kernels import Kernels
from tfopt.models._lookup import look_up


def mlp(
    input_shape: int | Sequence[int],
    hidden_units: Sequence[int] = (64,),
    num_outputs: int = 10,
    *,
    activation: str = "relu",
    negative_slope: float = 0.0,
    use_bias: bool = True,
    batch_normalization: bool = False,
    residual: bool = False,
    kernel_initializer: Any = None,
    weight_decay: float = 0.0,
    output_activation: str | None = None,
    seed: int | None = None,
    name: str = "mlp",
) -> keras.Model:
    """Build a fully connected network.

    Each hidden layer is Dense, then BatchNormalization if chosen, then the activation. In the residual form a hidden
    layer computes x + activation(W x + b). The first layer, and layers where the width changes, have no skip
    connection. The output layer is linear unless an `output_activation` is given: use losses with `from_logits=True`.

    Args:
        input_shape: Shape of one example, without the batch; more than one dimension is flattened first.
        hidden_units: Widths of the hidden layers, 0 to 50 of them.
        num_outputs: Width of the output layer.
        activation: Name of a Keras activation.
        negative_slope: Slope of `activation="relu"` for negative inputs, in [0, 1]; values > 0 make a leaky ReLU.
        use_bias: Whether Dense layers have biases. With BatchNormalization, hidden layers never have biases, and False
            also removes the offset of the normalisation.
        batch_normalization: Whether to normalise before each hidden activation.
        residual: Whether to add skip connections.
        kernel_initializer: A Keras initializer or its name. None (default) for "he_normal", whose variance is divided
            by the number of hidden layers in the residual form. Otherwise activations would nearly double in each
            layer.
        weight_decay: Coefficient of an L2 penalty on every kernel, `weight_decay * |W|^2`, in the loss; >= 0.
        output_activation: Activation of the output layer; None (default) for logits.
        seed: Seed of the initial weights, an integer >= 0; each layer gets its own initializer. None (default) for the
            initializer's own seed.
        name: Name of the model.

    Returns:
        An uncompiled, built `keras.Model`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> mlp((8, 8, 1), hidden_units=(64,), num_outputs=10).count_params()
        4810
    """
    shape = check_shape("input_shape", (input_shape,) if isinstance(input_shape, numbers.Integral) else input_shape)
    units = tuple(check_integer("hidden_units", width, minimum=1) for width in _check_widths(hidden_units))
    check_integer("num_outputs", num_outputs, minimum=1)
    check_number("negative_slope", negative_slope, minimum=0.0, maximum=1.0)
    if negative_slope and activation != "relu":
        raise ValueError(f"`negative_slope` needs activation='relu'. Received: activation={activation!r}")
    for flag, value in (("use_bias", use_bias), ("residual", residual), ("batch_normalization", batch_normalization)):
        check_flag(flag, value)
    if kernel_initializer is None:
        depth = max(len(units), 1) if residual else 1
        kernel_initializer = keras.initializers.VarianceScaling(2.0 / depth)  # For depth 1 this is He's initializer.
    kernels = Kernels(kernel_initializer, weight_decay, seed)
    look_up("activation", keras.activations.get, activation)
    if output_activation is not None:
        look_up("output_activation", keras.activations.get, output_activation)

    inputs = keras.Input(shape, name="inputs")
    x = keras.layers.Flatten(name="flatten")(inputs) if len(shape) > 1 else inputs
    for index, width in enumerate(units):
        bias = use_bias and not batch_normalization
        branch = keras.layers.Dense(width, use_bias=bias, name=f"hidden_{index + 1}", **kernels.next_layer())(x)
        if batch_normalization:
            branch = keras.layers.BatchNormalization(center=use_bias, name=f"normalization_{index + 1}")(branch)
        branch = _activation(activation, negative_slope, f"activation_{index + 1}")(branch)
        skip = residual and index > 0 and x.shape[-1] == width
        x = keras.layers.Add(name=f"skip_{index + 1}")([x, branch]) if skip else branch
    outputs = keras.layers.Dense(num_outputs, use_bias=use_bias, name="outputs", **kernels.next_layer())(x)
    if output_activation is not None:
        outputs = keras.layers.Activation(output_activation, name="output_activation")(outputs)
    return keras.Model(inputs, outputs, name=name)


def _check_widths(hidden_units: Any) -> tuple[Any, ...]:
    widths = as_items("hidden_units", hidden_units, "be a sequence of widths")
    if len(widths) > 50:
        raise ValueError(f"`hidden_units` must list at most 50 layers. Received: {len(widths)}")
    return widths


def _activation(activation: str, negative_slope: float, name: str) -> keras.layers.Layer:
    if negative_slope:
        return keras.layers.LeakyReLU(negative_slope=negative_slope, name=name)
    return keras.layers.Activation(activation, name=name)
