"""Affine changes of inputs and targets change a fit by rounding only, and the model predicts in the user's units."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.bregman import BregmanTrainer, losses
from tfopt.bregman.moments import Moments
from tfopt.bregman.rows import Rows
from tfopt.bregman.trainer import Part
from tfopt.communicator import SerialCommunicator

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 4))
F = np.stack([np.sin(X[:, 0]) + 0.5 * X[:, 1] * X[:, 2], X[:, 3] - 0.4 * X[:, 0] ** 2], axis=1)
LABELS = (F[:, 0] > 0).astype(int)
LOSSES = {
    "mse": F,
    "sparse_categorical_crossentropy": LABELS,
    "binary_crossentropy": np.stack([LABELS, 1 - LABELS], axis=1),
    "hinge": np.stack([LABELS, 1 - LABELS], axis=1),
    "unit_hinge": LABELS,
}
PRESETS = ["restarted", "paper", "penalty", "admm"]
UNIT, ORIGIN = np.array([1e-3, 1.0, 50.0, 7.0]), np.array([0.0, -1e3, 2e4, 3.0])  # of each feature


def make_model(hidden=(8,), before=(), shape=(4,), dtype="float64", outputs=2, **options):
    layers = [keras.Input(shape, dtype=dtype), *before]
    for k, units in enumerate([*hidden, outputs]):
        start = keras.initializers.GlorotUniform(seed=k)
        activation = "relu" if k < len(hidden) else None
        layers.append(keras.layers.Dense(units, activation, kernel_initializer=start, dtype=dtype, **options))
    return keras.Sequential(layers)


def fit(x, y, loss="mse", model=None, epochs=4, preset="restarted", **arguments):
    """The trained model, and its history."""
    model = make_model() if model is None else model
    history = BregmanTrainer(model, loss, preset=preset).fit(x, y, epochs=epochs, verbose=0, **arguments)
    return model, history.history


def predict(model, x):
    return model(x).numpy().astype(np.float64)


@functools.cache
def plain_fit(preset, loss):
    """What is predicted after training on the plain rows, and the objectives."""
    model, history = fit(X, LOSSES[loss], loss, preset=preset)
    return predict(model, X), history["objective"]


@pytest.mark.parametrize(
    ("preset", "origin", "unit"),
    [
        *[("restarted", origin, unit) for origin, unit in ((0.0, 1e-6), (300.0, 10.0), (1e4, 1.0))],
        *[(preset, -5.0, [1e3, 1e-3]) for preset in PRESETS],
    ],
)
def test_units_and_origins_of_targets(preset, origin, unit):
    expected, objectives = plain_fit(preset, "mse")
    other, history = fit(X, origin + np.multiply(unit, F), preset=preset)
    tolerance = 1e-3 if preset == "admm" else 1e-6  # it solves nearly singular systems
    found = (predict(other, X) - origin) / unit
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(history["objective"], objectives, rtol=tolerance)
    own = np.mean((predict(other, X) - (origin + np.multiply(unit, F))) ** 2)
    assert history["loss"][-1] == pytest.approx(own, rel=1e-6)  # Keras's loss, in the user's unit


# Inputs are standardised before any algorithm sees them, and whatever the loss.
@pytest.mark.parametrize(
    ("preset", "loss"), [*[("restarted", loss) for loss in LOSSES], *[(preset, "mse") for preset in PRESETS[1:]]]
)
def test_units_and_origins_of_inputs(preset, loss):
    expected, _ = plain_fit(preset, loss)
    other, _ = fit(ORIGIN + UNIT * X, LOSSES[loss], loss, preset=preset)
    tolerance = 1e-3 if preset == "admm" else 1e-6
    found = predict(other, ORIGIN + UNIT * X)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


NETWORKS = {
    "one layer": {"hidden": ()},
    "two hidden layers": {"hidden": (8, 5)},
    "no bias": {"use_bias": False},
    "a layer before": {"before": [keras.layers.Rescaling(0.1, 2.0, dtype="float64")]},
    "images": {"shape": (2, 2, 1), "before": [keras.layers.Flatten(dtype="float64")]},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_folds(name):
    options = NETWORKS[name]
    has_origin = "use_bias" not in options
    x = X.reshape(-1, *options.get("shape", (4,)))
    unit, origin = (UNIT, ORIGIN) if x.ndim == 2 else (50.0, 2e4)  # images have a unit a channel
    x_other = has_origin * origin + unit * x
    targets = 1e3 * has_origin + 1e-4 * F
    base, other = (fit(*data, model=make_model(**options))[0] for data in ((x, F), (x_other, targets)))
    found = (predict(other, x_other) - 1e3 * has_origin) / 1e-4
    np.testing.assert_allclose(found, predict(base, x), rtol=1e-6, atol=1e-6)


def test_an_origin_that_no_bias_can_undo_is_left():
    for y in (F, 3 + F):
        _, history = fit(X, y, model=make_model((), use_bias=False), epochs=30)
        exact = np.mean((X @ np.linalg.lstsq(X, y, rcond=None)[0] - y) ** 2)
        assert exact <= history["loss"][-1] < 1.02 * exact


def test_float32_keeps_what_it_can():
    """Of an origin of k standard deviations, float32 rounds the predictions to about k * 6e-8 of them."""
    x, y = X.astype("float32"), F.astype("float32")
    base = predict(fit(x, y, model=make_model(dtype="float32"))[0], x)
    for origin in (1e2, 1e4):
        other = predict(fit(x, (origin + y), model=make_model(dtype="float32"))[0], x) - origin
        np.testing.assert_allclose(other, base, rtol=0, atol=origin * 1e-6 + 1e-4)
        moved = predict(fit(origin + x, y, model=make_model(dtype="float32"))[0], origin + x)
        np.testing.assert_allclose(moved, base, rtol=0, atol=origin * 1e-5 + 1e-4)


@pytest.mark.parametrize("where", ["x", "y"])
def test_an_origin_beyond_float32_is_said(where):
    x, y = (X + 1e6, F) if where == "x" else (X, F + 1e6)
    with pytest.warns(UserWarning, match=f"`{where}` has a mean that is .* Subtract the mean"):
        fit(x, y, model=make_model(dtype="float32"), epochs=1)


@pytest.mark.parametrize("unit", [1e-34, 1e34])
def test_units_beyond_float32_are_refused(unit):
    with pytest.raises(ValueError, match="`y` must vary by .* computes in float32. Received: .* column 0"):
        fit(X, unit * F, model=make_model(dtype="float32"), epochs=1)


@pytest.mark.parametrize(("input_unit", "unit"), [(1e-20, 1e20), (1e20, 1e-20), (1e-18, 1e-18), (1e18, 1e18)])
def test_units_of_one_layer_whose_quotient_is_beyond_float32_are_refused(input_unit, unit):
    """Each unit is allowed, and with two layers both together are."""
    x, y = X * [1.0, 1.0, input_unit, 1.0], F * [1.0, unit]
    if unit / input_unit == 1:
        x, y = input_unit * X, unit * F
    one = make_model((), dtype="float32")
    if unit / input_unit == 1:
        model, history = fit(x, y, model=one, epochs=1)
        assert history["loss"][-1] < unit**2
        assert np.abs(model.get_weights()[0]).max() < 10
    else:
        message = "`y` must vary by .* times the variation of `x` .* column 1 of `y`.* column 2 of `x`"
        with pytest.raises(ValueError, match=message):
            fit(x, y, model=one, epochs=1)


@pytest.mark.parametrize("dtype", ["int32", "float16", "float32"])
def test_inputs_are_cast_as_the_model_casts_them(dtype):
    """Logs are of what the model computes, whatever its Input rounds off."""
    kind = "float64" if dtype == "float32" else "float32"
    x, model = {"int32": 3 * X, "float16": 200 + X, "float32": 1e4 + X}[dtype], make_model(dtype=kind)
    model = keras.Sequential([keras.Input((4,), dtype=dtype), *model.layers])
    trainer = BregmanTrainer(model, "mse")
    is_rough = dtype == "float16"  # which rounds by 0.1
    with pytest.warns(UserWarning, match="rounds such values by 0.2 stand") if is_rough else contextlib.nullcontext():
        loss = trainer.fit(x, F, epochs=3, verbose=0).history["loss"][-1]
    expected = np.mean((predict(model, x) - F) ** 2)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert trainer.evaluate(x, F)["loss"] == pytest.approx(expected, rel=1e-4)


def test_an_input_of_float32_before_float64_layers_loses_digits_with_a_word():
    model = keras.Sequential([keras.Input((4,)), *make_model().layers])
    with pytest.warns(UserWarning, match="`x` has a mean that is .* and an Input of float64"):
        fit(1e6 + X, F, model=model, epochs=1)


@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize(
    ("value", "message"), [(1e39, "where the network computes, in float32"), (np.nan, "NaN or inf")]
)
def test_values_that_float32_cannot_hold_are_named(where, value, message):
    x, y = X.copy(), F.copy()
    (x if where == "x" else y)[7, 1] = value
    with pytest.raises(ValueError, match=f"`{where}` must be finite.*{message}.* in row 7"):
        fit(x, y, model=make_model(dtype="float32"), epochs=1)


def test_units_whose_squares_underflow_are_fine():
    y = 1e-25 * F
    model, history = fit(X, y, model=make_model(dtype="float32"))
    assert history["loss"][-1] == pytest.approx(np.mean((predict(model, X) - y) ** 2), rel=1e-4)
    assert 0 < history["loss"][-1] < 0.9 * y.var()


def test_a_feature_that_is_constant_has_no_influence():
    for constant in (0.0, 7.0, 1e5):
        x = np.hstack([X[:, :3], np.full((len(X), 1), constant)])
        model, _ = fit(x, F, model=make_model(dtype="float32"))
        moved = x + np.array([0, 0, 0, 100.0])
        np.testing.assert_array_equal(predict(model, moved), predict(model, x))


def test_targets_that_are_constant_are_learnt():
    model, _ = fit(X, np.stack([F[:, 0], np.full(len(F), 1e4)], axis=1), epochs=30)
    np.testing.assert_allclose(predict(model, X)[:, 1], 1e4, atol=1e-3)


def test_one_hot_features_of_any_code():
    """Categories coded as 0 and 1, as 0 and 100, or as -1 and 1."""
    groups = RNG.integers(0, 4, len(X))
    y = F[:, :1] + groups[:, None]
    found = []
    for low, high in ((0, 1), (0, 100), (-1, 1)):
        x = np.where(np.eye(4)[groups] > 0, high, low).astype(float)
        model, _ = fit(x, np.hstack([y, y]), epochs=10)
        found.append(predict(model, x))
    np.testing.assert_allclose(found[1:], [found[0]] * 2, rtol=1e-6, atol=1e-6)


# --- where training begins


class Begin(keras.callbacks.Callback):
    """Keeps what the model predicts as training begins."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def on_train_begin(self, logs=None):
        self.predictions = predict(self.model, self.x)


