"""The arguments of optimizers as text that is the same in every process, without addresses and numbered names."""

import functools
import inspect
import re
import types
import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import Trackable
from tfopt._weight_decay import takes_weight_decay
from tfopt.callbacks._object_graph import is_of_a_library, is_users
from tfopt.callbacks._optimizers_of import compiled_optimizer_of, optimizers_of

# Training changes these objects. Variables, layers and optimizers are compared separately, not in functions.
_TRACKED = (
    keras.Variable,
    Trackable,
    keras.Layer,
    keras.Optimizer,
    keras.callbacks.Callback,
    keras.random.SeedGenerator,
)
_MOST_ENTRIES = 1000  # Larger arrays are described by their checksums.
_DEEPEST = 6


def arguments_of(model: Any) -> dict[str, str]:
    """Return the arguments of all (built) optimizers of a model, by "optimizer's learning_rate" and the like."""
    found: dict[str, str] = {}
    for name, optimizer in optimizers_of(model):
        found.update(_arguments("optimizer" if optimizer is compiled_optimizer_of(model) else name, optimizer, model))
    return found


def _arguments(name: str, optimizer: Any, model: Any) -> dict[str, str]:
    while (inner := getattr(optimizer, "inner_optimizer", None)) is not None:
        optimizer = inner
    if isinstance(optimizer, keras.optimizers.MultiOptimizer):
        return _arguments_of_several(name, optimizer, model)
    try:
        config = dict(optimizer.get_config())
    except Exception:  # A user's optimizer or schedule may not be serialisable.
        config = {key: value for key, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)}
    rate = _keras.learning_rate(optimizer, None)
    if callable(rate) and not isinstance(rate, keras.Variable):
        config["learning_rate"] = rate  # Keras serialises functions with their line numbers.
    config["class"] = type(optimizer).__name__
    config |= {key: value for key, value in _own_constants(optimizer).items() if key not in config}
    if config.get("weight_decay"):
        decays = [takes_weight_decay(optimizer, variable) for variable in model.trainable_variables]
        config["variables without weight decay"] = [index for index, does in enumerate(decays) if not does]
    return {f"{name}'s {key}": describe(value) for key, value in config.items() if key != "name" and value is not None}


@functools.cache
def _names_of_optimizers() -> frozenset[str]:
    return frozenset(vars(keras.optimizers.SGD(name="plain")))


def _own_constants(optimizer: Any) -> dict[str, Any]:
    """Return the attributes of an optimizer of a user's class, which its config may lack."""
    if not is_users(optimizer):
        return {}
    kinds = (bool, int, float, str, np.ndarray, np.generic, list, tuple, dict, types.FunctionType)
    held = {name: value for name, value in vars(optimizer).items() if name not in _names_of_optimizers()}
    return {name: value for name, value in held.items() if isinstance(value, kinds) and not name.startswith("_self_")}


def _arguments_of_several(name: str, optimizer: Any, model: Any) -> dict[str, str]:
    # Only the variables of each optimizer matter, not how they were chosen.
    found: dict[str, str] = {}
    for number, part in enumerate(optimizer.optimizers):
        found.update(_arguments(f"{name}.optimizers[{number}]", part, model))
        theirs = {id(variable) for variable in _keras.optimizer_variables(part, ())}
        indices = [index for index, variable in enumerate(model.trainable_variables) if id(variable) in theirs]
        found[f"{name}.optimizers[{number}]'s variables"] = str(indices)
    return found


def describe(value: Any, depth: int = 0) -> str:
    """Return a text that is equal for values with the same meaning; `depth` is the number of enclosing objects."""
    if value is None or isinstance(value, bool | int | float | complex | bytes):
        return str(value)
    if isinstance(value, str):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value)
    if depth > _DEEPEST:
        return type(value).__name__
    deeper = functools.partial(describe, depth=depth + 1)
    if isinstance(value, dict) and {"class_name", "config"} <= value.keys():  # Keras has serialised an object.
        return f"{value['class_name']} {deeper(value['config'])}"
    if isinstance(value, dict):
        inside = ", ".join(f"{key}: {deeper(value[key])}" for key in sorted(value, key=str) if key != "name")
        return f"{{{inside}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(deeper(item) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(deeper(item) for item in value))}}}"
    if isinstance(value, type | types.ModuleType):
        return value.__name__
    if isinstance(value, functools.partial):
        return deeper([value.func, value.args, value.keywords])
    if isinstance(value, types.MethodType):
        return f"{value.__qualname__} of {deeper(value.__self__)}"
    if isinstance(value, types.FunctionType):
        return _describe_function(value, deeper)
    if hasattr(type(value), "python_function"):  # a tf.function
        return deeper(value.python_function)
    if isinstance(value, tf.Module) and is_users(value) and not isinstance(value, keras.Layer | keras.Optimizer):
        return f"{type(value).__name__} {deeper({k: v for k, v in vars(value).items() if not k.startswith('_')})}"
    if isinstance(value, _TRACKED):
        return type(value).__name__
    if hasattr(value, "__array__"):
        try:
            array = np.asarray(value)
            is_large = array.size > _MOST_ENTRIES and not array.dtype.hasobject
            return f"{array.shape} {zlib.crc32(array.tobytes()):08x}" if is_large else str(array.tolist())
        except Exception:  # A data set's tensor holds no numbers.
            return type(value).__name__
    return f"{type(value).__name__} {_describe_object(value, depth)}"


def _describe_function(function: types.FunctionType, deeper: Callable[[Any], str]) -> str:
    if is_of_a_library(function.__module__) and "<" not in function.__qualname__:
        return f"{function.__module__.split('.')[0]}.{function.__qualname__}"
    try:
        used = inspect.getclosurevars(function)
    except ValueError:  # It uses a name that has no value yet.
        return f"{function.__qualname__} {_checksum(function.__code__)}"
    constants = {name: value for name, value in used.globals.items() if isinstance(value, bool | int | float | str)}
    outside = [item for item in (function.__defaults__, function.__kwdefaults__, used.nonlocals, constants) if item]
    return f"{function.__qualname__} {_checksum(function.__code__)} {deeper(outside) if outside else ''}".rstrip()


def _describe_object(value: Any, depth: int) -> str:
    held = getattr(value, "__dict__", {})
    try:
        config = value.get_config()
    except Exception:  # The method is missing, or there is no config.
        return describe(held, depth + 1)
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule) and is_users(value):
        config = {**held, **config}  # The config may be incomplete.
    return describe(config, depth + 1)


def _checksum(code: types.CodeType) -> str:
    # The checksum covers the computation, but not the file and the line.
    constants = [_checksum(item) if isinstance(item, types.CodeType) else describe(item) for item in code.co_consts]
    return f"{zlib.crc32(str((code.co_code.hex(), code.co_names, constants)).encode()):08x}"
