"""All variables of a training: of the model, of all its optimizers, and of other objects that it holds."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._keras import stateful_random_ops
from tfopt.callbacks._object_graph import parts_of, reached_from
from tfopt.callbacks._optimizers_of import compiled_optimizer_of, optimizers_of
from tfopt.callbacks._resuming.captured_resources import changed_resources
from tfopt.callbacks._resuming.traced_step import changed_variables, random_operations


def variables_of(
    model: Any, graphs: Mapping[str, Any] = MappingProxyType({}), communicator: Any = None
) -> list[tuple[str, Any]]:
    """Return (reproducible text, variable) for each variable that training changes or its steps read, once."""
    named = [("", variable) for variable in model.variables]
    for name, optimizer in optimizers_of(model):
        prefix = "" if optimizer is compiled_optimizer_of(model) else f"{name}: "
        named += [(prefix, variable) for variable in optimizer.variables]
    named = [(prefix + describe(variable), variable) for prefix, variable in named]
    for name, variable in _held_by(model):
        named.append((f"{name}: {describe(variable)}", variable))
    if (generator := stateful_random_ops.global_generator) is not None:
        named.append(("tf.random.get_global_generator()", generator.state))
    for step, graph in graphs.items():
        # Omit the layer's name: Keras's global generator has the name of the first layer that drew from it.
        texts = ((describe(variable).split("/")[-1], variable) for variable in _used_by(graph))
        named += [(f"used by the {step} step: {text}", variable) for text, variable in texts]
    seen = _counters_of(communicator)  # Counters of the communicator are no state of the training.
    once = []
    for name, variable in named:
        if key_of(variable) not in seen:
            seen.add(key_of(variable))
            once.append((name, variable))
    return once


def describe(variable: Any) -> str:
    """Return a variable's name, without the numbers that Keras adds to keep models apart, its shape and dtype."""
    name = re.sub(r"_[0-9]+(?=_|$)", "", variable.name.split(":")[0])
    return f"{name} {variable.shape} {keras.backend.standardize_dtype(variable.dtype)}"


def read(variable: Any) -> np.ndarray:
    """Return the value of a variable of Keras or TensorFlow."""
    return np.asarray((variable.value if isinstance(variable, keras.Variable) else variable).numpy())


def check_step(step: str, graph: Any, variables: list[tuple[str, Any]], communicator: Any) -> None:
    """Raise ValueError if a step ("training" or "validation") has a state, not in `variables`, that cannot be saved."""
    saved = {key_of(variable) for _, variable in variables} | _counters_of(communicator)
    missing = [variable for variable in changed_variables(graph) if key_of(variable) not in saved]
    if missing:
        raise ValueError(
            f"The {step} step changes {', '.join(f'the variable {describe(variable)}' for variable in missing)}, "
            "which ResumableCheckpoint cannot save. Let it hold numbers"
        )
    if kinds := sorted(random_operations(graph)):
        raise ValueError(
            f"The {step} step draws random numbers by TensorFlow's {', '.join(kinds)}, whose state cannot be saved. "
            "Use keras.random with a keras.random.SeedGenerator, or a tf.random.Generator, that is an attribute of "
            "the model or of a layer"
        )
    if kinds := sorted(changed_resources(graph)):
        raise ValueError(
            f"The {step} step uses an object from outside by TensorFlow's {', '.join(kinds)}: an iterator, a table "
            "or a queue, whose state cannot be saved. Pass all data to `fit`, and keep counts in variables"
        )


def check_that_none_is_new(model: Any, variables: list[tuple[str, Any]]) -> None:
    """Raise ValueError if a model has variables that are not in `variables`, which it had before the first step."""
    known = {id(variable) for _, variable in variables}
    known |= {id(variable) for metric in model.metrics for variable in metric.variables}  # Keras empties them.
    if new := [name for name, variable in variables_of(model) if id(variable) not in known]:
        raise ValueError(
            f"These variables were made while training was running: {', '.join(new)}. A resumed training would not "
            "have them when its state is restored. Make them before `fit`: call the model and its parts on a batch, "
            "and optimizer.build(variables) of each optimizer"
        )


def _counters_of(communicator: Any) -> set[int]:
    return {key_of(value) for value in getattr(communicator, "__dict__", {}).values() if isinstance(value, tf.Variable)}


def _used_by(graph: Any) -> Iterator[Any]:
    """Yield the variables of a graph in the order in which it captured them, which is the same in each process."""
    variables = {id(variable.handle): variable for variable in graph.variables}
    for outside, _ in graph.captures:
        variable = variables.get(id(outside))
        if variable is not None and variable.dtype != tf.string:  # A checkpoint holds no strings.
            yield variable


def key_of(variable: Any) -> int:
    """Return an id of a variable while it is alive; Keras's variable and TensorFlow's inside it have the same."""
    inside = variable.value if isinstance(variable, keras.Variable) else variable
    try:
        return id(inside.handle)
    except (AttributeError, ValueError):  # The variable is on several devices.
        return id(inside)


def _held_by(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the variables in attributes of a model and of the objects that it holds, with the path to each."""
    left_out = (np.ndarray, tf.Tensor, keras.callbacks.Callback)
    for name, thing in reached_from("", model, _children_of, lambda thing: isinstance(thing, left_out)):
        # A checkpoint holds no strings.
        if isinstance(thing, keras.Variable | tf.Variable) and thing.dtype not in ("string", tf.string):
            yield name, thing


def _children_of(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, keras.Variable | tf.Variable):
        return
    if isinstance(thing, keras.random.SeedGenerator | tf.random.Generator):
        yield f"{name}.state", thing.state
        return
    if isinstance(thing, keras.Metric):
        for number, variable in enumerate(thing.variables):
            yield f"{name}.variables[{number}]", variable
    if isinstance(thing, keras.Metric | keras.Loss | keras.Initializer | keras.Regularizer | tf.Module):
        for attribute, value in getattr(thing, "__dict__", {}).items():
            yield f"{name}.{attribute}", value
    yield from parts_of(name, thing)
