"""The states of the random number generators that belong to nobody."""

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator
from tensorflow.python.eager import context


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and Keras's generators, and of TensorFlow's for what is run eagerly.

    Returns:
        What `set_random_state` takes.
    """
    # Where there is none yet, it stays so: a new one would be seeded by Python's.
    generator = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  the generator that other people's code draws from
        "keras": None if generator is None else keras.ops.convert_to_numpy(generator.state.value),
        "tensorflow": _eager_state(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Give the generators their states back.

    Args:
        state: What `random_state` has returned.
    """
    if state["keras"] is None:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, None)
    else:
        global_seed_generator().state.assign(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    if state["tensorflow"] is not None:
        seed, generator = state["tensorflow"]
        tf.random.set_seed(seed)
        context.context()._rng.setstate(generator)


def _eager_state() -> tuple[int, Any] | None:
    # From which TensorFlow draws the seed of each operation that has none, once `tf.random.set_seed` was called.
    seed, generator = context.global_seed(), getattr(context.context(), "_rng", None)
    return None if seed is None or generator is None else (seed, generator.getstate())
