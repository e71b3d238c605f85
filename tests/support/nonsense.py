"""Invalid values for arguments: public callables must raise an error that names the argument, or accept the value."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

NAN, INFINITY = float("nan"), float("inf")

# One value, or two where signs or sizes matter, of each kind that a check can forget.
NONSENSE = [
    # numbers: not finite, negative, zero, fractions, whole, so large that squares overflow, and NumPy's own
    NAN,
    -INFINITY,
    -1,
    0,
    0.5,
    3,
    1e300,
    np.float32(2),
    np.int8(-3),
    # arrays: empty, not finite, of too many axes, of other things than real numbers, of none, negative
    np.zeros((0, 3)),
    np.full((2, 2), NAN),
    np.full((3,), INFINITY),
    np.ones((2, 3, 4)),
    np.array(["a", "b"]),
    np.array([None, 1], dtype=object),
    np.array([1 + 2j]),
    np.array(5.0),
    -np.ones(3),
    # other things
    None,
    True,
    "nonsense",
    b"bytes",
    [],
    {"a": 1},
    object,
    object(),
    [None],
]


class Later:
    """A value that is made at its first use: each worker collects all tests, and runs a part of them."""

    def __init__(self, make):
        self._make = functools.cache(make)

    def __call__(self):
        return self._make()

    def __getattr__(self, name):
        return Later(lambda: getattr(self(), name))


def _made(value):
    if isinstance(value, dict):
        return {name: _made(part) for name, part in value.items()}
    return value() if isinstance(value, Later) else value


@dataclass(frozen=True)
class Entry:
    """A public callable with valid arguments; it, and what is in dictionaries, may be made later."""

    function: Any
    arguments: dict[str, Any]
    also: tuple[str, ...] = ()  # optional arguments that are also replaced
    fixed: dict[str, Any] = field(default_factory=dict)
    blamed: str = ""  # an argument that is invalid on purpose, so that nothing is computed; an error may name either

    def call(self, **replaced):
        return _made(self.function)(**{**_made(self.arguments), **self.fixed, **replaced})


def cases(entries):
    """All pairs of the name of an entry and one of its arguments."""
    return [(name, argument) for name, entry in entries.items() for argument in (*entry.arguments, *entry.also)]


def assert_right(entry):
    """Check that the arguments are valid before one is replaced, except the one that is invalid on purpose."""
    if entry.blamed:
        with pytest.raises((TypeError, ValueError), match=f"`{entry.blamed}`"):
            entry.call()
    else:
        assert entry.call() is not None


def assert_named_or_works(entry, argument):
    """Replace an argument by each invalid value: only ValueError and TypeError may occur, and must name it."""
    for value in NONSENSE:
        try:
            entry.call(**{argument: value})
        except (ValueError, TypeError) as error:
            message = str(error)
            assert any(f"`{name}`" in message for name in (argument, entry.blamed)), f"{value!r}: {message}"
        except Exception as error:
            raise AssertionError(f"{argument}={value!r} ends in {error!r}") from error
        assert tf.executing_eagerly()
