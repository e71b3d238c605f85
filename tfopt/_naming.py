"""Names of variables."""

from collections import Counter
from collections.abc import Iterable
from typing import Any


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
