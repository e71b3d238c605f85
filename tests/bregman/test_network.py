"""Which models are read, and what the error says of those that are not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import models
from tfopt.bregman import BregmanTrainer
from tfopt.bregman.network import DenseChain

Dense = keras.layers.Dense


def chain_of(*layers):
    return DenseChain.from_model(keras.Sequential([keras.Input((4,)), *layers]))


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (keras.layers.ReLU(), "relu"),
        (keras.layers.ReLU(negative_slope=0.3), "leaky_relu(0.3)"),
        (keras.layers.ReLU(max_value=1.0), "clip(0, 1)"),
        (keras.layers.LeakyReLU(negative_slope=0.25), "leaky_relu(0.25)"),
        *[(keras.layers.Activation(name), name) for name in ("relu", "tanh", "sigmoid", "softplus", "gelu")],
        (keras.layers.Activation("relu6"), "clip(0, 6)"),
        (keras.layers.Activation("leaky_relu"), "leaky_relu(0.2)"),
        (keras.layers.Activation("linear"), "identity"),
        # TensorFlow's functions, as in its tutorials, and those of `keras.ops`.
        *[(keras.layers.Activation(getattr(tf.nn, name)), name) for name in ("relu", "tanh", "sigmoid", "softplus")],
        *[(keras.layers.Activation(getattr(keras.ops, name)), name) for name in ("relu", "tanh", "sigmoid")],
        (keras.layers.Activation(tf.nn.leaky_relu), "leaky_relu(0.2)"),
        (keras.layers.Activation(keras.ops.leaky_relu), "leaky_relu(0.2)"),
        (keras.layers.Activation(tf.nn.gelu), "gelu"),
    ],
)
def test_activations_compute_what_keras_computes(layer, name):
    z = np.linspace(-9, 9, 101, dtype="float32")
    (activation,) = chain_of(Dense(3), layer, Dense(1)).activations
    assert activation.name == name
    np.testing.assert_allclose(
        activation(tf.constant(z)).numpy(), keras.ops.convert_to_numpy(layer(z)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("module", [tf.nn, keras.ops, keras.activations])
@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_output_activations_of_every_module(module, name):
    assert chain_of(Dense(3), Dense(2, getattr(module, name))).output_activation == name


def test_preparation_activations_and_outputs():
    inner = keras.Sequential([keras.Input((5,)), Dense(6, "tanh"), Dense(3)])
    normalization = keras.layers.Normalization(mean=2.0, variance=4.0)
    model = keras.Sequential([
        keras.Input((2, 2)),
        keras.layers.Rescaling(0.5),
        keras.layers.Flatten(),
        normalization,
        Dense(5, use_bias=False),
        inner,
        keras.layers.Softmax(),
    ])
    chain = DenseChain.from_model(model)
    assert chain.widths == (4, 5, 6, 3)
    assert chain.uses_bias == (False, True, True)
    assert [h.name for h in chain.activations] == ["identity", "tanh"]
    assert chain.output_activation == "softmax"
    x = np.random.default_rng(0).normal(size=(7, 2, 2)).astype("float32")
    outputs = chain.architecture.forward(chain.prepare(x), chain.read_weights())[-1]
    np.testing.assert_allclose(keras.ops.softmax(outputs), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


def test_weights_go_both_ways():
    model = models.mlp(4, (3,), 2, seed=0)
    chain = DenseChain.from_model(model)
    before = model.get_weights()
    chain.write_weights([(kernel * 2, bias + 1) for kernel, bias in chain.read_weights()])
    for new, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(new, old * 2 if old.ndim == 2 else old + 1)


def frozen():
    layer = Dense(3, name="mine")
    layer.trainable = False
    return layer


def functional(build):
    inputs = keras.Input((4,))
    return keras.Model(inputs, build(inputs))


class Custom(keras.Model):
    def call(self, x):
        return x


class Doubled(Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


BAD = [
    (lambda: chain_of(Doubled(3, name="mine"), Dense(1)), "layer 'mine' .Doubled. comes before the first Dense"),
    (
        lambda: chain_of(Dense(3, dtype="float64"), Dense(1, name="mine")),
        "'mine' .* float32, not the float64 of the first",
    ),
    (
        lambda: DenseChain.from_model(keras.Sequential([keras.Input((4, 6)), Dense(8, name="mine"), Dense(1)])),
        r"'mine' .Dense. takes inputs of shape \(None, 4, 6\); put a Flatten before it",
    ),
    (lambda: chain_of(Dense(3), keras.layers.Dropout(0.5, name="mine"), Dense(1)), "layer 'mine' .Dropout. cannot be"),
    (lambda: chain_of(keras.layers.BatchNormalization(name="mine"), Dense(1)), "'mine' .BatchNorm.* before the first"),
    (lambda: chain_of(Dense(3, "silu", name="mine"), Dense(1)), "layer 'mine' .Dense. has the activation 'silu'"),
    (
        lambda: chain_of(Dense(3, lambda x: x**2, name="mine"), Dense(1)),
        "layer 'mine' .* has the activation '<lambda>'",
    ),
    (lambda: chain_of(Dense(3, "relu"), keras.layers.ReLU(name="mine"), Dense(1)), "'mine' .* second activation after"),
    (lambda: chain_of(Dense(3), keras.layers.ReLU(threshold=1.0, name="mine"), Dense(1)), "'mine' .* threshold"),
    (lambda: chain_of(Dense(1, "relu", name="mine")), "layer 'mine' .Dense. comes last and is not linear, softmax or"),
    (
        lambda: chain_of(Dense(2, "softmax"), keras.layers.Softmax(name="mine")),
        "'mine' .* second activation of the out",
    ),
    (lambda: chain_of(frozen(), Dense(1)), "layer 'mine' .Dense. is frozen"),
    (lambda: chain_of(Dense(3, kernel_regularizer="l2", name="mine"), Dense(1)), "'mine' .*kernel_regularizer; use"),
    (
        lambda: chain_of(Dense(3, kernel_constraint="non_neg", name="mine"), Dense(1)),
        "'mine' .* has a kernel_constraint",
    ),
    (lambda: chain_of(Dense(3, dtype="bfloat16", name="mine"), Dense(1)), "'mine' .* has weights of dtype bfloat16"),
    (
        lambda: chain_of(Dense(3, dtype="mixed_float16", name="mine"), Dense(1)),
        "'mine' .*'mixed_float16'.*to 'float32'",
    ),
    (lambda: chain_of(Dense(3), Dense(1, dtype="mixed_bfloat16", name="mine")), "'mine' .*'mixed_bfloat16'"),
    (lambda: chain_of(Dense(3), keras.layers.ReLU(dtype="float16", name="mine"), Dense(1)), "'mine' .* in float16"),
    (lambda: chain_of(keras.layers.Flatten()), "has no Dense layer"),
    (lambda: DenseChain.from_model(keras.Sequential([Dense(2)])), "is not built: begin it with keras.Input"),
    (lambda: DenseChain.from_model(Custom()), "is not built|computes by Python code"),
    (lambda: DenseChain.from_model(models.mlp(4, (4, 4), residual=True)), "layer 'skip_2' .Add. joins 2 inputs"),
    (
        lambda: DenseChain.from_model(
            keras.Model(i := [keras.Input((2,)), keras.Input((2,))], [Dense(1)(i[0]), Dense(1)(i[1])])
        ),
        "has 2 inputs and 2 outputs",
    ),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_what_cannot_be_trained_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_layer_used_twice_is_refused():
    layer = Dense(4)
    with pytest.raises(ValueError, match="uses a Dense layer twice"):
        DenseChain.from_model(functional(lambda x: layer(layer(x))))


def test_only_models_are_taken():
    with pytest.raises(TypeError, match="`model` must be a Keras model. Received: 3"):
        BregmanTrainer(3, "mse")
