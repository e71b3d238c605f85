"""Sweeps of the algorithm that keeps its variables: the printed one, its kin for one layer, and what never rises."""

import itertools

import bregman_oracles as oracles
import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import datasets, models
from tfopt.bregman import BregmanTrainer, losses, splitting
from tfopt.bregman.engine import Problem
from tfopt.bregman.evaluation import Evaluation
from tfopt.bregman.network import DenseChain
from tfopt.bregman.rows import Rows
from tfopt.bregman.settings import Settings, SplittingSettings
from tfopt.communicator import current


def make_model(widths, use_bias=True, activation="relu", seed=0):
    layers = [keras.Input((widths[0],), dtype="float64")]
    for k, width in enumerate(widths[1:]):
        is_last = k == len(widths) - 2
        layers.append(
            keras.layers.Dense(
                width,
                activation=None if is_last else activation,
                use_bias=use_bias,
                kernel_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=seed + k),
                bias_initializer=keras.initializers.RandomNormal(stddev=0.2, seed=seed + 50 + k),
                dtype="float64",
            )
        )
    return keras.Sequential(layers)


def make_engine(model, x, y, loss, preset, **options):
    chain, settings = DenseChain.from_model(model), Settings.from_arguments(preset, options)
    rows = Rows(x, y, chain, loss, current(), settings.chunk_rows, 1)
    engine = splitting.Splitting(
        Problem(chain, loss, settings, Evaluation(chain, loss, None, current()), current()), rows
    )
    engine.start()
    return engine


def joined(engine, kind, layer):
    return np.concatenate([getattr(kept.read(), kind)[layer].numpy() for kept in engine._kept])


def with_bias(pair):
    return np.concatenate([pair[0].numpy(), pair[1].numpy()[None]])


def data(rows=40, inputs=5, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, inputs)), (rng.random((rows, outputs)) < 0.5).astype(float)


