"""Variables of a model: which of them training moves, their names, and their values as one vector."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# The names of biases, and of the scales and offsets of normalisation layers, in all layers of Keras. In recurrent,
# attention and normalisation layers their rank can be 2 or more.
NAMES_OF_VECTORS = ("bias", "gamma", "beta", "scale")


def trained_variables(variables: Iterable[Any]) -> list[Any]:
    """Return, in order, the trainable variables (of a model or layer) that an optimizer moves along a gradient."""
    # Keras also lists the scales and histories of float8 layers as trainable. `fit` computes their next value in place
    # of a gradient, and the optimizer replaces them by it.
    return [variable for variable in variables if not variable.overwrite_with_gradient]


def path_of(variable: object) -> str:
    """Return the path of a `keras.Variable`, or the name of a variable of the backend."""
    return str(getattr(variable, "path", None) or getattr(variable, "name", ""))


def unique_paths(variables: Iterable[Any]) -> list[str]:
    """Return the paths of Keras variables in order; the second variable with a path is named `path (2)`, etc."""
    names = []
    seen: Counter[str] = Counter()
    for variable in variables:
        seen[variable.path] += 1
        names.append(variable.path + (f" ({seen[variable.path]})" if seen[variable.path] > 1 else ""))
    return names


def matches(variable: object, patterns: Sequence[str] | str) -> bool:
    """Return whether regular expressions, searched for in the path, or the word "vectors" select a variable."""
    path = path_of(variable).removesuffix(":0")  # names of TensorFlow end in ":0", which "bias$" would not match
    if isinstance(patterns, str):
        return len(variable.shape) <= 1 or path.split("/")[-1] in NAMES_OF_VECTORS  # type: ignore[attr-defined]
    return any(re.search(pattern, path) for pattern in patterns)


def flatten(parts: Sequence[Any]) -> np.ndarray:
    """Join arrays or tensors to one float64 vector."""
    arrays = [np.asarray(part).reshape(-1) for part in parts]  # without a copy for tensors of this machine's memory
    return np.concatenate(arrays, dtype=np.float64, casting="unsafe")