def test_a_model_that_has_learnt_goes_on_from_what_it_computes():
    x, y = ORIGIN + UNIT * X, 1e4 + 10 * F
    model, history = fit(x, y, epochs=15)
    begin, trained = Begin(x), predict(model, x)
    _, again = fit(x, y, model=model, epochs=1, callbacks=[begin])
    np.testing.assert_allclose(begin.predictions, trained, rtol=1e-9)
    assert again["loss"][-1] <= history["loss"][-1] * (1 + 1e-9)
    loaded = make_model()  # of the same weights, on some of the rows, which have other units
    loaded.set_weights(model.get_weights())
    begin = Begin(x)
    fit(x[:40], y[:40], model=loaded, epochs=1, callbacks=[begin])
    np.testing.assert_allclose(begin.predictions, predict(model, x), rtol=1e-9)


@pytest.mark.parametrize("preset", ["restarted", "paper", "penalty"])  # "admm" diverges from such weights
def test_weights_that_were_set_fit_targets_of_any_unit(preset):
    """Weights of another model predict worse than the targets' mean; the outputs are matched to the targets."""
    rng, found = np.random.default_rng(0), []
    weights = [rng.standard_normal(w.shape) for w in make_model().get_weights()]
    for origin, unit in ((0.0, 1.0), (0.0, 1e-6), (1e4, 1.0), (-3.0, 1e4)):
        model = make_model()
        model.set_weights(weights)
        fit(X, origin + unit * F, model=model, preset=preset)
        found.append((predict(model, X) - origin) / unit)
    np.testing.assert_allclose(found[1:], [found[0]] * 3, rtol=1e-6, atol=1e-6 * np.abs(found[0]).max())


