"""The objects that a model and its code hold or use, wherever the author has stored them."""

import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import keras

_LIBRARIES = frozenset({*sys.stdlib_module_names, "absl", "google", "h5py", "keras", "numpy", "tensorflow", "tfopt"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
Parts = Callable[[str, Any], Iterator[tuple[str, Any]]]


def reached_from(
    name: str, start: Any, parts: Parts, is_left_out: Callable[[Any], bool], seen: set[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield (location, object) for an object and all that it holds, each once, the nearest first.

    `parts(location, object)` yields what an object holds. Plain values are left out, and so are the ids in `seen`,
    which grows.
    """
    seen = set() if seen is None else seen
    seen.add(id(start))
    waiting = deque([(name, start)])
    while waiting:
        location, thing = waiting.popleft()
        yield location, thing
        for part_location, part in parts(location, thing):
            if not isinstance(part, _PLAIN) and id(part) not in seen and not is_left_out(part):
                seen.add(id(part))
                waiting.append((part_location, part))


def parts_of(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """Yield the named objects that an object holds; nothing, if it cannot hold an optimizer."""
    if isinstance(thing, dict):
        for number, (key, value) in enumerate(thing.items()):
            yield f"{name}[{key!r}]" if isinstance(key, str | int) else f"{name}[{number}]", value
    elif isinstance(thing, list | tuple):
        for number, value in enumerate(thing):
            yield f"{name}[{number}]", value
    elif isinstance(thing, types.MethodType | staticmethod | classmethod):
        yield name, thing.__func__
        yield name, getattr(thing, "__self__", None)
    elif isinstance(thing, property):
        yield name, thing.fget
    elif isinstance(thing, types.FunctionType):
        yield from _used_from_outside(name, thing)
    elif isinstance(thing, functools.partial):
        yield from ((name, thing.func), (name, thing.args), (name, thing.keywords))
    elif hasattr(type(thing), "python_function"):  # a tf.function
        yield name, thing.python_function
    elif isinstance(thing, keras.layers.Layer | keras.optimizers.Optimizer | types.SimpleNamespace) or is_users(thing):
        yield from _attributes_of(name, thing)


def _attributes_of(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    prefix = f"{name}." if name else ""
    attributes = getattr(thing, "__dict__", {})
    # Public names come first, because Keras keeps the same objects under private names too. Names with "_self_" are
    # TensorFlow's records for its checkpoints.
    for attribute in sorted(attributes, key=lambda attribute: attribute.startswith("_")):
        if not attribute.startswith("_self_"):
            yield f"{prefix}{attribute}", attributes[attribute]
    for cls in type(thing).__mro__:
        if not is_of_a_library(cls.__module__):
            for attribute, value in vars(cls).items():
                yield f"{prefix}{attribute}", value


def _used_from_outside(name: str, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the globals and closure variables that a user's function reads."""
    if is_of_a_library(function.__module__):
        return
    for variable, cell in closed_over(function):
        yield f"{variable} in {name}", cell.cell_contents
    for variable in globals_of(function):
        yield f"{variable} in {name}", function.__globals__[variable]
    yield name, function.__defaults__
    yield name, function.__kwdefaults__
    yield name, getattr(function, "__wrapped__", None)


def closed_over(function: types.FunctionType) -> Iterator[tuple[str, types.CellType]]:
    """Yield the closure variables of a function that have a value, each with its cell."""
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            cell.cell_contents  # noqa: B018
        except ValueError:  # It is not assigned yet.
            continue
        yield variable, cell


def globals_of(function: types.FunctionType) -> Iterator[str]:
    """Yield the names of the globals that a function and the functions inside it read."""
    codes = deque([function.__code__])
    while codes:
        code = codes.popleft()
        codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
        for instruction in dis.get_instructions(code):
            if instruction.opname == "LOAD_GLOBAL" and instruction.argval in function.__globals__:
                yield instruction.argval


def is_users(thing: Any) -> bool:
    """Return whether the class of an object does not belong to a library."""
    return not isinstance(thing, type | types.ModuleType) and not is_of_a_library(type(thing).__module__)


def is_of_a_library(module: str | None) -> bool:
    """Return whether a module, given by its name, belongs to a library and not to the user."""
    return (module or "").split(".")[0] in _LIBRARIES and module != "__main__"