def test_the_printed_algorithm():
    x, y = data(rows=39)
    model = make_model((5, 7, 6, 2))
    engine = make_engine(model, x, y, losses.hinge(0.0), "paper", chunk_rows=13)
    z, a = ([joined(engine, kind, k) for k in range(count)] for kind, count in (("z", 3), ("a", 2)))
    history = oracles.paper(x, y, [with_bias(pair) for pair in engine.weights], z, a, beta=1.0, gamma=10.0, sweeps=5)
    for weights, z, a, multiplier in history:
        engine.sweep(with_metrics=False)
        for k in range(3):
            np.testing.assert_allclose(with_bias(engine.weights[k]), weights[k], rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(joined(engine, "z", k), z[k], rtol=1e-7, atol=1e-9)
        for k in range(2):
            np.testing.assert_allclose(joined(engine, "a", k), a[k], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(joined(engine, "linear", 0), multiplier, rtol=1e-7, atol=1e-9)


def run_one_layer(preset, order, step, sweeps=6):
    x, y = data(outputs=3)
    model = make_model((5, 3), use_bias=False)
    engine = make_engine(
        model,
        x,
        y,
        losses.squared_error,
        preset,
        multiplier_step=step,
        last_layer_order=order,
        linear_penalty=0.7,
        initialization="gaussian",
        ridge=0.0,
    )
    first = joined(engine, "z", 0)
    found = []
    for _ in range(sweeps):
        engine.sweep(with_metrics=False)
        found.append((engine.weights[0][0].numpy(), joined(engine, "z", 0)))
    return x, y, first, found


@pytest.mark.parametrize("step", [1, 2])
def test_admm_of_one_layer_is_the_classical_one(step):
    x, y, first, found = run_one_layer("admm", "W,Z", step)
    for (weights, z), expected in zip(
        found, oracles.admm_of_one_layer(x, y, first, 0.7, step, "WZ", len(found)), strict=True
    ):
        np.testing.assert_allclose(weights, expected[0], rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(z, expected[1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("step", [1, 2])
def test_bregman_is_admm_for_one_layer_in_the_order_z_w_lambda(step):
    # Then X'lambda stays 0, so that the update of W does not see lambda in either.
    _, _, _, bregman = run_one_layer("paper", "Z,W", step)
    _, _, _, admm = run_one_layer("admm", "Z,W", step)
    for (one, one_z), (other, other_z) in zip(bregman, admm, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
        np.testing.assert_allclose(one_z, other_z, atol=1e-12)


def test_bregman_differs_from_admm_in_the_printed_order_from_the_second_sweep_on():
    x, y, _, bregman = run_one_layer("paper", "W,Z", 2, sweeps=200)
    _, _, _, admm = run_one_layer("admm", "W,Z", 2, sweeps=200)
    np.testing.assert_allclose(bregman[0][0], admm[0][0], atol=1e-12)
    assert np.abs(bregman[1][0] - admm[1][0]).max() > 1e-3
    # ADMM ends at the optimum, Bregman at a feasible point that is not.
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(admm[-1][0], best, atol=1e-8)
    np.testing.assert_allclose(bregman[-1][1], x @ bregman[-1][0], atol=1e-6)
    assert np.abs(bregman[-1][0] - best).max() > 1e-2


def test_a_full_step_leaves_minus_the_gradient_in_the_multiplier():
    x, y = data()
    engine = make_engine(
        make_model((5, 4, 2)), x, y, losses.binary_crossentropy, "paper", multiplier_step=2, initialization="forward"
    )
    for _ in range(3):
        engine.sweep(with_metrics=False)
    gradient = losses.binary_crossentropy.gradient(tf.constant(joined(engine, "z", 1)), tf.constant(y)).numpy()
    np.testing.assert_allclose(joined(engine, "linear", 0), -gradient, atol=1e-10)


# Alternating sweeps go both ways. One and two kinks, and smooth functions that rise throughout or do not: the minima of
# all activations are tested in test_activations.py.
@pytest.mark.parametrize("activation", ["relu", "relu6", "tanh", "gelu"])
def test_sweeps_never_raise_the_objective(activation):
    x, y = data()
    model = make_model((5, 6, 4, 2), activation=activation)
    engine = make_engine(
        model, x, y, losses.binary_crossentropy, "penalty", order="alternating", initialization="gaussian", ridge=0.0
    )
    objectives = [engine._measure()["objective"]]
    objectives += [engine.sweep(with_metrics=True)["objective"] for _ in range(6)]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(objectives))
    assert objectives[-1] < 0.7 * objectives[0]


def test_parts_of_the_objective_and_residuals_are_what_they_are_called():
    x, y = data()
    engine = make_engine(
        make_model((5, 4, 2)),
        x,
        y,
        losses.squared_error,
        "admm",
        weight_decay=0.01,
        linear_penalty=(0.5, 2.0),
        activation_penalty=3.0,
    )
    for _ in range(2):
        logs = engine.sweep(with_metrics=True)
    z, a, lam = ([joined(engine, kind, k) for k in range(n)] for kind, n in (("z", 2), ("a", 1), ("linear", 2)))
    mu = joined(engine, "hidden", 0)
    (w1, b1), (w2, b2) = ([part.numpy() for part in pair] for pair in engine.weights)
    gaps = [z[0] - x @ w1 - b1, z[1] - a[0] @ w2 - b2]
    hidden = a[0] - np.maximum(z[0], 0)
    inner = sum((m * g).sum() for m, g in zip([*lam, mu], [*gaps, hidden], strict=True))
    expected = {
        "objective/loss": ((z[1] - y) ** 2).sum() / 40,
        "objective/multiplier": inner / 40,
        "objective/linear_penalty": (0.5 * (gaps[0] ** 2).sum() + 2.0 * (gaps[1] ** 2).sum()) / 40,
        "objective/activation_penalty": 3.0 * (hidden**2).sum() / 40,
        "primal_residual/1": np.sqrt((gaps[0] ** 2).sum() / 40),
        "primal_residual/2": np.sqrt((gaps[1] ** 2).sum() / 40),
        "multiplier_norm": np.sqrt(sum((m**2).sum() for m in [*lam, mu]) / 40),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-9, err_msg=name)
    parts = sum(value for name, value in logs.items() if name.startswith("objective/"))
    decay = 0.01 * ((w1**2).sum() + (w2**2).sum())
    np.testing.assert_allclose(logs["objective"], parts + decay, rtol=1e-12)


def kinds(order):
    return [f"{kind}{layer + 1}" if kind != "M" else "M" for kind, layer in order]


@pytest.mark.parametrize(
    ("options", "sweep", "expected"),
    [
        ({}, 0, "W1 A1 Z1 W2 A2 Z2 W3 Z3"),
        ({"last_layer_order": "Z,W"}, 0, "W1 A1 Z1 W2 A2 Z2 Z3 W3"),
        ({"order": "backward"}, 0, "W3 Z3 A2 Z2 W2 A1 Z1 W1"),
        ({"order": "alternating"}, 1, "W1 A1 Z1 W2 A2 Z2 W3 Z3"),
        ({"update": "jacobi"}, 0, "A1 Z1 A2 Z2 Z3"),
        ({"multiplier": "bregman"}, 0, "W1 A1 Z1 W2 A2 Z2 W3 Z3 M"),
        ({"multiplier": "bregman", "num_warm_start_iterations": 2}, 1, "W1 A1 Z1 W2 A2 Z2 W3 Z3"),
        ({"multiplier": "admm", "num_warm_start_iterations": 2}, 2, "W1 A1 Z1 W2 A2 Z2 W3 Z3 M"),
        ({"multiplier": "bregman", "num_sweeps_per_multiplier_update": 3}, 1, "W1 A1 Z1 W2 A2 Z2 W3 Z3"),
        ({"multiplier": "bregman", "num_sweeps_per_multiplier_update": 3}, 5, "W1 A1 Z1 W2 A2 Z2 W3 Z3 M"),
    ],
)
def test_the_order_of_updates(options, sweep, expected):
    settings = SplittingSettings(**{"order": "forward", **options})
    assert kinds(splitting.order_of_updates(3, settings, sweep)) == expected.split()


def test_penalties_grow_to_their_limit():
    x, y = data()
    engine = make_engine(
        make_model((5, 4, 2)), x, y, losses.squared_error, "penalty", penalty_growth=2.0, max_penalty=5.0
    )
    assert [engine.sweep(with_metrics=False)["penalty_scale"] for _ in range(4)] == [2.0, 4.0, 5.0, 5.0]


def test_jacobi_takes_all_weights_from_the_last_state():
    x, y = data()
    engine = make_engine(
        make_model((5, 4, 2)),
        x,
        y,
        losses.squared_error,
        "penalty",
        update="jacobi",
        initialization="gaussian",
        ridge=0.0,
        weight_decay=0.0,
    )
    z, a = [joined(engine, "z", k) for k in range(2)], joined(engine, "a", 0)
    engine.sweep(with_metrics=False)
    for k, inputs in enumerate((x, a)):
        expected = np.linalg.lstsq(oracles.with_ones(inputs), z[k], rcond=None)[0]
        np.testing.assert_allclose(with_bias(engine.weights[k]), expected, rtol=1e-7, atol=1e-9)


def train_deep(preset):
    data_set = datasets.load("digits").flattened()
    trainer = BregmanTrainer(
        models.mlp(64, (32, 32, 32), 10, seed=0),
        "sparse_categorical_crossentropy",
        preset=preset,
        linear_penalty=0.1,
        activation_penalty=10.0,
        multiplier_step=2,
        initialization="gaussian",
    )
    return trainer, data_set.x_train[:500], data_set.y_train[:500]


def test_admm_diverges_with_nonlinear_layers_and_says_so():
    trainer, x, y = train_deep("admm")
    with pytest.warns(UserWarning, match=r"diverged in epoch \d+: the loss has grown to .* the weights of epoch"):
        history = trainer.fit(x, y, epochs=60, verbose=0)
    assert history.diverged
    losses_seen = history.history["loss"]
    assert history.best_epoch == int(np.argmin(losses_seen)) < len(losses_seen) < 60
    np.testing.assert_allclose(trainer.evaluate(x, y)["loss"], min(losses_seen), rtol=1e-5)


def test_bregman_does_not_diverge_there():
    trainer, x, y = train_deep("paper")
    history = trainer.fit(x, y, epochs=60, verbose=0)
    assert not history.diverged
    assert max(history.history["loss"]) < 3
