"""The order in which data sets, arrays and batches come is resumed, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers
from resumable_trainings import X, Y, plain

from tfopt.callbacks import ResumableCheckpoint
from tfopt.datasets import EpochBatches

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

ROWS = tf.data.Dataset.from_tensor_slices((X, Y))
FLIP = layers.RandomFlip(seed=1)
UNORDERED = tf.data.Options()
UNORDERED.deterministic = False
FACTOR = tf.Variable(2.0)


def through_python(**options):
    return ROWS.map(lambda x, y: (tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32, **options), (4,)), y))


def generated():
    signature = (tf.TensorSpec((4,)), tf.TensorSpec((1,)))
    return tf.data.Dataset.from_generator(lambda: zip(X, Y, strict=True), output_signature=signature)


EIGHT = tf.data.experimental.assert_cardinality(8)
SIXTEEN = tf.data.experimental.assert_cardinality(16)


def of_a_batch(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: generated().batch(8), "calls Python by .*from_generator.*EpochBatches"),
        (lambda: through_python().cache().batch(8), "calls Python by tf.numpy_function.*stateful=False"),
        (
            lambda: ROWS.map(lambda x, y: (tf.ensure_shape(tf.py_function(tf.sin, [x], tf.float32), (4,)), y)).batch(8),
            "calls Python by tf.py_function",
        ),
        (lambda: through_python(stateful=False).batch(8), None),
        (lambda: ROWS.apply(tf.data.experimental.shuffle_and_repeat(16, 1, seed=3)).batch(8), "draws anew"),
        (lambda: ROWS.map(lambda x, y: (FLIP(x[None, None])[0, 0], y)).batch(8), "changes a variable.*seed_generator"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal(()), y)).batch(8), "draws random numbers.*Normal"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal((), seed=1), y), 2).batch(8), "draws random.*Normal"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal((), seed=1), y)).batch(8), None),
        (lambda: ROWS.map(lambda x, y: (x * FACTOR, y), num_parallel_calls=2).batch(8), None),
        (
            lambda: ROWS.map(lambda x, y: (x, y), num_parallel_calls=2, deterministic=False).batch(8),
            "in the order in wh",
        ),
        (lambda: ROWS.batch(8).with_options(UNORDERED), "in the order in which they are ready"),
        (lambda: tf.data.Dataset.zip(ROWS.batch(8).shuffle(2), ROWS.batch(8)).map(lambda a, b: b), "no seed"),
        (lambda: ROWS.shuffle(9, reshuffle_each_iteration=False).batch(8), "no seed is set.*set_random_seed"),
        (lambda: ROWS.shuffle(9, seed=1).shuffle(9, seed=2).batch(8), None),
        (lambda: ROWS.shuffle(9, seed=1).batch(8).cache().take(1), "CacheDataset .*a TakeDataset may stop"),
        (lambda: ROWS.shuffle(9, seed=1).repeat(2).batch(8).take(3), "RepeatDataset .*a TakeDataset may stop"),
        (
            lambda: tf.data.Dataset.zip(ROWS.batch(8), ROWS.shuffle(9, seed=1).repeat().batch(8)).map(lambda a, b: a),
            "RepeatDataset comes after `shuffle`, and a ZipDataset may stop before its end",
        ),
        (lambda: ROWS.batch(8).flat_map(lambda x, y: of_a_batch(x, y).shuffle(8)).batch(8), "function.*without a seed"),
        (
            lambda: ROWS.batch(8).flat_map(lambda x, y: of_a_batch(x, y).shuffle(8, seed=1)).apply(SIXTEEN).batch(8),
            None,
        ),
    ],
    ids=[
        "generator",
        "numpy",
        "eager",
        "numpy_stateless",
        "shuffle_and_repeat",
        "layer",
        "unseeded",
        "seeded_parallel",
        "seeded",
        "constant",
        "map_unordered",
        "unordered",
        "zipped",
        "shuffled_once",
        "shuffled_twice",
        "cached",
        "repeated",
        "zipped_endless",
        "shuffled_within",
        "shuffled_within_seeded",
    ],
)
def test_random_data_sets(data, message, tmp_path):
    tf.random.set_seed(None)
    model, checkpoint = plain(), ResumableCheckpoint(tmp_path / "folder", verbose=0)
    if message is None:
        model.fit(data(), shuffle=None, verbose=0, callbacks=[checkpoint])
    else:
        with pytest.raises(ValueError, match=message):
            model.fit(data(), shuffle=None, verbose=0, callbacks=[checkpoint])


class Own(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


class OwnFromAnyEpoch(Own):
    def start_at(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(
    "make", [OwnFromAnyEpoch, lambda workers: EpochBatches(X, Y, batch_size=8)], ids=["own", "ours"]
)
def test_batches_that_fit_shuffles_by_a_seed_are_refused(make, tmp_path):
    keras.utils.set_random_seed(0)
    with pytest.raises(ValueError, match="shuffles the batches of .* with Python's random numbers.*shuffle=False"):
        plain().fit(make(workers=2), verbose=0, callbacks=[ResumableCheckpoint(tmp_path, verbose=0)])


def test_batches_of_worker_threads_in_their_order_are_accepted(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path / "folder", stateless=[Own], verbose=0)
    plain().fit(Own(workers=2), shuffle=False, verbose=0, callbacks=[checkpoint])


@pytest.mark.parametrize(
    ("is_seeded", "data", "options"),
    [
        (False, lambda: X, {"y": Y, "batch_size": 5}),
        (True, lambda: X, {"y": Y, "batch_size": 5}),
        (True, lambda: {"a": X, "b": tf.constant(X)}, {"y": [Y], "batch_size": 8, "sample_weight": np.ones(16)}),
        (
            True,
            lambda: X.astype("float64"),
            {"y": Y, "batch_size": 8, "class_weight": dict.fromkeys(range(-9, 9), 1.0), "shuffle": 1},
        ),
    ],
    ids=["unseeded", "rest", "nested", "double_truthy"],
)
def test_arrays_that_fit_shuffles_come_in_the_same_order(data, options, is_seeded, tmp_path):
    check_rows(tmp_path, data, is_seeded, **options)


class Recording(keras.Model):
    """Remembers the rows of each batch."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop, self.rows = layers.Dense(1), layers.Dropout(0.5), []

    def call(self, x, training=False):
        return self.dense(self.drop(x["a"] if isinstance(x, dict) else x, training=training))

    def train_step(self, data):
        x = data[0]["a"] if isinstance(data[0], dict) else data[0]
        tf.py_function(lambda rows: self.rows.append(rows.numpy().astype("float32")), [x], [])
        return super().train_step(data)


