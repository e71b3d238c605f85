"""Rows that `fit` weights, in the probes of callbacks that measure a loss."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale, WeightNorms
from tfopt.datasets import EpochBatches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
LABELS = (np.arange(40) % 5 == 0).astype("int32")
ONE_HOT = np.eye(2, dtype="float32")[LABELS]
CLASS_WEIGHT = {0: 0.02, 1: 3.0}
WEIGHTS = np.array([CLASS_WEIGHT[label] for label in LABELS], "float32")
MEASUREMENTS = [Convexity, GradientBreakdown, GradientNoiseScale]


def make(outputs=1):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, kernel_initializer="ones")])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    if outputs == 2:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-9), loss, jit_compile=False)
    return model


def expected_loss(weights, scale=1.0):
    """Of make(1) at its start, and of make(2), whose two logits are equal."""
    logits = X.sum(axis=1).astype("float64")
    losses = np.log1p(np.exp(np.where(LABELS, -logits, logits)))
    return float(np.mean(weights * losses)), float(np.mean(weights)) * np.log(2)


DATA = {
    "labels": (1, lambda y: (X, LABELS)),
    "a column": (1, lambda y: (X, LABELS[:, None].astype("float32"))),
    "one-hot": (2, lambda y: (X, ONE_HOT)),
    "a data set": (1, lambda y: (tf.data.Dataset.from_tensor_slices((X, LABELS[:, None])).batch(40),)),
    "a one-hot data set": (2, lambda y: (tf.data.Dataset.from_tensor_slices((X, ONE_HOT)).batch(40),)),
    "EpochBatches": (1, lambda y: (EpochBatches(X, LABELS, batch_size=40, seed=0),)),
}


@pytest.mark.parametrize("data", DATA)
def test_class_weights_are_those_of_fit(data):
    outputs, make_data = DATA[data]
    targets = ONE_HOT if outputs == 2 else LABELS[:, None]
    model, convexity = make(outputs), Convexity((X, targets), eigenvalues=False)
    breakdown = GradientBreakdown((X, targets))
    options = {} if len(make_data(0)) == 1 else {"batch_size": 40}
    history = model.fit(
        *make_data(0), class_weight=CLASS_WEIGHT, shuffle=False, verbose=0, callbacks=[convexity, breakdown], **options
    ).history
    assert convexity.history["convexity/loss"][0] == pytest.approx(expected_loss(WEIGHTS)[outputs - 1], rel=1e-5)
    assert convexity.history["convexity/loss"][0] == pytest.approx(history["loss"][0], rel=1e-5)


def test_classes_without_a_weight_have_one():
    convexity = Convexity((X, LABELS), eigenvalues=False)
    make().fit(X, LABELS, class_weight={1: 3.0}, batch_size=40, verbose=0, callbacks=[convexity])
    expected = expected_loss(np.where(LABELS == 1, 3.0, 1.0))[0]
    assert convexity.history["convexity/loss"][0] == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_times_lambda_max_is_that_of_the_weighted_loss():
    found = []
    for probe in ((X, LABELS), (X, LABELS, WEIGHTS)):
        convexity = Convexity(probe)
        make().fit(X, LABELS, class_weight=CLASS_WEIGHT, verbose=0, callbacks=[convexity])
        found.append(convexity.history["hessian/learning_rate_times_lambda_max"][0])
    logits = X.sum(axis=1).astype("float64")
    inputs = np.hstack([X, np.ones((40, 1))]).astype("float64")
    curvature = WEIGHTS * np.exp(logits) / (1 + np.exp(logits)) ** 2
    expected = 1e-9 * np.linalg.eigvalsh((inputs.T * curvature) @ inputs / 40).max()
    assert found == pytest.approx([expected] * 2, rel=1e-4)


def test_the_noise_scale_is_that_of_the_weighted_loss():
    found = []
    for probe in ((X, LABELS), (X, LABELS, WEIGHTS)):
        noise = GradientNoiseScale(probe)
        make().fit(X, LABELS, class_weight=CLASS_WEIGHT, verbose=0, callbacks=[noise])
        found.append(noise.history["gradient_noise/covariance_trace"][0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_weights_of_the_running_fit_count_not_those_of_the_one_before():
    model, convexity = make(), Convexity((X, LABELS), eigenvalues=False)
    losses, instruments = [], []
    for class_weight in (CLASS_WEIGHT, dict(CLASS_WEIGHT), {0: 1.0, 1: 2.0}, None):
        model.fit(X, LABELS, class_weight=class_weight, verbose=0, callbacks=[convexity])
        losses.append(convexity.history["convexity/loss"][0])
        instruments.append(convexity._instruments.hessian)
    weights = [WEIGHTS, WEIGHTS, np.where(LABELS, 2.0, 1.0), np.ones(40)]
    assert losses == pytest.approx([expected_loss(w)[0] for w in weights], rel=1e-5)
    assert instruments[0] is instruments[1]


def test_a_probe_that_brings_weights_is_taken_as_it_is():
    convexity = Convexity((X, LABELS, np.full(40, 2.0)), eigenvalues=False)
    make().fit(X, LABELS, class_weight=CLASS_WEIGHT, verbose=0, callbacks=[convexity])
    assert convexity.history["convexity/loss"][0] == pytest.approx(expected_loss(np.full(40, 2.0))[0], rel=1e-5)


WEIGHTED = {
    "arrays": lambda: {"x": X, "y": LABELS, "sample_weight": WEIGHTS},
    "a data set": lambda: {
        "x": tf.data.Dataset.from_tensor_slices((X, LABELS[:, None], WEIGHTS)).batch(8),
        "shuffle": False,
    },
    "EpochBatches": lambda: {"x": EpochBatches(X, LABELS, WEIGHTS, batch_size=8, seed=0), "shuffle": False},
}


@pytest.mark.parametrize("data", WEIGHTED)
def test_sample_weights_of_which_the_probe_knows_nothing_are_refused(data):
    for measurement in MEASUREMENTS:
        model = make()
        with pytest.raises(ValueError, match=rf"{measurement.__name__} would measure another loss .*`sample_weight`"):
            model.fit(**WEIGHTED[data](), verbose=0, callbacks=[measurement((X, LABELS))])
        assert int(model.optimizer.iterations) == 0
    make().fit(**WEIGHTED[data](), verbose=0, callbacks=[Convexity((X, LABELS, WEIGHTS)), WeightNorms()])


def test_sample_weights_of_one_are_none():
    model, convexity = make(), Convexity((X, LABELS), eigenvalues=False)
    model.fit(X, LABELS, sample_weight=np.ones(40), verbose=0, callbacks=[convexity])
    assert convexity.history["convexity/loss"][-1] == pytest.approx(model.evaluate(X, LABELS, verbose=0), rel=1e-4)


class Triplets(keras.Model):
    """Takes three parts apart itself, none of which is a weight."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_mean(self(part) ** 2) for part in data)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


