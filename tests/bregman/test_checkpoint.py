"""Training that was interrupted ends with the bits of one that was not."""

import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import train_until_killed
from train_until_killed import DATA, train

from tfopt import models
from tfopt.bregman import BregmanTrainer

SCRIPT = Path(train_until_killed.__file__)


@pytest.mark.slow_by_nature
def test_after_sigkill_training_goes_on_to_the_same_bits(tmp_path):
    killed = subprocess.run([sys.executable, SCRIPT, tmp_path, "4"], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL
    names = sorted(path.name for path in (tmp_path / "killed").glob("epoch-*"))
    assert names == ["epoch-000003.rank-0-of-1.npz", "epoch-000004.rank-0-of-1.npz"]
    resumed = subprocess.run([sys.executable, SCRIPT, tmp_path, "-1"], capture_output=True, text=True, check=True)
    assert "SAME True" in resumed.stdout


class Interruption(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("paper", {"multiplier_step": 2, "num_warm_start_iterations": 2}),
        ("penalty", {"penalty_growth": 1.1, "order": "alternating", "state_dtype": "float16"}),
        ("admm", {"update": "jacobi"}),
        ("restarted", {"num_blocks": 5}),
    ],
)
def test_every_algorithm_resumes(preset, options, tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", preset, **options)

    def interrupt(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(train_until_killed.Die, "on_epoch_end", interrupt)
        with pytest.raises(Interruption):
            train(tmp_path / "parts", preset, die_at=5, **options)
    assert train(tmp_path / "parts", preset, **options) == whole


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole = train(tmp_path / "whole", "restarted")
    train(tmp_path / "parts", "restarted", epochs=5)
    newest = tmp_path / "parts" / "epoch-000005.rank-0-of-1.npz"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="Ignoring a damaged checkpoint"):
        again = train(tmp_path / "parts", "restarted")
    assert again == whole


def test_training_that_is_done_returns_at_once(tmp_path):
    first = train(tmp_path, "restarted", epochs=3)
    assert train(tmp_path, "restarted", epochs=3) == first


def test_training_that_was_stopped_stays_stopped(tmp_path):
    def fit(epochs):
        trainer = BregmanTrainer(models.mlp((8, 8, 1), (16,), 10, seed=0), "sparse_categorical_crossentropy")
        stop = keras.callbacks.EarlyStopping(monitor="loss", min_delta=1e9, patience=2)
        return trainer.fit(DATA.x_train, DATA.y_train, epochs=epochs, verbose=0, callbacks=[stop], checkpoint=tmp_path)

    assert fit(10).epoch == fit(10).epoch == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": (17,)}, r"network was \[\[64, 16, 10\].* is \[\[64, 17, 10\]"),
        ({"ridge": 0.5}, "ridge was 0.1, is 0.5. Change"),
        ({"use_bias": False}, r"biases was \[True, True\], is \[False, False\]"),
        ({"reverse": True}, "checksum of the rows was"),
        ({"loss": "mse"}, "loss was softmax cross-entropy, is squared error"),
        ({"rows": 100}, "rows was"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(changes, message, tmp_path):
    def fit(hidden=(16,), loss="sparse_categorical_crossentropy", rows=1000, use_bias=True, reverse=False, **options):
        trainer = BregmanTrainer(models.mlp((8, 8, 1), hidden, 10, seed=0, use_bias=use_bias), loss, **options)
        x, y = DATA.x_train[:rows], DATA.y_train[:rows]
        y = np.eye(10)[y] if loss == "mse" else y
        trainer.fit(x[::-1] if reverse else x, y, epochs=1, verbose=0, checkpoint=tmp_path)

    fit()
    with pytest.raises(ValueError, match=f"is of another training: .*{message}"):
        fit(**changes)


def test_a_log_that_would_be_emptied_is_refused(tmp_path):
    trainer = BregmanTrainer(models.mlp((8, 8, 1), (16,), 10, seed=0), "sparse_categorical_crossentropy")
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    with pytest.raises(ValueError, match=r"CSVLogger\(..., append=True\)"):
        trainer.fit(DATA.x_train, DATA.y_train, epochs=1, verbose=0, checkpoint=tmp_path / "c", callbacks=[log])


def test_other_callbacks_are_refused(tmp_path):
    train(tmp_path, "restarted", epochs=1)
    trainer = BregmanTrainer(models.mlp((8, 8, 1), (16,), 10, seed=0), "sparse_categorical_crossentropy", ["accuracy"])
    validation = (DATA.x_validation, DATA.y_validation)
    with pytest.raises(ValueError, match=r"state of the callbacks \['EarlyStopping of val_loss'\], but `fit` has \[\]"):
        trainer.fit(DATA.x_train, DATA.y_train, epochs=2, verbose=0, checkpoint=tmp_path, validation_data=validation)


@pytest.mark.usefixtures("each_fit_in_its_own_process")
def test_weights_are_the_models_after_resuming(tmp_path):
    weights, _, _, _ = train(tmp_path, "restarted", epochs=2)
    model = models.mlp((8, 8, 1), (16,), 10, seed=5)
    trainer = BregmanTrainer(model, "sparse_categorical_crossentropy", ["accuracy"])
    early, validation = keras.callbacks.EarlyStopping(), (DATA.x_validation, DATA.y_validation)
    options = {"epochs": 2, "verbose": 0, "checkpoint": tmp_path, "callbacks": [early], "validation_data": validation}
    trainer.fit(DATA.x_train, DATA.y_train, **options)
    for ours, kept in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours.ravel(), np.frombuffer(kept, np.float32))
