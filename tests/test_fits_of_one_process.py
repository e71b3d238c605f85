"""A second `fit` in the folder of one that has ended in the same process goes on with it, or is refused.

What resumes in another process is in `tests/callbacks/test_resumable_*.py`.
"""

import contextlib
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import models
from tfopt._checkpoints import earlier_fits
from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import ResumableCheckpoint

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = np.sin(X[:, :1])


def make_model(seed=None):
    if seed is not None:
        keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=False)
    return model


def fit(model, folder, epochs, *callbacks, initial_epoch=0):
    """Train, with checkpoints unless `folder` is None; return the epochs of the history."""
    callbacks = [*callbacks, *([] if folder is None else [ResumableCheckpoint(folder, verbose=0)])]
    options = {"epochs": epochs, "initial_epoch": initial_epoch, "shuffle": False, "batch_size": 8, "verbose": 0}
    return model.fit(X, Y, **options, callbacks=callbacks).epoch


def weights_of(model):
    return [weight.tobytes() for weight in model.get_weights()]


def bits(model):
    return [np.asarray(value).tobytes() for value in (*model.variables, *model.optimizer.variables)]


def set_weights(model):
    model.set_weights([0.5 * weight for weight in model.get_weights()])
    return model


def train_on(model):
    fit(model, None, 1)
    return model


def reset_momentum(model):
    for variable in model.optimizer.variables[2:]:
        variable.assign(keras.ops.zeros_like(variable))
    return model


OTHER_VALUES = "after 2 epochs, and this one begins with other values of .* Pass another folder"
NOTHING = (
    r"after 2 epochs, and this one would train nothing. Received: initial_epoch={}, epochs={}. .*initial_epoch=2, "
)


@pytest.mark.parametrize(
    ("change", "epochs", "initial_epoch", "message"),
    [
        (lambda model: make_model(), 2, 0, OTHER_VALUES),  # a loop over runs
        (lambda model: make_model(), 4, 0, OTHER_VALUES),
        (lambda model: make_model(), 4, 2, OTHER_VALUES),
        (set_weights, 4, 2, OTHER_VALUES),
        (train_on, 4, 2, OTHER_VALUES),
        (reset_momentum, 4, 2, OTHER_VALUES),
        (lambda model: model, 2, 0, NOTHING.format(0, 2) + "epochs=4"),  # a cell that is run twice
        (lambda model: model, 1, 0, NOTHING.format(0, 1) + "epochs=3"),
        (lambda model: model, 2, 1, NOTHING.format(1, 2) + "epochs=3"),
    ],
)
def test_another_training_is_refused_and_changes_nothing(tmp_path, change, epochs, initial_epoch, message):
    model = make_model()
    fit(model, tmp_path, 2)
    model = change(model)
    before = weights_of(model), sorted(tmp_path.iterdir())
    for _ in range(2):  # A refusal is no interruption.
        with pytest.raises(ValueError, match=message):
            fit(model, tmp_path, epochs, initial_epoch=initial_epoch)
    assert (weights_of(model), sorted(tmp_path.iterdir())) == before


def test_epochs_in_a_loop_train_as_without_checkpoints(tmp_path):
    expected, model = make_model(seed=0), make_model(seed=0)
    for epoch in range(3):
        fit(expected, None, epoch + 1, initial_epoch=epoch)
        assert fit(model, tmp_path, epoch + 1, initial_epoch=epoch)[-1] == epoch
        model.evaluate(X, Y, verbose=0)  # changes nothing that matters
    assert bits(model) == bits(expected)


@pytest.mark.filterwarnings("ignore:The checkpoint in .* more than `fit` asks for")
def test_such_a_loop_goes_on_after_a_restart(tmp_path, monkeypatch):
    expected = make_model(seed=0)
    fit(expected, None, 4)
    model = make_model(seed=0)
    for epoch in range(2):
        fit(model, tmp_path, epoch + 1, initial_epoch=epoch)
    monkeypatch.setattr(earlier_fits, "_LEFT", {})  # as in a new process
    model = make_model()
    for epoch in range(4):
        fit(model, tmp_path, epoch + 1, initial_epoch=epoch)
    assert bits(model) == bits(expected)


