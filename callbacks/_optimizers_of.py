"""All optimizers that the training of a model can use, wherever the author of the model has stored them."""

from typing import Any

import keras

from tfopt.callbacks._object_graph import parts_of, reached_from


def compiled_optimizer_of(model: Any) -> Any:
    """Return the optimizer that a model was compiled with; None without one, or if it was never compiled."""
    return getattr(model, "optimizer", None)


def optimizers_of(model: Any) -> list[tuple[str, keras.optimizers.Optimizer]]:
    """Return pairs (location, optimizer) of all optimizers of a model, the one of `compile` first, in a fixed order."""
    # GANs and models of several parts have optimizers of their own. Searched are the attributes of the model, its
    # layers and its parts; lists, tuples and dictionaries in them; objects of the user's classes; and globals and
    # closures that the methods of the model's class use. Locations are texts such as "optimizer" or
    # "parts['a'].optimizer", which are the same in another process.
    things = reached_from("", model, parts_of, lambda thing: isinstance(thing, keras.Variable))
    found = [(name, thing) for name, thing in things if isinstance(thing, keras.optimizers.Optimizer)]
    found.sort(key=lambda pair: pair[1] is not compiled_optimizer_of(model))
    # A wrapper stands for its inner optimizer if its variables include those of the inner optimizer.
    return _without_those_inside(found)


def _without_those_inside(
    found: list[tuple[str, keras.optimizers.Optimizer]],
) -> list[tuple[str, keras.optimizers.Optimizer]]:
    states = [frozenset(id(variable) for variable in optimizer.variables) for _, optimizer in found]
    return [
        pair
        for here, (pair, state) in enumerate(zip(found, states, strict=True))
        if not any(state < other or (state == other and there < here) for there, other in enumerate(states))
    ]
