"""Losses that are no mean over rows are refused wherever the data show it, whatever the order of the rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import Objective, gradient_noise
from tfopt.curvature.groups import Groups

REFUSED = "`loss` must be a mean over rows"
ROWS, STEPS, CLASSES = 32, 6, 3
CROSSENTROPY = "sparse_categorical_crossentropy"


def sequences(lengths, seed=0):
    """Rows of some lengths, padded with zeros to six steps."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((ROWS, STEPS, 2)), rng.integers(0, CLASSES, (ROWS, STEPS))
    for row, length in enumerate(lengths):
        x[row, length:] = 0.0
    return x.astype("float32"), y


def tagger(*layers):
    inputs = keras.Input((STEPS, 2))
    middle = inputs
    for layer in (keras.layers.Masking(), *layers):
        middle = layer(middle)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, "softmax")(middle))


FULL = [STEPS] * ROWS
LENGTHS = {
    "a padded batch first": [1, 2, 6, 1, 3, 6, 2, 1, *FULL[8:]],
    "a padded batch last": [*FULL[8:], 1, 2, 6, 1, 3, 6, 2, 1],
    "one row that is shorter, late": [*FULL[:-3], 5, 6, 6],
    "the same length within a batch": [6] * 8 + [3] * 24,
    "the same lengths in each group of four": [6, 6, 3, 3] * 8,
}


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("name", LENGTHS)
def test_masks_are_seen_in_every_batch(name, group_size):
    x, y = sequences(LENGTHS[name])
    with pytest.raises(ValueError, match=REFUSED):
        gradient_noise(tagger(), CROSSENTROPY, x, y, group_size=group_size, batch_size=8)


@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("lengths", [FULL, [3] * ROWS])
def test_masks_that_leave_the_same_of_each_row_are_taken(lengths, group_size):
    x, y = sequences(lengths)
    model = tagger()
    noise = gradient_noise(model, CROSSENTROPY, x, y, group_size=group_size, batch_size=8)
    kernel, bias = (np.asarray(v.value, np.float64) for v in model.trainable_variables)
    groups = []
    for start in range(0, ROWS, group_size):  # the softmax's gradient, by hand
        rows = slice(start, start + group_size)
        inputs = x[rows, : lengths[0]].reshape(-1, 2).astype(np.float64)
        scores = np.exp(inputs @ kernel + bias)
        errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y[rows, : lengths[0]].reshape(-1)]
        groups.append(np.concatenate([(inputs.T @ errors).ravel(), errors.sum(axis=0)]) / len(inputs))
    expected = group_size * np.trace(np.cov(np.array(groups).T))
    assert noise.covariance_trace.value == pytest.approx(expected, rel=1e-4)


def test_masks_are_seen_though_batches_are_normalized():
    """Moving averages take the place of the batches' statistics, by which the gradient of a batch is no mean."""
    normalizes = keras.layers.BatchNormalization()
    x, y = sequences(LENGTHS["a padded batch last"])
    with pytest.raises(ValueError, match=REFUSED):
        gradient_noise(tagger(normalizes), CROSSENTROPY, x, y, group_size=4, batch_size=8)
    x, y = sequences(FULL)
    assert gradient_noise(tagger(normalizes), CROSSENTROPY, x, y, group_size=4, batch_size=8).covariance_trace.value > 0


def test_targets_that_are_ignored_late_are_seen():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)).astype("float32"), rng.integers(1, 3, 200)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    assert gradient_noise(model, ignoring, x, y, batch_size=50).covariance_trace.value > 0  # there are none
    y[197] = 0
    for group_size in (1, 5):
        with pytest.raises(ValueError, match=REFUSED):
            gradient_noise(model, ignoring, x, y, batch_size=50, group_size=group_size)


class Whitening(keras.layers.Layer):
    """Normalises by the statistics of the batch, and does not say so."""

    def call(self, x):
        return (x - keras.ops.mean(x, axis=0)) / (keras.ops.std(x, axis=0) + 0.1)


class RowAttention(keras.layers.Layer):
    def call(self, x):
        scores = keras.ops.exp(x @ keras.ops.transpose(x))
        return x + scores @ x / keras.ops.sum(scores, axis=1, keepdims=True)


def contrastive(y_true, y_pred):
    scores = y_pred @ keras.ops.transpose(y_true)
    return keras.ops.categorical_crossentropy(keras.ops.eye(keras.ops.shape(scores)[0]), scores, from_logits=True)


MIXED = {
    "batch statistics": (Whitening(), "mse"),
    "attention over the batch": (RowAttention(), "mse"),
    "a contrastive loss": (keras.layers.Identity(), contrastive),
    "the sum": (keras.layers.Identity(), keras.losses.MeanSquaredError(reduction="sum")),
}


