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
from tfopt._checkpoints import earlier_fits
from tfopt.bregman import BregmanTrainer, start

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


def test_weights_are_the_models_after_resuming(tmp_path):
    weights, _, _, _ = train(tmp_path, "restarted", epochs=2)
    model = models.mlp((8, 8, 1), (16,), 10, seed=0)
    trainer = BregmanTrainer(model, "sparse_categorical_crossentropy", ["accuracy"])
    early, validation = keras.callbacks.EarlyStopping(), (DATA.x_validation, DATA.y_validation)
    options = {"epochs": 2, "verbose": 0, "checkpoint": tmp_path, "callbacks": [early], "validation_data": validation}
    trainer.fit(DATA.x_train, DATA.y_train, **options)
    for ours, kept in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours.ravel(), np.frombuffer(kept, np.float32))


X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")


def make(seed=None, hidden=(4,), **options):
    return models.mlp(3, hidden, 1, seed=seed, **options)


def with_common_seed(seed):
    keras.utils.set_random_seed(seed)
    return make()


def loaded(seed):
    model = make()
    model.set_weights(make(seed).get_weights())
    return model


def with_generator(seed):
    return make(kernel_initializer=keras.initializers.HeNormal(keras.random.SeedGenerator(seed)))


def of_a_function(shape, dtype=None):
    return keras.random.normal(shape, dtype=dtype)


def fit(model, folder, epochs=2, **options):
    return BregmanTrainer(model, "mse", **options).fit(X, X[:, 0], epochs=epochs, verbose=0, checkpoint=folder).history


@pytest.fixture
def as_new_process(monkeypatch):
    def forget():
        monkeypatch.setattr(start, "_LAST_MODELS", {})
        monkeypatch.setattr(earlier_fits, "_LEFT", {})

    return forget


@pytest.mark.parametrize("epochs", [2, 4], ids=["complete", "to go on"])
@pytest.mark.parametrize("process", ["same", "new"])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda: make(0), lambda: make(1), r"kernel of Dense layer 1 was of the checksum \w+ \(seed \d+\), is of the"),
        (lambda: make(0), make, "kernel of Dense layer 1 was of the .* is drawn by VarianceScaling"),
        (lambda: with_common_seed(0), lambda: with_common_seed(1), r"set_random_seed\(0\), is .*set_random_seed\(1\)"),
        (lambda: loaded(0), lambda: loaded(1), "kernel of Dense layer 1 was of the checksum"),
        (make, lambda: loaded(1), "was drawn by VarianceScaling.*, is of the checksum"),
        (lambda: with_generator(0), lambda: with_generator(1), "kernel of Dense layer 1 was of the checksum"),
        (make, lambda: make(kernel_initializer="lecun_normal"), "was drawn by VarianceScaling.* by LecunNormal"),
    ],
    ids=["seeds", "a seed less", "common seeds", "loaded", "drawn or loaded", "generators", "initializers"],
)
def test_another_start_is_refused(first, second, message, process, epochs, tmp_path, as_new_process):
    fit(first(), tmp_path)
    if process == "new":
        as_new_process()
    model = second()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"is of another training, which began with other weights: the .*{message}"):
        fit(model, tmp_path, epochs)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("epochs", [2, 3], ids=["complete", "to go on"])
@pytest.mark.parametrize(
    "again",
    [
        lambda: make(0),
        lambda: with_common_seed(0),
        lambda: loaded(0),
        lambda: with_generator(0),
        lambda: make(0, kernel_initializer=keras.initializers.RandomNormal()),
    ],
    ids=["seed", "common seed", "loaded", "generator", "normal"],
)
def test_the_same_start_goes_on(again, epochs, tmp_path, as_new_process):
    begun = fit(again(), tmp_path)["loss"]
    as_new_process()
    assert fit(again(), tmp_path, epochs)["loss"][:2] == begun


@pytest.mark.parametrize("kind", [make, lambda: with_generator(None), lambda: make(kernel_initializer=of_a_function)])
def test_a_restart_without_seeds_goes_on(kind, tmp_path, as_new_process):
    begun = fit(kind(), tmp_path)["loss"]
    assert fit(kind(), tmp_path, 3)["loss"][:2] == begun  # Another model, as after an interruption in a notebook.
    with pytest.raises(ValueError, match="this process has trained another model in this folder, to the end. .*seed"):
        fit(kind(), tmp_path, 3)
    as_new_process()
    with pytest.warns(UserWarning, match="is complete, and `fit` returns its weights. .*without a seed") as caught:
        assert fit(kind(), tmp_path, 3)["loss"][:2] == begun
    assert caught[0].filename == __file__


def test_a_model_that_went_on_elsewhere_is_refused(tmp_path):
    model = make()
    fit(model, tmp_path / "one")
    fit(model, tmp_path / "one", 3)
    fit(model, tmp_path / "other", 3)
    with pytest.raises(ValueError, match="which began with other weights"):
        fit(model, tmp_path / "one", 4)


def test_a_model_goes_on_after_an_interruption_between_checkpoints(tmp_path):
    def interrupt(epoch, logs):
        if epoch == 2:
            raise Interruption

    model = make()
    options = {"epochs": 5, "verbose": 0, "checkpoint": tmp_path, "checkpoint_every_n_epochs": 2}
    interruption = keras.callbacks.LambdaCallback(on_epoch_end=interrupt)
    with pytest.raises(Interruption):
        BregmanTrainer(model, "mse").fit(X, X[:, 0], callbacks=[interruption], **options)
    assert BregmanTrainer(model, "mse").fit(X, X[:, 0], **options).epoch == [0, 1, 2, 3, 4]


def test_weights_of_the_training_go_on(tmp_path, as_new_process):
    model = make()
    fit(model, tmp_path)
    as_new_process()
    saved = make()
    saved.set_weights(model.get_weights())
    assert len(fit(saved, tmp_path, 3)["loss"]) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [False, True]),
        ({"ridge": 0.1}, [True, True]),
        ({"order": "backward"}, [True, False]),
        ({"order": "backward", "last_layer_order": "Z,W"}, [True, True]),
        ({"update": "jacobi"}, [True, True]),
        ({"initialization": "forward"}, [True, True]),
    ],
    ids=str,
)
def test_first_weights_that_do_not_matter_may_differ(options, expected, tmp_path):
    def changed(which):
        model = make(0)
        for layer, changes in zip([layer for layer in model.layers if layer.weights], which, strict=True):
            if changes:
                layer.set_weights([1 - 2 * weights for weights in layer.get_weights()])
        return model

    def train(folder, *which):
        return fit(model := changed(which), tmp_path / folder, preset="paper", **options), model.get_weights()

    _, kept = train("none", False, False)
    for layer, matters in enumerate(expected):
        others = [number == layer for number in range(2)]
        _, found = train(str(layer), *others)
        assert any((one != other).any() for one, other in zip(found, kept, strict=True)) == matters
        if matters:
            with pytest.raises(ValueError, match=f"began with other weights: the kernel of Dense layer {layer + 1}"):
                train("none", *others)
        else:
            train("none", *others)


def test_other_arguments_of_metrics_are_refused(tmp_path):
    fit(make(0), tmp_path, metrics=[keras.metrics.BinaryAccuracy("at", threshold=0.5)])
    with pytest.raises(ValueError, match=r"metrics was \['at\(threshold=0.5\).*is \['at\(threshold=0.25\)"):
        fit(make(0), tmp_path, 3, metrics=[keras.metrics.BinaryAccuracy("at", threshold=0.25)])
