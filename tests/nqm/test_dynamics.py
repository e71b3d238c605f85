"""Exact expected losses, steady states, rates and limits, against recurrences written from the equations."""

import numpy as np
import pytest
from nqm_oracles import dense_loss_curve, loss_curve, step_matrices

from tfopt.nqm import (
    Algorithm,
    NoisyQuadratic,
    convergence_rate,
    expected_loss,
    largest_stable_learning_rate,
    steady_state_loss,
    steps_to_target,
)

PROBLEM = NoisyQuadratic(1 / np.arange(1, 9), 1 / np.arange(1, 9) ** 0.5, np.arange(1, 9), np.linspace(0.5, 2, 8))
CRITICAL = (1 - np.sqrt(0.3)) ** 2  # momentum at which the direction with h = 1 is critically damped for a = 0.3
SETTINGS = {
    "sgd": {"learning_rate": 0.3},
    "sgd that alternates": {"learning_rate": 1.7},
    "sgd that jumps": {"learning_rate": 1.0},
    "momentum": {"learning_rate": 0.3, "momentum": 0.9},
    "overdamped": {"learning_rate": 0.01, "momentum": 0.5},
    "critically damped": {"learning_rate": 0.3, "momentum": CRITICAL},
    "nesterov": {"learning_rate": 0.3, "momentum": 0.9, "nesterov": True},
    "average": {"learning_rate": 0.3, "ema_decay": 0.99},
    "average as fast as SGD": {"learning_rate": 0.25, "ema_decay": 0.75},  # 1 - a h = gamma for h = 1
    "momentum and average": {"learning_rate": 0.3, "momentum": 0.9, "ema_decay": 0.99},
    "triple root": {"learning_rate": 0.3, "momentum": CRITICAL, "ema_decay": np.sqrt(CRITICAL)},
    "nesterov and average": {"learning_rate": 0.3, "momentum": 0.9, "nesterov": True, "ema_decay": 0.9},
    "preconditioned": {"learning_rate": 0.3, "preconditioner_power": 0.5},
    "preconditioned momentum": {"learning_rate": 0.3, "momentum": 0.8, "preconditioner_power": 0.75},
    "newton": {"learning_rate": 0.3, "ema_decay": 0.5, "preconditioner_power": 1.0},
    "still": {"learning_rate": 0.0, "momentum": 0.9},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_losses_are_those_of_the_recurrence_over_ten_thousand_steps(settings):
    expected = loss_curve(PROBLEM, 16, 10_000, **settings)
    steps = np.unique(np.concatenate([np.arange(50), np.geomspace(50, 10_000, 200).astype(int)]))
    np.testing.assert_allclose(expected_loss(PROBLEM, Algorithm(**settings), 16, steps), expected[steps], rtol=1e-9)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_without_noise_only_the_transient_is_left(settings):
    problem = NoisyQuadratic([1.0, 0.3], [0.0, 0.0])
    expected = loss_curve(problem, 1, 300, **settings)
    found = expected_loss(problem, Algorithm(**settings), 1, np.arange(301))
    # A loss that crosses zero has no relative accuracy there; its envelope has.
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * expected[0])


def test_sgd_is_the_closed_form_in_t():
    rate, size, steps = 0.3, 16, np.array([0, 1, 7, 1000])
    shrink = (1 - rate * PROBLEM.curvature) ** 2
    power = shrink ** steps[:, None]
    noise = rate**2 * PROBLEM.noise_variance / size * (1 - power) / (1 - shrink)
    moments = power * PROBLEM.initial_second_moment + noise
    expected = 0.5 * moments @ (PROBLEM.multiplicity * PROBLEM.curvature)
    np.testing.assert_allclose(expected_loss(PROBLEM, Algorithm(rate), size, steps), expected, rtol=1e-12)


def test_whole_grids_at_once():
    grid = Algorithm(np.array([[0.1], [0.3]]), np.array([0.0, 0.5, 0.9]), preconditioner_power=0.25)
    sizes = np.array([1.0, 4.0, 16.0])
    steps = np.array([[3, 10], [100, 1000]])
    found = expected_loss(PROBLEM, grid, sizes, steps)
    assert found.shape == (2, 3, 2, 2)
    for i, rate in enumerate((0.1, 0.3)):
        for j, (momentum, size) in enumerate(zip((0.0, 0.5, 0.9), sizes, strict=True)):
            curve = loss_curve(PROBLEM, size, 1000, learning_rate=rate, momentum=momentum, preconditioner_power=0.25)
            np.testing.assert_allclose(found[i, j], curve[steps], rtol=1e-9)


def test_grids_larger_than_a_chunk_are_joined_in_order():
    rates = np.linspace(0.01, 1.9, 300)
    found = expected_loss(PROBLEM, Algorithm(rates), 4, 20)
    for place in (0, 127, 128, 299):
        assert found[place] == pytest.approx(loss_curve(PROBLEM, 4, 20, learning_rate=rates[place])[-1], rel=1e-12)


