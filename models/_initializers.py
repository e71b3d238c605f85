"""Initial weights that are reproducible and differ from layer to layer."""

from typing import Any

import keras
import numpy as np


def seeded(initializer: Any, seed: int | None, layer: int) -> Any:
    """Return an initializer of its own for one layer.

    An initializer with a seed draws the same values every time, so layers that share it would start equal. Each layer
    gets a copy, with a seed made from the model's and the layer's number. Seeds of different models and layers are not
    related, as `seed + layer` would be: there the second layer of one model equals the first of the next.

    Args:
        initializer: A Keras initializer, its name, or a function of shape and dtype.
        seed: Seed of the model; None keeps the initializer's own, if it has one.
        layer: Number of the layer.

    Returns:
        An initializer, or the function as it is.
    """
    found = keras.initializers.get(initializer)
    if not isinstance(found, keras.initializers.Initializer):
        return found
    arguments = found.get_config()
    start = seed if seed is not None else arguments.get("seed")
    if "seed" in arguments and isinstance(start, int):
        arguments["seed"] = int(np.random.SeedSequence([start, layer]).generate_state(1)[0] >> 1)
    return type(found).from_config(arguments)
