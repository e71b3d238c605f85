"""The states of the global random number generators."""

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import GLOBAL_SEED_GENERATOR, context, global_seed_generator, global_state


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and Keras's generators, and of TensorFlow's for eager operations."""
    # Do not make a Keras generator here, because it would draw its seed from Python's generator.
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  users' code draws from it
        "keras": None if generator is None else keras.ops.convert_to_numpy(generator.state.value),
        "tensorflow": _eager_state(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states from `random_state`."""
    if state["keras"] is None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        global_seed_generator().state.assign(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if state["tensorflow"] is not None:
        seed, generator = state["tensorflow"]
        tf.random.set_seed(seed)
        _keras.eager_generator(context.context()).setstate(generator)


def _eager_state() -> tuple[int, Any] | None:
    # After `tf.random.set_seed`, TensorFlow draws from this generator the seed of each operation that has none.
    seed, generator = context.global_seed(), _keras.eager_generator(context.context(), None)
    return None if seed is None or generator is None else (seed, generator.getstate())
