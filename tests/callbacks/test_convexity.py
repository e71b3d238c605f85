"""What Convexity records, against known answers."""

import copy
import itertools
import math
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, ResumableCheckpoint
from tfopt.callbacks._change_share import ChangeShare
from tfopt.callbacks._stability import stability_limit
from tfopt.curvature import HessianOperator, NotCoveredError, Probe, convexity_certificate, spectral_density, trace
from tfopt.distributed import DistributedOptimizer
from tfopt.models import milne_regression, mlp
from tfopt.optimizers import Fromage

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :2]


def make_model(**options):
    model = mlp(4, [8], 2, seed=0, **options)
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return model


def fit(model, callbacks, x=X, y=Y, **options):
    options = {"batch_size": 4, "epochs": 3, "verbose": 0, "shuffle": False, **options}
    return model.fit(x, y, callbacks=callbacks, **options).history


# --- the saddle L(w) = (w_1^2 - w_2^2) / 2, on which everything can be said beforehand


def saddle(y, y_pred):
    return y * keras.ops.square(y_pred)  # rows e_1 and e_2, targets 1 and -1


def path_on_the_saddle(start, rate, num_steps):
    w = np.array(start)
    losses, curvatures = [], []
    for _ in range(num_steps + 1):
        losses.append((w[0] ** 2 - w[1] ** 2) / 2)
        gradient = np.array([w[0], -w[1]])
        curvatures.append((gradient[0] ** 2 - gradient[1] ** 2) / (gradient @ gradient))
        w = w - rate * gradient
    return np.array(losses), np.array(curvatures)


@pytest.mark.parametrize("every", [1, 3])
def test_a_quadratic_with_a_known_answer(every):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[2.0], [0.5]])])
    model.compile(keras.optimizers.SGD(0.1), saddle, jit_compile=False)
    x, y = np.eye(2, dtype="float32"), np.array([[1.0], [-1.0]], "float32")
    convexity = Convexity((x, y), every_n_steps=every)
    fit(model, [convexity], x, y, batch_size=2, epochs=12)
    losses, curvatures = path_on_the_saddle([2.0, 0.5], 0.1, 12)
    measured = range(0, 13, every)
    history = convexity.history
    assert [step for step in history["step"] if step % every == 0] == list(measured)
    np.testing.assert_allclose(history["convexity/loss"], losses[history["step"]], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        history["convexity/curvature_along_gradient"], curvatures[history["step"]], rtol=1e-4, atol=1e-5
    )
    changes, positive, undecided, steps = [], [], [], []
    for before, after in itertools.pairwise(history["step"]):
        changes.append(abs(losses[after] - losses[before]))
        positive.append(curvatures[before] > 0)
        undecided.append(positive[-1] != (curvatures[after] > 0))
        steps.append(after - before)
    assert 0 < np.mean(positive) < 1
    along = {name: history[f"convexity/fraction{name}_along_gradient"][-1] for name in ("", "_of_steps", "_undecided")}
    assert along[""] == pytest.approx(np.dot(changes, positive) / np.sum(changes), rel=1e-5)
    assert along["_of_steps"] == pytest.approx(np.dot(steps, positive) / 12)
    assert along["_undecided"] == pytest.approx(np.dot(changes, undecided) / np.sum(changes), rel=1e-5)
    assert (history["hessian/lambda_min"][0], history["hessian/lambda_max"][0]) == pytest.approx((-1.0, 1.0), rel=1e-5)


def test_change_share():
    share = ChangeShare()
    assert math.isnan(share.fraction)
    assert math.isnan(share.fraction_of_steps)
    for loss, quantity, step in [(4.0, 1.0, 0), (1.0, -1.0, 2), (9.9, 1.0, 2), (math.nan, 1.0, 3), (2.0, 1.0, 5)]:
        share.update(loss, quantity, step)
    # From 4 to 1 while positive at the beginning, then to 2 while negative; what is NaN or repeated is left out.
    assert (share.fraction, share.fraction_of_steps, share.fraction_undecided) == (0.75, 0.4, 1.0)


