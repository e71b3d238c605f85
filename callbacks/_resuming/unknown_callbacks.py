"""Callbacks whose state is not known: the changes in them show whether they have one."""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfopt._checkpoints.callback_states import get_state
from tfopt.callbacks._object_graph import is_users
from tfopt.callbacks._resuming.plain_state import PlainState, digest
from tfopt.callbacks._resuming.training_state import key_of, read

_OF_EVERY_CALLBACK = frozenset({*vars(keras.callbacks.Callback()), "_model", "_params", "monitor_op"})


class UnknownCallbacks:
    """Finds what callbacks change in themselves, in their classes, and in what their code uses from outside.

    The state of these callbacks is not saved, or only the part that Keras's own class has. The variables `saved` are
    saved in any case, and so is what `plain` holds.
    """

    def __init__(self, callbacks: list[Any], saved: list[Any], plain: PlainState) -> None:
        self._callbacks, self._plain = callbacks, plain
        self._saved = {key_of(variable) for variable in saved}
        self._before = [self._values_of(callback) for callback in callbacks]

    def changed(self) -> dict[str, list[str]]:
        """Return the names of changed attributes and variables by the class of the callback; each change once."""
        found: dict[str, list[str]] = {}
        for index, callback in enumerate(self._callbacks):
            before, now = self._before[index], self._values_of(callback)
            names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            if names:
                found.setdefault(type(callback).__name__, []).extend(names)
                self._before[index] = now
        return found

    def _values_of(self, callback: Any) -> dict[str, str]:
        kept = {*_OF_EVERY_CALLBACK, *(get_state(callback) or {})}
        found = {name: value for name, value in vars(callback).items() if name not in kept}
        found |= self._plain.outside_of(callback)
        return {name: "".join(self._texts_of(value, set())) for name, value in found.items()}

    def _texts_of(self, value: Any, seen: set[int]) -> Iterator[str]:
        """Yield texts that change when a value, or what it holds, changes."""
        if id(value) in seen:
            return
        seen.add(id(value))
        variables = [value] if isinstance(value, keras.Variable | tf.Variable) else []
        if isinstance(value, keras.layers.Layer | keras.Metric | keras.optimizers.Optimizer):
            variables = value.variables
        elif isinstance(value, keras.random.SeedGenerator | tf.random.Generator):
            variables = [value.state]
        if variables or isinstance(value, keras.layers.Layer):
            yield from (digest(read(variable)) for variable in variables if key_of(variable) not in self._saved)
        elif isinstance(value, list | tuple | dict):
            yield digest(value)
            for item in value.values() if isinstance(value, dict) else value:
                yield from self._texts_of(item, seen) if hasattr(item, "__dict__") else ()
        elif hasattr(value, "__dict__") and is_users(value):
            for item in vars(value).values():
                yield from self._texts_of(item, seen)
        else:
            yield digest(value)
