"""Kernels of a model's layers: their initializers and their L2 penalty."""

from typing import Any

import keras
import numpy as np

from tfopt._checks import check_integer, check_number
from tfopt.models._lookup import look_up


class Kernels:
    """Gives each layer in turn its initializer and its regularizer.

    An initializer with a seed draws the same values every time, so layers that share it would start equal. Therefore
    each layer gets a copy whose seed is a hash of the model's seed and the layer's number. With `seed + layer` instead,
    the second layer of one model would equal the first layer of the model with the next seed.

    Args:
        initializer: A Keras initializer, its name, or a function of shape and dtype.
        weight_decay: Coefficient of an L2 penalty, `weight_decay * |W|^2`; >= 0.
        seed: Seed of the model, an integer >= 0; None keeps the initializer's own seed, if it has one.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.
    """

    def __init__(self, initializer: Any, weight_decay: float, seed: int | None) -> None:
        self.initializer = look_up("kernel_initializer", keras.initializers.get, initializer)
        weight_decay = check_number("weight_decay", weight_decay, minimum=0.0)
        self.regularizer = keras.regularizers.L2(weight_decay) if weight_decay else None
        self.seed = None if seed is None else check_integer("seed", seed, minimum=0)
        self.num_layers = 0

    def next_layer(self) -> dict[str, Any]:
        """Return the keyword arguments of the next Keras layer that concern its kernel."""
        self.num_layers += 1
        return {"kernel_initializer": self._next_initializer(), "kernel_regularizer": self.regularizer}

    def _next_initializer(self) -> Any:
        if not isinstance(self.initializer, keras.initializers.Initializer):
            return self.initializer
        arguments = self.initializer.get_config()
        start = self.seed if self.seed is not None else arguments.get("seed")
        if "seed" in arguments and isinstance(start, int):
            arguments["seed"] = int(np.random.SeedSequence([start, self.num_layers]).generate_state(1)[0] >> 1)
        return type(self.initializer).from_config(arguments)
