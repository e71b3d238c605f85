"""Breakdown, deep relative trust and the descent lemma, against NumPy from the equations."""

import math

import keras
import multilinear_networks as networks
import numpy as np
import pytest

from tfopt.curvature import Objective
from tfopt.models import mlp
from tfopt.relative_trust import (
    StepMeter,
    breakdown_profile,
    deep_relative_trust,
    largest_safe_step,
    relative_gradient_breakdown,
    relative_perturbation,
)


@pytest.fixture
def in_float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def case(seed=0, num_hidden=2, scale=1.0):
    """A network of leaky ReLUs in Keras and in NumPy, with the same weights and data."""
    rng = np.random.default_rng(seed)
    weights, x, y = networks.random_case(rng, num_hidden, 4, 3, 2, 7, scale)
    model = mlp(3, (4,) * num_hidden, 2, use_bias=False, negative_slope=0.25)
    model.set_weights(weights)
    return model, weights, x, y


def loss_and_gradient(weights, x, y):
    """Of Keras's mse, which is 2 / k times the loss of the equations."""
    slopes = networks.slopes_of(weights, x, 0.25)
    flat = networks.gradient(weights, x, y, slopes, 0.0) * 2 / y.shape[1]
    ends = np.cumsum([weight.size for weight in weights])[:-1]
    parts = [part.reshape(w.shape) for part, w in zip(np.split(flat, ends), weights, strict=True)]
    return networks.losses(weights, x, y, 0.25) * 2 / y.shape[1], parts


def norm(part):
    return np.sqrt(np.sum(np.square(part)))


@pytest.mark.usefixtures("in_float64")
def test_a_step_against_the_equations():
    model, weights, x, y = case()
    rng = np.random.default_rng(1)
    after = [w + 0.05 * rng.normal(size=w.shape) for w in weights]
    step = StepMeter(model, "mse", x, y, num_points=5, batch_size=3).measure(weights, after)
    loss, gradient = loss_and_gradient(weights, x, y)
    loss_after, moved = loss_and_gradient(after, x, y)
    moves = [b - a for a, b in zip(weights, after, strict=True)]
    expected = {
        "relative_perturbation": [norm(d) / norm(w) for d, w in zip(moves, weights, strict=True)],
        "relative_gradient_breakdown": [norm(m - g) / norm(g) for m, g in zip(moved, gradient, strict=True)],
        "cosine": [-np.sum(g * d) / norm(g) / norm(d) for g, d in zip(gradient, moves, strict=True)],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(step, name), values, rtol=1e-9)
    flat_gradient, flat_step = (np.concatenate([p.reshape(-1) for p in parts]) for parts in (gradient, moves))
    assert step.total_cosine == pytest.approx(-flat_gradient @ flat_step / norm(flat_gradient) / norm(flat_step))
    assert step.deep_relative_trust == pytest.approx(np.prod(1 + np.array(expected["relative_perturbation"])) - 1)
    assert (step.loss_before, step.loss_after) == (pytest.approx(loss), pytest.approx(loss_after))
    bound = 0.0
    for place, (g, d) in enumerate(zip(gradient, moves, strict=True)):
        path = [
            loss_and_gradient([w + t * m for w, m in zip(weights, moves, strict=True)], x, y)[1][place] - g
            for t in (0.2, 0.4, 0.6, 0.8, 1.0)
        ]
        breakdown = max(norm(change) for change in path) / norm(g)
        bound += norm(g) * norm(d) * (breakdown + np.sum(g * d) / norm(g) / norm(d))
    assert step.descent_bound == pytest.approx(bound)
    assert list(step.to_dataframe().index) == [v.path for v in model.trainable_variables]
    assert step.largest_breakdown == pytest.approx(max(expected["relative_gradient_breakdown"]))
    assert step.largest_perturbation == pytest.approx(max(expected["relative_perturbation"]))


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("seed", range(12))
def test_the_descent_lemma_holds(seed):
    """It is a theorem up to the grid: small steps along the gradient are certified, and no bound is broken."""
    model, weights, x, y = case(seed, num_hidden=3)
    meter = StepMeter(model, "mse", x, y, num_points=10)
    _, gradient = loss_and_gradient(weights, x, y)
    rng = np.random.default_rng(seed)
    certified = []
    for size in (0.001, 0.1, 1.0):
        along = [w - size * norm(w) * g / norm(g) for w, g in zip(weights, gradient, strict=True)]
        anywhere = [w + size * norm(w) * rng.normal(size=w.shape) / np.sqrt(w.size) for w in weights]
        for after in (along, anywhere):
            step = meter.measure(weights, after)
            assert step.loss_change <= step.descent_bound + 1e-3 * abs(step.descent_bound)
        certified.append(meter.measure(weights, along).descent_bound < 0)
    assert certified[0]
    assert not certified[-1]