# --- the certificate


def test_moduli_are_those_of_the_certificate_and_shares_follow():
    model = milne_regression(seed=3, initial_scale=3.0)
    model.compile(keras.optimizers.SGD(0.005), "mse", jit_compile=False)
    x = np.linspace(-1, 1, 20).reshape(-1, 1)
    start = convexity_certificate(model, None, x, 0 * x)
    convexity = Convexity((x, 0 * x), every_n_steps=1, certificate=True)
    history = fit(model, [convexity], x, 0 * x, batch_size=20, epochs=30)
    measured = convexity.history
    assert convexity.certificate_refused == ""
    for kind in ("paper", "sharp"):
        theta = np.array(measured[f"convexity/theta_{kind}"])
        assert theta[0] == pytest.approx(getattr(start, f"theta_{kind}"))
        losses = np.array(measured["convexity/loss"])
        changes = np.abs(np.diff(losses))
        expected = changes[theta[:-1] > 0].sum() / changes.sum()
        assert measured[f"convexity/fraction_certified_{kind}"][-1] == pytest.approx(expected)
        assert history[f"convexity/fraction_certified_{kind}"][-1] == pytest.approx(expected)
    assert (np.array(measured["convexity/theta_paper"]) <= measured["convexity/theta_sharp"]).all()
    known = ~np.isnan(measured["hessian/lambda_min"])
    assert (np.array(measured["convexity/theta_sharp"])[known] <= np.array(measured["hessian/lambda_min"])[known]).all()
    assert 0 < measured["convexity/fraction_certified_paper"][-1] < measured["convexity/fraction_certified_sharp"][-1]


def test_where_there_is_no_certificate():
    convexity = Convexity((X, Y))
    history = fit(make_model(), [convexity])
    assert "has no penalty" in convexity.certificate_refused
    assert not any("certified" in name or "theta" in name for name in history)
    with pytest.raises(NotCoveredError, match="has no penalty"):
        fit(make_model(), [Convexity((X, Y), certificate=True)])
    model = milne_regression()
    model.compile("sgd", "mse")
    convexity = Convexity((X[:, :1], Y[:, :1]), certificate=False)
    assert "convexity/theta_sharp" not in fit(model, [convexity], X[:, :1], Y[:, :1])


# --- spectra


def test_the_spectrum_is_measured_at_the_ends_and_after_every_tenth_part():
    convexity = Convexity((X, Y), num_matvecs=5)
    history = fit(make_model(), [convexity], epochs=25, batch_size=16)
    known = ~np.isnan(convexity.history["hessian/lambda_max"])
    assert np.array(convexity.history["step"])[known].tolist() == [0, 3, 5, 8, 10, 13, 15, 18, 20, 23, 25]
    assert convexity.history["step"] == list(range(26))
    assert len(set(history["hessian/lambda_max"][2:4])) == 1  # the last value is repeated
    assert history["hessian/lambda_max"][2] != history["hessian/lambda_max"][4]


def test_a_cadence_of_its_own_and_epochs_that_begin_late():
    convexity = Convexity((X, Y), num_matvecs=5, every_n_epochs=3, spectrum_every_n_epochs=4)
    fit(make_model(), [convexity], initial_epoch=2, epochs=10, batch_size=16)
    assert convexity.history["epoch"] == [2, 3, 4, 6, 8, 9, 10]
    assert convexity.history["step"] == [0, 1, 2, 4, 6, 7, 8]
    known = ~np.isnan(convexity.history["hessian/lambda_max"])
    assert np.array(convexity.history["epoch"])[known].tolist() == [2, 4, 8, 10]


