"""Gauss-Newton matrices of models that end in softmax or sigmoid, against the same weights with logits and NumPy."""

import curvature_oracles as oracles
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.curvature import GaussNewtonOperator, HessianOperator, Objective
from tfopt.planning import fit_noisy_quadratic

STEPS, CLASSES = 4, 3


@pytest.fixture(autouse=True)
def _float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def floats(*shape):
    return keras.Input(shape, name="x")


def tokens():
    return keras.Input((STEPS,), dtype="int32", name="x")


def dense_ending(activation):
    return layers.Dense(CLASSES, activation=activation)


def activation_layer(activation):
    return lambda inputs: layers.Activation(activation or "linear")(layers.Dense(CLASSES)(inputs))


def of_tensorflow(activation):
    function = getattr(tf.nn, activation) if activation else tf.identity
    return keras.Sequential([layers.Dense(CLASSES), layers.Lambda(function, output_shape=lambda shape: shape)])


def moved(activation):
    """The classes come first in softmax, and last after it."""
    ending = layers.Softmax(axis=1) if activation == "softmax" else layers.Activation(activation or "linear")
    there, back = layers.Permute((2, 1)), layers.Permute((2, 1))
    return keras.Sequential([layers.Dense(CLASSES), there, ending, back, layers.Reshape((-1, CLASSES))])


def masked(inputs):
    return layers.Masking()(inputs)


def recurrent(inputs):
    return layers.SimpleRNN(1, return_sequences=True)(layers.Masking()(inputs))


def embedded(inputs):
    return layers.Embedding(5, 2, mask_zero=True)(inputs)


def plain(inputs):
    return layers.Dense(2, activation="tanh")(inputs)


def time_distributed(activation):
    return layers.TimeDistributed(dense_ending(activation))


# name -> inputs, body, ending, kind of ending, reduction, whether rows are weighted, whether steps are masked
CASES = {
    "masking": (floats(STEPS, 2), masked, dense_ending, "softmax", "sum_over_batch_size", False, True),
    "masking, sigmoid": (floats(STEPS, 2), masked, dense_ending, "sigmoid", "sum_over_batch_size", True, True),
    "recurrent, sum": (floats(STEPS, 2), recurrent, dense_ending, "softmax", "sum", True, True),
    "embedding": (tokens(), embedded, activation_layer, "softmax", "sum_over_batch_size", True, True),
    "embedding, sum": (tokens(), embedded, activation_layer, "softmax", "sum", False, True),
    "embedding, sigmoid": (tokens(), embedded, activation_layer, "sigmoid", "mean_with_sample_weight", True, True),
    "time steps": (floats(STEPS, 2), masked, time_distributed, "softmax", "sum_over_batch_size", True, True),
    "time steps, sum": (floats(STEPS, 2), masked, time_distributed, "sigmoid", "sum", False, True),
    "any number of steps": (floats(None, 2), masked, time_distributed, "softmax", "sum", True, True),
    "tensorflow": (floats(STEPS, 2), plain, of_tensorflow, "softmax", "sum_over_batch_size", False, False),
    "tensorflow, sigmoid": (floats(STEPS, 2), plain, of_tensorflow, "sigmoid", "sum", False, False),
    "moved": (floats(STEPS, 2), plain, moved, "softmax", "sum_over_batch_size", True, False),
    "moved, sigmoid": (floats(STEPS, 2), plain, moved, "sigmoid", "sum", False, False),
}
# Of these the self-check too, which looks at the loss's own derivatives, must be content.
CHECKED = ("masking, sigmoid", "embedding", "time steps, sum", "moved")


def make_data(rows=5):
    rng = np.random.default_rng(0)
    here = np.arange(STEPS) < np.array([4, 2, 1, 3, 4])[:rows, None]
    x = rng.normal(size=(rows, STEPS, 2)) * here[..., None]
    return x, rng.integers(1, 5, (rows, STEPS)) * here, here, rng


def make_twins(inputs, body, ending, kind):
    bottom = body(inputs)
    twins = keras.Model(inputs, ending(kind)(bottom)), keras.Model(inputs, ending(None)(bottom))
    twins[0].set_weights(twins[1].get_weights())
    return twins


@pytest.mark.parametrize("case", CASES)
def test_as_of_logits_and_as_in_numpy(case):
    inputs, body, ending, kind, reduction, is_weighted, is_masked = CASES[case]
    floats, words, here, rng = make_data()
    x, here = (words if inputs.dtype == "int32" else floats), here if is_masked else np.ones_like(here)
    probabilities, logits = make_twins(inputs, body, ending, kind)
    if kind == "softmax":
        y, loss = rng.integers(0, CLASSES, (5, STEPS)), keras.losses.SparseCategoricalCrossentropy
    else:
        y, loss = rng.integers(0, 2, (5, STEPS, CLASSES)).astype("float64"), keras.losses.BinaryCrossentropy
    weight = rng.uniform(0.5, 2.0, (5, STEPS)) if is_weighted else None
    found = [
        GaussNewtonOperator(
            model,
            loss(from_logits=is_logits, reduction=reduction),
            x,
            y,
            weight,
            self_check=case in CHECKED and not is_logits,
        ).to_dense()
        for model, is_logits in ((probabilities, False), (logits, True))
    ]
    call = tf.function(lambda: tf.reshape(logits(x), [-1, CLASSES]), autograph=False)
    jacobian = oracles.jacobian(lambda: call().numpy(), logits.trainable_variables)
    weights = (here * (1.0 if weight is None else weight)).reshape(-1)
    total = {"sum": 1.0, "sum_over_batch_size": here.sum(), "mean_with_sample_weight": weights.sum()}[reduction]
    rooted = jacobian * np.sqrt(weights / total)[:, None, None]
    z = np.asarray(logits(x)).reshape(-1, CLASSES)
    expected = len(z) * getattr(oracles, f"fisher_of_{kind}")(rooted, z)
    for matrix in found:
        assert np.linalg.norm(matrix - expected) <= 1e-8 * np.linalg.norm(expected)