def check_rows(folder, data, is_seeded, **options):
    def run(place, epochs, seed=0, callbacks=True):
        keras.utils.set_random_seed(seed)
        if not is_seeded:
            tf.random.set_seed(None)
        model = Recording()
        model.compile(optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        checkpoints = [ResumableCheckpoint(place, verbose=0)] * callbacks
        model.fit(data(), epochs=epochs, verbose=0, callbacks=checkpoints, **options)
        return model.rows, [np.asarray(variable).tobytes() for variable in model.variables]

    whole_rows, whole = run(folder / "whole", 4)
    run(folder / "parts", 2)
    rows, resumed = run(folder / "parts", 4, seed=0 if is_seeded else 9)
    assert resumed == whole
    if is_seeded:
        assert run(folder / "none", 4, callbacks=False)[1] == whole
        with pytest.raises(ValueError, match="order of rows was Keras's, from the seed 0 of tf.random, is .* 9 of"):
            run(folder / "parts", 5, seed=9)
    assert len(rows) == len(whole_rows)  # which the model holds, so that those of before are resumed too
    assert all(map(np.array_equal, rows, whole_rows))
    num_batches = len(whole_rows) // 4
    epochs = [np.concatenate(whole_rows[epoch * num_batches :][:num_batches]) for epoch in range(4)]
    assert all(sorted(map(tuple, epoch)) == sorted(map(tuple, X)) for epoch in epochs)
    assert is_seeded or any(not np.array_equal(epoch, epochs[0]) for epoch in epochs[1:])


class EvaluatingOnTheData(keras.callbacks.Callback):
    """Draws from the data set's generator behind the back of `fit`."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_end(self, epoch, logs=None):
        list(self.data)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class OwnInThreads(OwnFromAnyEpoch):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


@pytest.mark.parametrize(
    "data",
    [
        lambda: ROWS.cache().shuffle(16).map(lambda x, y: (x, y), 2).batch(2, drop_remainder=True).prefetch(2),
        lambda: tf.data.Dataset.zip(ROWS.shuffle(5, seed=1), ROWS.shuffle(5, seed=1)).map(lambda a, b: a).batch(2),
        lambda: ROWS.batch(4).shuffle(4).unbatch().filter(lambda x, y: True).padded_batch(2).take(8).apply(EIGHT),
        lambda: EpochBatches(X, Y, batch_size=2),
        lambda: OwnInThreads(workers=1),
        lambda: OwnInThreads(workers=2),
    ],
    ids=["global_seed", "zip", "batches", "epoch_batches", "py_dataset", "threads"],
)
def test_shuffled_data_sets_resume(data, tmp_path):
    def run(place, ends):
        keras.utils.set_random_seed(0)
        model, rows = Recording(), data()
        if isinstance(rows, keras.utils.PyDataset):
            tf.random.set_seed(None)  # with a seed, Keras's own order is wanted, which a thread draws
        model.compile(optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        callbacks, shuffle = [ResumableCheckpoint(place, verbose=0)] if place else [], True
        if isinstance(rows, tf.data.Dataset):
            callbacks, shuffle = [EvaluatingOnTheData(rows), *callbacks], None  # which Keras wants with a data set
        for epochs in ends:
            model.fit(rows, shuffle=shuffle, epochs=epochs, verbose=0, callbacks=callbacks)
        return model.rows, [np.asarray(variable).tobytes() for variable in model.variables]

    whole_rows, whole = run(tmp_path / "whole", [5])
    run(tmp_path / "parts", [1, 3])
    rows, resumed = run(tmp_path / "parts", [5])
    assert resumed == whole
    if isinstance(data(), tf.data.Dataset):
        assert run(None, [5])[1] == whole  # Keras's own order
    assert len(rows) == len(whole_rows) == 40
    assert all(map(np.array_equal, rows, whole_rows))
    epochs = [np.concatenate(whole_rows[start : start + 8]) for start in range(0, 40, 8)]
    assert all(sorted(map(tuple, epoch)) == sorted(map(tuple, X)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) > 2


def test_other_data_sets_are_named(tmp_path):
    def run(size, epochs, factor=1.0):
        data = ROWS.shuffle(size, seed=3).map(lambda x, y: (factor * x, y)).batch(2)
        plain().fit(data, shuffle=None, epochs=epochs, verbose=0, callbacks=[ResumableCheckpoint(tmp_path, verbose=0)])

    run(16, 1)
    with pytest.raises(ValueError, match="data set was .*'buffer_size': 16.* is .*'buffer_size': 8"):
        run(8, 2)
    with pytest.raises(ValueError, match="data set was .*'functions'.* is .*'functions'"):
        run(16, 2, factor=2.0)
    run(16, 2)


def test_a_data_set_that_calls_python_is_accepted_on_the_users_word(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, stateless=[tf.data.Dataset], verbose=0)
    plain().fit(through_python().batch(8), shuffle=None, verbose=0, callbacks=[checkpoint])
