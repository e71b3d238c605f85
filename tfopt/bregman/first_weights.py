"""Whether weights are as an initializer has drawn them."""

from typing import Any

import keras
import numpy as np

__all__ = ["is_as_drawn"]

# Of Keras's, which draw the same numbers each time from a seed that is an integer.
_REPEATABLE = (
    keras.initializers.VarianceScaling,  # He's, Glorot's and LeCun's too
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Orthogonal,
    keras.initializers.Constant,
    keras.initializers.Zeros,
    keras.initializers.Ones,
    keras.initializers.Identity,
)


def is_as_drawn(layer: Any) -> bool:
    """Find out whether a layer's kernel is what its initializer draws: nothing has trained, loaded or set it.

    Args:
        layer: A built Dense layer.

    Returns:
        Whether it is. False for initializers that cannot be asked again: functions, or those with a `SeedGenerator`.
    """
    initializer = layer.kernel_initializer
    if not isinstance(initializer, _REPEATABLE) or not isinstance(getattr(initializer, "seed", 0), int):
        return False
    drawn = keras.ops.convert_to_numpy(initializer(layer.kernel.shape, dtype=layer.kernel.dtype))
    return bool(np.allclose(layer.kernel.numpy(), drawn, rtol=1e-5, atol=0.0))
