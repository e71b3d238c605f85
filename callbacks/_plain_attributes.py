"""Numbers in plain Python attributes of a model: steps that run eagerly, and callbacks, read and change them."""

import functools
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tfopt.callbacks._optimizers_of import is_users, parts_of

_LARGEST = 1 << 24  # bytes of an array; what is larger is data
_NUMBERS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_LEFT_OUT = (*_NUMBERS, np.ndarray, tf.Tensor, tf.Variable, keras.Variable, keras.callbacks.Callback)


class PlainAttributes:
    """Keeps what training changes in attributes of a model, and of what it holds, of the user's classes.

    Args:
        model: The model, before training.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._before = {name: _digest(value) for name, (_, _, value) in _plain_attributes(model).items()}

    def get_state(self) -> list[list[Any]]:
        """Return what has changed: name, value, and whether it is a tensor."""
        now = _plain_attributes(self._model)
        return [
            [name, value.numpy() if _is_tensor(value) else value, _is_tensor(value)]
            for name, (_, _, value) in now.items()
            if self._before.get(name) != _digest(value)
        ]

    def set_state(self, state: list[list[Any]]) -> None:
        """Change them as they were changed."""
        owners = _owners(self._model)
        for name, value, is_tensor in state:
            path, _, attribute = name.rpartition(".")
            if path in owners:
                setattr(owners[path], attribute, tf.constant(value) if is_tensor else value)


def _plain_attributes(model: Any) -> dict[str, tuple[Any, str, Any]]:
    return {
        f"{path}.{attribute}": (owner, attribute, value)
        for path, owner in _owners(model).items()
        for attribute, value in vars(owner).items()
        if attribute not in _names_of_keras() and not attribute.startswith("_self_") and _is_plain(value)
    }


def _owners(model: Any) -> dict[str, Any]:
    """Return a model, its layers, and the objects of the user's classes that they hold, by where they are."""
    return {
        name: thing
        for name, thing in _things(model)
        if hasattr(thing, "__dict__")
        and (isinstance(thing, keras.layers.Layer) or (is_users(thing) and not _is_installed(type(thing))))
    }


def _is_installed(cls: type) -> bool:
    # An experiment tracker, say, whose process numbers and times must not come back.
    path = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return any(f"{name}-packages" in path for name in ("site", "dist"))


@functools.cache
def _names_of_keras() -> frozenset[str]:
    # What Keras itself keeps in its models. With names, because Keras counts what has none.
    model = keras.Model(name="plain")
    model.compile(optimizer=None, loss="mse")
    return frozenset(vars(model)) | {"built", "history", "stop_training", "trainable"}


def _things(model: Any) -> Iterator[tuple[str, Any]]:
    seen = {id(model)}
    waiting: deque[tuple[str, Any]] = deque([("model", model)])
    while waiting:
        name, thing = waiting.popleft()
        yield name, thing
        for child_name, child in parts_of(name, thing):
            if not isinstance(child, _LEFT_OUT) and id(child) not in seen:
                seen.add(id(child))
                waiting.append((child_name, child))


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, _NUMBERS) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | deque):
        return all(_is_plain(item) for item in value) and len(value) < _LARGEST
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject and not value.dtype.names and value.nbytes <= _LARGEST
    return isinstance(value, _NUMBERS) or _is_tensor(value)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and hasattr(value, "numpy")  # not one of a graph, which has no value


def _digest(value: Any) -> str:
    if isinstance(value, np.ndarray) or _is_tensor(value):
        array = np.asarray(value)
        return f"{type(value)} {array.shape} {array.dtype} {zlib.crc32(array.tobytes())}"
    if isinstance(value, dict):
        return str([(key, _digest(item)) for key, item in value.items()])
    if isinstance(value, list | tuple | deque):
        return str([_digest(item) for item in value])
    return repr(value)
