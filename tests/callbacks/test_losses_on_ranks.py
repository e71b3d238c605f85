"""What is said about a loss before training on ranks is what the gradients of halves of a batch show.

Training on two ranks is in `tests/distributed/test_ranks.py`.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks._losses_on_ranks import examine_losses, names_of_sums
from tfopt.callbacks._running_fit import find_running_fit

RNG = np.random.default_rng(0)
ROWS, STEPS, CLASSES = 8, 5, 3
L = keras.losses


class LookError(Exception):
    pass


class Look(keras.callbacks.Callback):
    """Examine the losses at the start of `fit`, and end it there."""

    def on_train_begin(self, logs=None):
        self.found = examine_losses(self.model, find_running_fit(self))
        raise LookError


def look(model, x, y, **options):
    callback = Look()
    with pytest.raises(LookError):
        model.fit(x, y, verbose=0, callbacks=[callback], **options)
    return callback.found


def identity(shape, **compiled):
    model = keras.Sequential([keras.Input(shape), keras.layers.Activation("linear")])
    model.compile("sgd", **compiled)
    return model


def kind_of(loss, y, outputs, sample_weight=None):
    """Return whether the gradient on a batch is the mean or the sum of those on its halves, or neither."""

    def gradient(rows):
        part = tf.constant(outputs[rows])
        with tf.GradientTape() as tape:
            tape.watch(part)
            weights = None if sample_weight is None else sample_weight[rows]
            value = loss(tf.constant(y[rows]), part, weights)
        return tape.gradient(value, part).numpy()

    whole = gradient(slice(None))
    halves = np.concatenate([gradient(slice(None, ROWS // 2)), gradient(slice(ROWS // 2, None))])
    close = [np.allclose(whole, factor * halves, rtol=1e-4, atol=1e-7) for factor in (0.5, 1.0)]
    return "mean" if close[0] else "sum" if close[1] else "other"


def softmax(values):
    return np.exp(values) / np.exp(values).sum(axis=-1, keepdims=True)


OUTPUTS = softmax(RNG.normal(size=(ROWS, STEPS, CLASSES))).astype("float32")
LABELS = RNG.integers(0, CLASSES, size=(ROWS, STEPS))
LABELS[0, 1:] = LABELS[1, 2:] = 0
ONE_HOT = np.eye(CLASSES, dtype="float32")[LABELS]
CTC = np.full((ROWS, 2), 1), RNG.normal(size=(ROWS, STEPS, CLASSES)).astype("float32")
CIRCLE = np.arange(ROWS) % 2, softmax(RNG.normal(size=(ROWS, 4))).astype("float32")
SPECIAL = {
    "SparseCategoricalCrossentropy": (LABELS, OUTPUTS),
    "CategoricalGeneralizedCrossEntropy": (LABELS[:, 0], OUTPUTS[:, 0]),
    "CTC": CTC,
    "Circle": CIRCLE,
}
CLASSES_OF_LOSSES = sorted(
    {c.__name__ for c in vars(L).values() if inspect.isclass(c) and issubclass(c, L.Loss)} - {"Loss"}
)
OVER_THE_BATCH = {"Circle", "Dice", "Tversky"}


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "mean_with_sample_weight", "sum", None])
@pytest.mark.parametrize("name", CLASSES_OF_LOSSES)
def test_every_loss_of_keras(name, reduction):
    y, outputs = SPECIAL.get(name, (ONE_HOT, OUTPUTS))
    loss = getattr(L, name)(reduction=reduction)
    kind = kind_of(loss, y, outputs)
    found = look(identity(outputs.shape[1:], loss=loss), outputs, y)
    assert (kind == "other") == (name in OVER_THE_BATCH)
    assert bool(found.problems) == (kind == "other")
    assert found.are_sums == (kind == "sum")


def token_mean(y, outputs):
    return keras.ops.mean(keras.ops.square(y - outputs), axis=(-1, -2))


class OwnSum(L.Loss):
    def call(self, y, outputs):
        return keras.ops.sum(keras.ops.square(y - outputs), axis=-1)


class OwnNumber(OwnSum):
    def call(self, y, outputs):
        return keras.ops.mean(super().call(y, outputs))


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (L.SparseCategoricalCrossentropy(ignore_class=0), LABELS),
        (L.SparseCategoricalCrossentropy(ignore_class=0, reduction="mean_with_sample_weight"), LABELS),
        (L.SparseCategoricalCrossentropy(ignore_class=0, reduction="sum"), LABELS),
        (L.Dice(axis=(1, 2)), ONE_HOT),
        (L.Dice(axis=(1, 2), reduction="sum"), ONE_HOT),
        (L.Dice(axis=(0, 1)), ONE_HOT),
        (L.Tversky(axis=(1, 2)), ONE_HOT),
        (L.Tversky(axis=0), ONE_HOT),
        (L.CosineSimilarity(axis=0), ONE_HOT),
        (L.CosineSimilarity(axis=1), ONE_HOT),
        (OwnSum(reduction="sum"), ONE_HOT),
        (OwnSum(), ONE_HOT),
        (OwnNumber(reduction="sum"), ONE_HOT),
    ],
)
def test_arguments_of_losses(loss, y):
    found, kind = look(identity((STEPS, CLASSES), loss=loss), OUTPUTS, y), kind_of(loss, y, OUTPUTS)
    assert (bool(found.problems), found.are_sums) == (kind == "other", kind == "sum")


@pytest.mark.parametrize(
    ("loss", "is_problem"),
    [("mse", False), ("dice", True), (L.tversky, True), ("crossentropy", False), (token_mean, False)],
)
def test_losses_by_name_or_function(loss, is_problem):
    found = look(identity((STEPS, CLASSES), loss=loss), OUTPUTS, ONE_HOT)
    assert (bool(found.problems), found.are_sums) == (is_problem, False)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
@pytest.mark.parametrize("weights", [None, np.ones(ROWS), np.arange(1.0, ROWS + 1)])
def test_weights_of_rows(reduction, weights):
    loss = L.MeanSquaredError(reduction=reduction)
    model = identity((CLASSES,), loss=loss)
    kind = kind_of(loss, ONE_HOT[:, 0], OUTPUTS[:, 0], weights)
    found = look(model, OUTPUTS[:, 0], ONE_HOT[:, 0], sample_weight=weights)
    assert (bool(found.problems), found.are_sums) == (kind == "other", kind == "sum")
    if kind != "sum" and weights is None:
        weighted = look(model, OUTPUTS[:, 0], ONE_HOT[:, 0].argmax(-1), class_weight={0: 1.0, 1: 2.0, 2: 3.0})
        assert bool(weighted.problems) == (reduction == "mean_with_sample_weight")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed, self.dense = keras.layers.Embedding(CLASSES, 2, mask_zero=True), keras.layers.Dense(1)

    def call(self, x):
        return self.dense(keras.layers.Activation("tanh")(self.embed(x)))


class Masks(keras.layers.Layer):
    def call(self, x):
        return 1.0 * keras.ops.expand_dims(keras.ops.cast(x, "float32"), -1)

    def compute_mask(self, x, previous=None):
        return x != 0


def sequential(*layers):
    return keras.Sequential([keras.Input((STEPS,)), *layers])


EMBED = {"input_dim": CLASSES, "output_dim": 2}


@pytest.mark.filterwarnings("ignore:Layer .* does not support masking")
@pytest.mark.parametrize(
    ("make", "is_masked"),
    [
        (Subclassed, True),
        (lambda: sequential(Masks(), keras.layers.Dense(1)), True),
        (lambda: keras.Sequential([keras.layers.Embedding(**EMBED, mask_zero=True), keras.layers.Dense(1)]), True),
        (
            lambda: sequential(
                keras.layers.Embedding(**EMBED, mask_zero=True),
                keras.layers.LSTM(2, return_sequences=True),
                keras.layers.TimeDistributed(keras.layers.Dense(1)),
            ),
            True,
        ),
        (
            lambda: sequential(
                keras.layers.Embedding(**EMBED, mask_zero=True), keras.layers.LSTM(2), keras.layers.Dense(1)
            ),
            False,
        ),
        (lambda: sequential(keras.layers.Embedding(**EMBED), keras.layers.Dense(1)), False),
        (
            lambda: sequential(
                keras.layers.Embedding(**EMBED, mask_zero=True), keras.layers.Flatten(), keras.layers.Dense(1)
            ),
            False,
        ),
    ],
)
def test_masks_of_outputs(make, is_masked):
    model = make()
    for loss, is_problem in (("mse", is_masked), (token_mean, is_masked), (L.MeanSquaredError("sum"), False)):
        model.compile("sgd", loss)
        y = np.zeros(model(LABELS).shape)
        found = look(model, LABELS, y)
        assert (bool(found.problems), found.are_sums) == (is_problem, loss not in ("mse", token_mean))
        assert not any("mask" not in text for text in found.problems)


def two_outputs(**options):
    x = keras.Input((STEPS,))
    masked = keras.layers.Embedding(**EMBED, mask_zero=True)(x)
    plain = keras.layers.Dense(1, name="plain", **options)(keras.layers.GlobalAveragePooling1D()(masked))
    return keras.Model(x, {"tokens": keras.layers.Dense(1, name="tokens")(masked), "plain": plain})


@pytest.mark.parametrize(
    ("losses", "num_problems", "are_sums", "options"),
    [
        ({"plain": "mse", "tokens": "mse"}, 1, False, {}),
        ({"plain": "mse", "tokens": L.MeanSquaredError("sum")}, 1, False, {}),
        ({"plain": L.MeanSquaredError("sum"), "tokens": "mae"}, 2, False, {}),
        ({"plain": L.MeanSquaredError("sum"), "tokens": L.MeanAbsoluteError("sum")}, 0, True, {}),
        (
            {"plain": L.MeanSquaredError("sum"), "tokens": L.MeanAbsoluteError("sum")},
            2,
            False,
            {"kernel_regularizer": "l2"},
        ),
        (
            {"plain": L.MeanSquaredError("sum"), "tokens": L.MeanAbsoluteError("sum")},
            2,
            False,
            {"activity_regularizer": "l2"},
        ),
        ({"plain": "mse"}, 0, False, {"kernel_regularizer": "l2"}),
    ],
)
def test_several_losses(losses, num_problems, are_sums, options):
    model = two_outputs(**options)
    model.compile("sgd", losses)
    y = {"plain": np.zeros((ROWS, 1)), "tokens": np.zeros((ROWS, STEPS, 1))}
    found = look(model, LABELS, {name: y[name] for name in losses})
    assert (len(found.problems), found.are_sums) == (num_problems, are_sums)
    names = {"loss", "plain_loss", "tokens_loss", "val_loss", "val_plain_loss", "val_tokens_loss"}
    assert names_of_sums(model) == (names if are_sums or (num_problems == 2 and options) else set())


class OwnStep(keras.Model):
    def compute_loss(self, *arguments, **named):
        return super().compute_loss(*arguments, **named)


def test_losses_of_ones_own_are_not_examined():
    x = keras.Input((STEPS, CLASSES))
    model = OwnStep(x, keras.layers.Activation("linear")(x))
    model.compile("sgd", L.Dice(reduction="sum"))
    assert look(model, OUTPUTS, ONE_HOT) is None
