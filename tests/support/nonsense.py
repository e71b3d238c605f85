"""Invalid values for arguments: public callables must raise an error that names the argument, or accept the value."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAN, INFINITY = float("nan"), float("inf")

NUMBERS = st.sampled_from([
    NAN,
    INFINITY,
    -INFINITY,
    -1,
    -1e-300,
    0,
    0.5,
    1,
    3,
    1e300,
    -1e300,
    np.float32(2),
    np.int8(-3),
])
ARRAYS = st.sampled_from([
    np.array([]),
    np.zeros((0, 3)),
    np.full((2, 2), NAN),
    np.full((3,), INFINITY),
    np.ones((2, 3, 4)),
    np.array(["a", "b"]),
    np.array([None, 1], dtype=object),
    np.array([1 + 2j]),
    np.array(5.0),
    -np.ones(3),
    np.full((4, 2), 1e300),
])
OTHERS = st.sampled_from([
    None,
    True,
    "",
    "nonsense",
    b"bytes",
    [],
    [[]],
    (),
    {},
    {"a": 1},
    object,
    object(),
    [None],
    ["x"],
    [NAN],
])
NONSENSE = st.one_of(NUMBERS, ARRAYS, OTHERS)


@dataclass(frozen=True)
class Entry:
    """A public callable with valid arguments."""

    function: Any
    arguments: dict[str, Any]
    also: tuple[str, ...] = ()  # optional arguments that are also replaced
    fixed: dict[str, Any] = field(default_factory=dict)
    blamed: str = ""  # an argument that is invalid on purpose, so that nothing is computed; an error may name either


def cases(entries):
    """All pairs of the name of an entry and one of its arguments."""
    return [(name, argument) for name, entry in entries.items() for argument in (*entry.arguments, *entry.also)]


def assert_right(entry):
    """Check that the arguments are valid before one is replaced, except the one that is invalid on purpose."""
    if entry.blamed:
        with pytest.raises(ValueError, match=f"`{entry.blamed}`"):
            entry.function(**entry.arguments, **entry.fixed)
    else:
        assert entry.function(**entry.arguments, **entry.fixed) is not None


def assert_named_or_works(entry, argument):
    """Replace an argument by many invalid values: only ValueError and TypeError may occur, and must name it."""

    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(value=NONSENSE)
    def replace(value):
        try:
            entry.function(**{**entry.arguments, **entry.fixed, argument: value})
        except (ValueError, TypeError) as error:
            message = str(error)
            assert any(f"`{name}`" in message for name in (argument, entry.blamed)), message
        assert tf.executing_eagerly()

    replace()