def test_trace_and_density():
    model = make_model()
    convexity = Convexity((X, Y), trace=True, density=True, eigenvalues=False, num_matvecs=6, spectrum_every_n_epochs=9)
    history = fit(model, [convexity])
    hessian = HessianOperator(model, None, X, Y)
    expected = trace(hessian, 6, 0)
    assert history["hessian/trace"][-1] == pytest.approx(expected.value, rel=1e-5)
    assert history["hessian/trace_standard_error"][-1] == pytest.approx(expected.standard_error, rel=1e-3)
    assert sorted(convexity.densities) == [0, 12]
    density = spectral_density(hessian, num_vectors=4, num_matvecs=6)
    np.testing.assert_allclose(convexity.densities[12].nodes, density.nodes, rtol=1e-3, atol=1e-4)
    assert "hessian/lambda_max" not in history


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        (keras.optimizers.SGD(0.1), 2.0),
        (keras.optimizers.SGD(0.1, momentum=0.5), 3.0),
        (keras.optimizers.SGD(0.1, momentum=0.5, nesterov=True), 1.5),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), 2.0),
        (keras.optimizers.SGD(0.1, clipnorm=1.0), None),
        (keras.optimizers.SGD(0.1, weight_decay=0.1), None),
        (keras.optimizers.SGD(0.1, use_ema=True), None),
        (type("Own", (keras.optimizers.SGD,), {})(0.1), None),
        (DistributedOptimizer(keras.optimizers.SGD(0.1)), 2.0),
        (keras.optimizers.Adam(), None),
        (Fromage(), None),
        (None, None),
    ],
)
def test_stability_limit(optimizer, limit):
    assert stability_limit(optimizer) == limit


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_steps_diverge_beyond_the_stability_limit(momentum, nesterov):
    """On L = w^2, whose curvature is 2."""
    sizes = []
    for factor in (0.97, 1.03):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        optimizer = keras.optimizers.SGD(1.0, momentum=momentum, nesterov=nesterov)
        optimizer.learning_rate = factor * stability_limit(optimizer) / 2.0
        model.compile(optimizer, "mse", jit_compile=False)
        convexity = Convexity((np.ones((1, 1)), np.zeros((1, 1))))
        fit(model, [convexity], np.ones((300, 1)), np.zeros((300, 1)), batch_size=1, epochs=1)
        history = convexity.history
        ratio = history["hessian/learning_rate_times_lambda_max"][0] / history["hessian/stability_limit"][0]
        assert ratio == pytest.approx(factor, rel=1e-4)
        sizes.append(abs(model.get_weights()[0].item()))
    assert sizes[0] < 0.1
    assert not sizes[1] < 10  # or NaN


# --- how it behaves in fit


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_training_that_diverges_goes_on():
    model = make_model()
    model.optimizer.learning_rate = 1e20
    convexity = Convexity((X, Y), trace=True, density=True)
    history = fit(model, [convexity])
    assert np.isnan(history["convexity/curvature_along_gradient"][-1])
    assert np.isnan(history["hessian/lambda_max"][-1])
    assert convexity.history["hessian/lambda_max"][0] > 0
    convexity.plot()


def test_a_model_that_fit_builds_trains_as_without():
    results = []
    for callbacks in ([], [Convexity((X, Y))]):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
        model.compile("adam", "mse", jit_compile=False)
        fit(model, callbacks)
        results.append(model.get_weights())
    assert callbacks[0].history["step"] == [0, 4, 8, 12]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_model_that_fit_builds_sees_the_same_shuffles():
    results = []
    for callbacks in ([], [Convexity((X, Y), eigenvalues=False)]):
        keras.utils.set_random_seed(5)
        model = keras.Sequential([keras.layers.Dense(3, "tanh"), keras.layers.Dense(2)])
        model.compile("adam", "mse", jit_compile=False)
        rows = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(16, seed=1).batch(4)
        model.fit(rows, epochs=2, verbose=0, callbacks=callbacks)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_hold_the_measurements_and_measure_again(duplicate, tmp_path):
    convexity = Convexity((X, Y), eigenvalues=False, log_dir=tmp_path)
    fit(make_model(), [convexity], epochs=2)
    copied = duplicate(convexity)
    assert copied.history == convexity.history or np.array_equal(copied.history["step"], convexity.history["step"])
    fit(make_model(), [copied], epochs=1)
    assert copied.history["step"] == [0, 4]
    assert convexity.history["step"] == [0, 4, 8]


