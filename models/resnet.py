"""The residual networks for 32 x 32 images of He, Zhang, Ren and Sun."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from tfopt._checks import check_flag, check_integer, check_shape
from tfopt.models._kernels import Kernels


def resnet(
    input_shape: Sequence[int] = (32, 32, 3),
    depth: int = 20,
    num_outputs: int = 10,
    *,
    width: int = 16,
    batch_normalization: bool = True,
    kernel_initializer: Any = "he_normal",
    weight_decay: float = 0.0,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build the network of Section 4.2 of the paper: 6 n + 2 layers in three stages of n blocks.

    The first layer is a 3 x 3 convolution. The three stages have n blocks each, with `width`, 2 `width` and 4 `width`
    filters. A block is two 3 x 3 convolutions with a skip connection. Last come the mean over all positions and a
    linear output. The first convolution of the second and third stage has stride 2. There the input of the skip
    connection is subsampled and padded with channels of zeros (the paper's option A, which has no parameters). With
    `width=16`, ResNet-20 has 0.27 and ResNet-32 0.46 million trainable parameters.

    Args:
        input_shape: Height, width and channels of an image. Default (32, 32, 3).
        depth: Number of layers with weights, 6 n + 2: 8, 14, 20 (default), 32, 44, 56, 110, ...
        num_outputs: Width of the output layer.
        width: Number of filters in the first stage.
        batch_normalization: Whether to normalise after each convolution. If False, convolutions have biases, and the
            last convolution of each block starts from zero, so that every block starts as the identity. Otherwise
            activations would double with each block.
        kernel_initializer: A Keras initializer or its name.
        weight_decay: Coefficient of an L2 penalty on every kernel, `weight_decay * |W|^2`, in the loss; >= 0.
        seed: Seed of the initial weights, an integer >= 0; None (default) for the initializer's own.
        name: Name of the model; None (default) for "resnet" and the depth.

    Returns:
        An uncompiled, built `keras.Model` that returns logits.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> sum(v.numpy().size for v in resnet().trainable_variables)
        269722

    References:
        He, Zhang, Ren, Sun: Deep residual learning for image recognition. CVPR 2016, arXiv:1512.03385.
    """
    if isinstance(input_shape, int):
        raise TypeError(
            f"`input_shape` must hold 3 positive integers, and comes before `depth`. Received: {input_shape=}"
        )
    shape = check_shape("input_shape", input_shape, num_dimensions=3)
    num_blocks = (check_integer("depth", depth, minimum=8) - 2) // 6
    if depth != 6 * num_blocks + 2:
        raise ValueError(f"`depth` must be 6 n + 2 (8, 14, 20, 32, ...). Received: depth={depth}")
    for argument, value in (("num_outputs", num_outputs), ("width", width)):
        check_integer(argument, value, minimum=1)
    check_flag("batch_normalization", batch_normalization)
    kernels = Kernels(kernel_initializer, weight_decay, seed)

    def convolution(x: Any, filters: int, label: str, stride: int = 1, is_last: bool = False) -> Any:
        settings = kernels.next_layer()
        if is_last and not batch_normalization:
            settings["kernel_initializer"] = "zeros"
        settings |= {"strides": stride, "use_bias": not batch_normalization, "name": f"{label}_convolution"}
        x = keras.layers.Conv2D(filters, 3, padding="same", **settings)(x)
        return keras.layers.BatchNormalization(name=f"{label}_normalization")(x) if batch_normalization else x

    def residual_block(x: Any, filters: int, label: str, stride: int) -> Any:
        y = keras.layers.ReLU(name=f"{label}_a_relu")(convolution(x, filters, f"{label}_a", stride))
        y = convolution(y, filters, f"{label}_b", is_last=True)
        x = keras.layers.Add(name=f"{label}_skip")([_shortcut(x, filters, stride, label), y])
        return keras.layers.ReLU(name=f"{label}_relu")(x)

    inputs = keras.Input(shape, name="inputs")
    x = keras.layers.ReLU(name="first_relu")(convolution(inputs, width, "first"))
    for stage in range(3):
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            x = residual_block(x, width * 2**stage, f"stage_{stage + 1}_block_{block + 1}", stride)
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    outputs = keras.layers.Dense(num_outputs, name="outputs", **kernels.next_layer())(x)
    return keras.Model(inputs, outputs, name=name or f"resnet{depth}")


def _shortcut(x: Any, filters: int, stride: int, label: str) -> Any:
    """Return the input unchanged, or subsampled and padded with channels of zeros where the stage changes."""
    if stride == 1:
        return x
    x = keras.layers.MaxPooling2D(1, strides=stride, padding="same", name=f"{label}_subsampling")(x)
    missing = filters - x.shape[-1]
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
