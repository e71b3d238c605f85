"""Activations and initializers as Keras takes them, with an error that names the argument."""

from collections.abc import Callable
from typing import Any


def look_up(argument: str, get: Callable[[Any], Any], value: Any) -> Any:
    """Turn a name, a configuration, an object or a function into what Keras makes of it.

    Args:
        argument: The argument's name, for the message.
        get: `keras.activations.get` or `keras.initializers.get`.
        value: What came.

    Returns:
        A function, or an object that can be called.

    Raises:
        ValueError: Keras does not know it.
    """
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
