"""All objects that a training uses."""

from collections.abc import Iterator
from typing import Any

import keras

from tfopt.callbacks._object_graph import is_users, parts_of, reached_from

_OF_KERAS = (keras.layers.Layer, keras.optimizers.Optimizer)


def things_of(model: Any, others: tuple[tuple[str, Any], ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (location, object) once for a model and all that its code uses, except plain values and variables.

    What the objects `others` use, besides, comes behind it; of that, Keras's own layers and the like are left out.
    """
    seen: set[int] = set()

    def is_left_out(thing: Any) -> bool:
        return isinstance(thing, keras.Variable | keras.callbacks.Callback)

    def is_keras_own(thing: Any) -> bool:
        return is_left_out(thing) or (isinstance(thing, _OF_KERAS) and not is_users(thing))

    yield from reached_from("model", model, parts_of, is_left_out, seen)
    for name, thing in others:
        yield from reached_from(name, thing, parts_of, is_keras_own, seen)
