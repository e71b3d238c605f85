"""Gradients and products are right however a model reads its weights, or the way is refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import GaussNewtonOperator, HessianOperator, gradient_noise
from tfopt.relative_trust import StepMeter

SHAPES = [(3, 4), (4,), (4, 2), (2,)]
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((6, 3)), RNG.standard_normal((6, 2))
WEIGHTS = [RNG.standard_normal(shape) for shape in SHAPES]
OTHERS = [RNG.standard_normal(shape) for shape in SHAPES]


class Hidden(keras.layers.Layer):
    """tanh(x K + b), computed in a way that `make` chooses once the weights exist."""

    def __init__(self, make, **kwargs):
        super().__init__(**kwargs)
        self.make = make

    def build(self, _):
        self.kernel, self.bias = self.add_weight(shape=(3, 4)), self.add_weight(shape=(4,))
        self.function = self.make(self)

    def call(self, x):
        return self.function(x)


def plain(x, kernel, bias):
    return tf.tanh(tf.matmul(x, kernel) + bias)


def gradient_reads_a_weight(layer):
    @tf.custom_gradient
    def shifted_tanh(x, bias):
        def gradient(dy):
            found = dy * (1 - tf.tanh(x + layer.bias) ** 2)
            return found, tf.reduce_sum(found, axis=0)

        return tf.tanh(x + bias), gradient

    return lambda x: shifted_tanh(tf.matmul(x, layer.kernel), tf.convert_to_tensor(layer.bias))


def checkpointed_by_hand(layer):
    @tf.custom_gradient
    def function(x):
        def gradient(dy, variables=None):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = plain(x, layer.kernel, layer.bias)
            on_x, *others = tape.gradient(y, [x, *variables], dy)
            return on_x, others

        return plain(x, layer.kernel, layer.bias), gradient

    return function


def of_a_module(layer):
    module = tf.Module()
    module.kernel, module.bias = layer.kernel.value, layer.bias
    return lambda x: plain(x, module.kernel, module.bias)


def compiled_before(layer):
    function = tf.function(lambda x: plain(x, layer.kernel, layer.bias))
    return function.get_concrete_function(tf.TensorSpec((None, 3)))


def looked_up(layer):
    kernel = layer.kernel.value
    rows = [tf.nn.embedding_lookup, lambda k, i: tf.gather_nd(k, tf.expand_dims(i, 1)), lambda k, i: k.sparse_read(i)]
    return lambda x: plain(x, tf.add_n([take(kernel, tf.constant([0, 1, 2])) for take in rows]) / 3, layer.bias)


RIGHT = {
    "recompute_grad": lambda layer: lambda x: tf.recompute_grad(lambda x: plain(x, layer.kernel, layer.bias))(x),
    "recompute_grad made before": lambda layer: tf.recompute_grad(lambda x: plain(x, layer.kernel, layer.bias)),
    "remat": lambda layer: keras.remat(lambda x: plain(x, layer.kernel, layer.bias)),
    "gradient that reads a weight": gradient_reads_a_weight,
    "variable of TensorFlow": lambda layer: lambda x: plain(x, layer.kernel._value, layer.bias._value),
    "captured value": lambda layer: lambda x, k=layer.kernel.value, b=layer.bias.value: plain(x, k, b),
    "tf.function": lambda layer: tf.function(lambda x, k=layer.kernel.value: plain(x, k, layer.bias)),
    "tf.Module": of_a_module,
    "lookup": looked_up,
}
REFUSED = {
    "checkpoint by hand": (checkpointed_by_hand, "must not read its weights inside a function with a custom gradient"),
    "concrete function": (compiled_before, "in a function that was compiled before"),
}


def model_of(make):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(2)(Hidden(make)(inputs)))
    model.compile("sgd", "mse")
    model.set_weights(WEIGHTS)
    return model


def true_gradient(weights):
    kernel, bias, readout, offset = weights
    hidden = np.tanh(X @ kernel + bias)
    residual = 2 * (hidden @ readout + offset - Y) / Y.size
    inner = residual @ readout.T * (1 - hidden**2)
    return np.concatenate([g.ravel() for g in (X.T @ inner, inner.sum(0), hidden.T @ residual, residual.sum(0))])


def true_product(vector, step=1e-5):
    parts = np.split(vector, np.cumsum([np.prod(shape) for shape in SHAPES])[:-1])
    moved = [
        [w + sign * step * part.reshape(w.shape) for w, part in zip(WEIGHTS, parts, strict=True)] for sign in (1, -1)
    ]
    return (true_gradient(moved[0]) - true_gradient(moved[1])) / (2 * step)


@pytest.mark.parametrize("name", RIGHT)
def test_gradients_and_products(name):
    model = model_of(RIGHT[name])
    noise = gradient_noise(model, None, X, Y)
    np.testing.assert_allclose(noise.gradient, true_gradient(WEIGHTS), atol=1e-5)
    _, gradient = StepMeter(model, None, X, Y).loss_and_gradient(OTHERS)
    np.testing.assert_allclose(np.concatenate([g.ravel() for g in gradient]), true_gradient(OTHERS), atol=1e-5)
    vector = np.random.default_rng(1).standard_normal(26)
    product = HessianOperator(model, None, X, Y).matvec(vector)
    np.testing.assert_allclose(product, true_product(vector), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize(
    "measure",
    [
        lambda model: gradient_noise(model, None, X, Y),
        lambda model: StepMeter(model, None, X, Y).loss_and_gradient(WEIGHTS),
        lambda model: HessianOperator(model, None, X, Y).matvec(np.ones(26)),
        lambda model: GaussNewtonOperator(model, None, X, Y).matvec(np.ones(26)),
    ],
)
def test_what_hides_the_weights_is_refused(name, measure):
    make, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        measure(model_of(make))


def test_a_block_does_not_refuse_what_hides_other_weights():
    model = model_of(checkpointed_by_hand)
    product = HessianOperator(model, None, X, Y, variables=model.layers[-1]).matvec(np.ones(10))
    np.testing.assert_allclose(product, true_product(np.repeat([0.0, 1.0], [16, 10]))[16:], rtol=1e-3, atol=1e-4)


def test_losses_that_recompute():
    model = model_of(lambda layer: lambda x: plain(x, layer.kernel, layer.bias))

    def loss(y, y_pred):
        return tf.recompute_grad(lambda y_pred: tf.reduce_mean((y_pred - y) ** 2, axis=-1))(y_pred)

    want = GaussNewtonOperator(model, "mse", X, Y).to_dense()
    np.testing.assert_allclose(GaussNewtonOperator(model, loss, X, Y).to_dense(), want, atol=1e-5)


def test_training_recomputes_as_before():
    calls = []
    model = model_of(lambda layer: tf.recompute_grad(lambda x: calls.append(0) or plain(x, layer.kernel, layer.bias)))
    gradient_noise(model, None, X, Y)
    calls.clear()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X) - Y) ** 2)
    gradient = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    np.testing.assert_allclose(np.concatenate([np.ravel(g) for g in gradient]), true_gradient(WEIGHTS), atol=1e-5)
    assert len(calls) == 2