def test_the_third_part_of_data_that_a_train_step_takes_apart_is_no_weight():
    model = Triplets()
    model(X)
    model.compile("sgd", "mse", jit_compile=False)
    rows = tf.data.Dataset.from_tensor_slices((X, X, X)).batch(8)
    convexity = Convexity((X, LABELS), eigenvalues=False)
    model.fit(rows, shuffle=False, verbose=0, callbacks=[convexity])
    expected = np.mean((LABELS - model.predict(X, verbose=0)[:, 0]) ** 2)
    assert convexity.history["convexity/loss"][-1] == pytest.approx(expected, rel=1e-4)


def test_targets_to_which_class_weights_do_not_apply_are_refused():
    with pytest.raises(ValueError, match="Convexity cannot apply the class_weight of `fit` to `data`.*: none"):
        make().fit(X, LABELS, class_weight=CLASS_WEIGHT, verbose=0, callbacks=[Convexity(X)])


def test_a_data_set_weights_each_step_of_a_sequence():
    dense = keras.layers.Dense(4, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.Reshape((2, 2))])
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False)
    targets = np.stack([ONE_HOT, np.roll(ONE_HOT, 7, axis=0)], axis=1)
    weights = np.where(targets.argmax(axis=-1), CLASS_WEIGHT[1], CLASS_WEIGHT[0])
    convexity = Convexity((X, targets), eigenvalues=False)
    rows = tf.data.Dataset.from_tensor_slices((X, targets)).batch(40)
    model.fit(rows, class_weight=CLASS_WEIGHT, shuffle=False, verbose=0, callbacks=[convexity])
    assert convexity.history["convexity/loss"][0] == pytest.approx(np.log(2) * np.mean(weights), rel=1e-5)