@pytest.mark.usefixtures("in_float64")
def test_a_profile_against_the_equations():
    model, weights, x, y = case(3)
    before = model.get_weights()
    etas = [0.0, 0.01, 0.1]
    profile = breakdown_profile(Objective(model, "mse", (x, y)), etas)
    _, gradient = loss_and_gradient(weights, x, y)
    for place, eta in enumerate(etas):
        moved = [w - eta * norm(w) * g / norm(g) for w, g in zip(weights, gradient, strict=True)]
        loss, moved_gradient = loss_and_gradient(moved, x, y)
        assert profile.loss[place] == pytest.approx(loss)
        expected = [norm(m - g) / norm(g) for m, g in zip(moved_gradient, gradient, strict=True)]
        np.testing.assert_allclose(profile.relative_gradient_breakdown[place], expected, rtol=1e-9, atol=1e-14)
        assert profile.largest_breakdown[place] == pytest.approx(max(expected))
        assert profile.deep_relative_trust[place] == pytest.approx((1 + eta) ** 3 - 1)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(profile.to_dataframe().columns) == ["loss", "deep_relative_trust", *profile.paths]
    ax = profile.plot(label="untrained")
    assert ax.lines[0].get_label() == "untrained largest of a variable"
    np.testing.assert_allclose(ax.lines[0].get_ydata()[1:], profile.largest_breakdown[1:])


def test_deep_nets_break_down_faster():
    """The paper's observation: at the same relative step, breakdown grows with depth."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 16)).astype("float32"), rng.integers(0, 4, 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = []
    for depth in (1, 4, 16):
        model = mlp(16, (32,) * depth, 4, seed=0)
        found.append(breakdown_profile(Objective(model, loss, (x, y)), [0.05]).largest_breakdown[0])
    assert found[0] < found[1] < found[2]


def test_what_has_no_size_is_left_out():
    model = mlp(3, (4,), 2, seed=0)  # biases of zeros
    x, y = np.random.default_rng(0).normal(size=(5, 3)), np.ones((5, 2))
    meter = StepMeter(model, "mse", x, y)
    before = meter.weights()
    model.set_weights([w + 0.01 for w in model.get_weights()])
    step = meter.measure(before)
    assert [np.isnan(p) for p in step.relative_perturbation] == ["bias" in path for path in step.paths]
    assert 0 < step.largest_perturbation < 0.1
    assert step.deep_relative_trust == pytest.approx(np.nanprod(1 + step.relative_perturbation) - 1)
    still = meter.measure(before, before)
    assert (still.largest_perturbation, still.largest_breakdown, still.deep_relative_trust) == (0.0, 0.0, 0.0)
    assert np.isnan(still.total_cosine)
    assert still.descent_bound == still.loss_change == 0.0
    profile = breakdown_profile(Objective(model, "mse", (x, y)))
    assert profile.relative_steps.tolist() == pytest.approx(np.linspace(0, 0.1, 21).tolist())


def test_what_is_not_finite_is_infinite():
    bad = [np.array([np.nan]), np.array([np.inf]), np.ones(1)]
    np.testing.assert_array_equal(relative_perturbation([np.ones(1)] * 3, bad), [np.inf, np.inf, 1.0])
    np.testing.assert_array_equal(relative_gradient_breakdown(bad, [np.ones(1)] * 3), [np.inf, np.inf, 0.0])
    assert deep_relative_trust([0.1, np.inf]) == np.inf


def test_deep_relative_trust_and_the_largest_safe_step():
    assert deep_relative_trust([]) == 0.0
    assert deep_relative_trust([0.1, np.nan, 0.2]) == pytest.approx(1.1 * 1.2 - 1)
    assert deep_relative_trust(np.full(5000, 1.0)) == math.inf
    for depth in (1, 2, 50):
        for angle in (0.0, 1.0):
            eta = largest_safe_step(depth, angle)
            assert deep_relative_trust(np.full(depth, eta)) == pytest.approx(math.cos(angle))
    assert largest_safe_step(4, math.pi / 2) == pytest.approx(0.0)


TWO_ROWS = (np.ones((2, 2)), np.ones(2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_safe_step(0), "`depth` must be an integer >= 1"),
        (lambda: largest_safe_step(3, 4.0), "`angle` must be a finite number >= 0 and <= 1.5"),
        (lambda: deep_relative_trust([-0.1]), "`relative_perturbations` must be >= 0. Received: -0.1"),
        (
            lambda: relative_perturbation([np.ones(2)], [np.ones(3)]),
            r"`weights` must have the shapes of `step`, \[\(3,\)\]",
        ),
        (lambda: relative_gradient_breakdown([np.ones(2)], [np.ones(1)]), "`gradient` must have the shapes"),
        (
            lambda: breakdown_profile(Objective(mlp(2, (), 1), "mse", TWO_ROWS), [-1.0]),
            "`relative_steps` must be a list",
        ),
        (
            lambda: breakdown_profile(Objective(mlp(2, (), 1), "mse", TWO_ROWS), []),
            "`relative_steps` must be a list",
        ),
        (lambda: StepMeter(mlp(2, (), 1), "mse", TWO_ROWS, num_points=0), "`num_points` must be"),
        (
            lambda: StepMeter(mlp(2, (), 1), "mse", TWO_ROWS).measure([np.ones(3)]),
            r"`before` must have the shapes \[\(2, 1\), \(1,\)\]. Received: \[\(3,\)\]",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