@pytest.mark.parametrize("group_size", [1, 2, 16])
@pytest.mark.parametrize("name", MIXED)
def test_rows_that_are_mixed_are_seen(name, group_size):
    layer, loss = MIXED[name]
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(ROWS, 3)).astype("float32") for _ in range(2))
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=rf"{REFUSED}.*reduction.*masks.*mixes the rows of a batch"):
        gradient_noise(model, loss, x, y, group_size=group_size)


@pytest.mark.parametrize("num_rows", [2, 4, 16, 40])
def test_gradients_that_cancel_hide_nothing(num_rows):
    """Each gradient is there with both signs, so that their mean and their sum are 0 both."""
    x = np.ones((num_rows, 1), "float32")
    y = np.resize([[1.0], [-1.0]], (num_rows, 1)).astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    with pytest.raises(ValueError, match=REFUSED):
        gradient_noise(model, keras.losses.MeanSquaredError(reduction="sum"), x, y)
    noise = gradient_noise(model, "mse", x, y)
    assert noise.covariance_trace.value == pytest.approx(8.0 * num_rows / (num_rows - 1))


def test_rounding_near_a_minimum_is_no_mask():
    """The mean gradient is thousands of times smaller than those of rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 20)).astype("float32")
    y = (x @ rng.normal(size=(20, 3)) + 10.0 * rng.normal(size=(240, 3))).astype("float32")
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(240)]), y, rcond=None)[0]
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(3)])
    model.set_weights([solution[:-1], solution[-1]])
    for group_size in (1, 8, 120):
        noise = gradient_noise(model, "mse", x, y, group_size=group_size, batch_size=120)
        assert noise.squared_gradient_norm < 1e-8 * noise.covariance_trace.value


def test_batches_of_other_lengths_are_not_mixed():
    """Without masks each row's loss is the mean over its own steps, in batches of any length."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.Dense(1)])
    batches = [tuple(rng.normal(size=(8, steps, size)) for size in (2, 1)) for steps in (3, 5, 4, 5)]
    noise = gradient_noise(model, "mse", tf.data.Dataset.from_generator(lambda: batches, output_types=("float32",) * 2))
    assert noise.num_rows == 32
    whole = gradient_noise(model, "mse", iter_of(batches), group_size=8)
    np.testing.assert_allclose(whole.gradient, noise.gradient, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=REFUSED):  # halves of a batch are compared where it has no like
        gradient_noise(model, contrastive_over_steps, iter_of(batches), group_size=8)


def iter_of(batches):
    from tfopt.curvature import Probe

    return Probe(iter(batches), num_batches=len(batches))


def contrastive_over_steps(y_true, y_pred):
    return contrastive(keras.ops.mean(y_true, axis=1), keras.ops.mean(y_pred, axis=1))


class OneOfTwoRanks:
    """Rank 0 of two, of which the other one says what it is told to."""

    rank, size = 0, 2

    def __init__(self, group, verdict=0):
        self.group, self.verdict = group, verdict

    def allreduce_sum(self, tensors, name=""):
        return [2 * tensor for tensor in tensors]

    def allgather_object(self, item, name=""):
        return [item, self.group if name == "a group of each rank" else self.verdict]


def test_ranks_compare_their_rows():
    x, y = sequences(FULL)
    shorter, _ = sequences([3] * ROWS)
    model = tagger()

    def check(group, verdict=0):
        ranks = OneOfTwoRanks(group, verdict)
        Groups(Objective(model, CROSSENTROPY, (x, y), communicator=ranks), 4).check()

    check((4, x[:4], y[:4], None))
    check(None)  # the other rank has too few rows for a group
    check((4, x[:4, :5], y[:4, :5], None))  # of another form
    with pytest.raises(ValueError, match=REFUSED):
        check((4, shorter[:4], y[:4], None))
    with pytest.raises(ValueError, match=REFUSED):  # which only the other rank has seen
        check((4, x[:4], y[:4], None), verdict=2)
    with pytest.raises(ValueError, match="must have a finite loss and gradient"):
        check((4, x[:4], y[:4], None), verdict=1)


def test_weights_that_are_not_finite_are_no_matter_of_means():
    x, y = sequences(FULL)
    model = tagger()
    model.set_weights([np.full((2, CLASSES), np.nan), np.zeros(CLASSES)])
    with pytest.raises(ValueError, match="`model` must have a finite loss and gradient on the data"):
        gradient_noise(model, CROSSENTROPY, x, y)
