"""What GradientBreakdown records, against the steps themselves."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import GradientBreakdown, ResumableCheckpoint
from tfopt.models import mlp
from tfopt.optimizers import Fromage
from tfopt.relative_trust import StepMeter

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
Y = X[:, :2]


def make_model(optimizer=None, **options):
    model = mlp(4, [8], 2, seed=0)
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", jit_compile=False, **options)
    return model


def fit(model, callbacks, **options):
    options = {"batch_size": 4, "epochs": 3, "verbose": 0, "shuffle": False, **options}
    return model.fit(X, Y, callbacks=callbacks, **options).history


def test_values_are_those_of_the_steps():
    """Against the same steps taken one by one, and measured from outside."""
    model, breakdown = make_model(), GradientBreakdown((X, Y), every_n_steps=1, num_points=3)
    start = model.get_weights()
    fit(model, [breakdown], epochs=2)
    again = make_model()
    again.set_weights(start)
    meter = StepMeter(again, "mse", X, Y, num_points=3)
    assert breakdown.history["step"] == list(range(1, 9))
    for row in range(8):
        before = meter.weights()
        again.train_on_batch(X[4 * row % 16 : 4 * row % 16 + 4], Y[4 * row % 16 : 4 * row % 16 + 4])
        step = meter.measure(before)
        expected = {
            "relative_gradient_breakdown": step.largest_breakdown,
            "relative_perturbation": step.largest_perturbation,
            "deep_relative_trust": step.deep_relative_trust,
            "cosine": step.total_cosine,
            "descent_bound": step.descent_bound,
            "loss_change": step.loss_change,
            "steps_spanned": 1,
        }
        found = {name: breakdown.history[f"breakdown/{name}"][row] for name in expected}
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert list(breakdown.history["cosine"][row].values()) == pytest.approx(step.cosine, rel=1e-3, abs=1e-5)
    bound = np.array(breakdown.history["breakdown/descent_bound"])
    assert (np.array(breakdown.history["breakdown/loss_change"]) <= bound + 1e-6).all()


def test_fromage_moves_each_variable_by_its_rate():
    breakdown = GradientBreakdown((X, Y))
    fit(make_model(Fromage(0.02)), [breakdown], epochs=2)
    last = breakdown.history["relative_perturbation"][-1]
    for path, value in last.items():
        # The step along the gradient and the shrinking prefactor; a bias first takes a plain step.
        assert value == pytest.approx(0.02, rel=0.05), path


def test_under_steps_per_execution_a_measurement_spans_several_steps():
    breakdown = GradientBreakdown((X, Y))
    with pytest.warns(
        UserWarning, match="With steps_per_execution=3 GradientBreakdown sees the weights only after"
    ) as w:
        history = fit(make_model(steps_per_execution=3), [breakdown])
    assert len([x for x in w if "GradientBreakdown" in str(x.message)]) == 1
    assert breakdown.history["step"] == [3, 4, 8, 12]
    assert breakdown.history["breakdown/steps_spanned"] == [3, 1, 1, 1]
    assert history["breakdown/steps_spanned"] == [1, 1, 1]


def test_accumulated_gradients_are_waited_for():
    breakdown = GradientBreakdown((X, Y), every_n_steps=4)
    fit(make_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)), [breakdown], epochs=2)
    # Eight batches are four steps.
    assert breakdown.history["step"] == [1, 2, 4]
    assert min(breakdown.history["breakdown/relative_perturbation"]) > 0


def test_the_last_step_is_measured_wherever_training_ends():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == 5

    breakdown = GradientBreakdown((X, Y), every_n_epochs=10)
    fit(make_model(), [breakdown, Stop()], epochs=10)
    assert breakdown.history["step"][0] == 1
    stopped = GradientBreakdown((X, Y), every_n_epochs=10)

    class StopEpoch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 2

    fit(make_model(), [stopped, StopEpoch()], epochs=10)
    assert stopped.history["step"] == [1, 12]


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
def test_unknown_numbers_of_batches():
    def batches():
        while True:
            yield X[:4], Y[:4]

    breakdown = GradientBreakdown((X, Y))
    make_model().fit(batches(), steps_per_epoch=5, epochs=2, verbose=0, callbacks=[breakdown])
    assert breakdown.history["step"] == [1, 5, 10]

    def five():
        for _ in range(5):
            yield X[:4], Y[:4]

    breakdown = GradientBreakdown((X, Y))
    make_model().fit(five(), epochs=1, verbose=0, callbacks=[breakdown])
    assert breakdown.history["step"] == [1, 5]


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
@pytest.mark.filterwarnings("ignore:With steps_per_execution=2")
@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_the_last_steps_of_epochs_of_unknown_length(steps_per_execution):
    """Each epoch begins a step that finds no data, which Keras counts from the second on."""
    signature = (tf.TensorSpec((4, X.shape[1])), tf.TensorSpec((4, Y.shape[1])))
    rows = tf.data.Dataset.from_generator(lambda: ((X[:4], Y[:4]) for _ in range(6)), output_signature=signature)

    def measured(data):
        model, breakdown = make_model(steps_per_execution=steps_per_execution), GradientBreakdown((X, Y))
        model.fit(data, epochs=4, shuffle=False, verbose=0, callbacks=[breakdown])
        return breakdown.history

    expected, found = measured(rows.apply(tf.data.experimental.assert_cardinality(6))), measured(rows)
    for name in ("relative_perturbation", "loss_change", "descent_bound", "steps_spanned"):
        name = f"breakdown/{name}"
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    assert len(found["step"]) == 5


def test_a_resumed_training_measures_as_one_that_was_not_interrupted(tmp_path):
    def train(folder, epochs, callbacks=()):
        breakdown = GradientBreakdown((X, Y))
        keras.utils.set_random_seed(2)
        checkpoint = ResumableCheckpoint(folder, verbose=0, stateless=[type(c) for c in callbacks])
        fit(make_model(), [breakdown, checkpoint, *callbacks], epochs=epochs)
        return breakdown.history

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    whole = train(tmp_path / "whole", 4)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", 4, [Interrupt()])
    resumed = train(tmp_path / "parts", 4)
    assert whole["step"] == [1, 4, 8, 12, 16]
    for name in set(whole) - {"seconds", "setup_seconds"}:
        np.testing.assert_equal(resumed[name], whole[name])


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_what_is_no_longer_finite_is_infinitely_far():
    breakdown = GradientBreakdown((X, Y))
    history = fit(make_model(keras.optimizers.SGD(1e30)), [breakdown])
    for name in ("relative_gradient_breakdown", "relative_perturbation", "deep_relative_trust"):
        assert history[f"breakdown/{name}"] == [np.inf] * 3
    assert np.isnan(history["breakdown/descent_bound"]).all()
    breakdown.plot()


def test_table_and_plot():
    breakdown = GradientBreakdown((X, Y))
    assert len(breakdown.plot().lines) == 0
    model = make_model()
    fit(model, [breakdown])
    table = breakdown.to_dataframe()
    assert "relative_gradient_breakdown/hidden_1/kernel" in table.columns
    assert len(table) == 4
    assert len(breakdown.plot().lines) == len(model.trainable_variables) + 1


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_points` must be an integer >= 1"):
        GradientBreakdown((X, Y), num_points=0)


@pytest.mark.parametrize("optimizer", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_a_bias_before_batch_normalization_changes_no_value(optimizer):
    """Its gradient is rounding; the twin without it is trained and measured alike."""
    found = []
    for bias in (True, False):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,))
        normalised = keras.layers.BatchNormalization()(keras.layers.Dense(6, use_bias=bias, name="first")(inputs))
        model = keras.Model(inputs, keras.layers.Dense(2)(normalised))
        model.compile(optimizer(0.01), "mse")
        breakdown = GradientBreakdown((X, Y), every_n_steps=3, num_points=2)
        fit(model, [breakdown])
        found.append(breakdown.history)
    with_bias, without = found
    for name in ("relative_gradient_breakdown", "relative_perturbation", "deep_relative_trust", "loss_change"):
        name = f"breakdown/{name}"
        np.testing.assert_allclose(with_bias[name], without[name], rtol=1e-2, err_msg=name)
    for name in ("relative_gradient_breakdown", "relative_perturbation", "cosine"):
        assert np.isnan([entry["first/bias"] for entry in with_bias[name]]).all(), name
