"""Checks that the searches and simulators share: each returns the usable value, or raises an error."""

from typing import Any

import numpy as np

from tfopt._checks import as_numbers


def check_values(
    name: str, value: Any, *, positive: bool = False, maximum: float = np.inf, exclusive_maximum: bool = False
) -> np.ndarray:
    """Return finite numbers >= 0 (> 0 if `positive`), up to `maximum`, as a float64 array that is not empty."""
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
    """Return `value` if it is an object of the `tfopt.nqm` class `kind`, else raise TypeError."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be a tfopt.nqm.{kind.__name__}. Received: {value!r}")
    return value
