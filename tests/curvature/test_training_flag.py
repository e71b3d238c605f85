"""With `batch_norm="batch"` a model is measured as `fit` calls it, without noise."""

import curvature_oracles as oracles
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfopt.curvature import HessianOperator, gradient_noise

RATE = 0.5


def layer(function, **variables):
    """Return a layer that computes a function of itself, its inputs and `training`."""

    class Made(layers.Layer):
        def __init__(self):
            super().__init__()
            self.draws = keras.random.SeedGenerator(0)

        def build(self, shape):
            for name, initializer in variables.items():
                setattr(self, name, self.add_weight(shape=shape[-1:], trainable=False, initializer=initializer))

        def call(self, x, training=None):
            return function(self, x, training)

    return Made()


def centred(self, x, training):
    if not training:
        return x - self.mean
    mean = ops.mean(x, 0)
    self.mean.assign(0.9 * self.mean + 0.1 * mean)
    return x - mean


def normalised(self, x, training):
    mean, variance = ops.moments(x, [0]) if training else (self.mean, self.variance)
    return (x - mean) / ops.sqrt(variance + 0.1)


class OwnBranch(layers.BatchNormalization):
    def call(self, x, training=None, mask=None):
        if not training:
            return super().call(x, training=training, mask=mask)
        mean, variance = ops.moments(x, [0])
        return self.gamma * (x - mean) / ops.sqrt(variance + self.epsilon) + self.beta


class Unclipped(layers.LayerNormalization):
    def call(self, x, training=None):
        return super().call(x) if training else ops.clip(super().call(x), -0.1, 0.1)


class NoDefault(layers.Layer):
    def call(self, x, training):
        return x * x if training else x


class Outer(keras.layers.Wrapper):
    def call(self, x, training=None):
        return self.layer(x, training=training)


class Own(keras.Model):
    """A model of parts, which calls them as it says."""

    def __init__(self, how, *parts):
        super().__init__()
        self.how, self.parts, self.first, self.last = how, list(parts), layers.Dense(3), layers.Dense(1)
        self.draws = keras.random.SeedGenerator(0)

    def call(self, x, training=None):
        return self.last(self.how(self, self.first(x), training))


class OwnLoss(Own):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean((y - y_pred) ** 2) * (2.0 if training else 1.0)


def add_loss(self, x, training):
    if training:
        self.add_loss(ops.mean(x**2))
    return x


def centre():
    return layer(centred, mean="ones")


def stack(*inside):
    return keras.Sequential([keras.Input((3,)), layers.Dense(3), *inside, layers.Dense(1)])


def in_steps(*inside):
    """Return a model of time steps."""
    return keras.Sequential([keras.Input((3,)), layers.Dense(6), layers.Reshape((2, 3)), *inside, layers.Dense(1)])


def own_dropout(self, x, training):
    return tf.nn.dropout(x, RATE) if training and RATE else x


def keras_dropout(self, x, training):
    return keras.random.dropout(x, RATE, seed=self.draws) if training and RATE else x


def drop_path(self, x, training):
    if not training or not RATE:
        return x
    return x * ops.floor(1.0 - RATE + keras.random.uniform((ops.shape(x)[0], 1), seed=self.draws, dtype=x.dtype))


def own_noise(self, x, training):
    return x + RATE * tf.random.normal(tf.shape(x), dtype=x.dtype) if training and RATE else x


def both(self, x, training):
    x = self.parts[0](x)
    return tf.nn.dropout(x, RATE) if training and RATE else x


def attention():
    mixed = layers.MultiHeadAttention(2, 2, dropout=RATE)
    return Own(lambda self, x, training: mixed(*[ops.reshape(self.parts[0](x), (-1, 3, 1))] * 2)[:, 0], centre(), mixed)


# What trains and has no noise.
PLAIN = {
    "centring": lambda: stack(centre()),
    "own batch normalisation": lambda: stack(layer(normalised, mean="zeros", variance="ones")),
    "a subclass of BatchNormalization": lambda: stack(OwnBranch(momentum=1.0)),
    "a subclass of LayerNormalization": lambda: stack(Unclipped()),
    "no default": lambda: Own(lambda self, x, training: self.parts[0](x, training=bool(training)), NoDefault()),
    "a loss in training": lambda: stack(layer(add_loss)),
    "a compute_loss that depends on it": lambda: OwnLoss(lambda self, x, _: self.parts[0](x), centre()),
    "explicitly off": lambda: Own(lambda self, x, _: self.parts[0](x, training=False), centre()),
    "twice": lambda: Own(
        lambda self, x, training: self.parts[0](x, training=False) - 2.0 * self.parts[0](x, training=training) ** 2,
        layer(normalised, mean="zeros", variance="ones"),
    ),
    "a wrapper": lambda: stack(Outer(centre())),
    "nested": lambda: Own(
        lambda self, x, _: self.parts[0](x), keras.Sequential([keras.Input((3,)), stack(centre()), layers.Dense(3)])
    ),
    "time steps": lambda: in_steps(layers.TimeDistributed(centre()), layers.Flatten()),
    "both directions": lambda: in_steps(
        layers.TimeDistributed(centre()), layers.Bidirectional(layers.SimpleRNN(1, unroll=True))
    ),
}
# The same with noise, which is none at the rate 0.
NOISY = {
    "own dropout": lambda: stack(centre(), layer(own_dropout)),
    "dropout in the model": lambda: Own(both, centre()),
    "dropout of keras.random": lambda: stack(centre(), layer(keras_dropout)),
    "stochastic depth": lambda: stack(centre(), layer(drop_path)),
    "noise": lambda: stack(centre(), layer(own_noise)),
    "Keras's noise": lambda: stack(centre(), layers.GaussianNoise(RATE), layers.AlphaDropout(RATE)),
    "recurrent dropout": lambda: in_steps(
        layers.TimeDistributed(centre()), layers.SimpleRNN(1, dropout=RATE, recurrent_dropout=RATE, unroll=True)
    ),
    "attention": attention,
}
# Of these the self-check too, which traces them in other ways, must be content.
CHECKED = ("no default", "a compute_loss that depends on it", "dropout in the model", "stochastic depth")


