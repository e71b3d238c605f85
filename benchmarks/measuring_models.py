"""The four networks of `measuring.py`, with the rows on which they are measured."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt import models

CLASSES = 10
POSITIONS, WORDS, WIDE, HEADS = 32, 1000, 64, 4


def transformer() -> keras.Model:
    """Return a transformer of two blocks, 64 wide, with 4 heads and 32 positions, that classifies rows of words."""
    words = keras.Input((POSITIONS,), dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDE)(words)
    places = keras.ops.cumsum(keras.ops.ones_like(words), axis=1) - 1  # of a constant, the embedding would be constant
    x = x + keras.layers.Embedding(POSITIONS, WIDE)(places)
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(HEADS, WIDE // HEADS)(y, y)
        y = keras.layers.Dense(4 * WIDE, activation="gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(WIDE)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(words, keras.layers.Dense(CLASSES)(x))


# Of each network: how to make it, the shape of its inputs, and the number of rows.
NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...], int]] = {
    "ResNet-20": (lambda: models.resnet((32, 32, 3), 20, CLASSES, seed=0), (32, 32, 3), 64),
    "convnet": (lambda: models.convnet((28, 28, 1), num_outputs=CLASSES, seed=0), (28, 28, 1), 128),
    "MLP": (lambda: models.mlp((784,), (784, 784), CLASSES, seed=0), (784,), 512),
    "transformer": (transformer, (POSITIONS,), 64),
}


def make(name: str, is_seeded: bool = True) -> tuple[keras.Model, Any, np.ndarray, np.ndarray]:
    """Return a network, its loss, inputs and labels; unless `is_seeded`, Keras's seed stays as it is."""
    if is_seeded:
        keras.utils.set_random_seed(0)
    build, shape, num_rows = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = rng.integers(0, WORDS, (num_rows, *shape)) if name == "transformer" else rng.standard_normal((num_rows, *shape))
    x = x.astype("int32" if name == "transformer" else "float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return build(), loss, x, rng.integers(0, CLASSES, num_rows)
