"""The states of the random number generators that belong to nobody."""

import random
from typing import Any

import keras
import numpy as np
from keras.src.random.seed_generator import global_seed_generator
from tensorflow.python.eager import context


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and Keras's generators, and of TensorFlow's for what is run eagerly.

    Returns:
        What `set_random_state` takes.
    """
    generator = global_seed_generator()  # first of all: where there is none yet, it is seeded by Python's
    eager = _eager_generator()
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  the generator that other people's code draws from
        "keras": keras.ops.convert_to_numpy(generator.state.value),
        "tensorflow": None if eager is None else eager.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Give the generators their states back.

    Args:
        state: What `random_state` has returned.
    """
    global_seed_generator().state.assign(state["keras"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    eager = _eager_generator()
    if eager is not None and state["tensorflow"] is not None:
        eager.setstate(state["tensorflow"])


def _eager_generator() -> random.Random | None:
    # From which TensorFlow draws the seed of each operation that has none, once `tf.random.set_seed` was called.
    return getattr(context.context(), "_rng", None)
