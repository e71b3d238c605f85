"""The values of variables, wherever a callback reads them."""

from typing import Any

import keras


def to_numpy(value: Any) -> Any:
    """Return a variable or tensor as an array, also in the scope of tf.distribute, where variables are no arrays."""
    return keras.ops.convert_to_numpy(keras.ops.copy(value))
