"""Whether a model is still the one that a program was made for, on all ranks."""

import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt._naming import unique_paths
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import check_agreement


def state_of(model: Any) -> tuple[Any, ...]:
    """Return all of a model that a program which computes its loss depends on, beside the values of variables.

    Args:
        model: A Keras model.

    Returns:
        Objects. The program is still right as long as each of them is the same object.
    """
    compiled = [getattr(model, name, None) for name in ("_compile_loss", "_compile_config")]
    flags = [item for layer in model._flatten_layers() for item in (layer, bool(layer.trainable))]
    return (model, *compiled, *model.trainable_variables, *flags)


def is_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    """Compare two states.

    Args:
        first: What `state_of` has returned, and more objects.
        second: The same.

    Returns:
        Whether they hold the same objects.
    """
    return len(first) == len(second) and all(a is b for a, b in zip(first, second, strict=True))


def check_ranks(communicator: Communicator, name: str, model: Any, is_new: bool, is_start: bool) -> None:
    """Check that all ranks measure the same model, if it is new on any of them; every rank calls this.

    Args:
        communicator: The job's communicator.
        name: Name of the callback that measures.
        model: The model of this rank.
        is_new: Whether its state is another one than at the measurement before.
        is_start: Whether this is the first measurement of a training, before which ranks are compared in any case.

    Raises:
        ValueError: The model has changed on some ranks only, or variables or weights differ.
    """
    if communicator.size == 1:
        return
    if not is_start:
        # By a reduction, in which a rank takes part that is at the end of its epoch already.
        (count,) = communicator.allreduce_sum([tf.constant(int(is_new), tf.int64)], name="changes")
        if int(count) == 0:
            return
    variables = model.trainable_variables
    digest = hashlib.sha256()
    for variable in variables:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value)).tobytes())
    paths = unique_paths(variables)
    check_agreement(
        communicator,
        f"{name} before a measurement",
        {
            "model": "one that is new, compiled again, frozen or unfrozen" if is_new else "the one of before",
            "trainable variables": [f"{path} {tuple(v.shape)}" for path, v in zip(paths, variables, strict=True)],
            "weights": f"those with the checksum {digest.hexdigest()[:8]}",
        },
        "Add the callback tfopt.callbacks.BroadcastVariables(), which makes them equal before training; freeze, "
        "unfreeze and compile on every rank at the same time.",
    )
