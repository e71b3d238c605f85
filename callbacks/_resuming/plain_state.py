"""Values in plain Python objects that a model and its code use, which eager steps and callbacks change."""

import functools
import io
import random
import sys
import types
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.callbacks._object_graph import closed_over, globals_of, is_of_a_library, is_users
from tfopt.callbacks._resuming.things_of import things_of

_LARGEST = 1 << 24  # Bytes of an array. Larger arrays are data.
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_MAKING = ("__init__", "build", "get_config", "from_config")
_OWNERS = (
    *(keras.layers.Layer, keras.optimizers.Optimizer, keras.optimizers.schedules.LearningRateSchedule),
    *(keras.losses.Loss, keras.regularizers.Regularizer, keras.constraints.Constraint),
)


@dataclass(frozen=True)
class _Slot:
    """A value, and the function that puts another one in its slot."""

    value: Any
    assign: Callable[[Any], None]


class PlainState:
    """Saves what training changes in attributes of a model's objects, and in variables that its code uses.

    The objects are layers, optimizers, losses and the like, and objects of the user's classes. The variables are
    globals, closure variables and default values of the user's functions that the model reaches, and of `functions`
    by name, which are those in Keras's callbacks.
    """

    def __init__(self, model: Any, functions: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._model, self._functions = model, tuple(functions.items())
        self._before = {name: digest(slot.value) for name, slot in self._slots().items()}
        self._restored: set[str] = set()  # These are saved even if they do not change again.

    def get_state(self) -> list[list[Any]]:
        """Return a list [name, value, kind] for each value that has changed."""
        return [
            [name, *_packed(slot.value)]
            for name, slot in self._slots().items()
            if _can_be_saved(slot.value) and (name in self._restored or self._before.get(name) != digest(slot.value))
        ]

    def set_state(self, state: list[list[Any]]) -> list[str]:
        """Restore the values from `get_state`, and return the names that do not exist any more."""
        slots = self._slots()
        owners = {path: thing for path, thing in things_of(self._model, self._functions) if _is_owner(thing)}
        self._restored = {name for name, _, _ in state}
        missing = []
        for name, value, kind in state:
            value = tf.constant(value) if kind == "tensor" else value
            path, _, attribute = name.rpartition(".")
            if name in slots:
                slots[name].assign(value)
            elif path in owners and kind != "generator":  # Training has made this attribute.
                setattr(owners[path], attribute, value)
            else:
                missing.append(name)
        return missing

    def lost(self) -> list[str]:
        """Return the names of changed values that cannot be saved, and of iterators, which may have changed."""
        slots = {name: slot for name, slot in self._slots().items() if not _can_be_saved(slot.value)}
        return [
            name
            for name, slot in slots.items()
            if isinstance(slot.value, Iterator) or self._before.get(name) != digest(slot.value)
        ]

    def outside_of(self, callback: Any) -> dict[str, Any]:
        """Return the values in what a callback's code uses from outside, by location, without those of this object."""
        name = type(callback).__name__
        known, found = self._slots(), self._slots((name, callback))
        return {
            location: slot.value
            for location, slot in found.items()
            if location not in known and not location.startswith(f"{name}.")
        }

    def _slots(self, *others: tuple[str, Any]) -> dict[str, _Slot]:
        return _slots_of(things_of(self._model, (*self._functions, *others)))


def _slots_of(things: Iterator[tuple[str, Any]]) -> dict[str, _Slot]:
    found: dict[str, _Slot] = {}
    seen: set[tuple[int, str]] = set()
    for path, thing in things:
        if isinstance(thing, types.FunctionType):
            if computes(thing):
                _add_outside(found, seen, path, thing)
        elif isinstance(thing, functools.partial):
            _add_arguments(found, seen, path, "argument", thing.keywords)
            _add_arguments(found, seen, path, "argument", thing.args)
        elif _is_owner(thing):
            counts = _is_state if is_users(thing) else _can_be_saved  # Skip Keras's temporary lists.
            for attribute, value in vars(thing).items():
                if attribute not in _names_of_models() and not attribute.startswith("_self_") and counts(value):
                    found[f"{path}.{attribute}"] = _make_slot(value, functools.partial(setattr, thing, attribute))
            for cls in filter(_is_own, type(thing).__mro__):
                _add(found, seen, cls.__qualname__, vars(cls), functools.partial(setattr, cls), id(cls))
    return found


def _add_outside(found: dict[str, _Slot], seen: set[tuple[int, str]], path: str, function: types.FunctionType) -> None:
    """Add the outside variables that a function uses, and the attributes of the function itself."""
    names = {name: function.__globals__[name] for name in globals_of(function)}
    _add(found, seen, function.__module__, names, function.__globals__.__setitem__, id(function.__globals__))
    for variable, cell in closed_over(function):
        _add(
            found,
            seen,
            path,
            {variable: cell.cell_contents},
            lambda _, value, cell=cell: setattr(cell, "cell_contents", value),
            id(cell),
        )
    _add(found, seen, path, vars(function), functools.partial(setattr, function))
    _add_arguments(found, seen, path, "default value", function.__defaults__ or ())
    _add_arguments(found, seen, path, "default value", function.__kwdefaults__ or {})


def _add_arguments(found: dict[str, _Slot], seen: set[tuple[int, str]], path: str, kind: str, values: Any) -> None:
    """Add default values of a function, or arguments that a partial function holds; only their content can change."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    _add(found, seen, path, {f"{kind} {key}": item for key, item in items}, lambda *_: None, id(values))


def _add(
    found: dict[str, _Slot],
    seen: set[tuple[int, str]],
    path: str,
    values: Any,
    assign: Callable[[str, Any], None],
    owner: int | None = None,
) -> None:
    for name, value in values.items():
        key = (id(values) if owner is None else owner, name)
        if key in seen or name.startswith("__") or not _is_state(value):
            continue
        seen.add(key)
        found[f"{name} in {path}"] = _make_slot(
            value, functools.partial(_refill, value, functools.partial(assign, name))
        )


def _make_slot(value: Any, assign: Callable[[Any], None]) -> _Slot:
    return _Slot(value, functools.partial(_set_generator, value) if _is_generator(value) else assign)


def _refill(old: Any, assign: Callable[[Any], None], new: Any) -> None:
    """Give a variable a value; mutable objects are refilled, because other names may refer to them."""
    if isinstance(old, list | deque) and isinstance(new, list | deque):
        old.clear()
        old.extend(new)
    elif isinstance(old, dict | set) and isinstance(new, dict | set):
        old.clear()
        old.update(new)
    elif isinstance(old, np.ndarray) and old.shape == np.shape(new) and old.flags.writeable:
        old[...] = new
    else:
        assign(new)


def _is_owner(thing: Any) -> bool:
    if not hasattr(thing, "__dict__") or isinstance(thing, types.FunctionType | types.MethodType):
        return False
    return isinstance(thing, _OWNERS) or (is_users(thing) and not is_installed(type(thing).__module__))


def _is_own(cls: type) -> bool:
    return not is_of_a_library(cls.__module__) and not is_installed(cls.__module__)


def is_installed(module: str | None) -> bool:
    """Return whether a module is installed, such as an experiment tracker, whose values must not be restored."""
    path = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return any(f"{name}-packages" in path for name in ("site", "dist"))


def computes(function: types.FunctionType) -> bool:
    """Return whether a function is the user's and a step may call it; functions that make an object are excluded."""
    module = function.__module__
    return not (is_of_a_library(module) or is_installed(module) or function.__name__ in _MAKING)


@functools.cache
def _names_of_models() -> frozenset[str]:
    # Keras itself keeps these attributes in its models. The model has a name, because Keras counts models without one.
    model = keras.Model(name="plain")
    model.compile(optimizer=None, loss="mse")
    return frozenset(vars(model)) | {"built", "history", "stop_training", "trainable"}


def _is_state(value: Any) -> bool:
    """Return whether training may change a value."""
    if isinstance(value, list | deque | dict | set) or _is_generator(value):
        return True
    if isinstance(value, Iterator):
        return not isinstance(value, io.IOBase) and not type(value).__module__.startswith("keras.")
    return _is_plain(value)


def _can_be_saved(value: Any) -> bool:
    return _is_generator(value) or _is_plain(value)


def _is_generator(value: Any) -> bool:
    kinds = (random.Random, np.random.Generator, np.random.RandomState)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_generator(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _packed(value: Any) -> tuple[Any, str]:
    if _is_generator(value):
        return _state_of(value), "generator"
    return (value.numpy(), "tensor") if _is_tensor(value) else (value, "")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, _NUMBERS) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | deque):
        return all(_is_plain(item) for item in value) and len(value) < _LARGEST
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject and not value.dtype.names and value.nbytes <= _LARGEST
    return isinstance(value, _NUMBERS) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and hasattr(value, "numpy")  # A graph's tensor has no value.


def digest(value: Any) -> str:
    """Return a text that changes with a plain value or collection; for other objects it does not show the contents."""
    if isinstance(value, np.ndarray) or _is_tensor(value):
        array = np.asarray(value)
        return f"{type(value)} {array.shape} {array.dtype} {zlib.crc32(array.tobytes())}"
    if _is_generator(value):
        return repr(_state_of(value))
    if isinstance(value, Iterator):
        return ""
    if isinstance(value, list | deque | dict | set) and not _is_plain(value):
        return f"{len(value)} things"
    if isinstance(value, dict):
        return str([(key, digest(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return str([digest(item) for item in value])
    return repr(value)
