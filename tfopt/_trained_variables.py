"""The variables of a model that training moves along a gradient."""

from collections.abc import Iterable
from typing import Any


def trained_variables(variables: Iterable[Any]) -> list[Any]:
    """Return the variables whose gradient is a gradient.

    Keras lists some variables as trainable though they hold no weights: the scales and histories of float8 layers. What
    `fit` computes as their gradient is their next value, by which the optimizer replaces them.

    Args:
        variables: Trainable Keras variables, of a model or a layer.

    Returns:
        Those that an optimizer moves, in the same order.
    """
    return [variable for variable in variables if not variable.overwrite_with_gradient]
