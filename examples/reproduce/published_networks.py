"""The networks of Bernstein et al.'s experiments on MNIST, and what they have in common."""

import keras
import numpy as np

from tfopt import datasets

# A network of ten classes with at most this accuracy has learned nothing: a constant answer reaches 0.1.
CHANCE = 0.15
BATCH_SIZE = 250


def published_network(
    data: datasets.Dataset, width: int, num_hidden: int, residual: bool = False, seed: int = 0
) -> keras.Model:
    """Return equally wide hidden layers of ReLUs and an output layer, with PyTorch's initial weights and biases."""
    # PyTorch draws weights and biases uniformly from +-1 / sqrt(fan_in). The skip connection of the first layer needs
    # inputs of the same width, as in the paper.
    rng = np.random.default_rng(seed)

    def layer(units: int, fan_in: int) -> keras.layers.Layer:
        weights, biases = (
            keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5, seed=int(rng.integers(2**31)))
            for _ in range(2)
        )
        return keras.layers.Dense(units, kernel_initializer=weights, bias_initializer=biases)

    x = inputs = keras.Input(data.input_shape)
    for _ in range(num_hidden):
        branch = keras.layers.Activation("relu")(layer(width, x.shape[-1])(x))
        x = keras.layers.Add()([x, branch]) if residual and x.shape[-1] == width else branch
    return keras.Model(inputs, layer(data.num_classes, x.shape[-1])(x))
