"""Models that take batches of one size only are measured in such batches, and refused by name in others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale
from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective, gradient_noise
from tfopt.planning import fit_noisy_quadratic

SIZE, NUM_ROWS = 8, 32
X = np.random.default_rng(0).normal(size=(NUM_ROWS, 5, 3)).astype("float32")
Y = X[:, 0, :1] ** 2


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.recurrent, self.dense = layers.GRU(2, stateful=True), layers.Dense(1)

    def call(self, x):
        return self.dense(self.recurrent(x))


def subclassed():
    model = Subclassed()
    model(X[:SIZE])
    reset_states(model)
    return model


def functional(function):
    x = keras.Input((5, 3), batch_size=SIZE)
    return keras.Model(x, layers.Dense(1)(function(x)))


FIXED = {
    "stateful": lambda: functional(layers.LSTM(2, stateful=True)),
    "bidirectional": lambda: functional(layers.Bidirectional(layers.SimpleRNN(2, stateful=True))),
    "sequential": lambda: keras.Sequential([keras.Input(batch_shape=(8, 5, 3)), layers.LSTM(2, stateful=True)]),
    "subclassed": subclassed,
    "shape": lambda: functional(lambda x: keras.ops.reshape(x, (SIZE, 15))),
}


def make(kind, loss="mse"):
    keras.utils.set_random_seed(0)
    model = FIXED[kind]()
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    return model


def objective(model, rows=NUM_ROWS, batch_size=SIZE):
    return Objective(model, None, (X[:rows], Y[:rows]), batch_size=batch_size)


def gradients_of_batches(model):
    """The gradient of each batch, an array of shape (batches, weights), from states of zero."""
    found = []
    for start in range(0, NUM_ROWS, SIZE):
        reset_states(model)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X[start : start + SIZE]) - Y[start : start + SIZE]) ** 2)
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found.append(np.concatenate([np.asarray(g, "float64").ravel() for g in gradients]))
    reset_states(model)
    return np.array(found)


def reset_states(model):
    for layer in model._flatten_layers():
        if getattr(layer, "stateful", False):
            layer.reset_state()


@pytest.mark.parametrize("kind", FIXED)
def test_groups_of_the_batch_size_are_measured_and_others_refused(kind):
    model = make(kind)
    gradients = gradients_of_batches(model)
    noise = gradient_noise(objective(model), group_size=SIZE)
    away = gradients - gradients.mean(axis=0)
    assert noise.covariance_trace.value == pytest.approx(SIZE * (away**2).sum() / (len(away) - 1), rel=1e-4)
    for size in (1, 4):
        with pytest.raises(ValueError, match=rf"takes batches of 8 rows, and not of {size}\..*`group_size=8`"):
            gradient_noise(objective(model), group_size=size)


@pytest.mark.parametrize("kind", ["stateful", "shape"])
def test_a_loss_that_is_no_mean_over_rows_is_still_refused(kind):
    def masked(y, y_pred):
        chosen = tf.cast(y > 0.5, y_pred.dtype)
        return tf.reduce_sum(chosen * (y - y_pred) ** 2) / tf.reduce_sum(chosen)

    with pytest.raises(ValueError, match="must be a mean over rows"):
        gradient_noise(objective(make(kind, masked)), group_size=SIZE)


def test_states_that_differ_between_places_in_the_batch_are_named():
    model = make("stateful")
    model(10 * X[:SIZE])
    with pytest.raises(ValueError, match=r"states of a stateful recurrent layer.*`reset_state\(\)`"):
        gradient_noise(objective(model), group_size=SIZE)


@pytest.mark.parametrize("kind", FIXED)
def test_batches_of_other_sizes_are_refused_with_the_size_that_is_right(kind):
    model = make(kind)
    for operator in (HessianOperator, GaussNewtonOperator):
        matrix = operator(objective(model, rows=12))
        with pytest.raises(ValueError, match=r"takes batches of 8 rows, and not of 4\..*`batch_size=8`"):
            matrix.matvec(np.ones(matrix.shape[0], matrix.dtype))
    with pytest.raises(ValueError, match=r"takes batches of 8 rows, and the first batch of the data has 32: give"):
        objective(model, batch_size=None)


@pytest.mark.parametrize("kind", ["stateful", "shape"])
def test_plans_refuse_them_by_name(kind):
    with pytest.raises(ValueError, match=r"takes batches of 8 rows.*for plans of batch sizes there is no other way"):
        fit_noisy_quadratic(objective(make(kind)))


CALLBACKS = [
    (GradientNoiseScale, {"group_size": 4, "batch_size": SIZE}, "`group_size=8`"),
    (GradientNoiseScale, {}, "`batch_size=8`"),
    (Convexity, {}, "`batch_size=8`"),
    (GradientBreakdown, {}, "`batch_size=8`"),
]


@pytest.mark.parametrize(("callback", "options", "advice"), CALLBACKS)
def test_callbacks_name_the_choice_before_the_first_step(callback, options, advice):
    model = make("stateful")
    with pytest.raises(ValueError, match=f"takes batches of 8 rows.*{advice}"):
        model.fit(X, Y, batch_size=SIZE, verbose=0, shuffle=False, callbacks=[callback((X, Y), **options)])
    assert int(model.optimizer.iterations) == 0


def test_callbacks_measure_in_batches_of_the_size():
    model = make("shape")
    callbacks = [GradientNoiseScale((X, Y), batch_size=SIZE), Convexity((X, Y), batch_size=SIZE)]
    model.fit(X, Y, batch_size=SIZE, verbose=0, shuffle=False, callbacks=callbacks)
    assert [c.history["step"] for c in callbacks] == [[0, 4]] * 2


def test_an_input_that_names_a_batch_size_allows_others():
    """Keras itself does not insist on it."""
    found = []
    for size in (SIZE, None):
        keras.utils.set_random_seed(0)
        x = keras.Input((5, 3), batch_size=size)
        model = keras.Model(x, layers.Dense(1)(layers.Flatten()(x)))
        model.compile("sgd", "mse")
        found.append(gradient_noise(objective(model, batch_size=None), group_size=4).noise_scale.value)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
