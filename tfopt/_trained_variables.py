"""The variables of a model that training changes along a gradient."""

from collections.abc import Iterable
from typing import Any


def trained_variables(variables: Iterable[Any]) -> list[Any]:
    """Return, in order, the trainable variables (of a model or layer) that an optimizer moves along a gradient."""
    # Keras also lists the scales and histories of float8 layers as trainable. `fit` computes their next value in place
    # of a gradient, and the optimizer replaces them by it.
    return [variable for variable in variables if not variable.overwrite_with_gradient]
