"""The default algorithm against its equations, and what it promises."""

import itertools

import bregman_oracles as oracles
import keras
import numpy as np
import pytest

from tfopt import datasets, models
from tfopt.bregman import BregmanTrainer, losses
from tfopt.bregman.engine import Problem
from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.network import DenseChain
from tfopt.bregman.restarted import Restarted
from tfopt.bregman.rows import Rows
from tfopt.bregman.settings import Settings
from tfopt.communicator import current


def make_engine(x, y, widths, loss=losses.squared_error, **options):
    layers = [keras.Input((widths[0],), dtype="float64")]
    for k, width in enumerate(widths[1:]):
        activation = "relu" if k < len(widths) - 2 else None
        init = keras.initializers.RandomNormal(stddev=0.5, seed=k)
        layers.append(keras.layers.Dense(width, activation, kernel_initializer=init, dtype="float64"))
    chain, settings = DenseChain.from_model(keras.Sequential(layers)), Settings.from_arguments("restarted", options)
    rows = Rows(x, y, chain, loss, current(), settings.chunk_rows, settings.num_blocks)
    engine = Restarted(Problem(chain, loss, settings, Evaluation(chain, loss, None, current()), current()), rows)
    engine.start()
    return engine


def data(rows=60, outputs=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 5)), rng.normal(size=(rows, outputs))


def with_bias(pair):
    return np.concatenate([pair[0].numpy(), pair[1].numpy()[None]])


@pytest.mark.parametrize("chunk_rows", [60, 17])
def test_a_sweep_is_what_the_equations_say(chunk_rows):
    x, y = data()
    engine = make_engine(
        x,
        y,
        (5, 6, 4, 2),
        num_blocks=1,
        linear_penalty=0.7,
        activation_penalty=0.3,
        ridge=0.2,
        weight_decay=0.01,
        chunk_rows=chunk_rows,
    )
    weights = [with_bias(pair) for pair in engine.weights]
    for relaxation in (1.0, 1.2):
        weights = oracles.restarted_sweep(x, y, weights, 0.7, 0.3, 0.2, 0.01, relaxation)
        logs = engine.sweep(with_metrics=True)
        for ours, expected in zip(engine.weights, weights, strict=True):
            np.testing.assert_allclose(with_bias(ours), expected, rtol=1e-9, atol=1e-11)
        assert logs["relaxation"] > relaxation  # it was accepted
        engine._penalty_scale = 1.0


def test_blocks_share_a_gram_matrix_that_all_have_made():
    # Two blocks: the mean of both after the first sweep, then an average with rate 1/2.
    x, y = data()
    engine = make_engine(x, y, (5, 4, 2), num_blocks=2, max_relaxation=1.0)
    grams = []
    original = engine._update_weights

    def keep(layer, block, sums):
        if layer == 1:
            grams.append(sums.gram.numpy() / 30)
        return original(layer, block, sums)

    engine._update_weights = keep
    engine.sweep(with_metrics=False)
    np.testing.assert_allclose(engine._grams[1], (grams[0] + grams[1]) / 2, rtol=1e-12)
    engine.sweep(with_metrics=False)
    expected = ((grams[0] + grams[1]) / 2 + grams[2]) / 2
    np.testing.assert_allclose(engine._grams[1], (expected + grams[3]) / 2, rtol=1e-12)


def test_the_objective_never_rises():
    data_set = datasets.load("digits").flattened()
    trainer = BregmanTrainer(models.mlp(64, (32, 32), 10, seed=1), "sparse_categorical_crossentropy")
    history = trainer.fit(data_set.x_train, data_set.y_train, epochs=60, verbose=0).history
    assert (np.diff(history["objective"]) <= 0).all()
    # Both ways of adapting were used: steps grew, and were taken back.
    assert max(history["relaxation"]) > 3
    assert (np.diff(history["relaxation"]) < 0).any()


def test_penalties_grow_where_exact_updates_fail():
    # Nearly without penalty the targets of noisy labels lie far away, and even exact updates overshoot: such sweeps are
    # undone, and penalties doubled until one pays.
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(400, 5)), (rng.random((400, 1)) < 0.5).astype(float)
    engine = make_engine(x, y, (5, 8, 1), losses.binary_crossentropy, linear_penalty=1e-7, num_blocks=1)
    first = engine._objective
    logs = [engine.sweep(with_metrics=False) for _ in range(40)]
    assert max(entry["penalty_scale"] for entry in logs) >= 2
    assert logs[-1]["objective"] < first
    assert all(after["objective"] <= before["objective"] for before, after in itertools.pairwise(logs))


def test_one_layer_is_logistic_regression():
    from scipy.special import expit
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    data_set = datasets.load("breast_cancer")
    trainer = BregmanTrainer(
        models.mlp(30, (), 1, seed=0), "binary_crossentropy", weight_decay=0.01, ridge=0.0, num_blocks=1
    )
    trainer.fit(data_set.x_train, data_set.y_train, epochs=300, verbose=0)
    rows = len(data_set.x_train)
    exact = LogisticRegression(C=1 / (2 * 0.01 * rows), tol=1e-10, max_iter=10_000)
    exact.fit(data_set.x_train, data_set.y_train)
    # The sweeps' fixed points are those of a smoothed loss, which the growing penalties bring close to the loss's own.
    kernel, bias = trainer.model.get_weights()
    objectives = [
        log_loss(data_set.y_train, expit(data_set.x_train @ w + b)) + 0.01 * (w**2).sum()
        for w, b in ((kernel[:, 0], bias), (exact.coef_[0], exact.intercept_))
    ]
    assert objectives[1] <= objectives[0] <= 1.01 * objectives[1]


def test_sweeps_that_overflowed_are_counted_on():
    x, y = data()
    engine, again = make_engine(x, y, (5, 4, 2)), make_engine(x, y, (5, 4, 2))
    engine.num_overflows = 7
    again.set_state(engine.get_state())
    assert again.num_overflows == 7
