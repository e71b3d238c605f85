"""What is measured when layers are frozen or unfrozen, or the model is compiled again, inside a running `fit`."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale, WeightNorms
from tfopt.callbacks._change_share import ChangeShare

SGD = keras.optimizers.SGD
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) + RNG.normal(size=(16, 1))).astype("float32")


def tripled(y, y_pred):
    return 3.0 * keras.losses.mean_squared_error(y, y_pred)


def make(frozen=()):
    """y = x w + x v, with the Hessian 2 / n [X X]'[X X] of both weights and 2 / n X'X of one."""
    inputs = keras.Input((3,))
    parts = [keras.layers.Dense(1, use_bias=False, name=name)(inputs) for name in ("base", "head")]
    model = keras.Model(inputs, keras.layers.Add()(parts))
    for name in frozen:
        model.get_layer(name).trainable = False
    model.compile(SGD(0.01), "mse", jit_compile=False)
    return model


def lambda_max(model, factor=1.0):
    matrix = np.hstack([X.astype("float64")] * sum(layer.trainable for layer in model.layers[1:3]))
    return factor * np.linalg.eigvalsh(2 / 16 * matrix.T @ matrix).max()


class Change(keras.callbacks.Callback):
    """Changes the model in epoch 2, and compiles it again."""

    def __init__(self, change, when="on_epoch_begin", optimizer=SGD, loss="mse"):
        super().__init__()
        self.change, self.compiles_with, self.loss = change, optimizer, loss
        setattr(self, when, self.act)
        self.count = 0

    def act(self, number, logs=None):
        self.count += 1
        if self.count == (3 if self.is_by_epoch else 9):
            self.change(self.model)
            self.model.compile(self.compiles_with(0.01), self.loss, jit_compile=False)
            self.model.make_train_function()

    @property
    def is_by_epoch(self):
        return any("epoch" in name for name in vars(self))


def set_trainable(name, value):
    return lambda model: setattr(model.get_layer(name), "trainable", value)


def fit(model, callbacks, **options):
    options = {"batch_size": 4, "epochs": 4, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, callbacks=callbacks, **options).history


# name -> frozen layers, the change, the loss that is compiled then and how many times the first it is
CHANGES = {
    "unfrozen": (["base"], set_trainable("base", True), "mse", 1.0),
    "frozen": ([], set_trainable("head", False), "mse", 1.0),
    "another loss": ([], lambda model: None, tripled, 3.0),
    "compiled again": ([], lambda model: None, "mse", 1.0),
}


# Every change, and the first of them before and after the measurements, which the other changes need not be again.
FOLLOWED = [*zip(CHANGES, (True, False, True, False), strict=True), ("unfrozen", False)]


@pytest.mark.parametrize(("change", "is_first"), FOLLOWED)
def test_measurements_follow(change, is_first):
    frozen, act, loss, factor = CHANGES[change]
    model = make(frozen)
    start = lambda_max(model)
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    breakdown, noise, norms = GradientBreakdown((X, Y)), GradientNoiseScale((X, Y), every_n_epochs=1), WeightNorms()
    measurements = [convexity, breakdown, noise, norms]
    fit(model, [Change(act, loss=loss), *measurements] if is_first else [*measurements, Change(act, loss=loss)])
    # One that comes after the measurements acts when they have begun the epoch: they notice at its end.
    end = lambda_max(model, factor)
    assert convexity.history["hessian/lambda_max"] == pytest.approx([start] * 3 + [end] * 2, rel=1e-4)
    assert convexity.history["step"] == [0, 4, 8, 12, 16]
    residual = model.predict(X, verbose=0) - Y
    assert convexity.history["convexity/loss"][-1] == pytest.approx(factor * float(np.mean(residual**2)), rel=1e-4)
    paths = {v.path for v in model.trainable_variables}
    for callback, name in ((breakdown, "cosine"), (norms, "norms")):
        assert callback.history[name][-1].keys() == paths
        table, column = callback.to_dataframe(), f"{name}/"
        expected = {"unfrozen": 2, "frozen": 2}.get(change, 0)
        for layer in ("base", "head"):
            missing = table[[c for c in table.columns if c == f"{column}{layer}/kernel"]].isna().to_numpy().sum()
            changes = layer == {"unfrozen": "base", "frozen": "head"}.get(change)
            assert missing == (expected + (change == "unfrozen") if changes else 0), (layer, name)
        callback.plot()
    signal = noise.history["gradient_noise/covariance_trace"]
    assert np.isfinite(signal).all()


@pytest.mark.parametrize("when", ["on_epoch_end", "on_train_batch_begin", "on_train_batch_end"])
@pytest.mark.parametrize("is_first", [True, False])
def test_each_step_is_measured_with_the_variables_that_it_moved(when, is_first):
    breakdown = GradientBreakdown((X, Y), every_n_steps=1, num_points=1)
    change = Change(set_trainable("base", True), when)
    fit(make(["base"]), [change, breakdown] if is_first else [breakdown, change])
    assert breakdown.history["step"] == list(range(1, 17))
    columns = [len(entry) for entry in breakdown.history["cosine"]]
    assert columns == sorted(columns)
    assert {columns[0], columns[-1]} == {1, 2}
    losses = np.array(breakdown.history["breakdown/loss_change"])
    assert np.isfinite(losses).all()


def test_batch_normalisation_without_weights_is_unfrozen():
    """Its variables are the same, and its program another one."""
    model = keras.Sequential([
        keras.Input((3,)),
        keras.layers.BatchNormalization(center=False, scale=False, trainable=False),
        keras.layers.Dense(1),
    ])
    model.compile(SGD(0.01), "mse", jit_compile=False)
    convexity = Convexity((X, Y), eigenvalues=False)
    fit(model, [Change(lambda m: setattr(m.layers[0], "trainable", True)), convexity])
    kernel, bias = model.layers[1].get_weights()
    normal = (X - X.mean(axis=0)) / np.sqrt(X.var(axis=0) + 1e-3)
    expected = float(np.mean((normal @ kernel + bias - Y) ** 2))
    assert convexity.history["convexity/loss"][-1] == pytest.approx(expected, rel=1e-4)


def test_eigenvalues_are_measured_soon_after_a_change_and_old_ones_are_not_repeated():
    model = make(["base"])
    convexity = Convexity((X, Y), spectrum_every_n_epochs=50)
    logged = fit(model, [Change(set_trainable("base", True)), convexity], epochs=5)["hessian/lambda_max"]
    start, end = lambda_max(make(["base"])), lambda_max(model)
    assert logged == pytest.approx([start, start, end, end, end], rel=1e-4)


def test_the_jump_of_the_loss_is_no_way_of_training():
    share = ChangeShare()
    share.update(4.0, 1.0, 0)
    share.update(3.0, 1.0, 1)
    share.interrupt()
    share.update(9.0, 1.0, 2)
    share.update(8.0, -1.0, 3)
    assert (share.total, share.num_steps) == (2.0, 2)
    convexity = Convexity((X, Y), eigenvalues=False)
    fit(make(), [Change(lambda m: None, loss=tripled), convexity])
    losses = np.array(convexity.history["convexity/loss"])
    total = np.abs(np.diff(losses[:3])).sum() + np.abs(np.diff(losses[3:])).sum()
    assert convexity._shares["curvature_along_gradient"].total == pytest.approx(total)


def test_columns_that_appear_late_are_kept(tmp_path):
    """The stability limit of SGD, which follows after Adam."""
    path = tmp_path / "log.csv"
    model = make()
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    loggers = [keras.callbacks.CSVLogger(path), keras.callbacks.CSVLogger(tmp_path / "semicolons.csv", separator=";")]
    history = fit(model, [*loggers, Change(lambda m: None), convexity])
    for table in (history, convexity.to_dataframe()):
        limits = np.array(table["hessian/stability_limit"])
        np.testing.assert_array_equal(limits[-2:], [2.0, 2.0])
        assert np.isnan(limits[:-2]).all()
    assert len({len(series) for series in history.values()}) == 1
    for file, separator in (path, ","), (tmp_path / "semicolons.csv", ";"):
        rows = list(csv.DictReader(file.read_text().splitlines(), delimiter=separator))
        assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
        for name in ("loss", "hessian/stability_limit", "hessian/lambda_max"):
            np.testing.assert_allclose([float(row[name]) for row in rows], history[name], rtol=1e-6)


def test_the_limit_of_an_optimizer_that_is_replaced_ends():
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    history = fit(make(), [Change(lambda m: None, optimizer=keras.optimizers.Adam), convexity])
    assert np.isnan(history["hessian/stability_limit"]).tolist() == [False, False, True, True]
    assert convexity.history["step"] == [0, 4, 8, 12, 16]


def test_a_learning_rate_that_is_replaced_is_followed():
    class Replace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / (epoch + 1)

    model = make()
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    fit(model, [Replace(), convexity])
    expected = [rate * lambda_max(model) for rate in (0.01, 0.005, 0.01 / 3, 0.0025, 0.0025)]
    assert convexity.history["hessian/learning_rate_times_lambda_max"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_that_is_frozen_altogether_is_refused_by_measurements_and_not_by_norms():
    def freeze(model):
        model.trainable = False

    norms = WeightNorms()
    history = fit(make(), [Change(freeze), norms])
    assert history["weight_norms/max"][2:] == [0.0, 0.0]
    with pytest.raises(ValueError, match="must have trainable variables"):
        fit(make(), [Change(freeze), Convexity((X, Y))])


def test_programs_are_made_once_where_nothing_changes():
    model, convexity = make(), Convexity((X, Y), eigenvalues=False)
    made = []
    original = convexity._make_instruments
    convexity._make_instruments = lambda: made.append(original()) or made[-1]
    fit(model, [convexity, GradientBreakdown((X, Y))])
    fit(model, [convexity])
    assert len(made) == 1
    assert tf.executing_eagerly()


class WithValue(keras.Model):
    """A linear model with a Python value in its loss, in the factor of its outputs, or in which branch it takes."""

    def __init__(self, place):
        super().__init__()
        self.dense, self.place, self.value = keras.layers.Dense(1, kernel_initializer="ones"), place, 1.0

    def call(self, x):
        if self.place == "branch":
            return self.dense(x) if self.value < 2.0 else 2.0 * self.dense(x)
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if self.place != "attribute":
            return super().compute_loss(x, y, y_pred, sample_weight)
        return self.value * keras.ops.mean((y - y_pred) ** 2)


class SetValue(keras.callbacks.Callback):
    """Sets the value to 1, 2, 3, and keeps what the loss with it is before and after the step of an epoch."""

    def __init__(self, is_compiled_again=False):
        super().__init__()
        self.is_compiled_again, self.losses = is_compiled_again, []

    def on_epoch_begin(self, epoch, logs=None):
        self.model.value = epoch + 1.0
        if self.is_compiled_again and epoch == 2:
            self.model.compile(SGD(0.01), jit_compile=False)
            self.model.make_train_function()
        self.before = self.loss()

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append((self.before, self.loss()))

    def loss(self):
        kernel, bias = (np.float64(weight) for weight in self.model.get_weights())
        factor = 2.0 if self.model.place == "branch" and self.model.value >= 2.0 else 1.0
        loss = np.mean((factor * (X @ kernel + bias) - Y) ** 2)
        return loss if self.model.place == "branch" else self.model.value * loss


def measure_with(model, change):
    options = {"every_n_steps": 1}
    convexity = Convexity((X, Y), eigenvalues=False, certificate=False, self_check=False, **options)
    breakdown, noise = GradientBreakdown((X, Y), **options), GradientNoiseScale((X, Y), group_size=1, **options)
    history = fit(model, [change, convexity, breakdown, noise], batch_size=16, epochs=3)
    return history["loss"], convexity.history, breakdown.history, noise.history


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")
@pytest.mark.parametrize("place", ["attribute", "branch", "closure", "functions"])
def test_python_values_of_a_model_that_runs_eagerly_are_followed(place):
    is_by_switch = place == "functions"
    model = WithValue("attribute" if is_by_switch else place)
    model(X)
    loss = (lambda y, z: model.value * keras.ops.mean((y - z) ** 2)) if place == "closure" else "mse"
    model.compile(SGD(0.01), None if model.place == "attribute" else loss, run_eagerly=not is_by_switch)
    tf.config.run_functions_eagerly(is_by_switch)
    change = SetValue()
    try:
        in_fit, convexity, breakdown, noise = measure_with(model, change)
    finally:
        tf.config.run_functions_eagerly(False)
    before, after = np.transpose(change.losses)
    assert in_fit == pytest.approx(before, rel=1e-5)
    assert convexity["convexity/loss"][1:] == pytest.approx(after, rel=1e-5)
    assert breakdown["breakdown/loss_change"] == pytest.approx(after - before, rel=1e-3)
    if place != "branch":  # tr C is a square of the value, at weights that hardly change
        ratios = np.array(noise["gradient_noise/covariance_trace"][1:]) / [1.0, 4.0, 9.0]
        assert ratios == pytest.approx(ratios[0], rel=0.3)


def test_python_values_of_a_compiled_model_stay_as_in_fit():
    model = WithValue("attribute")
    model(X)
    model.compile(SGD(0.01), jit_compile=False)
    change = SetValue(is_compiled_again=True)
    in_fit, convexity, breakdown, _ = measure_with(model, change)
    before, after = np.transpose(change.losses) / [1.0, 2.0, 1.0]  # The value 2 is not seen.
    assert in_fit == pytest.approx(before, rel=1e-5)
    assert convexity["convexity/loss"][1:] == pytest.approx(after, rel=1e-5)
    assert breakdown["breakdown/loss_change"] == pytest.approx(after - before, rel=1e-3)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ((), ("base",), "frozen, and still trained: base/kernel"),
        (("base",), (), "unfrozen, and not trained: base/kernel"),
        ((), (), None),
    ],
)
@pytest.mark.parametrize("compiles", [False, True])
def test_a_model_that_was_frozen_between_two_fits_and_not_compiled_is_named(first, then, message, compiles, recwarn):
    model = make(first)
    model.fit(X, Y, verbose=0)
    for name in ("base", "head"):
        model.get_layer(name).trainable = name not in then
    if compiles:
        model.compile(SGD(0.01), "mse", jit_compile=False)
    callback = GradientBreakdown((X, Y), num_points=1)
    model.fit(X, Y, verbose=0, callbacks=[callback])
    found = [str(warning.message) for warning in recwarn if "GradientBreakdown" in str(warning.message)]
    assert len(found) == (message is not None and not compiles)
    assert all(message in text for text in found)
