"""Metrics of the trainer see what metrics of `keras.Model.evaluate` see, and give its numbers."""

import re

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from keras import metrics, ops

from tfopt import models
from tfopt.bregman import BregmanTrainer, evaluation

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4)).astype("float32")
SCORES = X @ RNG.normal(size=(4, 3)) + RNG.normal(size=(90, 3))
LABELS, FLAGS = SCORES.argmax(1), (SCORES[:, 0] > 0).astype(int)

BCE, CE = "binary_crossentropy", "categorical_crossentropy"
SPARSE = "sparse_categorical_crossentropy"
LOSSES = {  # (name, ending) -> what Keras is compiled with, for the same loss.
    (BCE, None): keras.losses.BinaryCrossentropy(from_logits=True),
    (CE, None): keras.losses.CategoricalCrossentropy(from_logits=True),
    (SPARSE, None): keras.losses.SparseCategoricalCrossentropy(from_logits=True),
}


class Seen(keras.metrics.Metric):
    """Keeps the targets and outputs that it receives."""

    def __init__(self):
        super().__init__(name="seen")
        self.batches = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.batches.append((np.asarray(y_true), np.asarray(y_pred)))

    def reset_state(self):
        self.batches.clear()

    def result(self):
        return 0.0

    def whole(self):
        return [np.concatenate(parts) for parts in zip(*self.batches, strict=True)]


def without_counter(name):
    return re.sub(r"_\d+$", "", name)  # Keras counts the objects of a class in their names.


def mean_error(y_true, y_pred):
    return ops.mean(ops.abs(y_true - y_pred[:, 0]))


def first_column(y_true, y_pred):
    return ops.cast(ops.equal(ops.argmax(y_pred, axis=-1), ops.cast(y_true[:, 0], "int64")), "float32")


def of_logits(y_true, y_pred):
    return ops.mean(keras.losses.binary_crossentropy(y_true, y_pred, from_logits=True))


def regression():
    return ["mse", "MeanAbsoluteError", metrics.RootMeanSquaredError(), metrics.R2Score]


def of_labels():
    return ["accuracy", "sparse_categorical_accuracy", metrics.SparseTopKCategoricalAccuracy(2)]


def of_rows():
    return ["acc", "accuracy", metrics.CategoricalHinge(), metrics.F1Score(), metrics.CategoricalAccuracy]


def of_flags():
    return [metrics.BinaryAccuracy(threshold=0.0), metrics.Precision(thresholds=0), metrics.Recall(thresholds=0.0)]


CASES = [  # Loss, ending, outputs, targets, metrics.
    ("mse", None, 1, SCORES[:, 0], lambda: [*regression(), mean_error]),
    ("mse", None, 1, SCORES[:, :1], regression),
    ("mse", None, 1, 7 + 5 * LABELS, regression),
    ("mse", None, 3, SCORES, regression),
    ("mse", None, 3, 1000 + 1e-3 * SCORES, lambda: ["mse", "mae"]),
    (BCE, None, 1, FLAGS, lambda: [*of_flags(), metrics.AUC(from_logits=True)]),
    (BCE, None, 1, FLAGS[:, None], lambda: [*of_flags(), metrics.BinaryCrossentropy(from_logits=True), of_logits]),
    (BCE, None, 1, FLAGS > 0, of_flags),
    (BCE, None, 1, 0.9 * FLAGS[:, None], lambda: [metrics.BinaryCrossentropy(from_logits=True)]),
    (BCE, "sigmoid", 1, FLAGS, lambda: ["accuracy", "AUC", "Precision", metrics.Recall]),
    (
        BCE,
        "sigmoid",
        1,
        FLAGS[:, None],
        lambda: ["acc", metrics.BinaryCrossentropy(), BCE, metrics.F1Score(threshold=0.5)],
    ),
    (BCE, None, 3, (SCORES > 0).astype("int32"), lambda: ["accuracy", *of_flags()]),
    (BCE, "sigmoid", 3, (SCORES > 0).astype("float32"), lambda: ["accuracy", "binary_accuracy", metrics.AUC()]),
    (SPARSE, None, 3, LABELS, lambda: [*of_labels(), metrics.SparseCategoricalCrossentropy(from_logits=True)]),
    (SPARSE, None, 3, LABELS[:, None], lambda: [*of_labels(), first_column]),
    (SPARSE, None, 3, LABELS.astype("float32"), of_labels),
    (SPARSE, "softmax", 3, LABELS, lambda: [*of_labels(), metrics.SparseCategoricalCrossentropy(), SPARSE]),
    (SPARSE, "softmax", 3, LABELS.astype("uint8"), lambda: [metrics.MeanIoU(3, sparse_y_pred=False)]),
    (CE, None, 3, np.eye(3)[LABELS], lambda: [*of_rows(), metrics.CategoricalCrossentropy(from_logits=True)]),
    (CE, "softmax", 3, np.eye(3, dtype=int)[LABELS], lambda: [*of_rows(), CE, metrics.KLDivergence()]),
    (CE, "softmax", 3, np.eye(3)[LABELS], lambda: [metrics.OneHotMeanIoU(3), metrics.Precision(class_id=1)]),
    ("hinge", None, 1, 2 * FLAGS[:, None] - 1, lambda: ["hinge", metrics.Hinge]),
    ("hinge", None, 1, FLAGS[:, None], lambda: ["squared_hinge", metrics.BinaryAccuracy(threshold=0.0)]),
]