@pytest.mark.parametrize("use_bias", [True, False])
def test_outputs_are_matched_by_least_squares(use_bias):
    y = 30 + 5 * F
    model = make_model(use_bias=use_bias)
    model.set_weights([RNG.standard_normal(w.shape) for w in model.get_weights()])
    model.layers[-1].kernel.assign(20 * model.layers[-1].kernel)
    begin, z = Begin(X), predict(model, X)
    for k in range(2):
        inputs = np.stack([z[:, k], np.full(len(z), float(use_bias))], axis=1)
        z[:, k] = inputs @ np.linalg.lstsq(inputs, y[:, k], rcond=None)[0]
    fit(X, y, model=model, epochs=1, callbacks=[begin])
    np.testing.assert_allclose(begin.predictions, z, rtol=1e-8)


def test_a_first_bias_may_be_the_mean_of_the_targets():
    y = 1e4 + F
    plain, told = make_model(), make_model()
    told.layers[-1].bias.assign(y.mean(axis=0))
    np.testing.assert_allclose(*(predict(fit(X, y, model=model)[0], X) for model in (plain, told)), rtol=1e-12)


@pytest.mark.parametrize(
    "initializer",
    ["glorot_uniform", "he_normal", keras.initializers.Orthogonal(), keras.initializers.RandomNormal(0.0, 0.3)],
)
def test_weights_that_an_initializer_drew_are_meant_for_unit_inputs(initializer):
    start = keras.initializers.get(initializer)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", kernel_initializer=start)])
    model.add(keras.layers.Dense(2, kernel_initializer=start))
    first = model.get_weights()
    base, _ = fit(X, F, model=model)
    expected = predict(base, X)
    model.set_weights(first)
    np.testing.assert_allclose(predict(fit(100 * X, F, model=model)[0], 100 * X), expected, atol=1e-4)


