"""The trainer as a user meets it: what `fit` takes, returns, logs, keeps and refuses."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import datasets, models
from tfopt.bregman import BregmanTrainer, losses
from tfopt.bregman.keras_loss import read_loss
from tfopt.bregman.network import DenseChain
from tfopt.callbacks import (
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    ResumableCheckpoint,
    WarmupLearningRate,
    WeightNorms,
)

DIGITS = datasets.load("digits", validation_fraction=0.25)
X, Y = DIGITS.x_train, DIGITS.y_train
VALIDATION = (DIGITS.x_validation, DIGITS.y_validation)
CE = "sparse_categorical_crossentropy"
MSE = keras.losses.MeanSquaredError()
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
CATEGORICAL = keras.losses.CategoricalCrossentropy(from_logits=True)


def make_trainer(loss=CE, metrics=("accuracy",), hidden=(16,), seed=0, **options):
    return BregmanTrainer(models.mlp((8, 8, 1), hidden, 10, seed=seed), loss, metrics=metrics, **options)


# The algorithm that keeps its variables logs the same names with every preset.
@pytest.mark.parametrize("preset", ["restarted", "penalty"])
def test_history_holds_what_was_logged(preset, tmp_path):
    trainer = make_trainer(preset=preset)
    log = tmp_path / "log.csv"
    history = trainer.fit(
        X, Y, epochs=3, verbose=0, validation_data=VALIDATION, callbacks=[keras.callbacks.CSVLogger(log)]
    )
    assert isinstance(history, keras.callbacks.History)
    assert history.epoch == [0, 1, 2]
    always = {"loss", "accuracy", "val_loss", "val_accuracy", "objective", "penalty_scale", "seconds", "bytes_reduced"}
    assert always | {"primal_residual/1", "primal_residual/2"} <= set(history.history)
    assert ("multiplier_norm" in history.history) == (preset != "restarted")
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [float(row["val_loss"]) for row in rows] == pytest.approx(history.history["val_loss"])
    assert history.history["seconds"][0] > 0


def test_logs_are_those_of_keras():
    trainer = make_trainer(metrics=["accuracy", "sparse_top_k_categorical_accuracy"])
    history = trainer.fit(X, Y, epochs=4, verbose=0, validation_data=VALIDATION).history
    model = trainer.model
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    for prefix, data in (("", (X, Y)), ("val_", VALIDATION)):
        loss, accuracy = model.evaluate(*data, verbose=0, batch_size=500)
        assert history[f"{prefix}loss"][-1] == pytest.approx(loss, rel=1e-4)
        assert history[f"{prefix}accuracy"][-1] == pytest.approx(accuracy, abs=1e-6)
    measured = trainer.evaluate(*VALIDATION)
    assert measured["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-5)
    assert set(measured) == {"loss", "accuracy", "sparse_top_k_categorical_accuracy"}


# Few numbers of outputs, so that the losses share what is compiled for the hidden layers.
@pytest.mark.parametrize(
    ("loss", "outputs", "kind", "expected"),
    [
        ("mse", 4, "numbers", MSE),
        (MSE, 4, "numbers", MSE),
        ("binary_crossentropy", 1, "yes or no", BINARY),
        (BINARY, 4, "many yes or no", BINARY),
        ("hinge", 1, "yes or no", keras.losses.Hinge()),
        ("unit_hinge", 4, "many yes or no", None),
        (losses.hinge(0.0), 4, "labels", None),
        ("categorical_crossentropy", 4, "one-hot", CATEGORICAL),
        (CATEGORICAL, 4, "labels", CATEGORICAL),
        (CE, 4, "column of labels", CATEGORICAL),
    ],
)
def test_every_loss_trains(loss, outputs, kind, expected):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype("float32")
    scores = x @ rng.normal(size=(6, outputs)) + 0.5 * np.abs(x[:, :1])
    labels = scores.argmax(1)
    y = {
        "numbers": scores,
        "yes or no": (scores > 0).astype(int),
        "many yes or no": (scores > 0).astype(int),
        "labels": labels,
        "column of labels": labels[:, None],
        "one-hot": np.eye(max(outputs, 2))[labels] if outputs > 1 else None,
    }[kind]
    trainer = BregmanTrainer(models.mlp(6, (16,), outputs, seed=0), loss)
    history = trainer.fit(x, y, epochs=25, verbose=0).history["loss"]
    assert history[-1] < 0.35 * history[0]
    if expected is not None:
        targets = np.eye(outputs)[labels] if "label" in kind else np.asarray(y, "float32").reshape(len(x), -1)
        value = float(expected(targets, trainer.model.predict(x, verbose=0)))
        assert history[-1] == pytest.approx(value, rel=1e-4)


# One and two kinks, and smooth functions that rise throughout or do not, as in test_splitting.py.
@pytest.mark.parametrize("activation", ["relu", "relu6", "tanh", "gelu"])
def test_activations_of_every_kind_train(activation):
    trainer = BregmanTrainer(models.mlp((8, 8, 1), (16,), 10, activation=activation, seed=0), CE, ["accuracy"])
    history = trainer.fit(X, Y, epochs=12, verbose=0).history
    assert history["accuracy"][-1] > 0.93


def test_a_softmax_at_the_end_is_read_as_logits():
    plain, ending = make_trainer(), models.mlp((8, 8, 1), (16,), 10, output_activation="softmax", seed=0)
    ending = BregmanTrainer(ending, CE, ["accuracy"])
    histories = [t.fit(X, Y, epochs=3, verbose=0).history for t in (plain, ending)]
    assert histories[0]["loss"] == histories[1]["loss"]
    assert histories[0]["accuracy"] == histories[1]["accuracy"]
    np.testing.assert_allclose(ending.model.predict(X[:5], verbose=0).sum(1), 1, rtol=1e-5)


def test_input_may_come_as_array_memory_map_or_dataset(tmp_path):
    reference = None
    np.save(tmp_path / "x.npy", X)
    inputs = {
        "array": (X, Y),
        "memory map": (np.load(tmp_path / "x.npy", mmap_mode="r"), Y),
        "dataset": (tf.data.Dataset.from_tensor_slices((X, Y)).batch(100), None),
        "tensors": (tf.constant(X), tf.constant(Y)),
    }
    for x, y in inputs.values():
        trainer = make_trainer(chunk_rows=128)
        found = trainer.fit(x, y, epochs=3, verbose=0).history["loss"]
        reference = reference or found
        assert found == reference


# Of what splits, the preset with all multipliers.
@pytest.mark.parametrize("preset", ["restarted", "admm"])
def test_chunks_change_rounding_only(preset):
    def train(chunk_rows):
        keras.config.set_dtype_policy("float64")
        try:
            model = models.mlp((8, 8, 1), (16,), 10, seed=0)
        finally:
            keras.config.set_dtype_policy("float32")
        trainer = BregmanTrainer(model, CE, preset=preset, chunk_rows=chunk_rows)
        trainer.fit(X, Y, epochs=4, verbose=0)
        return np.concatenate([w.ravel() for w in model.get_weights()])

    tolerance = 1e-4 if preset == "admm" else 1e-9  # it solves nearly singular systems
    np.testing.assert_allclose(train(100), train(10_000), rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("preset", ["restarted", "penalty"])
def test_a_state_in_half_precision_trains_too(preset):
    half = make_trainer(preset=preset, state_dtype="float16").fit(X, Y, epochs=15, verbose=0).history
    full = make_trainer(preset=preset).fit(X, Y, epochs=15, verbose=0).history
    assert half["loss"] != full["loss"]
    assert half["accuracy"][-1] > full["accuracy"][-1] - 0.02


def test_validation_split_takes_the_last_rows():
    x, y = (np.concatenate(parts) for parts in zip((X, Y), VALIDATION, strict=True))
    share = (len(x) - len(X) + 0.5) / len(x)
    split = make_trainer().fit(x, y, epochs=2, verbose=0, validation_split=share).history
    given = make_trainer().fit(X, Y, epochs=2, verbose=0, validation_data=VALIDATION).history
    assert split["loss"] == given["loss"]
    assert split["val_loss"] == given["val_loss"]


def test_the_cadence_of_measurements():
    history = make_trainer(measure_every_n_epochs=3).fit(X, Y, epochs=7, verbose=0, validation_data=VALIDATION).history
    assert len(history["val_loss"]) == 3  # epochs 3, 6, and the last
    assert len(history["seconds"]) == 7


def test_keras_callbacks_and_ours_run(tmp_path):
    trainer = make_trainer()
    trainer.model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callbacks = [
        WeightNorms(),
        Convexity((X[:64], Y[:64]), every_n_epochs=1, num_matvecs=4),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.TensorBoard(tmp_path / "logs"),
        keras.callbacks.EarlyStopping(patience=2, monitor="val_loss", restore_best_weights=True),
    ]
    history = trainer.fit(X, Y, epochs=200, verbose=0, validation_data=VALIDATION, callbacks=callbacks)
    assert len(history.epoch) < 200
    assert history.best_epoch == int(np.argmin(history.history["val_loss"]))
    assert "hessian/lambda_max" in history.history
    assert len(history.history["weight_norms/max"]) == len(history.epoch)
    best = keras.models.load_model(tmp_path / "best.keras", compile=False).get_weights()
    for one, other in zip(best, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list((tmp_path / "logs").rglob("events*"))


def test_the_model_always_holds_the_current_weights():
    seen = []
    trainer = make_trainer()

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((trainer.evaluate(X, Y)["loss"], logs["loss"]))

    trainer.fit(X, Y, epochs=4, verbose=0, callbacks=[Watch()])
    for measured, logged in seen:
        assert measured == pytest.approx(logged, rel=1e-5)


def test_the_progress_bar_is_kerass(capsys):
    make_trainer().fit(X, Y, epochs=2, verbose=1)
    printed = capsys.readouterr().out
    assert "Epoch 2/2" in printed
    assert "accuracy:" in printed
    make_trainer().fit(X, Y, epochs=2, verbose=0)
    assert capsys.readouterr().out == ""


def test_divergence_gives_the_best_weights_back(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 4)), rng.integers(0, 2, 100)
    model = models.mlp(4, (8,), 1, seed=0)
    trainer = BregmanTrainer(model, "binary_crossentropy", preset="penalty", order="forward")

    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:  # what an overflow would leave
                nan = tf.fill((100, 8), np.float32(np.nan))
                (kept,) = self.model.engine._kept
                kept.write(((nan, ()), ((),), (), ()))

    import tfopt.bregman.run as module

    original = module.Splitting.start

    def start(self):
        model.engine = self
        return original(self)

    module.Splitting.start = start
    try:
        with pytest.warns(UserWarning, match=r"diverged in epoch 4: .*not finite.* the weights of epoch \d, the best"):
            history = trainer.fit(x, y, epochs=10, verbose=0, callbacks=[Break()], checkpoint=tmp_path)
        # It is not complete: the same call goes on after the last checkpoint.
        with pytest.warns(UserWarning, match="diverged in epoch 4"):
            trainer.fit(x, y, epochs=10, verbose=0, callbacks=[Break()], checkpoint=tmp_path)
    finally:
        module.Splitting.start = original
    assert history.diverged
    assert history.best_epoch == int(np.argmin(history.history["loss"][:3]))
    assert trainer.evaluate(x, y)["loss"] == pytest.approx(min(history.history["loss"][:3]), rel=1e-5)


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("every", ["every_n_epochs", "every_n_steps"])
def test_a_sweep_is_a_step_and_an_epoch_of_what_measures(is_compiled, every):
    trainer = make_trainer()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if is_compiled:
        trainer.model.compile(keras.optimizers.SGD(0.1), loss)
    probe, cadence = (X[:64], Y[:64]), {every: 2}
    convexity = Convexity(probe, loss, eigenvalues=False, **cadence)
    breakdown, noise = GradientBreakdown(probe, loss, **cadence), GradientNoiseScale(probe, loss, **cadence)
    norms = WeightNorms()
    seen = []
    batches = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append((batch, logs["loss"])))
    callbacks = [convexity, breakdown, noise, norms, batches]
    history = trainer.fit(X, Y, epochs=4, verbose=0, validation_data=VALIDATION, callbacks=callbacks)
    assert convexity.history["step"] == noise.history["step"] == [0, 2, 4]
    assert breakdown.history["step"] == [1, 2, 4]
    assert norms.history["step"] == [0, 1, 2, 3, 4]
    assert seen == [(0, loss) for loss in history.history["loss"]]
    assert history.history["convexity/fraction_of_steps_along_gradient"][-1] >= 0  # NaN where no steps are counted
    losses = convexity.history["convexity/loss"]
    assert losses[2] < losses[1] < losses[0]
    assert (np.array(breakdown.history["breakdown/relative_perturbation"]) > 0).all()
    assert breakdown.history["breakdown/steps_spanned"] == [1, 1, 1]
    assert "hessian/stability_limit" not in history.history  # of an optimizer that makes no steps
    assert hasattr(trainer.model, "optimizer") == is_compiled
    if is_compiled:
        assert isinstance(trainer.model.optimizer, keras.optimizers.SGD)
        trainer.model.fit(X, Y, verbose=0)  # goes on with it
        assert int(trainer.model.optimizer.iterations) > 0


def test_a_loss_that_callbacks_need_is_asked_for():
    with pytest.raises((ValueError, RuntimeError), match="compile"):
        make_trainer().fit(X, Y, epochs=1, verbose=0, callbacks=[GradientBreakdown((X[:32], Y[:32]))])


REFUSED = {
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau(),
    "LearningRateScheduler": lambda folder: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    "BackupAndRestore": lambda folder: keras.callbacks.BackupAndRestore(folder),
    "SwapEMAWeights": lambda folder: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
    "WarmupLearningRate": lambda folder: WarmupLearningRate(2),
    "BroadcastVariables": lambda folder: BroadcastVariables(),
    "ResumableCheckpoint": lambda folder: ResumableCheckpoint(folder),
}


@pytest.mark.parametrize("name", REFUSED)
def test_callbacks_for_optimizers_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match=f"`callbacks` has a {name}, which does nothing here"):
        make_trainer().fit(X, Y, epochs=1, verbose=0, callbacks=[REFUSED[name](tmp_path)])


def test_keras_callbacks_of_batches_run(tmp_path):
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_freq=2, save_weights_only=True)
    make_trainer().fit(X, Y, epochs=4, verbose=0, callbacks=[saved, keras.callbacks.TerminateOnNaN()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.weights.h5", "4.weights.h5"]


def test_a_loss_of_ones_own():
    """Huber-like: a squared error that is told what its targets may be, which are no shares."""
    own = losses.Loss(
        "half the squared error",
        value=lambda outputs, targets: 0.5 * tf.reduce_sum((outputs - targets) ** 2, axis=1),
        gradient=lambda outputs, targets: outputs - targets,
        update=lambda u, targets, beta: (targets + 2 * tf.cast(beta, u.dtype) * u) / (1 + 2 * tf.cast(beta, u.dtype)),
    )
    x = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    y = 5 * x[:, :2]
    history = BregmanTrainer(models.mlp(3, (8,), 2, seed=0), own).fit(x, y, epochs=10, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_data_without_an_end_are_refused():
    endless = tf.data.Dataset.from_tensor_slices((X, Y)).batch(32).repeat()
    with pytest.raises(ValueError, match=r"`x` must end. .* leave out .repeat\(\)"):
        make_trainer().fit(endless, epochs=1, verbose=0)


def test_validation_splits_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="`validation_split` must leave rows .*: validation_split=0.1 of 5 rows"):
        make_trainer().fit(X[:5], Y[:5], epochs=1, verbose=0, validation_split=0.1)
    broken = np.array(X)
    broken[-1] = np.nan
    with pytest.raises(ValueError, match=rf"`x\[{len(X) // 2 + len(X) % 2}:\]` must be finite"):
        make_trainer().fit(broken, Y, epochs=1, verbose=0, validation_split=0.5)


def test_equal_options_resume_whatever_their_types(tmp_path):
    options = [{"ridge": 0.25, "linear_penalty": (0.5, 1)}, {"ridge": np.float64(0.25), "linear_penalty": [0.5, 1.0]}]
    for epochs, chosen in enumerate(options, start=1):
        history = make_trainer(**chosen).fit(X, Y, epochs=epochs, verbose=0, checkpoint=tmp_path)
        assert history.epoch == list(range(epochs))


def test_inputs_that_are_all_zero_need_no_weight_decay():
    """Dead units leave a Gram matrix of zeros, to which a ridge relative to it adds nothing."""
    model = models.mlp(4, (6, 5), 2, seed=0)
    weights = model.get_weights()
    model.set_weights([weights[0], weights[1] - 100.0, *weights[2:]])
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    trainer = BregmanTrainer(model, "mse", weight_decay=0.0)
    history = trainer.fit(x, x[:, :2], epochs=3, verbose=0)
    assert not history.diverged
    assert np.isfinite(history.history["loss"]).all()


NAN = np.where(np.arange(len(X))[:, None, None, None] == 7, np.nan, X)
FIT_ERRORS = [
    ({"x": NAN, "y": Y}, ValueError, "`x` must be finite. Received: NaN or infinity in row 7"),
    ({"x": X[:0], "y": Y[:0]}, ValueError, "`x` must have at least one row"),
    ({"x": X, "y": Y[:-1]}, ValueError, "`x` and `y` must have the same number of rows"),
    (
        {"x": X[:, :4], "y": Y},
        ValueError,
        r"`x` must have the shape \(rows, 8, 8, 1\). Received: shape \(\d+, 4, 8, 1\)",
    ),
    ({"x": X, "y": None}, ValueError, "`y` must be given"),
    ({"x": X, "y": Y + 1}, ValueError, "`y` must be labels 0 to 9. Received: values from 1 to 10"),
    ({"x": X, "y": np.zeros((len(X), 3))}, ValueError, r"`y` must have the shape \(rows,\) or \(rows, 10\)"),
    ({"x": [[1.0, 2.0], [1.0]], "y": Y}, ValueError, "`x` must be an array, or a list of rows of equal length"),
    ({"x": X, "y": [[1], [1, 2]]}, ValueError, "`y` must be an array, or a list of rows of equal length.*: a list"),
    (
        {"x": [[1.0], [1.0, 2.0]], "y": Y, "validation_split": 0.5},
        ValueError,
        "`x` must be an array, or a list of rows",
    ),
    ({"x": X, "y": Y.astype(str)}, TypeError, "`y` must hold numbers"),
    ({"x": X.astype(str), "y": Y}, TypeError, "`x` must hold numbers"),
    ({"x": X.astype(object), "y": Y}, TypeError, "`x` must hold numbers. Received: dtype object: convert it by"),
    ({"x": None, "y": Y}, TypeError, "`x` must be an array or a tf.data.Dataset. Received: NoneType"),
    ({"x": X, "y": np.eye(10)[Y] * 2}, ValueError, r"`y` must lie in \[0, 1\] for softmax"),
    ({"x": X, "y": np.eye(10)[Y] / 2}, ValueError, "`y` must have rows that sum to 1 .* row 0 sums to 0.5"),
    ({"x": X, "y": Y, "validation_data": (X[:, :3], Y)}, ValueError, r"`validation_data\[0\]` must have the shape"),
    ({"x": X, "y": Y, "checkpoint": 3}, TypeError, "`checkpoint` must be a path. Received: checkpoint=3"),
    ({"x": iter([X]), "y": Y}, TypeError, "`x` must be an array or a tf.data.Dataset"),
    ({"x": tf.data.Dataset.from_tensor_slices(X), "y": None}, ValueError, r"a tf.data.Dataset of pairs \(x, y\)"),
    ({"x": tf.data.Dataset.from_tensor_slices((X, Y)), "y": None}, ValueError, "of batches: use .batch"),
    ({"x": tf.data.Dataset.from_tensor_slices((X, Y)).batch(9), "y": Y}, ValueError, "`y` must not be given"),
    ({"x": X, "y": Y, "epochs": -1}, ValueError, "`epochs` must be an integer >= 0"),
    ({"x": X, "y": Y, "initial_epoch": 2}, ValueError, "`epochs` must be at least `initial_epoch`. Received: epochs=1"),
    ({"x": X, "y": Y, "callbacks": ["a"]}, TypeError, "`callbacks` must hold Keras callbacks. Received: 'a'"),
    ({"x": X, "y": Y, "verbose": 3}, ValueError, "`verbose` must be 'auto', 0, 1 or 2"),
    ({"x": X, "y": Y, "validation_split": 1.0}, ValueError, "`validation_split` must be"),
    ({"x": X, "y": Y, "validation_data": X}, ValueError, "`validation_data` must be a pair"),
    ({"x": X, "y": Y, "validation_data": VALIDATION, "validation_split": 0.1}, ValueError, "Only one of"),
    ({"x": X, "y": Y, "checkpoint": __file__}, ValueError, "`checkpoint` must be a folder"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), FIT_ERRORS)
def test_fit_refuses(arguments, kind, message):
    with pytest.raises(kind, match=message):
        make_trainer().fit(**{"epochs": 1, "verbose": 0, **arguments})


MAKE_ERRORS = [
    ({"loss": "mae"}, ValueError, "`loss` must be one of 'mse'"),
    ({"loss": "MAE"}, ValueError, "`loss` must be one of 'mse'.*Received: loss='MAE'"),
    ({"loss": keras.losses.BinaryCrossentropy}, ValueError, "`loss` must have from_logits=True"),
    ({"loss": 3}, TypeError, "`loss` must be one of"),
    ({"loss": keras.losses.SparseCategoricalCrossentropy()}, ValueError, "`loss` must have from_logits=True"),
    (
        {"loss": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)},
        ValueError,
        "`loss` must have label_smoothing=0.0. Received: label_smoothing=0.1",
    ),
    ({"loss": losses.hinge}, ValueError, "`loss` must be one of 'mse'"),
    ({"loss": keras.losses.MeanSquaredError(reduction="sum")}, ValueError, "must be a mean over rows.*'sum'"),
    ({"metrics": "accuracy"}, TypeError, "`metrics` must be a list"),
    ({"metrics": [3]}, TypeError, "`metrics` must be Keras metrics"),
    ({"preset": "adam"}, ValueError, "`preset` must be one of"),
    ({"learning_rate": 0.1}, TypeError, "BregmanTrainer has no option 'learning_rate'. Its options are"),
    (
        {"multiplier": "bregman"},
        ValueError,
        "`multiplier` is not an option of preset='restarted'.* 'paper', 'penalty', 'admm'",
    ),
    ({"num_blocks": 2, "preset": "paper"}, ValueError, "`num_blocks` is not an option of preset='paper'"),
    ({"linear_penalty": 0.0}, ValueError, "`linear_penalty` must be a finite number > 0"),
    ({"linear_penalty": (1.0, 1.0, 1.0)}, ValueError, "one for each of the 2 Dense layers"),
    ({"activation_penalty": (1.0, 1.0)}, ValueError, "one for each of the 1 hidden layers"),
    ({"ridge": -1.0}, ValueError, "`ridge` must be a finite number >= 0"),
    ({"step": 1.5}, ValueError, "`step` must be"),
    ({"state_dtype": "int8"}, ValueError, "`state_dtype` must be one of"),
    ({"chunk_rows": 0}, ValueError, "`chunk_rows` must be an integer >= 1"),
    ({"multiplier_step": 3, "preset": "paper"}, ValueError, "`multiplier_step` must be"),
    ({"communicator": 3}, TypeError, "`communicator` must be"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), MAKE_ERRORS)
def test_the_trainer_refuses(arguments, kind, message):
    with pytest.raises(kind, match=message):
        make_trainer(**arguments)


@pytest.mark.parametrize("negative", [-1, 0])
def test_accuracy_under_the_hinge_takes_both_kinds_of_labels(negative):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))  # as where every loss trains
    y = np.where(x[:, 0] > 0, 1, negative)

    def agreement(y_true, y_pred):  # Keras's accuracies take no -1 for a label.
        return (y_true > 0) == (y_pred[:, 0] > 0)

    trainer = BregmanTrainer(models.mlp(6, (16,), 1, seed=0), "hinge", [agreement])
    accuracy = trainer.fit(x, y, epochs=10, verbose=0).history["agreement"][-1]
    assert accuracy == pytest.approx(((trainer.model.predict(x, verbose=0)[:, 0] > 0) == (y > 0)).mean(), abs=1e-6)
    assert accuracy > 0.9
    with pytest.raises(ValueError, match="`y` must be -1 and 1, or 0 and 1. Received: values from -1 to 0.5"):
        trainer.fit(x, np.where(y > 0, 0.5, -1), epochs=1, verbose=0)


def test_metrics_of_functions_and_arrays():
    metrics = [keras.metrics.categorical_accuracy, keras.metrics.F1Score(), "accuracy"]
    history = make_trainer(metrics=metrics).fit(X, np.eye(10)[Y], epochs=2, verbose=1).history
    assert history["categorical_accuracy"] == pytest.approx(history["accuracy"])
    assert history["f1_score"][-1].shape == (10,)


def test_every_due_epoch_has_metrics_though_sweeps_are_undone():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    trainer = BregmanTrainer(models.mlp(6, (32,), 1, seed=0), "mse", ["mae"], measure_every_n_epochs=2)
    seen = []
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append("mae" in logs))
    history = trainer.fit(x, x[:, 0] * x[:, 1], epochs=60, verbose=0, callbacks=[log]).history
    assert (np.diff(history["relaxation"]) < 0).any()  # some sweeps were undone
    assert seen == [epoch % 2 == 1 for epoch in range(60)]
    assert history["mae"][-1] == pytest.approx(trainer.evaluate(x, x[:, 0] * x[:, 1])["mae"], rel=1e-5)


def test_callbacks_run_on_a_model_that_was_not_compiled(tmp_path):
    trainer = make_trainer()
    trainer.fit(X, Y, epochs=2, verbose=0, callbacks=[keras.callbacks.TensorBoard(tmp_path), WeightNorms()])
    assert not hasattr(trainer.model, "optimizer")

    class Failing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise RuntimeError("an error of a callback")

    with pytest.raises(RuntimeError, match="of a callback"):
        trainer.fit(X, Y, epochs=1, verbose=0, callbacks=[Failing()])
    assert not hasattr(trainer.model, "optimizer")


def test_rows_in_a_periodic_order_are_mixed():
    rng = np.random.default_rng(0)
    y = np.arange(1200) % 10
    x = rng.normal(size=(10, 20))[y] + rng.normal(size=(1200, 20))
    trainer = BregmanTrainer(models.mlp(20, (30,), 10, seed=0), CE, ["accuracy"], num_blocks=10)
    accuracy = trainer.fit(x, y, epochs=10, verbose=0).history["accuracy"][-1]
    assert accuracy > 0.99


def test_overflows_in_half_precision_are_said():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    model = models.mlp(4, (8, 8), 1, seed=0)
    second = model.get_layer("hidden_2")
    second.kernel.assign(1e6 * second.kernel)  # float16 ends at 65504
    trainer = BregmanTrainer(model, "mse", state_dtype="float16")
    with pytest.warns(UserWarning, match="diverged in epoch 10: 10 sweeps in a row overflowed"):
        history = trainer.fit(x, x[:, 0], epochs=30, verbose=0)
    assert history.diverged


def test_more_blocks_than_rows_are_refused():
    with pytest.raises(ValueError, match="`num_blocks` must be at most the number of rows, 9"):
        make_trainer(num_blocks=10).fit(X[:9], Y[:9], epochs=1, verbose=0)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        *[(name, losses.squared_error) for name in ("MSE", "MeanSquaredError", keras.losses.MeanSquaredError)],
        (keras.losses.serialize(MSE), losses.squared_error),
        *[(name, losses.binary_crossentropy) for name in ("bce", "BCE", "BinaryCrossentropy")],
        (keras.losses.serialize(BINARY), losses.binary_crossentropy),
        *[(f"{kind}CategoricalCrossentropy", losses.categorical_crossentropy) for kind in ("", "Sparse")],
        ("Hinge", losses.hinge(-1.0)),
    ],
)
def test_what_keras_takes_for_a_loss_is_accepted(loss, expected):
    chain = DenseChain.from_model(models.mlp(4, (3,), 3))
    assert read_loss(loss, chain).name == expected.name


def test_losses_that_do_not_go_with_the_outputs_are_refused():
    softmax = models.mlp(4, (3,), 3, output_activation="softmax")
    with pytest.raises(ValueError, match="must be the softmax cross-entropy where the network ends with a softmax"):
        BregmanTrainer(softmax, "mse")
    with pytest.raises(ValueError, match="must have from_logits=False where the network's outputs are probabilities"):
        BregmanTrainer(softmax, keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="use 'binary_crossentropy'"):
        BregmanTrainer(models.mlp(4, (3,), 1), CE)
    regression = BregmanTrainer(models.mlp(4, (3,), 3), "mse")
    with pytest.raises(ValueError, match=r"`y` must have the shape \(rows, 3\)"):
        regression.fit(np.ones((5, 4)), np.ones(5), epochs=1, verbose=0)
    yes_or_no = BregmanTrainer(models.mlp(4, (3,), 1), "binary_crossentropy")
    with pytest.raises(ValueError, match=r"`y` must lie in \[0, 1\] for binary cross-entropy"):
        yes_or_no.fit(np.ones((5, 4)), -np.ones(5), epochs=1, verbose=0)