def test_a_long_run_on_the_exact_spectrum():
    problem = NoisyQuadratic.power_law()
    found = expected_loss(problem, Algorithm(0.5), 64, 10**6)
    shrink = (1 - 0.5 * problem.curvature) ** 2
    power = shrink**10**6
    moments = power + 0.25 * problem.noise_variance / 64 * (1 - power) / (1 - shrink)
    assert found == pytest.approx(0.5 * problem.curvature @ moments, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_full_matrices_in_a_random_basis_change_nothing(momentum):
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    eigenvalues = 1 / np.arange(1, 7)
    factor, start = rng.standard_normal((6, 6)), rng.standard_normal((6, 6))
    hessian, covariance, start = basis @ np.diag(eigenvalues) @ basis.T, factor @ factor.T, start @ start.T
    expected = dense_loss_curve(hessian, covariance, start, 8, 2000, 0.3, momentum)
    problem = NoisyQuadratic.from_matrices(hessian, covariance, start)
    np.testing.assert_allclose(problem.curvature, eigenvalues, rtol=1e-12)
    np.testing.assert_allclose(problem.noise_variance, np.diag(basis.T @ covariance @ basis), rtol=1e-10)
    found = expected_loss(problem, Algorithm(0.3, momentum), 8, np.arange(2001))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "still"])
def test_steady_states_are_where_the_dynamics_settle(name):
    settings = SETTINGS[name]
    problem = NoisyQuadratic([1.0, 0.1], [2.0, 0.3], [1, 3])
    found = steady_state_loss(problem, Algorithm(**settings), [1, 16])
    np.testing.assert_allclose(found, expected_loss(problem, Algorithm(**settings), [1, 16], 10**6), rtol=1e-10)


def test_steady_states_are_the_published_closed_forms():
    a, beta, gamma, h, c, size = 0.3, 0.8, 0.95, 0.7, 2.0, 5.0
    problem = NoisyQuadratic([h], [c])
    sgd = a * c / (2 * size * (2 - a * h))
    heavy_ball = (1 + beta) * a * c / (2 * size * (2 * beta + 2 - a * h) * (1 - beta))
    average = sgd * (1 - gamma) * (1 + (1 - a * h) * gamma) / ((1 + gamma) * (1 - (1 - a * h) * gamma))
    for settings, expected in (((a,), sgd), ((a, beta), heavy_ball), ((a, 0.0, False, gamma), average)):
        assert float(steady_state_loss(problem, Algorithm(*settings), size)) == pytest.approx(expected, rel=1e-14)


def test_steady_states_without_cancellation():
    problem = NoisyQuadratic([1.0, 1e-9], [1.0, 1e-9])  # the slow direction takes 10^12 steps
    for settings in ((1e-3, 0.999), (1e-3, 0.9, True, 0.9999), (1e-3, 0.0, False, 0.99999)):
        algorithm = Algorithm(*settings)
        assert float(steady_state_loss(problem, algorithm, 4)) == pytest.approx(
            float(expected_loss(problem, algorithm, 4, 2**52)), rel=1e-6
        )


def test_rates_are_the_roots():
    for settings in (
        SETTINGS["momentum"],
        SETTINGS["overdamped"],
        SETTINGS["nesterov"],
        SETTINGS["momentum and average"],
    ):
        expected = max(np.abs(np.linalg.eigvals(step_matrices(h, **settings)[0])).max() for h in PROBLEM.curvature)
        assert float(convergence_rate(PROBLEM, Algorithm(**settings))) == pytest.approx(expected, rel=1e-12)
    one = NoisyQuadratic([1.0], [1.0])
    assert float(convergence_rate(one, Algorithm(0.3, CRITICAL))) == pytest.approx(np.sqrt(CRITICAL), rel=1e-6)
    assert float(convergence_rate(one, Algorithm(0.3, 0.8))) == pytest.approx(np.sqrt(0.8), rel=1e-14)  # underdamped
    overdamped = float(convergence_rate(one, Algorithm(1e-4, 0.5)))
    assert overdamped == pytest.approx(1 - 1e-4 / (1 - 0.5), rel=1e-6)  # the effective rate a / (1 - beta)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True), (0.3, True)])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_limits_of_stability(momentum, nesterov, power):
    limit = float(largest_stable_learning_rate(PROBLEM, momentum, nesterov=nesterov, preconditioner_power=power))
    below, above = (Algorithm(limit * factor, momentum, nesterov, 0.0, power) for factor in (1 - 1e-6, 1 + 1e-6))
    assert float(convergence_rate(PROBLEM, below)) < 1 < float(convergence_rate(PROBLEM, above))
    assert np.isfinite(steady_state_loss(PROBLEM, below, 1))
    assert np.isinf(steady_state_loss(PROBLEM, above, 1))
    assert np.isinf(steady_state_loss(PROBLEM, Algorithm(limit, momentum, nesterov, 0.0, power), 1))


