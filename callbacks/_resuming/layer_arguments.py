"""The arguments and connections of a model's layers, as text that is the same in every process."""

import dataclasses
import re
import types
import warnings
import zlib
from typing import Any

import keras
import numpy as np

from tfopt import _keras
from tfopt._keras import Functional, make_node_key
from tfopt.callbacks._object_graph import is_of_a_library
from tfopt.callbacks._resuming.optimizer_arguments import describe

_LONGEST = 120  # Number of characters. Longer texts are cut.
_CONSTANTS = (bool, int, float, str, np.bool_, np.integer, np.floating)
_OF_KERAS = frozenset({
    *("autocast", "built", "compiled", "loss", "name", "seed", "stop_evaluating", "stop_predicting", "stop_training"),
    *("call_signature_parameters", "steps_per_execution", "supports_jit", "supports_masking", "trainable"),
    *("predict_function", "test_function", "train_function", "unrolled_steps_per_execution"),
})


def layer_arguments(model: Any) -> dict[str, str]:
    """Return the arguments of all layers, without names, by "layer 3 (Dropout)'s rate" etc.; the model is layer 0."""
    numbers = _numbers_of(model)
    found: dict[str, str] = {}
    for label, part in _labelled(model):
        found.update({f"{label}'s {key}": shorten(describe(value)) for key, value in _config_of(part).items()})
        if isinstance(part, Functional):
            found[f"{label}'s connections"] = shorten(_connections(part, numbers))
    return found


def trainable_flags(model: Any) -> dict[str, str]:
    """Return "True" or "False" for each layer, by "layer 3 (Dense)'s trainable" and the like."""
    layers = [(label, part) for label, part in _labelled(model) if isinstance(part, keras.layers.Layer)]
    return {f"{label}'s trainable": str(bool(layer.trainable)) for label, layer in layers}


def own_attributes(model: Any) -> dict[str, str]:
    """Return plain values in layers of user classes, which training may change, by "layer 0 (VAE)'s attribute beta"."""
    names = {part.name for part in _parts(model) if hasattr(part, "name")}
    return {
        f"{label}'s attribute {name}": shorten(_without_numbers(describe(value), names))
        for label, part in _labelled(model)
        if not is_of_a_library(type(part).__module__)
        for name, value in {**_constants_of(type(part)), **_held_by(part)}.items()
    }


def _without_numbers(text: str, names: set[str]) -> str:
    """Remove the numbers in layers' names from a text, because Keras counts layers over all models of a process."""
    numbered = sorted(filter(re.compile(r"_[0-9]+$").search, names), key=len, reverse=True)
    if not numbered:
        return text
    pattern = rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, numbered))})(?![A-Za-z0-9])"
    return re.sub(pattern, lambda found: found[0].rpartition("_")[0], text)


def shorten(text: str) -> str:
    """Return a text of at most about 120 characters; a checksum at the end keeps different cut texts different."""
    return text if len(text) <= _LONGEST else f"{text[:80]}... ({zlib.crc32(text.encode()):08x})"


def _is_constant(value: Any) -> bool:
    if isinstance(value, str):
        return "/" not in value  # Paths and addresses do not change results.
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(_is_constant(item) for item in value)
    return isinstance(value, _CONSTANTS)


def _parts(model: Any) -> list[Any]:
    """Return a model, its layers and the operations between them, each once, in the order of creation."""
    found: dict[int, Any] = {}
    waiting = [model]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            inside = [*(part.operations if isinstance(part, Functional) else ()), *_keras.layers(part, ())]
            waiting.extend(reversed(inside))
    return list(found.values())


def _numbers_of(model: Any) -> dict[int, int]:
    return {id(part): number for number, part in enumerate(_parts(model))}


def _labelled(model: Any) -> list[tuple[str, Any]]:
    return [(f"layer {number} ({type(part).__name__})", part) for number, part in enumerate(_parts(model))]


def _config_of(part: Any) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if not _holds_only_layers(part):
        config = _written_down(part)
    given = getattr(_keras.auto_config(part, None), "config", None)
    if "seed" in config and given is not None:
        config["seed"] = given.get("seed")  # Some layers serialise a number that they drew.
    for name in list(config):
        held = vars(part).get(name)
        if isinstance(held, types.FunctionType | types.MethodType):
            config[name] = held  # Keras serialises functions with their line numbers.
        if any(isinstance(item, keras.layers.Layer) for item in (held if isinstance(held, list | tuple) else [held])):
            del config[name]  # The layer is listed by itself.
    if (policy := getattr(part, "dtype_policy", None)) is not None:
        config["dtype"] = policy.name
    return {key: value for key, value in config.items() if value is not None and key not in ("name", "trainable")}


def _holds_only_layers(part: Any) -> bool:
    is_keras_own = is_of_a_library(getattr(type(part).get_config, "__module__", None))
    return isinstance(part, Functional | keras.Sequential) and is_keras_own


def _written_down(part: Any) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns about lambdas.
            config = dict(part.get_config())
    except Exception:  # A custom layer, or a regularizer in it, may not be serialisable.
        config = _held_by(part) if is_of_a_library(type(part).__module__) else {}  # own_attributes has them.
    if isinstance(part, keras.layers.StringLookup | keras.layers.IntegerLookup | keras.layers.TextVectorization):
        config["vocabulary"] = part.get_vocabulary()  # The config lacks the result of `adapt`.
    return config


def _held_by(part: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in _OF_KERAS and _is_an_argument(value)
        if not (isinstance(value, types.FunctionType) and hasattr(type(part), name))  # Keras wraps this method.
    }


def _constants_of(cls: type) -> dict[str, Any]:
    own = [base for base in reversed(cls.__mro__) if not is_of_a_library(base.__module__)]
    found = {name: value for base in own for name, value in vars(base).items()}
    return {name: value for name, value in found.items() if not name.startswith("_") and _is_constant(value)}


def _is_an_argument(value: Any) -> bool:
    kinds = (types.FunctionType, keras.Initializer, keras.Regularizer, keras.constraints.Constraint)
    return isinstance(value, kinds) or _is_constant(value)


def _connections(model: Any, numbers: dict[int, int]) -> str:
    """Return which layer is called on which outputs, by the numbers of layers."""

    def of(operation: Any) -> list[int]:
        nodes = range(len(_keras.inbound_nodes(operation)))
        return [number for number in nodes if make_node_key(operation, number) in _keras.nodes(model)]

    def source_of(tensor: Any) -> Any:
        if not isinstance(tensor, keras.KerasTensor):
            return tensor
        operation, node, output = _keras.keras_history(tensor)
        return f"{numbers.get(id(operation))}.{of(operation).index(node)}.{output}"

    calls = []
    for operation in model.operations:
        for number in of(operation):
            arguments = _keras.inbound_nodes(operation)[number].arguments
            given = keras.tree.map_structure(source_of, [list(arguments.args), dict(arguments.kwargs)])
            calls.append(f"{numbers[id(operation)]}{describe(given)}")
    ends = [[source_of(tensor) for tensor in tensors] for tensors in (model.inputs, model.outputs)]
    return f"{' '.join(calls)} {describe(ends)}"