def made(make, monkeypatch, rate=0.0):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    monkeypatch.setitem(globals(), "RATE", rate)
    rng, model = np.random.default_rng(0), make()
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 1))
    model(x)
    model.set_weights([rng.uniform(0.3, 1.2, w.shape) if w.dtype.kind == "f" else w for w in model.get_weights()])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model, x, y


def hessian(model, x, y):
    """Return the loss of `fit`, and differences of its gradient."""
    variables = model.trainable_variables
    values = [v.numpy() for v in model.variables]

    @tf.function(autograph=False)
    def evaluate():
        with tf.GradientTape() as tape:
            loss = model._compute_loss(x, y, model(x, training=True), None, training=True)
        found = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
        return loss, tf.concat([tf.reshape(g, [-1]) for g in found], 0)

    expected = oracles.derivative(lambda: evaluate()[1].numpy(), variables)
    loss = float(evaluate()[0])
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    return loss, expected


@pytest.mark.parametrize("name", [*PLAIN, *NOISY])
def test_what_fit_sees_is_measured_without_noise(name, monkeypatch, recwarn):
    make = {**PLAIN, **NOISY}[name]
    model, x, y = made(make, monkeypatch)
    loss, expected = hessian(model, x, y)
    if name in NOISY:
        weights = model.get_weights()
        model, x, y = made(make, monkeypatch, 0.5)
        floats = iter(w for w in weights if w.dtype.kind == "f")
        model.set_weights([next(floats) if w.dtype.kind == "f" else w for w in model.get_weights()])
    before = model.get_weights()
    operator = HessianOperator(model, None, x, y, self_check=name in CHECKED)
    assert operator.loss_and_gradient()[0] == pytest.approx(loss, rel=1e-12)
    found = operator.to_dense()
    assert np.linalg.norm(found - expected) <= 1e-7 * np.linalg.norm(expected)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    predicted = model._compute_loss(x, y, model(x, training=False), None, training=False)
    moving = HessianOperator(model, None, x, y, batch_norm="moving")
    assert moving.loss_and_gradient()[0] == pytest.approx(float(predicted), rel=1e-12)


def test_what_draws_beside_other_layers_is_named(monkeypatch):
    def noisy(self, x, training):
        x = self.parts[0](x)
        return x + tf.random.normal(tf.shape(x), dtype=x.dtype) if training else x

    model, x, y = made(lambda: Own(noisy, centre()), monkeypatch)
    with pytest.warns(UserWarning, match="own.*draws random numbers in training.*the layers inside it as in `fit`"):
        operator = HessianOperator(model, None, x, y, self_check=True)
    operator.to_dense()  # the check traces the model again, and does not warn again
    centred_only, _, _ = made(lambda: Own(lambda self, x, _: self.parts[0](x), centre()), monkeypatch)
    centred_only.set_weights(model.get_weights()[: len(centred_only.get_weights())])
    loss = centred_only.compute_loss(x, y, centred_only(x, training=True))
    assert operator.loss_and_gradient()[0] == pytest.approx(float(loss), rel=1e-12)


class Cut(layers.Layer):
    def call(self, x, training=None):
        return tf.gather(x, tf.random.shuffle(tf.range(3))[:2], axis=1) if training else x

    def compute_output_shape(self, shape):
        return (shape[0], 2)


def test_noise_that_changes_the_shape_is_named():
    x, y = np.ones((6, 3), "float32"), np.ones((6, 1), "float32")
    model = keras.Sequential([keras.Input((3,)), Cut(name="cut_columns"), layers.Dense(1)])
    with pytest.raises(ValueError, match=r"cut_columns, with outputs of shape \(6, 2\) and \(6, 3\) in.*tf.data"):
        HessianOperator(model, "mse", x, y)


def test_models_that_set_their_weights_in_training_are_refused(monkeypatch):
    model, x, y = made(lambda: stack(layers.SpectralNormalization(layers.Dense(3))), monkeypatch)
    with pytest.raises(ValueError, match="must not set its trainable variables.*kernel.*batch_norm='moving'"):
        HessianOperator(model, None, x, y)
    assert HessianOperator(model, None, x, y, batch_norm="moving").to_dense().shape == (28, 28)


def test_tensorflow_variables_that_only_training_sets_are_refused_and_kept(monkeypatch):
    count = tf.Variable(0.0)

    def counting(self, x, training):
        if training:
            count.assign_add(1.0)
        return x

    model, x, y = made(lambda: stack(layer(counting)), monkeypatch)
    with pytest.raises(ValueError, match="must not change a tf.Variable"):
        HessianOperator(model, None, x, y)
    assert count.numpy() == 0.0


def test_gradient_noise_sees_layers_that_mix_rows_in_training(monkeypatch):
    model, x, y = made(PLAIN["centring"], monkeypatch)
    with pytest.raises(ValueError, match="batch statistics in a layer that is not Keras's BatchNormalization"):
        gradient_noise(model, None, x, y, batch_size=4, group_size=4)
    found = gradient_noise(model, None, x, y, batch_size=4, group_size=4, batch_norm="moving")
    assert np.isfinite(found.noise_scale.value)