def test_what_is_unstable_is_infinite_and_never_nan():
    grid = Algorithm(np.array([2.5, 10.0, 1e3])[:, None], [0.0, 0.5], False, 0.5)
    found = expected_loss(PROBLEM, grid, 1, [1, 10, 10**4, 10**9])
    assert not np.isnan(found).any()
    stable = [[False, True], [False, False], [False, False]]  # the limits are 2 and 3
    np.testing.assert_array_equal(np.isfinite(found[..., -1]), stable)
    np.testing.assert_allclose(
        found[0, 1, :2], loss_curve(PROBLEM, 1, 10, learning_rate=2.5, momentum=0.5, ema_decay=0.5)[[1, 10]], rtol=1e-9
    )


def test_a_direction_in_which_nothing_ever_moves_cannot_diverge():
    problem = NoisyQuadratic([1.0, 1e-3], [0.0, 0.0], 1.0, [0.0, 1.0])
    found = float(expected_loss(problem, Algorithm(3.0), 1, 2000))
    assert found == pytest.approx(0.5e-3 * (1 - 3e-3) ** 4000, rel=1e-9)
    assert float(steady_state_loss(problem, Algorithm(3.0), 1)) == 0.0
    assert np.isfinite(steps_to_target(problem, Algorithm(3.0), 1, 1e-9))


def test_a_rate_of_zero_stays_where_it_is():
    assert float(steady_state_loss(PROBLEM, Algorithm(0.0), 4)) == PROBLEM.initial_loss


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-0.1,), ValueError, "`learning_rate` must hold finite numbers >= 0"),
        ((np.nan,), ValueError, "`learning_rate`"),
        (("a",), TypeError, "`learning_rate` must hold finite numbers"),
        ((True,), TypeError, "`learning_rate`"),
        ((0.1, 1.0), ValueError, "`momentum` must hold finite numbers >= 0 and < 1"),
        ((0.1, -0.1), ValueError, "`momentum`"),
        ((0.1, 0.5, 1), TypeError, "`nesterov` must be True or False"),
        ((0.1, 0.5, False, 1.0), ValueError, "`ema_decay` must hold finite numbers >= 0 and < 1"),
        ((0.1, 0.5, False, 0.0, 1.5), ValueError, "`preconditioner_power` must hold finite numbers >= 0 and <= 1"),
        (([],), ValueError, "`learning_rate` must hold one or more finite numbers"),
        (([0.1, 0.2], [0.5, 0.6, 0.7]), ValueError, "must have shapes that broadcast"),
    ],
)
def test_bad_settings(arguments, error, message):
    with pytest.raises(error, match=message):
        Algorithm(*arguments)


@pytest.mark.parametrize(
    ("batch_size", "steps", "error", "message"),
    [
        (0, 1, ValueError, "`batch_size` must hold finite numbers > 0"),
        (np.inf, 1, ValueError, "`batch_size`"),
        ("a", 1, TypeError, "`batch_size`"),
        ([1, 2, 3], 1, ValueError, r"`batch_size` must broadcast with the settings' shape \(2,\)"),
        (1, 1.5, TypeError, "`steps` must hold integers >= 0"),
        (1, [-1], ValueError, "`steps` must hold integers >= 0"),
        (1, np.uint64(2**63), ValueError, "`steps` must hold integers >= 0 and <= "),
        (1, [], ValueError, "`steps` must hold one or more integers"),
        ([], 1, ValueError, "`batch_size` must hold one or more finite numbers > 0"),
    ],
)
def test_bad_batch_sizes_and_steps(batch_size, steps, error, message):
    with pytest.raises(error, match=message):
        expected_loss(PROBLEM, Algorithm([0.1, 0.2]), batch_size, steps)


def test_arguments_in_the_wrong_place():
    for call in (expected_loss, steps_to_target):
        with pytest.raises(TypeError, match="`problem` must be a tfopt.nqm.NoisyQuadratic"):
            call(Algorithm(0.1), PROBLEM, 1, 1)
        with pytest.raises(TypeError, match="`algorithm` must be a tfopt.nqm.Algorithm"):
            call(PROBLEM, 0.1, 1, 1)
    with pytest.raises(TypeError, match="`problem` must be"):
        steady_state_loss(5, Algorithm(0.1), 1)
    with pytest.raises(TypeError, match="`problem` must be"):
        largest_stable_learning_rate(5)
    with pytest.raises(ValueError, match="`momentum` and `preconditioner_power` must have shapes that broadcast"):
        largest_stable_learning_rate(PROBLEM, [0.1, 0.2], preconditioner_power=[0.1, 0.2, 0.3])
