"""Names of variables."""

from collections import Counter
from collections.abc import Iterable
from typing import Any


def path_of(variable: object) -> str:
    """Return the path of a `keras.Variable`, or the name of a variable of the backend."""
    return str(getattr(variable, "path", None) or getattr(variable, "name", ""))


def unique_paths(variables: Iterable[Any]) -> list[str]:
    """Return the paths of variables; of those with the same path the second is called `path (2)`, and so on.

    Args:
        variables: Keras variables.

    Returns:
        Their names, in the same order.
    """
    names = []
    seen: Counter[str] = Counter()
    for variable in variables:
        seen[variable.path] += 1
        names.append(variable.path + (f" ({seen[variable.path]})" if seen[variable.path] > 1 else ""))
    return names
