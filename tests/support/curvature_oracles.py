"""Hessians and Gauss-Newton matrices in float64, by extrapolated differences of first derivatives from Keras.

Nothing of `tfopt.curvature` is used: the model is called as a user would call it, and differentiated once.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf


def _dense(gradient, variable):
    return tf.zeros(variable.shape, variable.dtype) if gradient is None else tf.convert_to_tensor(gradient)


def gradient(model, loss, x, y, variables, training):
    """The gradient of the loss that `fit` minimises, as one vector."""
    with tf.GradientTape() as tape:
        value = loss(y, model(x, training=training)) + sum(model.losses)
    gradients = tape.gradient(value, [v.value for v in variables])
    return tf.concat([tf.reshape(_dense(g, v), [-1]) for g, v in zip(gradients, variables, strict=True)], 0)


def derivative(function, variables, step=4e-3, levels=4):
    """The derivative of a function of the variables, by columns: Richardson's extrapolation of central differences."""
    original = [np.asarray(v) for v in variables]
    sizes = np.cumsum([0] + [value.size for value in original])
    columns = []
    for place in range(sizes[-1]):
        which = int(np.searchsorted(sizes, place, side="right")) - 1

        def at(shift, which=which, place=place):
            moved = original[which].copy().reshape(-1)
            moved[place - sizes[which]] += shift
            variables[which].assign(moved.reshape(original[which].shape))
            return function()

        table = [(at(h) - at(-h)) / (2 * h) for h in (step / 2**level for level in range(levels))]
        for order in range(1, levels):
            table = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(table)]
        columns.append(table[0])
        variables[which].assign(original[which])
    return np.stack(columns, axis=1)


def hessian(model, loss, x, y, variables=None, training=False):
    variables = variables or model.trainable_variables
    compiled = tf.function(lambda: gradient(model, loss, x, y, variables, training), autograph=False)
    return derivative(lambda: compiled().numpy(), variables)


def jacobian(outputs, variables):
    """The Jacobian of a function that returns an array of shape (rows, k), with shape (rows, k, n)."""
    shape = outputs().shape
    return derivative(lambda: outputs().reshape(-1), variables).reshape(*shape, -1)


def gauss_newton_of_mse(jacobian):
    rows, width, _ = jacobian.shape
    return 2 / (rows * width) * np.einsum("rka,rkb->ab", jacobian, jacobian)


def fisher_of_softmax(jacobian, logits):
    """The mean over rows of J'(diag p - p p')J, J the derivative of the logits."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    middle = np.einsum("rk,kl->rkl", p, np.eye(p.shape[1])) - np.einsum("rk,rl->rkl", p, p)
    return np.einsum("rka,rkl,rlb->ab", jacobian, middle, jacobian) / len(p)


def fisher_of_sigmoid(jacobian, logits):
    p = 1 / (1 + np.exp(-logits))
    return np.einsum("rka,rk,rkb->ab", jacobian, p * (1 - p), jacobian) / p.size


def attention(dtype):
    inputs = keras.Input((3, 2), dtype=dtype)
    mixed = keras.layers.MultiHeadAttention(1, 2, dtype=dtype)(inputs, inputs)
    pooled = keras.layers.GlobalAveragePooling1D(dtype=dtype)(keras.layers.LayerNormalization(dtype=dtype)(mixed))
    return keras.Model(inputs, keras.layers.Dense(2, dtype=dtype)(pooled))


def sequential(shape, *layers, input_dtype=None):
    return lambda dtype: keras.Sequential([
        keras.Input(shape, dtype=input_dtype or dtype),
        *(make(dtype) for make in layers),
    ])


def dense(units, **options):
    return lambda dtype: keras.layers.Dense(units, dtype=dtype, **options)


def layer(kind, *arguments, **options):
    return lambda dtype: kind(*arguments, dtype=dtype, **options)


# Name -> function that makes the model in a dtype, and the kind of inputs.
KINDS = {
    "dense": (sequential((3,), dense(4, activation="tanh"), dense(2)), "floats"),
    "conv": (
        sequential(
            (4, 4, 1),
            layer(keras.layers.Conv2D, 2, 2, activation="softplus"),
            layer(keras.layers.AveragePooling2D, 2),
            layer(keras.layers.Flatten),
            dense(2),
        ),
        "floats",
    ),
    "batch_norm": (
        sequential((3,), dense(3, use_bias=False), layer(keras.layers.BatchNormalization), dense(2, activation="tanh")),
        "floats",
    ),
    "embedding": (
        sequential(
            (3,),
            layer(keras.layers.Embedding, 4, 2),
            layer(keras.layers.Flatten),
            dense(2, activation="tanh"),
            input_dtype="int32",
        ),
        "tokens",
    ),
    "lstm": (sequential((3, 2), layer(keras.layers.LSTM, 2), dense(2)), "floats"),
    "attention": (attention, "floats"),
    "regularized": (
        lambda dtype: keras.Sequential([
            keras.Input((3,), dtype=dtype),
            keras.layers.Dense(3, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.25), dtype=dtype),
            keras.layers.Dense(2, dtype=dtype),
        ]),
        "floats",
    ),
}


def make(kind, dtype="float64", rows=6):
    """A model of one kind with random weights that are equal in each dtype, and data for it."""
    build, inputs = KINDS[kind]
    rng = np.random.default_rng(0)
    model = build(dtype)
    for variable in model.variables:
        if variable.name != "seed_generator_state":
            value = rng.normal(size=variable.shape) * 0.7
            variable.assign(np.abs(value) + 0.5 if variable.name == "moving_variance" else value)
    shape = (rows, *model.input_shape[1:])
    x = rng.integers(0, 4, shape) if inputs == "tokens" else rng.normal(size=shape)
    y = rng.normal(size=(rows, *model.output_shape[1:]))
    return model, x if inputs == "tokens" else x.astype(dtype), y.astype(dtype)