def of_saved_weights(use_bias, folder):
    make_model(use_bias=use_bias).save_weights(folder / "first.weights.h5")
    model = drawn_otherwise("ones", use_bias)
    model.load_weights(folder / "first.weights.h5")
    return model


def drawn_otherwise(initializer, use_bias):
    model = make_model(use_bias=use_bias)
    for layer in model.layers:
        layer.kernel_initializer = keras.initializers.get(initializer)
    return model


def of_seed_generators(use_bias, folder):
    generator = keras.random.SeedGenerator(3)
    model = drawn_otherwise(keras.initializers.GlorotUniform(generator), use_bias)
    for layer in model.layers:
        layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape, dtype="float64"))
    return model


def of_functions(use_bias, folder):
    model = drawn_otherwise(lambda shape, dtype=None: keras.random.normal(shape, 0, 0.3, dtype), use_bias)
    model.set_weights(make_model(use_bias=use_bias).get_weights())
    return model


@pytest.mark.parametrize("use_bias", [True, False])  # in the first layer
@pytest.mark.parametrize("make", [of_saved_weights, of_seed_generators, of_functions])
def test_untrained_weights_of_any_source_are_meant_for_unit_inputs(make, use_bias, tmp_path):
    """Their kernels are not what the initializer draws, but nothing has moved their biases."""
    y, found = LABELS, []
    for unit, origin in ((1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (UNIT, ORIGIN)):
        if not use_bias and np.any(origin):
            continue
        model = make(True, tmp_path)
        if not use_bias:
            first = make(False, tmp_path).layers[0]
            model = keras.Sequential([keras.Input((4,), dtype="float64"), first, model.layers[1]])
            model.layers[1].bias.assign([0.0, 0.0])
        x = origin + unit * X
        found.append(predict(fit(x, y, "sparse_categorical_crossentropy", model)[0], x))
    np.testing.assert_allclose(found[1:], [found[0]] * (len(found) - 1), rtol=1e-6, atol=1e-6 * np.abs(found[0]).max())


@pytest.mark.parametrize(("activation", "loss"), [("relu", "sparse_categorical_crossentropy"), ("tanh", "mse")])
def test_weights_that_were_made_for_other_inputs_are_read_for_unit_inputs(activation, loss):
    """They have biases, as trained ones. But on these inputs all units are constant, or far too large."""
    rng, objectives = np.random.default_rng(0), []
    weights = [0.5 * rng.standard_normal(w.shape) for w in make_model().get_weights()]
    for unit, origin in ((1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (UNIT, ORIGIN)):
        model = make_model()
        model.layers[0].activation = keras.activations.get(activation)
        model.set_weights(weights)
        x = origin + unit * X
        expects_warning = np.any(origin) or np.any(unit != 1.0)
        with (
            pytest.warns(UserWarning, match="Its weights are read as for")
            if expects_warning
            else contextlib.nullcontext()
        ):
            objectives.append(fit(x, LOSSES[loss], loss, model, epochs=8)[1]["objective"][-1])
    assert max(objectives[1:]) < 1.3 * objectives[0]


@pytest.mark.parametrize(("unit", "origin"), [(0.1, 0.0), (10.0, 0.0), (1.0, 15.0)])
def test_weights_that_may_be_of_another_task_are_kept_with_a_word(unit, origin):
    model, rng = make_model(), np.random.default_rng(0)
    weights = [0.5 * rng.standard_normal(w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    x = origin + unit * X
    begin = Begin(x)
    with pytest.warns(UserWarning, match="Its weights are kept. .* standardise the inputs"):
        fit(x, LABELS, "sparse_categorical_crossentropy", model, epochs=1, callbacks=[begin])
    model.set_weights(weights)
    np.testing.assert_allclose(begin.predictions, predict(model, x), rtol=1e-9)


@pytest.fixture(scope="module")
def after_a_second_fit():
    return fit(X, F, model=fit(X, F, epochs=5)[0], epochs=8)[1]["loss"][-1]


@pytest.mark.parametrize(
    ("unit", "origin"),
    [(1e-6, 0.0), (1e-2, 0.0), (100.0, 0.0), (1e4, 0.0), (1.0, 100.0), (1e3, 1e4)],
)
def test_weights_that_were_learnt_in_another_unit_can_learn_again(unit, origin, after_a_second_fit):
    """In the unit of the second fit the first layer is linear or constant, so that nothing else would be learnt."""
    model, _ = fit(origin + unit * X, F, epochs=5)
    with pytest.warns(UserWarning, match="does not fit the unit or the origin .* Its weights are scaled .* convert"):
        history = fit(X, F, model=model, epochs=8)[1]
    assert history["loss"][-1] < 1.3 * after_a_second_fit


def test_a_model_that_predicts_in_another_unit_of_the_targets_is_kept_with_a_word():
    model, _ = fit(X, F, epochs=5)
    y = predict(model, X)
    model.set_weights([30.0 * w for w in model.get_weights()])  # The outputs of a ReLU network keep their shape.
    model.layers[-1].bias.assign(30.0 * model.layers[-1].bias)
    begin = Begin(X)
    with pytest.warns(UserWarning, match="predicts hardly better than a constant. Its weights are kept"):
        fit(X, y, model=model, epochs=1, callbacks=[begin])
    np.testing.assert_allclose(begin.predictions, y, atol=1e-9)


@pytest.mark.parametrize("targets", ["F", "noise", "rare", "sharp"])
def test_a_second_fit_on_other_rows_warns_of_nothing(targets):
    """Warnings are errors in tests. Some of these targets cannot be learnt, and the model predicts them badly."""
    noise = np.random.default_rng(1).standard_normal((90, 2))
    y = {"F": F, "noise": noise, "rare": np.maximum(F - 1.5, 0), "sharp": np.sin(20 * X[:, :2])}[targets]
    model = make_model()
    for rows in (slice(45), slice(45, 90)):
        fit(X[rows], y[rows], model=model, epochs=6)


def test_a_gaussian_start_does_not_look_at_the_first_layer():
    model = make_model()
    model.set_weights([np.full(w.shape, 0.5) for w in model.get_weights()])
    fit(1e6 * X, F, model=model, preset="paper", epochs=1)


def test_a_first_layer_that_was_trained_is_kept_whatever_it_looks_like():
    """Five of its units hardly vary, and would in another unit of the inputs. But the model predicts."""
    model, _ = fit(X, F, epochs=5)
    (kernel, bias, *_), size = model.get_weights(), np.where(np.arange(8) < 3, 1.0, 1e-3)
    kernel = size * kernel
    hidden = np.hstack([np.maximum(X @ kernel + bias, 0), np.ones((90, 1))])
    outputs = np.linalg.lstsq(hidden, F, rcond=1e-9)[0]
    model.set_weights([1e3 * kernel, bias, outputs[:-1], outputs[-1]])
    x = 1e-3 * X
    begin, trained = Begin(x), predict(model, x)
    fit(x, F, model=model, epochs=1, callbacks=[begin])
    np.testing.assert_allclose(begin.predictions, trained, rtol=1e-8, atol=1e-8)


def test_no_sweep_changes_nothing():
    model = make_model()
    before = model.get_weights()
    fit(X, 1e4 + F, model=model, epochs=0)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


# --- logs, validation, checkpoints


def test_logs_are_in_the_users_unit():
    x, y = ORIGIN + UNIT * X, 40 + 3 * F
    model = make_model()
    trainer = BregmanTrainer(model, "mse", ["mae", keras.metrics.R2Score()])
    data = (x[60:], y[60:])
    history = trainer.fit(x[:60], y[:60], epochs=3, verbose=0, validation_data=data).history
    for prefix, rows in (("", (x[:60], y[:60])), ("val_", data)):
        error = predict(model, rows[0]) - rows[1]
        assert history[f"{prefix}loss"][-1] == pytest.approx((error**2).mean(), rel=1e-6)
        assert history[f"{prefix}mae"][-1] == pytest.approx(np.abs(error).mean(), rel=1e-5)
        r2 = 1 - (error**2).sum(0) / ((rows[1] - rows[1].mean(0)) ** 2).sum(0)
        assert history[f"{prefix}r2_score"][-1] == pytest.approx(r2.mean(), rel=1e-4)
    assert trainer.evaluate(*data)["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("origin", [300.0, 1e4, 1e5])
def test_r2_scores_do_not_lose_digits_to_an_origin(origin, use_bias):
    y = origin + F * [1.0, 30.0]
    metrics = ["r2_score", keras.metrics.R2Score("variance_weighted_average", name="weighted")]
    trainer = BregmanTrainer(make_model(dtype="float32", use_bias=use_bias), "mse", metrics)
    history = trainer.fit(X, y, epochs=3, verbose=0, validation_data=(X[:50], y[:50])).history
    evaluated = {f"evaluated_{name}": [value] for name, value in trainer.evaluate(X, y).items()}
    for prefix, rows in (("", slice(None)), ("val_", slice(50)), ("evaluated_", slice(None))):
        error, total = (
            ((a - y[rows]) ** 2).mean(axis=0) for a in (predict(trainer.model, X[rows]), y[rows].mean(axis=0))
        )
        found = {**history, **evaluated}
        rounding = 1e-4 + (1e-6 * origin) ** (1 + use_bias)  # of predictions in float32
        assert found[f"{prefix}r2_score"][-1] == pytest.approx((1 - error / total).mean(), rel=1e-3, abs=rounding)
        assert found[f"{prefix}weighted"][-1] == pytest.approx(1 - error.sum() / total.sum(), rel=1e-3, abs=rounding)


def test_divergence_does_not_depend_on_the_unit(monkeypatch):
    """A loss of 50 times the targets' variance is no training, whatever the unit."""
    from tfopt.bregman import run

    sweep = run.Restarted.sweep

    def explode(self, with_metrics):
        return sweep(self, with_metrics) | {"loss": 50 * 1e-12 * F.var()}

    monkeypatch.setattr(run.Restarted, "sweep", explode)
    with pytest.warns(UserWarning, match="the loss has grown"):
        fit(X, 1e-6 * F, epochs=1)


def test_units_are_part_of_a_checkpoint(tmp_path, monkeypatch):
    x, y = ORIGIN + UNIT * X, 1e4 + 10 * F
    whole, _ = fit(x, y, epochs=6)
    fit(x, y, epochs=3, checkpoint=tmp_path)
    monkeypatch.setattr(Rows, "find_standardisation", lambda self: pytest.fail("found anew"))
    parts, _ = fit(x, y, epochs=6, checkpoint=tmp_path)
    for one, other in zip(parts.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["memory map", "dataset", "float32 targets"])
def test_sources_of_rows(kind, tmp_path):
    x, y = (ORIGIN + UNIT * X), 100 + F
    expected = predict(fit(x, y)[0], x)
    np.save(tmp_path / "x.npy", x)
    if kind == "memory map":
        model, _ = fit(np.load(tmp_path / "x.npy", mmap_mode="r"), y)
    elif kind == "dataset":
        model, _ = fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(7), None)
    else:
        model, _ = fit(x, y.astype("float32"))
    np.testing.assert_allclose(predict(model, x), expected, rtol=1e-5)


def test_losses_of_ones_own_say_whether_targets_may_be_standardised():
    def make(is_quadratic):
        return losses.Loss(
            "half the squared error",
            value=lambda outputs, targets: 0.5 * tf.reduce_sum((outputs - targets) ** 2, axis=1),
            gradient=lambda outputs, targets: outputs - targets,
            update=lambda u, targets, beta: u + (targets - u) / (1 + 2 * tf.cast(beta, u.dtype)),
            is_quadratic=is_quadratic,
        )

    quadratic, other = make(True), make(False)
    base, moved = (predict(fit(X, 100 * y + 1e3, quadratic)[0], X) for y in (F, F / 100))
    np.testing.assert_allclose((base - 1e3) / 100, moved - 1e3, atol=1e-8)
    assert np.abs((predict(fit(X, 100 * F + 1e3, other)[0], X) - base) / 100).max() > 1e-3


# --- statistics


def test_moments_are_exact_far_from_zero():
    rows = 1e8 + RNG.standard_normal((3000, 3)) * [1.0, 1e-3, 0.0]
    moments = Moments(3)
    for cut in range(0, 3000, 700):
        moments.add(rows[cut : cut + 700])
    mean, variance = moments.reduced(SerialCommunicator())
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14)
    about = rows - rows[0]  # exact
    np.testing.assert_allclose(variance, about.var(axis=0), rtol=1e-5)  # of 1e-6, of an origin that is exact to 1e-8
    assert variance[2] == 0.0


def test_moments_of_ranks_are_those_of_one_process():
    rows = 1e6 + RNG.standard_normal((100, 2))
    parts = [Moments(2) for _ in range(3)]
    for part, piece in zip(parts, (rows[:10], rows[10:70], rows[70:]), strict=True):
        part.add(piece)

    class Ranks:
        """Sums over three ranks, each of which asks in turn."""

        size = 3

        def __init__(self, others):
            self.others, self.calls = others, 0

        def allreduce_sum(self, tensors, name):
            self.calls += 1
            if self.calls == 1:
                counts = [part._count for part in parts]
                sums = np.sum([part._count * part._mean for part in parts], axis=0)
                return [tf.constant(float(sum(counts)), tf.float64), tf.constant(sums)]
            mean = rows.mean(axis=0)
            gaps = [part._squares + part._count * (part._mean - mean) ** 2 for part in self.others]
            return [tensors[0] + np.sum(gaps, axis=0)]

    for k, part in enumerate(parts):
        mean, variance = part.reduced(Ranks([*parts[:k], *parts[k + 1 :]]))
        np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(variance, rows.var(axis=0), rtol=1e-9)


def inputs_of(x, before, dtype="float32"):
    """The standardisation of inputs that layers make rows of."""
    model = keras.Sequential([keras.Input(x.shape[1:], dtype=dtype), *before, keras.layers.Dense(1)])
    return BregmanTrainer(model, "mse")._rows(Part(x, F[:, :1]), 1).find_standardisation()


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_images_have_a_unit_for_each_channel(data_format):
    images = RNG.standard_normal((90, 3, 2, 2))
    images[:, 0, 1] = 0.25  # a constant border, and a pixel that is lit once
    images[:, 1, 1], images[7, 1, 1] = 0.0, 2.0
    found = inputs_of(images, [keras.layers.Flatten(data_format=data_format)])
    axes, repeats = ((0, 2, 3), 4) if data_format == "channels_first" else ((0, 1, 2), 6)
    units = images.std(axis=axes)
    # Keras's Flatten moves the channels to the end.
    np.testing.assert_allclose(found.input_unit, np.tile(units, repeats), rtol=1e-6)
    assert not found.is_constant.any()


def test_images_of_bytes_share_a_unit_whatever_their_border():
    images = RNG.integers(0, 256, (90, 5, 5, 1)).astype("uint8")
    images[:, 0], images[:, 1] = 0, 255
    images[:, 2, 2], images[3, 2, 2] = 254, 255  # the smallest change that bytes can hold
    for before in ([], [keras.layers.Rescaling(1 / 255)]):
        found = inputs_of(images, [*before, keras.layers.Flatten()], "uint8")
        assert np.ptp(found.input_unit) == np.ptp(found.input_origin) == 0
        assert found.input_unit[0] == pytest.approx((images / 255 if before else images).std(), rel=1e-5)


FLATTENED = {
    "units": lambda x: 10.0 ** np.arange(-2, 4) * x,
    "origins": lambda x: x + 1e4 * np.arange(6),
    "a column that is constant and far away": lambda x: np.hstack([x[:, :5], np.full((90, 1), 2026.0)]),
}


@pytest.mark.parametrize("name", FLATTENED)
@pytest.mark.parametrize("shape", [(6, 1), (3, 2), (1, 3, 2)])
def test_tables_that_are_flattened_have_a_unit_for_each_column(name, shape):
    table = FLATTENED[name](np.random.default_rng(1).standard_normal((90, 6)))
    found = inputs_of(table.reshape(90, *shape), [keras.layers.Flatten(dtype="float64")], "float64")
    is_constant = np.ptp(table, axis=0) == 0
    is_own = np.ones(6, bool)
    if name != "units" and shape[-1] == 2 and "constant" in name:
        is_own[::2] = False  # the other channel of three columns is of one kind
    np.testing.assert_allclose(
        found.input_unit[is_own], np.where(is_constant, 1.0, table.std(axis=0))[is_own], rtol=1e-3
    )
    assert (found.is_constant == is_constant).all()


def test_flattened_tables_fit_alike_in_every_unit():
    unit, origin, found = np.array([1e-6, 1.0, 1e5, 7.0]), np.array([0.0, -1e3, 2e8, 3.0]), []
    for x in (X * [1.0, 1e4, 1e4, 1e4], origin + unit * X):  # of one column, the unit differs in both
        model = make_model(shape=(4, 1), before=[keras.layers.Flatten(dtype="float64")])
        found.append(predict(fit(x[..., None], F, model=model)[0], x[..., None]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "bool", "int64", "float64"])
def test_columns_of_any_kind_and_dtype(dtype):
    """The logs are of what the model computes."""
    kinds = [np.full((90, 1), 3), np.eye(3)[np.arange(90) % 3], (np.arange(90)[:, None] == 5) * 4]
    kinds += [RNG.integers(-40, 40, (90, 2)), RNG.integers(0, 2, (90, 2))]
    x = np.hstack(kinds).astype(dtype)
    model = keras.Sequential([keras.Input((9,), dtype=dtype), *make_model(shape=(9,), dtype="float32").layers])
    y = np.asarray(x, float).sum(axis=1, keepdims=True) + F
    found, history = fit(x, y, model=model)
    assert history["loss"][-1] == pytest.approx(np.mean((predict(found, x) - y) ** 2), rel=1e-4, abs=1e-6)
    assert history["loss"][-1] < 0.7 * y.var()


@pytest.mark.parametrize("is_functional", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "float16", "float64"])
def test_a_model_inside_casts_its_inputs(dtype, is_functional):
    """Keras casts the inputs of a nested model to the dtype of its Input."""
    x = 40 * np.maximum(X, 0)
    inner = make_model(dtype="float32")
    if is_functional:
        inputs = keras.Input((4,), dtype=dtype)
        nested = keras.Model(inputs, inner.layers[1](inner.layers[0](inputs)))
    else:
        nested = keras.Sequential([keras.Input((4,), dtype=dtype), *inner.layers])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(0.5), nested])
    trainer = BregmanTrainer(model, "mse")
    loss = trainer.fit(x, F, epochs=3, verbose=0).history["loss"][-1]
    assert loss == pytest.approx(np.mean((predict(model, x) - F) ** 2), rel=1e-4)


def test_columns_that_the_inputs_cannot_hold_are_named():
    for origin, dtype, kind in ((1e8, "float32", "float64"), (2**30, "float32", "int64"), (3e3, "float16", "float32")):
        x = (X * [1, 1, 0.1, 1] if kind == "float32" else 3 * X) + [0, origin, 0, 0]
        model = keras.Sequential([keras.Input((4,), dtype=dtype), *make_model(dtype="float32").layers])
        with pytest.warns(
            UserWarning, match="`x` (varies in column 1|has a mean that is .* in column 1).* Subtract the mean"
        ):
            fit(x.astype(kind), F, model=model, epochs=1)
    for value in (1e8, 0.1, 0.0, 2**30):  # a constant is none
        fit(np.hstack([X[:, :3], np.full((90, 1), value)]), F, model=make_model(dtype="float32"), epochs=1)
