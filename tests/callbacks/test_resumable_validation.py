"""Validation data are at the same place after a restart; where they cannot be, no callback decides by them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.callbacks import ResumableCheckpoint
from tfopt.datasets import EpochBatches

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.normal(size=(12, 1)).astype("float32")
ROWS = tf.data.Dataset.from_tensor_slices((X, Y))


class Own(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[4 * index : 4 * index + 4], Y[4 * index : 4 * index + 4]


def generated():
    while True:
        yield X[:4], Y[:4]


def plateau():
    return keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=0.0)


def fit(folder, epochs, make, callbacks=(), stateless=(), **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh"), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.3, momentum=0.9), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)  # else `fit` does, and traces its step twice
    callbacks = [*callbacks, ResumableCheckpoint(folder, stateless=stateless, verbose=0)]
    options = {"shuffle": False, "batch_size": 4, **options}
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=callbacks, validation_data=make(), **options)
    weights = [np.asarray(variable).tobytes() for variable in (*model.variables, *model.optimizer.variables)]
    return weights, model.history.history


@pytest.mark.parametrize(
    ("make", "options"),
    [
        # Two of three batches, so that other epochs have other rows.
        (lambda: EpochBatches(X, Y, batch_size=4, seed=1), {"validation_steps": 2}),
        (lambda: EpochBatches(X, Y, batch_size=4, seed=1), {"validation_steps": 2, "validation_freq": 2}),
        (lambda: (X, Y), {"validation_steps": 2}),
        (lambda: ROWS.shuffle(12, seed=1, reshuffle_each_iteration=False).batch(4).repeat(), {"validation_steps": 2}),
        (lambda: None, {"validation_split": 0.5}),
        (lambda: ROWS.shuffle(12, seed=1).batch(4), {"validation_steps": 2}),
    ],
    ids=["epoch_batches", "every_other_epoch", "arrays", "data_set", "split", "shuffled"],
)
def test_validation_goes_on_where_it_was(make, options, tmp_path):
    callbacks = list if "validation_freq" in options else lambda: [plateau()]
    whole = fit(tmp_path / "whole", 5, make, callbacks(), **options)
    fit(tmp_path / "parts", 2, make, callbacks(), **options)
    assert fit(tmp_path / "parts", 5, make, callbacks(), **options) == whole


UNKNOWN = {
    "generator": (generated, {"validation_steps": 1}, "from a generator"),
    "shuffled": (lambda: ROWS.shuffle(12, seed=1).batch(4).cache(), {"validation_steps": 2}, "`validation_steps` may"),
    "own": (Own, {}, r"in which order Own serves.*stateless=\[Own\]"),
}


@pytest.mark.parametrize(
    "callback",
    [
        plateau,
        lambda: keras.callbacks.EarlyStopping("val_loss", patience=9),
        lambda: keras.callbacks.ModelCheckpoint("/nowhere/best.keras", monitor="val_loss", save_best_only=True),
    ],
    ids=["plateau", "stopping", "best"],
)
@pytest.mark.parametrize("name", UNKNOWN)
def test_callbacks_that_decide_by_data_of_unknown_order_are_refused(name, callback, tmp_path):
    make, options, message = UNKNOWN[name]
    name = type(callback()).__name__
    with pytest.raises(ValueError, match=f"The validation data cannot be resumed: .*{message}.*{name} would decide"):
        fit(tmp_path / "folder", 1, make, [callback()], **options)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("name", UNKNOWN)
def test_data_of_unknown_order_that_nobody_decides_by_are_warned_about(name, tmp_path):
    make, options, message = UNKNOWN[name]
    callbacks = [
        keras.callbacks.EarlyStopping("loss", patience=9),
        keras.callbacks.ModelCheckpoint(tmp_path / "all.keras", monitor="val_loss"),
    ]
    with pytest.warns(UserWarning, match=f"The validation data cannot be resumed: .*{message}"):
        fit(tmp_path / "folder", 1, make, callbacks, **options)


def test_the_users_word_is_taken(tmp_path):
    fit(tmp_path, 1, Own, [plateau()], stateless=[Own])
    assert len(list(tmp_path.glob("epoch-*.npz"))) == 1
