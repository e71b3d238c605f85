"""A small convolutional network for images of MNIST's size."""

from collections.abc import Sequence
from typing import Any

import keras

from tfopt._checks import check_flag, check_integer, check_shape
from tfopt.models._kernels import Kernels
from tfopt.models._lookup import look_up


def convnet(
    input_shape: Sequence[int] = (28, 28, 1),
    filters: Sequence[int] = (16, 32),
    num_outputs: int = 10,
    *,
    hidden_units: int = 64,
    activation: str = "relu",
    batch_normalization: bool = False,
    kernel_initializer: Any = "he_normal",
    weight_decay: float = 0.0,
    seed: int | None = None,
    name: str = "convnet",
) -> keras.Model:
    """Build 3 x 3 convolutions with 2 x 2 max-pooling after each, one hidden Dense layer, and a linear output.

    Args:
        input_shape: Height, width and channels of an image. Each pooling halves height and width, rounding up.
        filters: Number of filters of each convolution, at least one convolution.
        num_outputs: Width of the output layer.
        hidden_units: Width of the Dense layer before the output.
        activation: Name of a Keras activation.
        batch_normalization: Whether to normalise before each activation, instead of a bias.
        kernel_initializer: A Keras initializer or its name.
        weight_decay: Coefficient of an L2 penalty on every kernel, `weight_decay * |W|^2`, in the loss; >= 0.
        seed: Seed of the initial weights, an integer >= 0; None (default) for the initializer's own.
        name: Name of the model.

    Returns:
        An uncompiled, built `keras.Model` that returns logits.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> convnet((8, 8, 1)).count_params()
        13706
    """
    shape = check_shape("input_shape", input_shape, num_dimensions=3)
    widths = check_shape("filters", filters)
    for argument, value in (("num_outputs", num_outputs), ("hidden_units", hidden_units)):
        check_integer(argument, value, minimum=1)
    check_flag("batch_normalization", batch_normalization)
    kernels = Kernels(kernel_initializer, weight_decay, seed)
    look_up("activation", keras.activations.get, activation)

    def activated(x: Any, label: str) -> Any:
        if batch_normalization:
            x = keras.layers.BatchNormalization(name=f"normalization_{label}")(x)
        return keras.layers.Activation(activation, name=f"activation_{label}")(x)

    x = inputs = keras.Input(shape, name="inputs")
    use_bias = not batch_normalization
    for index, width in enumerate(widths):
        label = str(index + 1)
        convolution = keras.layers.Conv2D(
            width, 3, padding="same", use_bias=use_bias, name=f"convolution_{label}", **kernels.next_layer()
        )
        x = keras.layers.MaxPooling2D(padding="same", name=f"pooling_{label}")(activated(convolution(x), label))
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dense(hidden_units, use_bias=use_bias, name="hidden", **kernels.next_layer())(x)
    outputs = keras.layers.Dense(num_outputs, name="outputs", **kernels.next_layer())(activated(x, "hidden"))
    return keras.Model(inputs, outputs, name=name)
