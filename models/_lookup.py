"""Activations and initializers as Keras takes them, with an error that names the argument."""

from collections.abc import Callable
from typing import Any


def look_up(argument: str, get: Callable[[Any], Any], value: Any) -> Any:
    """Return the callable that Keras makes of a name, configuration, object or function, or raise `ValueError`."""
    # `get` is `keras.activations.get` or `keras.initializers.get`. `argument` is the argument's name, for the message.
    kind = get.__module__.split(".")[-1]
    found, cause = None, None
    if isinstance(value, str | dict) or callable(value):
        try:
            found = get(value)
        except Exception as error:
            cause = error
    if not callable(found):
        raise ValueError(f"`{argument}` must be one of keras.{kind}. Received: {argument}={value!r}") from cause
    return found
