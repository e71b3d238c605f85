"""Checks that the searches and simulators share: each returns the value, made usable, or raises."""

from typing import Any

import numpy as np

from tfopt._checks import as_numbers


def check_values(
    name: str, value: Any, *, positive: bool = False, maximum: float = np.inf, exclusive_maximum: bool = False
) -> np.ndarray:
    """Check finite real numbers, of any shape but an empty one.

    Args:
        name: The argument's name, for the message.
        value: What came.
        positive: Whether 0 is refused; negative numbers always are.
        maximum: Largest value allowed.
        exclusive_maximum: Whether `maximum` itself is refused.

    Returns:
        A float64 array.

    Raises:
        TypeError: Not real numbers.
        ValueError: Empty, not finite, or out of range.
    """
    upper = f" and {'<' if exclusive_maximum else '<='} {maximum:g}" if maximum < np.inf else ""
    expected = f"finite numbers {'>' if positive else '>='} 0{upper}"
    values = as_numbers(name, value, expected)
    if values.size == 0:
        raise ValueError(f"`{name}` must hold one or more {expected}. Received an empty list")
    wrong = ~np.isfinite(values) | (values <= 0 if positive else values < 0)
    wrong |= values >= maximum if exclusive_maximum else values > maximum
    if wrong.any():
        among = f", among {values.size} values" if values.size > 1 else ""
        raise ValueError(f"`{name}` must hold {expected}. Received: {name}={values[wrong].flat[0]:g}{among}")
    return values


def check_kind(name: str, value: Any, kind: type) -> Any:
    """Check that a value is of a class.

    Args:
        name: The argument's name, for the message.
        value: What came.
        kind: The class.

    Returns:
        The value.

    Raises:
        TypeError: It is not.
    """
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be a tfopt.nqm.{kind.__name__}. Received: {value!r}")
    return value