def test_hooks_of_subclasses_are_called():
    class Counting(Convexity):
        count = 0

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1

    counting = Counting((X, Y), eigenvalues=False)
    fit(make_model(), [counting], epochs=2)
    assert counting.count == 8
    assert counting.history["step"] == [0, 4, 8]


def test_values_are_in_the_logs_of_the_step_at_which_they_were_measured():
    seen = {}

    class Spy(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen[int(self.model.optimizer.iterations)] = "convexity/loss" in logs

    fit(make_model(), [Convexity((X, Y), every_n_steps=3), Spy()])
    assert [step for step, there in seen.items() if there] == [3, 6, 9, 12]


def test_training_that_is_stopped_is_measured_at_its_end():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 3

    convexity = Convexity((X, Y), every_n_epochs=100)
    fit(make_model(), [convexity, Stop()], epochs=100, batch_size=16)
    assert convexity.history["step"][-1] == 4
    assert not np.isnan(convexity.history["hessian/lambda_max"][-1])
    every = Convexity((X, Y))
    fit(make_model(), [every, Stop()], epochs=100, batch_size=16)
    assert every.history["step"] == [0, 1, 2, 3, 4]
    assert not np.isnan(every.history["hessian/lambda_max"][-1])


@pytest.mark.parametrize("kind", ["averages", "best"])
def test_weights_that_keras_puts_in_place_at_the_end_are_not_those_of_the_last_step(kind):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.05, use_ema=kind == "averages", ema_momentum=0.5), "mse", jit_compile=False)
    worse = keras.callbacks.EarlyStopping("loss", mode="max", patience=2, restore_best_weights=True)
    convexity = Convexity((X, Y), every_n_epochs=1, eigenvalues=False)
    history = fit(model, [convexity, *[worse] * (kind == "best")], epochs=4)
    assert convexity.history["convexity/loss"][-1] == history["convexity/loss"][-1]
    assert convexity.history["step"][-1] == 4 * len(history["loss"])


def test_what_was_measured_survives_an_interruption():
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    convexity = Convexity((X, Y))
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), [convexity, Interrupt()], epochs=5)
    assert convexity.history["step"] == [0, 4, 8]
    assert len(convexity.to_dataframe()) == 3


def test_a_resumed_training_measures_as_one_that_was_not_interrupted(tmp_path):
    def train(folder, epochs):
        convexity = Convexity((X, Y), every_n_epochs=2, density=True, num_matvecs=4)
        keras.utils.set_random_seed(2)
        fit(make_model(), [convexity, ResumableCheckpoint(folder, verbose=0)], epochs=epochs)
        return convexity

    whole = train(tmp_path / "whole", 6)

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    keras.utils.set_random_seed(2)
    convexity = Convexity((X, Y), every_n_epochs=2, density=True, num_matvecs=4)
    checkpoint = ResumableCheckpoint(tmp_path / "parts", verbose=0, stateless=[Interrupt])
    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), [convexity, checkpoint, Interrupt()], epochs=6)
    resumed = train(tmp_path / "parts", 6)
    assert resumed.history.keys() == whole.history.keys()
    for name in set(whole.history) - {"seconds", "setup_seconds"}:
        np.testing.assert_array_equal(resumed.history[name], whole.history[name])
    assert resumed.densities.keys() == whole.densities.keys()
    np.testing.assert_array_equal(resumed.densities[24].nodes, whole.densities[24].nodes)


