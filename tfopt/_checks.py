"""Argument checks: each returns the value, made usable, or raises an error that names the argument."""

import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def check_keras_3() -> None:
    """Refuse to start where TensorFlow was told to use the old Keras.

    Raises:
        ImportError: The environment variable `TF_USE_LEGACY_KERAS` is set.
    """
    value = os.environ.get("TF_USE_LEGACY_KERAS", "")
    if value.lower() in ("1", "true"):
        raise ImportError(
            f"tfopt works with Keras 3, but the environment variable TF_USE_LEGACY_KERAS={value} makes `tf.keras` the "
            "old tf_keras, whose models cannot use our optimizers and callbacks. Unset TF_USE_LEGACY_KERAS, and build "
            "models with `import keras`."
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
    """Check that a value is a finite real number in a range.

    Args:
        name: The argument's name, for the message.
        value: What came.
        minimum: Smallest value allowed.
        maximum: Largest value allowed.
        exclusive_minimum: Whether `minimum` itself is refused.
        exclusive_maximum: Whether `maximum` itself is refused.

    Returns:
        The value as a Python float.

    Raises:
        TypeError: The value is not a real number.
        ValueError: The value is not finite or not in the range.
    """
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
    """Check that a value is an integer in a range.

    Args:
        name: The argument's name, for the message.
        value: What came.
        minimum: Smallest value allowed; None is no limit.
        maximum: Largest value allowed; None is no limit.

    Returns:
        The value as a Python int.

    Raises:
        TypeError: The value is not an integer.
        ValueError: The value is not in the range.
    """
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
    """Check that a value is a sequence of positive integers.

    Args:
        name: The argument's name, for the message.
        value: What came.
        num_dimensions: How many integers; None for any number but zero.

    Returns:
        The integers.

    Raises:
        TypeError: The value is not a sequence of integers.
        ValueError: There are too few or too many, or one is not positive.
    """
    expected = f"{num_dimensions or 'one or more'} positive integers"
    sizes = as_items(name, value, f"hold {expected}")
    if not sizes or (num_dimensions is not None and len(sizes) != num_dimensions):
        raise ValueError(f"`{name}` must hold {expected}. Received: {name}={value!r}")
    return tuple(check_integer(name, size, minimum=1) for size in sizes)


def as_items(name: str, value: Any, expected: str = "hold items") -> tuple[Any, ...]:
    """Make a tuple of what can be gone through.

    Args:
        name: The argument's name, for the message.
        value: What came.
        expected: What it must do or be, for the message.

    Returns:
        Its items.

    Raises:
        TypeError: It cannot be gone through, or is a string or a mapping.
    """
    try:
        if not isinstance(value, str | bytes | Mapping):
            return tuple(value)
    except TypeError:
        pass
    raise TypeError(f"`{name}` must {expected}. Received: {name}={value!r} of type {type(value).__name__}")


def as_numbers(name: str, value: Any, expected: str = "numbers") -> np.ndarray:
    """Make an array of real numbers, finite or not, of any shape.

    Args:
        name: The argument's name, for the message.
        value: What came.
        expected: What it must hold, for the message.

    Returns:
        A float64 array.

    Raises:
        TypeError: It does not hold real numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "iuf" or "float" in array.dtype.name:  # bfloat16 is of no kind that NumPy knows
            return array.astype(np.float64)
    except (ValueError, TypeError):
        pass
    raise TypeError(f"`{name}` must hold {expected}. Received: {name}={value!r}")


def check_flag(name: str, value: Any) -> bool:
    """Check that a value is True or False.

    Args:
        name: The argument's name, for the message.
        value: What came.

    Returns:
        The value.

    Raises:
        TypeError: The value is not a bool.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} of type {type(value).__name__}")
    return value


def check_text(name: str, value: Any) -> str:
    """Check that a value is a string.

    Args:
        name: The argument's name, for the message.
        value: What came.

    Returns:
        The value.

    Raises:
        TypeError: The value is not a string.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must be a string. Received: {name}={value!r} of type {type(value).__name__}")
    return value


def check_path(name: str, value: Any) -> Path:
    """Check that a value is a path.

    Args:
        name: The argument's name, for the message.
        value: What came.

    Returns:
        The path.

    Raises:
        TypeError: The value is neither a string nor a path.
        ValueError: The string is empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"`{name}` must be a path. Received: {name}={value!r} of type {type(value).__name__}")
    if not os.fspath(value):
        raise ValueError(f"`{name}` must be a path. Received: {name}={value!r}")
    return Path(value)


def check_folder(name: str, value: Any) -> Path:
    """Check that a value is the path of a folder, which need not exist yet.

    Args:
        name: The argument's name, for the message.
        value: What came.

    Returns:
        The path.

    Raises:
        TypeError: The value is neither a string nor a path.
        ValueError: The string is empty, or there is a file.
    """
    folder = check_path(name, value)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`{name}` must be a folder. Received: {name}={str(value)!r}, which is a file")
    return folder


def check_indices(name: str, value: Any, size: int) -> np.ndarray:
    """Check indices of an array.

    Args:
        name: The argument's name, for the message.
        value: An integer, or a list of them.
        size: The array's length.

    Returns:
        An array of integers, of the value's shape.

    Raises:
        TypeError: They are no integers.
        ValueError: There are none, or one is out of range.
    """
    expected = f"one or more integers >= 0 and < {size}"
    indices = as_numbers(name, value, expected)
    if indices.ndim > 1 or not indices.size or not ((indices >= 0) & (indices < size) & (indices % 1 == 0)).all():
        raise ValueError(f"`{name}` must hold {expected}. Received: {name}={value!r}")
    return indices.astype(np.int64)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """Check that a value is one of a few strings.

    Args:
        name: The argument's name, for the message.
        value: What came.
        choices: What is allowed.

    Returns:
        The value.

    Raises:
        ValueError: The value is none of `choices`.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}. Received: {name}={value!r}")
    return value


def check_patterns(name: str, value: Any) -> tuple[str, ...] | str:
    """Check a selection of variables: regular expressions on their paths, or the word "vectors".

    Args:
        name: The argument's name, for the message.
        value: None, "vectors", or an iterable of regular expressions.

    Returns:
        "vectors", or a tuple of regular expressions (empty for None).

    Raises:
        TypeError: The value is none of these.
        ValueError: A string other than "vectors", or something that is not a regular expression.
    """
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
    """Check a regular expression.

    Args:
        name: The name of the argument that holds it, for the message.
        value: What came.
        expected: What the argument must be, for the message.

    Raises:
        TypeError: The value is no string.
        ValueError: It is not a regular expression.
    """
    if not isinstance(value, str):
        raise TypeError(f"`{name}` must {expected}. Received an element {value!r}")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:  # too large a repetition, or too deep a nesting
        raise ValueError(f"`{name}` holds {value!r}, which is not a regular expression: {error}") from error


def check_learning_rate(value: Any) -> Any:
    """Check a learning rate: a number, a schedule or a callable.

    Args:
        value: What came as `learning_rate`.

    Returns:
        A Python float for a number; schedules, callables and saved schedules (dicts) as they are.
    """
    if (callable(value) and not isinstance(value, type)) or (isinstance(value, dict) and "class_name" in value):
        return value
    return check_number("learning_rate", value, minimum=0.0)