def test_the_same_training_again_has_the_same_result(tmp_path):
    """The same seeds and data end with the same bits, so that the checkpoint is right."""
    first = make_model(seed=0)
    fit(first, tmp_path, 2)
    again = make_model(seed=0)
    fit(again, tmp_path, 2)
    assert bits(again) == bits(first)
    longer, expected = make_model(seed=0), make_model(seed=0)
    fit(longer, tmp_path, 3)
    fit(expected, None, 3)
    assert bits(longer) == bits(expected)


def test_the_same_weights_in_an_order_drawn_anew_are_another_training(tmp_path):
    weights = make_model().get_weights()
    tf.random.set_seed(None)
    refusals = [contextlib.nullcontext(), pytest.raises(ValueError, match=OTHER_VALUES)]
    for run, refusal in enumerate(refusals):
        random.seed(run)
        model = make_model()
        model.set_weights(weights)
        checkpoint = ResumableCheckpoint(tmp_path, verbose=0)
        with refusal:
            model.fit(X, Y, epochs=2, batch_size=8, verbose=0, callbacks=[checkpoint])


class Interrupt(keras.callbacks.Callback):
    def get_state(self):
        return {}

    def set_state(self, state):
        pass

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_made_anew", [True, False])
def test_an_interrupted_training_is_resumed(tmp_path, is_made_anew):
    expected, model = make_model(seed=0), make_model(seed=0)
    fit(expected, None, 4)
    keep = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        fit(model, tmp_path, 4, keep)
    keep.on_epoch_begin = lambda epoch, logs=None: None
    model = make_model() if is_made_anew else model  # without a seed: other first weights
    assert fit(model, tmp_path, 4, keep) == [0, 1, 2, 3]
    assert bits(model) == bits(expected)


def test_a_stopped_training_stays_stopped(tmp_path):
    def stop():
        return keras.callbacks.EarlyStopping("loss", min_delta=100.0, patience=1)

    model = make_model(seed=0)
    assert fit(model, tmp_path, 5, stop()) == [0, 1]
    for epochs, initial_epoch in ((5, 0), (9, 0), (4, 2)):
        with pytest.raises(ValueError, match="because a callback stopped it.*Pass another folder"):
            fit(model, tmp_path, epochs, stop(), initial_epoch=initial_epoch)
    assert fit(make_model(seed=0), tmp_path, 5, stop()) == [0, 1]  # the same training


def test_a_deleted_folder_begins_anew(tmp_path):
    for _ in range(2):
        assert fit(make_model(), tmp_path, 2) == [0, 1]
        for path in tmp_path.iterdir():
            path.unlink()


def bregman(model, folder, epochs, initial_epoch=0):
    trainer = BregmanTrainer(model, "mse")
    history = trainer.fit(X, Y, epochs=epochs, initial_epoch=initial_epoch, verbose=0, checkpoint=folder)
    return history.history["loss"]


@pytest.mark.parametrize(
    ("change", "epochs", "initial_epoch"), [(lambda model: models.mlp(4, (6,), 1, seed=1), 2, 0), (set_weights, 4, 2)]
)
def test_the_bregman_trainer_refuses_another_training(tmp_path, change, epochs, initial_epoch):
    model = models.mlp(4, (6,), 1, seed=0)
    bregman(model, tmp_path, 2)
    model = change(model)
    before = model.get_weights()
    with pytest.raises(ValueError, match="began with other weights"):
        bregman(model, tmp_path, epochs, initial_epoch)
    assert all(map(np.array_equal, before, model.get_weights()))


@pytest.mark.parametrize(("epochs", "initial_epoch"), [(2, 0), (1, 0), (2, 1)])
def test_the_bregman_trainer_refuses_to_train_nothing(tmp_path, epochs, initial_epoch):
    model = models.mlp(4, (6,), 1, seed=0)
    bregman(model, tmp_path, 2)
    before = weights_of(model)
    for _ in range(2):
        with pytest.raises(ValueError, match=NOTHING.format(initial_epoch, epochs)):
            bregman(model, tmp_path, epochs, initial_epoch)
    assert weights_of(model) == before
    assert len(bregman(model, tmp_path, 4, 2)) == 4  # as the message advises


def test_the_bregman_trainer_goes_on_to_more_sweeps(tmp_path):
    model = models.mlp(4, (6,), 1, seed=0)
    for epochs in (2, 4):
        losses = bregman(model, tmp_path / "parts", epochs)
    assert losses == bregman(models.mlp(4, (6,), 1, seed=0), tmp_path / "whole", 4)
    assert losses == bregman(models.mlp(4, (6,), 1, seed=0), tmp_path / "whole", 4)  # the same training again