class ReadsEverything(keras.losses.Loss):
    """Reads the mask and the logits that Keras leaves on outputs, and one output beside them."""

    def call(self, y_true, y_pred):
        mask, logits = y_pred._keras_mask, getattr(y_pred, "_keras_logits", y_pred)
        return tf.where(mask, keras.ops.logsumexp(logits, -1) - logits[..., 0], 0.0)


def test_one_of_several_outputs_and_a_loss_that_reads_what_keras_leaves():
    x, _, _, rng = make_data()
    inputs = floats(STEPS, 2)
    bottom = layers.Masking()(inputs)
    last = layers.Lambda(lambda steps: steps[:, 0])(inputs)
    found = []
    for activation in ("softmax", None):
        heads = {"a": dense_ending(activation)(bottom), "b": layers.Dense(1)(last), "c": dense_ending(activation)(last)}
        model = keras.Model(inputs, heads)
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(size=weight.shape) for weight in model.get_weights()])
        y = {"a": np.zeros((5, STEPS), "int64"), "b": rng.normal(size=(5, 1)), "c": rng.integers(0, 3, 5)}
        crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
        for loss_of_a in (crossentropy, ReadsEverything()):
            model.compile(loss={"a": loss_of_a, "b": "mse", "c": crossentropy}, loss_weights={"a": 2, "b": 1, "c": 3})
            found.append(GaussNewtonOperator(model, None, x, y).to_dense())
    np.testing.assert_allclose(found[0], found[2], atol=1e-12)
    np.testing.assert_allclose(found[1], found[3], atol=1e-12)
    assert np.linalg.norm(found[0]) > 0.1


def test_an_output_made_of_another():
    """Each counts as an output of its own, and integers as none."""
    x, _, _, rng = make_data()
    inputs = keras.Input((2,))
    z = dense_ending(None)(inputs)
    model = keras.Model(inputs, [layers.Softmax()(z), z, keras.ops.argmax(z, -1), keras.ops.tanh(z)])
    y = rng.integers(0, 3, 5), np.zeros((5, 3)), np.zeros(5), np.zeros((5, 3))
    zero = lambda a, b: 0.0 * tf.cast(b, "float64")  # noqa: E731
    model.compile(loss=["sparse_categorical_crossentropy", "mse", zero, "mse"])
    found = GaussNewtonOperator(model, None, x[:, 0], list(y)).to_dense()
    values = np.asarray(z_of := keras.Model(inputs, z)(x[:, 0]))
    jacobian = oracles.jacobian(lambda: np.asarray(keras.Model(inputs, z)(x[:, 0])), model.trainable_variables)
    of_tanh = jacobian * (1 - np.tanh(np.asarray(z_of)) ** 2)[..., None]
    squares = oracles.gauss_newton_of_mse(jacobian) + oracles.gauss_newton_of_mse(of_tanh)
    np.testing.assert_allclose(found, oracles.fisher_of_softmax(jacobian, values) + squares, atol=1e-9)


def test_planning_takes_the_same_matrix():
    """With as many steps in all rows, so that the loss is a mean over rows: as without the others."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, STEPS, 2)), rng.integers(0, CLASSES, (64, STEPS))
    x[:, 2:] = 0
    probabilities, logits = make_twins(floats(STEPS, 2), masked, dense_ending, "softmax")
    plain = keras.Sequential([floats(2, 2), dense_ending(None)])
    plain.set_weights(logits.get_weights())
    loss, of_logits = (keras.losses.SparseCategoricalCrossentropy(from_logits=is_logits) for is_logits in (False, True))
    short, whole = (x[:, :2], y[:, :2]), (x, y)
    truth, *found = (
        fit_noisy_quadratic(Objective(model, loss, data), None, num_runs=4, num_matvecs=4).curvature
        for model, data, loss in ((plain, short, of_logits), (probabilities, whole, loss), (logits, whole, of_logits))
    )
    for curvature in found:
        np.testing.assert_allclose(curvature, truth, rtol=1e-6)


@pytest.mark.parametrize("is_function", [False, True], ids=["plain", "compiled"])
def test_losses_that_read_weights_are_no_functions_of_outputs(is_function):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "tanh"), keras.layers.Dense(1)])
    x, y = (np.random.default_rng(0).normal(size=(64, k)).astype("float32") for k in (3, 1))
    kernel = model.layers[1].kernel
    penalty = lambda: tf.reduce_sum(kernel.value**2)  # noqa: E731
    penalty = tf.function(penalty) if is_function else penalty
    loss = lambda a, b: keras.ops.mean((a - b) ** 2, -1) + 0.5 * penalty()  # noqa: E731
    without = np.trace(HessianOperator(model, "mse", x, y).to_dense())
    assert np.trace(HessianOperator(model, loss, x, y).to_dense()) == pytest.approx(without + 2.0, rel=1e-4)
    with pytest.raises(ValueError, match="`loss` must be a function of the model's outputs.*reads .*dense.*kernel"):
        GaussNewtonOperator(model, loss, x, y).to_dense()
    with pytest.raises(ValueError, match="`loss` must be a function of the model's outputs"):
        fit_noisy_quadratic(Objective(model, loss, (x, y)), None, num_runs=4, num_matvecs=2, num_rows_per_run=16)
