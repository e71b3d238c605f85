"""Whether a model is still the one for which a program was traced, on all ranks."""

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._variables import unique_paths
from tfopt.callbacks._values import to_numpy
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import check_agreement


def state_of(model: Any) -> tuple[Any, ...]:
    """Return the objects, besides values of variables, on which a traced loss depends; new ones need a new trace."""
    compiled = _keras.compile_loss(model, None), _keras.compile_config(model, None)
    flags = [item for layer in _keras.flatten_layers(model)() for item in (layer, bool(layer.trainable))]
    return (model, *compiled, *model.trainable_variables, *flags)


def runs_eagerly(model: Any) -> bool:
    """Return whether `fit` runs the Python code of a model in each step; otherwise it keeps a trace."""
    return bool(model.run_eagerly) or tf.config.functions_run_eagerly()


def is_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Return whether two tuples, from `state_of`, hold the same objects and equal strings."""
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a is b or (type(a) is str and a == b) for a, b in pairs)


def check_ranks(communicator: Communicator, name: str, model: Any, is_new: bool, is_start: bool) -> None:
    """Raise ValueError on all ranks if their models differ; compares if a model is new on any rank, or `is_start`."""
    if communicator.size == 1:
        return
    if not is_start:
        # Use a reduction, because a rank that is already at the end of its epoch can join it.
        (count,) = communicator.allreduce_sum([tf.constant(int(is_new), tf.int64)], name="changes")
        if int(count) == 0:
            return
    variables = model.trainable_variables
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(to_numpy(variable.value)).tobytes())
    paths = unique_paths(variables)
    check_agreement(
        communicator,
        f"{name} before a measurement",
        {
            "model": "one that is new, compiled again, frozen or unfrozen" if is_new else "the one before",
            "trainable variables": [f"{path} {tuple(v.shape)}" for path, v in zip(paths, variables, strict=True)],
            "weights": f"checksum {digest.hexdigest()[:8]}",
        },
        "Add the callback tfopt.callbacks.BroadcastVariables(), which makes them equal before training; freeze, "
        "unfreeze and compile on every rank at the same time.",
    )