def test_a_second_fit_starts_anew_with_the_same_instruments():
    model, convexity = make_model(), Convexity((X, Y), eigenvalues=False)
    fit(model, [convexity], epochs=1)
    instrument = convexity._instruments.hessian
    fit(model, [convexity], epochs=2)
    assert convexity.history["step"] == [4, 8, 12]
    assert convexity._instruments.hessian is instrument
    model.compile(keras.optimizers.SGD(0.1), "mae")
    fit(model, [convexity], epochs=1)
    assert convexity._instruments.hessian is not instrument
    assert convexity.history["convexity/loss"][-1] == pytest.approx(
        model.evaluate(X, Y, verbose=0, return_dict=True)["loss"], rel=1e-5
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: (X, Y, np.ones(16)),
        lambda: Probe(X, Y, batch_size=5),
        lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
    ],
)
def test_forms_of_data(make):
    model = make_model()
    history = fit(model, [Convexity(make(), eigenvalues=False)])
    assert history["convexity/loss"][-1] == pytest.approx(
        model.evaluate(X, Y, verbose=0, return_dict=True)["loss"], rel=1e-5
    )


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
def test_unknown_numbers_of_batches():
    def batches():
        for start in range(0, 16, 4):
            yield X[start : start + 4], Y[start : start + 4]

    rows = tf.data.Dataset.from_generator(batches, output_signature=(tf.TensorSpec((4, 4)), tf.TensorSpec((4, 2))))
    model = make_model()
    model.compile("sgd", "mse", steps_per_execution=3, jit_compile=False)
    convexity = Convexity((X, Y), every_n_steps=4, eigenvalues=False)
    model.fit(rows, epochs=2, verbose=0, callbacks=[convexity])
    assert convexity.history["step"] == [0, 4, 8]


def test_plot():
    convexity = Convexity((X, Y))
    assert len(convexity.plot().lines) == 1  # zero
    fit(make_model(), [convexity])
    ax = convexity.plot()
    assert {line.get_label() for line in ax.lines} >= {"curvature_along_gradient", "lambda_min", "lambda_max"}
    assert ax.get_yscale() == "symlog"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 1, "every_n_epochs": 1}, "Only one of `every_n_steps` and `every_n_epochs`"),
        ({"every_n_epochs": 0}, "`every_n_epochs` must be an integer >= 1"),
        ({"every_n_steps": 0}, "`every_n_steps` must be an integer >= 1"),
        ({"spectrum_every_n_epochs": 0}, "`spectrum_every_n_epochs` must be an integer >= 1"),
        ({"num_matvecs": 0}, "`num_matvecs` must be an integer >= 1"),
        ({"batch_norm": "both"}, "`batch_norm` must be one of 'batch', 'moving'"),
        ({"data": (X, Y, None, None)}, r"`data` must be \(x, y\).*Received: a tuple of 4"),
        ({"data": None}, "`data` must be what a Probe can hold: `x` must be the inputs"),
        ({"data": (X, Y[:3])}, "`data` must be.*must have equally many rows"),
        ({"loss": "nope"}, "`loss` must be a loss that Keras knows. Received: loss='nope'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Convexity(**{"data": (X, Y), **arguments})


def test_bad_types():
    with pytest.raises(TypeError, match=r"`data` must be a tuple \(x, y\), not a list"):
        Convexity([X, Y])
    with pytest.raises(TypeError, match="`log_dir` must be a path. Received: log_dir=5"):
        Convexity((X, Y), log_dir=5)


@pytest.mark.parametrize("name", ["eigenvalues", "trace", "density", "certificate"])
def test_flags_are_flags(name):
    with pytest.raises(TypeError, match=f"`{name}` must be True or False"):
        Convexity((X, Y), **{name: 1})


def test_a_model_without_a_loss_is_asked_for_one():
    model = mlp(4, [8], 2)
    model.compile("sgd")
    with pytest.raises(ValueError, match="`loss` must be given"):
        fit(model, [Convexity((X, Y))])


def test_data_that_do_not_fit_are_refused_before_the_first_step():
    model = make_model()
    with pytest.raises(ValueError, match="`x` must fit the model"):
        fit(model, [Convexity((X[:, :3], Y))])
    assert int(model.optimizer.iterations) == 0


def test_event_files_need_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"`log_dir` needs TensorBoard: pip install 'tfopt\[tensorboard\]'"):
        Convexity((X, Y), log_dir=tmp_path)
