"""Argument checks: each returns the value in a usable form, or raises an error that names the argument."""

import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def check_keras_3() -> None:
    """Raise ImportError if the environment variable `TF_USE_LEGACY_KERAS` makes TensorFlow use the old Keras."""
    value = os.environ.get("TF_USE_LEGACY_KERAS", "")
    if value.lower() in ("1", "true"):
        raise ImportError(
            f"tfopt needs Keras 3, but the environment variable TF_USE_LEGACY_KERAS={value} makes `tf.keras` the "
            "old tf_keras, whose models cannot use tfopt's optimizers and callbacks. Unset TF_USE_LEGACY_KERAS, and "
            "build models with `import keras`."
        )


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    exclusive_minimum: bool = False,
    exclusive_maximum: bool = False,
) -> float:
    """Return a finite real number in a range as a float; each bound may be exclusive. Other values raise an error."""
    bounds = [f"{'>' if exclusive_minimum else '>='} {minimum:g}"] if minimum > -math.inf else []
    bounds += [f"{'<' if exclusive_maximum else '<='} {maximum:g}"] if maximum < math.inf else []
    expected = " ".join(["a finite number", " and ".join(bounds)]).strip()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be {expected}. Received: {name}={value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    below = number <= minimum if exclusive_minimum else number < minimum
    above = number >= maximum if exclusive_maximum else number > maximum
    if not math.isfinite(number) or below or above:
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")
    return number


def check_integer(name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return an integer in a range as an int (a bound of None is no limit). Other values raise an error."""
    bounds = [f">= {minimum}"] if minimum is not None else []
    bounds += [f"<= {maximum}"] if maximum is not None else []
    expected = " ".join(["an integer", " and ".join(bounds)]).strip()
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be {expected}. Received: {name}={value!r} of type {type(value).__name__}")
    number = int(value)
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}")
    return number


def check_shape(name: str, value: Any, *, num_dimensions: int | None = None) -> tuple[int, ...]:
    """Return a sequence of positive integers as a tuple; `num_dimensions` None allows any number of them but zero."""
    expected = f"{num_dimensions or 'one or more'} positive integers"
    sizes = as_items(name, value, f"hold {expected}")
    if not sizes or (num_dimensions is not None and len(sizes) != num_dimensions):
        raise ValueError(f"`{name}` must hold {expected}. Received: {name}={value!r}")
    return tuple(check_integer(name, size, minimum=1) for size in sizes)


def as_items(name: str, value: Any, expected: str = "hold items") -> tuple[Any, ...]:
    """Return the items of an iterable as a tuple; strings and mappings raise TypeError."""
    try:
        if not isinstance(value, str | bytes | Mapping):
            return tuple(value)
    except TypeError:
        pass
    raise TypeError(f"`{name}` must {expected}. Received: {name}={value!r} of type {type(value).__name__}")


def as_numbers(name: str, value: Any, expected: str = "numbers") -> np.ndarray:
    """Return real numbers, finite or not, as a float64 array of any shape; other values raise TypeError."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iuf" or "float" in array.dtype.name:  # NumPy has no kind for bfloat16
            return array.astype(np.float64)
    except (ValueError, TypeError):
        pass
    raise TypeError(f"`{name}` must hold {expected}. Received: {name}={value!r}")


def check_flag(name: str, value: Any) -> bool:
    """Return a bool; other values raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} of type {type(value).__name__}")
    return value


def check_text(name: str, value: Any) -> str:
    """Return a string; other values raise TypeError."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string. Received: {name}={value!r} of type {type(value).__name__}")
    return value


def check_label(value: Any, default: str = "") -> str:
    """Return the argument `label` of a drawing, a string, or `default` for None and for an empty one."""
    return default if value is None else check_text("label", value) or default


def check_path(name: str, value: Any) -> Path:
    """Return a non-empty string or path as a path; other values raise an error."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"`{name}` must be a path. Received: {name}={value!r} of type {type(value).__name__}")
    if not os.fspath(value):
        raise ValueError(f"`{name}` must be a path. Received: {name}={value!r}")
    return Path(value)


def check_folder(name: str, value: Any) -> Path:
    """Return the path of a folder, which need not exist yet; a file in its place raises ValueError."""
    folder = check_path(name, value)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{name}` must be a folder. Received: {name}={str(value)!r}, which is a file")
    return folder


def check_indices(name: str, value: Any, size: int) -> np.ndarray:
    """Return one integer or a list of integers in [0, size) as an int64 array of the same shape."""
    expected = f"one or more integers >= 0 and < {size}"
    indices = as_numbers(name, value, expected)
    if indices.ndim > 1 or not indices.size or not ((indices >= 0) & (indices < size) & (indices % 1 == 0)).all():
        raise ValueError(f"`{name}` must hold {expected}. Received: {name}={value!r}")
    return indices.astype(np.int64)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return a string that is one of `choices`; other values raise ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}")
    return value


def check_patterns(name: str, value: Any) -> tuple[str, ...] | str:
    """Return "vectors", or regular expressions on variable paths as a tuple, which is empty for None."""
    if value is None:
        return ()
    expected = 'a list of regular expressions on variable paths, or the string "vectors"'
    if isinstance(value, str):
        if value == "vectors":
            return value
        raise ValueError(f"`{name}` must be {expected}. Received: {name}={value!r}. Did you mean [{value!r}]?")
    patterns = as_items(name, value, f"be {expected}")
    for pattern in patterns:
        check_pattern(name, pattern, f"be {expected}")
    return patterns


def check_pattern(name: str, value: Any, expected: str) -> None:
    """Check that an element of an argument is a regular expression; `expected` says what the argument must be."""
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must {expected}. Received an element {value!r}")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:  # for too large repetitions, or too deep nesting
        raise ValueError(f"`{name}` holds {value!r}, which is not a regular expression: {error}") from error


def check_learning_rate(value: Any) -> Any:
    """Return a number >= 0 as a float; schedules, callables and saved schedules (dicts) as they are."""
    if (callable(value) and not isinstance(value, type)) or (isinstance(value, dict) and "class_name" in value):
        return value
    return check_number("learning_rate", value, minimum=0.0)
