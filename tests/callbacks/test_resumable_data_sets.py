"""Training with a checkpoint draws the very rows that it draws without one, and so does training that is resumed."""

import functools
import random

import callback_table as table
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context

from tfopt.callbacks import ResumableCheckpoint

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = X[:, :1] ** 2


def rows():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def one(x, y):
    return tf.data.Dataset.from_tensors((x, y))


def flat():
    return rows().flat_map(one)


def plain(size=4):
    return rows().batch(size)


def numbers():
    return tf.data.Dataset.range(3).shuffle(3)


def shard(number):
    return tf.data.Dataset.from_tensor_slices((X, Y)).shard(3, number)


def split(full, size=4):
    return full.skip(4).batch(size), full.take(4).batch(size)


def of_images():
    return rows().shuffle(12, seed=3).batch(4)  # as keras.utils.image_dataset_from_directory makes it


# Training data, validation data if there are any; and arguments of `fit`.
DATA = {
    "known size": (lambda: rows().shuffle(12).batch(4), {}),
    "of flat_map": (lambda: flat().shuffle(12, seed=1).batch(4), {}),
    "files": (lambda: numbers().interleave(shard, cycle_length=2).shuffle(5).batch(4), {}),
    "parallel": (lambda: numbers().interleave(shard, num_parallel_calls=2, deterministic=True).shuffle(5).batch(4), {}),
    "window": (
        lambda: rows().shuffle(12).window(4, drop_remainder=True).flat_map(lambda *w: tf.data.Dataset.zip(w)).batch(4),
        {},
    ),
    "validation": (lambda: (plain(), rows().shuffle(12).take(5).batch(2)), {}),
    "split": (lambda: split(rows().shuffle(12)), {}),
    "split every other": (lambda: split(rows().shuffle(12)), {"validation_freq": 2}),
    "split of unknown size": (lambda: split(flat().shuffle(12)), {"validation_freq": 2}),
    "the same": (lambda: (rows().shuffle(12).batch(4),) * 2, {"validation_steps": 2}),
    "repeated": (lambda: rows().shuffle(5).repeat(2).batch(5), {}),
    "joined": (lambda: rows().shuffle(5).concatenate(rows().shuffle(12)).batch(5), {}),
    "thrice": (lambda: rows().shuffle(12).shuffle(3).repeat(2).shuffle(4).batch(4), {}),
    # Each cache is read to its end: one row in the last batch too few.
    "cached": (lambda: (of_images().cache().shuffle(9).prefetch(2), of_images().unbatch().cache().batch(5)), {}),
    "split and cached": (
        lambda: tuple(part.unbatch().cache().batch(3) for part in split(rows().shuffle(12))),
        {"validation_freq": 2},
    ),
    "steps": (lambda: plain().repeat(), {"steps_per_epoch": 2}),
    "steps of arrays": (lambda: (X, Y), {"steps_per_epoch": 2, "batch_size": 4}),
    "steps to the end": (lambda: plain(3), {"steps_per_epoch": 2}),
    "all steps": (lambda: plain(), {"steps_per_epoch": 3}),
    "shuffled steps": (lambda: rows().shuffle(12).repeat().batch(4), {"steps_per_epoch": 2}),
    "batches of steps": (lambda: rows().shuffle(12).batch(5).repeat().prefetch(1), {"steps_per_epoch": 4}),
    "shuffled to the end": (lambda: rows().shuffle(12).batch(3), {"steps_per_epoch": 2}),
    "steps beyond the end": (lambda: flat().shuffle(12).batch(4), {"steps_per_epoch": 2}),
    "cached steps": (lambda: of_images().cache().repeat().shuffle(3), {"steps_per_epoch": 2}),
    "steps and validation": (lambda: (rows().shuffle(9).repeat().batch(4), of_images()), {"steps_per_epoch": 2}),
}
# Run with two steps in an execution too: with these, "steps" and "steps of arrays" read a part of "shuffled steps".
IN_TWOS = [name for name in DATA if ("steps" in name or "unknown" in name) and name not in ("steps", "steps of arrays")]
# The last step is read ahead of, into the next repetition or not: a second training begins anywhere, in each run.
ENDLESS = {"shuffled steps", "batches of steps", "cached steps", "steps and validation"}