@pytest.mark.parametrize(("loss", "ending", "outputs", "y", "make"), CASES)
def test_metrics_are_those_of_keras(loss, ending, outputs, y, make, monkeypatch):
    monkeypatch.setattr(evaluation, "_ROWS_AT_ONCE", 50)  # Groups of 60 and 30 rows.
    model = models.mlp(4, (5,), outputs, output_activation=ending, seed=0)
    ours, theirs = Seen(), Seen()
    found = BregmanTrainer(model, loss, [*make(), ours], chunk_rows=30).evaluate(X, y)
    model.compile(loss=LOSSES.get((loss, ending), loss), metrics=[*make(), theirs], run_eagerly=True)
    expected = model.evaluate(X, y, batch_size=len(X), verbose=0, return_dict=True)
    found, expected = (
        sorted((without_counter(name), value) for name, value in logs.items()) for logs in (found, expected)
    )
    for (name, value), (other_name, other) in zip(found, expected, strict=True):
        assert name == other_name
        np.testing.assert_allclose(value, other, rtol=2e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(ours.whole()[0], theirs.whole()[0], strict=True)
    np.testing.assert_allclose(ours.whole()[1], theirs.whole()[1], rtol=1e-5, atol=1e-6, strict=True)


def test_metrics_of_one_name_are_all_logged():
    trainer = BregmanTrainer(
        models.mlp(4, (5,), 1, seed=0), BCE, [metrics.BinaryAccuracy(name="a", threshold=t) for t in (0.0, 1e9)]
    )
    found = trainer.evaluate(X, FLAGS)
    assert list(found) == ["loss", "a", "a_1"]
    assert found["a_1"] == pytest.approx((FLAGS == 0).mean())


@pytest.mark.parametrize("kind", ["series", "frame", "dataset", "tensor"])
def test_targets_keep_their_form(kind):
    y = SCORES[:, 0]
    given = {
        "series": (X, pandas.Series(y)),  # Keras makes a column of it.
        "frame": (X, pandas.DataFrame({"y": y})),
        "dataset": (tf.data.Dataset.from_tensor_slices((X, y)).batch(90), None),  # Stays float64.
        "tensor": (tf.constant(X), tf.constant(y)),
    }[kind]
    model = models.mlp(4, (5,), 1, seed=0)
    ours, theirs = Seen(), Seen()
    BregmanTrainer(model, "mse", [ours]).evaluate(*given)
    model.compile(loss="mse", metrics=[theirs], run_eagerly=True)
    model.evaluate(*given, batch_size=None if kind == "dataset" else 90, verbose=0)
    np.testing.assert_array_equal(ours.whole()[0], theirs.whole()[0], strict=True)


def test_metrics_of_fit_are_those_of_evaluate():
    """Training works on other targets: standardised, in blocks of rows."""
    y = 100 + 7 * SCORES[:, 0]
    trainer = BregmanTrainer(models.mlp(4, (5,), 1, seed=0), "mse", ["mae", mean_error, "r2_score"])
    history = trainer.fit(X, y, epochs=3, verbose=0, validation_data=(X[:40], y[:40, None])).history
    trainer.model.compile(loss="mse", metrics=["mae", mean_error, "r2_score"])
    expected = trainer.model.evaluate(X, y, batch_size=len(X), verbose=0, return_dict=True)
    assert {name: history[name][-1] for name in expected} == pytest.approx(expected, rel=1e-5)
    expected = trainer.model.evaluate(X[:40], y[:40], batch_size=40, verbose=0, return_dict=True)
    assert history["val_mae"][-1] == pytest.approx(expected["mae"], rel=1e-5)


def test_accuracy_means_what_each_set_of_targets_needs():
    trainer = BregmanTrainer(models.mlp(4, (5,), 3, seed=0), SPARSE, ["accuracy", metrics.KLDivergence])
    found = [trainer.evaluate(X, y) for y in (LABELS[:, None], np.eye(3)[LABELS])]
    assert list(found[0]) == list(found[1])
    assert found[0]["accuracy"] == found[1]["accuracy"]


@pytest.mark.parametrize(
    ("loss", "y", "metric", "name"),
    [
        (BCE, FLAGS, "accuracy", "accuracy"),
        ("hinge", FLAGS, "accuracy", "accuracy"),
        (BCE, FLAGS, "binary_accuracy", "binary_accuracy"),
        (BCE, FLAGS, metrics.AUC(name="auc"), "auc"),
        (BCE, FLAGS, metrics.Precision(name="precision"), "precision"),
        (SPARSE, LABELS, SPARSE, SPARSE),
    ],
)
def test_metrics_that_take_logits_for_probabilities_are_warned_of(loss, y, metric, name):
    model = models.mlp(4, (5,), 3 if loss == SPARSE else 1, seed=0)
    with pytest.warns(UserWarning, match=f"`metrics` has '{name}', for which Keras takes outputs for prob") as caught:
        trainer = BregmanTrainer(model, loss, [metric])
    assert caught[0].filename == __file__
    found = trainer.evaluate(X, y)[name]
    model.compile(loss=LOSSES.get((loss, None), loss), metrics=[metric], run_eagerly=True)
    assert found == pytest.approx(model.evaluate(X, y, batch_size=90, verbose=0, return_dict=True)[name], rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "y", "message"),
    [
        (metrics.F1Score(), LABELS, r"'f1_score'.* y_true as int64 of shape \(rows, \), y_pred as float32 of shape"),
        ("sparse_categorical_accuracy", np.eye(3)[LABELS], r"'sparse_categorical_accuracy'.*of shape \(rows, 3\)"),
    ],
)
def test_metrics_for_other_targets_are_refused_before_training(metric, y, message):
    trainer = BregmanTrainer(models.mlp(4, (5,), 3, seed=0), SPARSE, [metric])
    before = trainer.model.get_weights()
    with pytest.raises(ValueError, match=f"`metrics` has {message}"):
        trainer.fit(X, y, epochs=1, verbose=0)
    for one, other in zip(before, trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