@functools.cache
def model_of(in_execution):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)])
    options = {"jit_compile": False, "steps_per_execution": in_execution}
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", **options)
    model.optimizer.build(model.trainable_variables)
    return model, [np.array(variable) for variable in (*model.variables, *model.optimizer.variables)]


def random_states():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return repr((random.getstate(), numpy_state, context.context()._rng.getstate()))


def fit(name, folder, ends, in_execution=1):
    """Train up to each of some epochs, with new data sets; return what each `fit` has logged, and random states."""
    model, initial = model_of(in_execution)
    for variable, value in zip((*model.variables, *model.optimizer.variables), initial, strict=True):
        variable.assign(value)
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    make, options = DATA[name]
    data = made if isinstance(made := make(), tuple) else (made,)
    training, validation = (data, None) if data[0] is X else (data[:1], data[1] if len(data) > 1 else None)
    logs = []
    for number, epochs in enumerate(ends):
        checkpoint = [] if folder is None else [ResumableCheckpoint(folder / str(number), verbose=0)]
        history = model.fit(
            *training,
            validation_data=validation,
            epochs=epochs,
            shuffle=False,
            verbose=0,
            callbacks=checkpoint,
            **options,
        )
        logs.append(history.history)
    return logs, random_states()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("name", "in_execution"),
    [*[(name, 1) for name in DATA], *[(name, 2) for name in IN_TWOS]],
)
def test_the_same_rows_with_a_checkpoint_and_without(name, in_execution, tmp_path):
    whole = [4] if name in ENDLESS else [4, 2]  # two trainings, one after the other, on the same data sets
    expected = fit(name, None, whole, in_execution)
    for ends in [[3], [4, 1]][: len(whole)]:
        fit(name, tmp_path, ends, in_execution)
    assert fit(name, tmp_path, whole, in_execution) == expected  # the logs are of all parts
    losses = [loss for log in expected[0] for values in log.values() for loss in values]
    assert np.isfinite(losses).all()


def random_and_weights(callback):
    """The states of all generators that nobody owns, after a training and after something is built and drawn."""
    model = table.model_at_its_start("adam", "graph")  # which is made once
    keras.backend.clear_session()
    keras.utils.set_random_seed(3)
    tf.random.uniform([1])
    table.fit(model, [callback] if callback else [])
    return random_states(), np.array(layers.Dense(2)(X)).tobytes(), keras.random.uniform((2,)).numpy().tobytes()


@pytest.mark.parametrize("name", [name for name in table.CALLBACKS if not name.endswith("by steps")])
def test_no_callback_draws_random_numbers_of_nobodys(name, tmp_path):
    callback = table.CALLBACKS[name]((table.X, table.Y), tmp_path)
    assert random_and_weights(callback) == without_callbacks()


@functools.cache
def without_callbacks():
    return random_and_weights(None)


def test_one_data_set_for_both_is_refused_with_steps(tmp_path):
    full = rows().shuffle(12, seed=1)
    model, _ = model_of(1)
    with pytest.raises(ValueError, match="With `steps_per_epoch`, training and validation data cannot be resumed"):
        model.fit(
            full.skip(4).repeat().batch(4),
            validation_data=full.take(4).batch(4),
            steps_per_epoch=2,
            shuffle=False,
            verbose=0,
            callbacks=[ResumableCheckpoint(tmp_path / "folder")],
        )
    assert not (tmp_path / "folder").exists()


def test_a_cache_beside_its_source_is_refused(tmp_path):
    full = rows().shuffle(12, seed=1).batch(4)
    model, _ = model_of(1)
    checkpoint = ResumableCheckpoint(tmp_path / "folder")
    with pytest.raises(ValueError, match="is used without that `cache` too"):
        model.fit(full.cache(), validation_data=full, shuffle=False, verbose=0, callbacks=[checkpoint])


def test_what_is_read_again_is_said(tmp_path, capsys):
    model, _ = model_of(1)
    for epochs in (2, 3):
        options = {"epochs": epochs, "steps_per_epoch": 5, "shuffle": False, "verbose": 0}
        model.fit(plain().repeat(), callbacks=[ResumableCheckpoint(tmp_path)], **options)
    assert "Resuming after epoch 2" in (said := capsys.readouterr().out)
    assert "10 batches were read again" in said
