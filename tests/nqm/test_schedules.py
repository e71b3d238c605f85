"""Piecewise constant rates: their losses, that they are the best, and that Keras follows them."""

import keras
import numpy as np
import pytest

from tfopt._progress import Progress
from tfopt.nqm import (
    Algorithm,
    NoisyQuadratic,
    expected_loss,
    information_bound,
    largest_stable_learning_rate,
    optimal_schedule,
    optimize,
    schedules,
)

PROBLEM = NoisyQuadratic([1.0, 0.3, 0.05], [1.0, 0.5, 0.1], [1, 2, 4], [1.0, 2.0, 0.5])


def losses_of(problem, batch_size, rates, power=0.0):
    """Return the loss after each step of SGD with these rates, one step at a time."""
    moment, losses = problem.initial_second_moment.copy(), []
    for rate in rates:
        step = rate * problem.curvature**-power
        moment = (1 - step * problem.curvature) ** 2 * moment + step**2 * problem.noise_variance / batch_size
        losses.append(0.5 * np.sum(problem.multiplicity * problem.curvature * moment))
    return np.array(losses)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_loss_is_that_of_the_recurrence(power):
    schedule = optimal_schedule(PROBLEM, 8, num_steps=237, num_pieces=20, preconditioner_power=power)
    rates = np.repeat(schedule.learning_rates, schedule.lengths)
    assert len(rates) == schedule.num_steps == 237
    assert set(np.diff(np.cumsum(schedule.lengths))) <= {11, 12}
    losses = losses_of(PROBLEM, 8, rates, power)
    assert schedule.loss == pytest.approx(losses[-1], rel=1e-10)
    steps, curve = schedule.loss_curve()
    assert curve[0] == pytest.approx(PROBLEM.initial_loss)
    np.testing.assert_allclose(curve[1:], losses[steps[1:] - 1], rtol=1e-10)


def test_one_piece_is_the_best_constant_rate():
    schedule = optimal_schedule(PROBLEM, 8, num_steps=100, num_pieces=1)
    rates = np.geomspace(0.01, 2, 20_001)
    losses = expected_loss(PROBLEM, Algorithm(rates), 8, 100)
    assert schedule.loss <= losses.min() * (1 + 1e-12)
    assert schedule.learning_rates[0] == pytest.approx(rates[np.argmin(losses)], rel=1e-3)


def test_two_pieces_against_a_grid():
    schedule = optimal_schedule(PROBLEM, 2, num_steps=60, num_pieces=2)
    grid = np.geomspace(0.01, 1.999, 60)
    best = min(losses_of(PROBLEM, 2, np.repeat([a, b], 30))[-1] for a in grid for b in grid)
    assert best * (1 - 1e-2) < schedule.loss <= best


def test_no_change_of_one_rate_helps():
    schedule = optimal_schedule(PROBLEM, 8, num_steps=200, num_pieces=10)
    limit = float(largest_stable_learning_rate(PROBLEM))
    for place in range(10):
        for factor in (0.98, 1.02):
            rates = schedule.learning_rates.copy()
            rates[place] = min(rates[place] * factor, limit)
            assert losses_of(PROBLEM, 8, np.repeat(rates, schedule.lengths))[-1] >= schedule.loss * (1 - 1e-9)


def test_the_fewest_steps_to_a_target():
    found = optimal_schedule(PROBLEM, 8, target_loss=0.02, num_pieces=25)
    assert found.loss <= 0.02
    assert losses_of(PROBLEM, 8, np.repeat(found.learning_rates, found.lengths))[-1] <= 0.02
    assert optimal_schedule(PROBLEM, 8, num_steps=found.num_steps - 1, num_pieces=25).loss > 0.02
    constant = optimize(PROBLEM, "sgd", 8, 0.02).steps[0]
    assert float(information_bound(PROBLEM, 8, 0.02)) <= found.num_steps < 0.8 * constant


def constant_losses(problem, batch_size, power, num_steps, num_rates=4001):
    """Return the losses after each step at many constant rates, of shape (num_steps, num_rates)."""
    scaled = problem.curvature ** (1 - power)
    moves = problem.noise_variance + problem.initial_second_moment > 0
    rates = np.geomspace(1e-4 / scaled.max(), 2 / scaled[moves].min(), num_rates)[:, None]
    moment, losses = np.where(moves, problem.initial_second_moment, 0.0) + 0 * rates, []
    noise = rates**2 * problem.curvature ** (-2 * power) * problem.noise_variance / batch_size
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(num_steps):
            moment = np.where(moves, (1 - rates * scaled) ** 2 * moment + noise, 0.0)
            losses.append(0.5 * np.sum(problem.multiplicity * problem.curvature * moment, axis=1))
    return np.array(losses)


@pytest.mark.parametrize(
    ("arguments", "batch_size", "target", "power"),
    [
        (([1.0, 10.0], [1e-4, 1e-3], 1.0, [1.0, 1e-6]), 100.0, 1e-3, 0.0),  # one step beyond the limit of stability
        (([1.0, 3.0, 30.0], [0.0, 0.0, 1e-9], 1.0, [1.0, 0.1, 1e-9]), 1.0, 3e-2, 0.0),  # a few steps beyond it
        (([1e-9, 1e-8], [1e-4, 1e-3], 1.0, [1e9, 1e3]), 1e9, 1e-3, 0.5),
        (([1.0, 1e6], [1e-6, 0.0], 1.0, [1.0, 0.0]), 1.0, 1e-4, 0.0),  # a direction that never moves
        (([3.0], [0.0], 1.0, [1.0]), 1.0, 1e-25, 1.0),  # in one step to zero
        (([1.0], [1.0], 1.0, [1.0]), 1.0, 0.25, 0.0),  # the information bound is reached exactly
        (([1.0, 0.5], [1e10, 1e9], 1.0, 1.0), 1e-3, 0.7, 0.5),  # only tiny rates are any good
    ],
)
def test_no_constant_rate_takes_fewer_steps(arguments, batch_size, target, power):
    problem = NoisyQuadratic(*arguments)
    found = optimal_schedule(problem, batch_size, target, num_pieces=4, preconditioner_power=power)
    assert found.num_steps <= optimize(problem, "sgd", batch_size, target, preconditioner_power=power).steps[0]
    checked = min(found.num_steps - 1, 300)
    assert not (constant_losses(problem, batch_size, power, checked) <= target).any()
    assert found.loss <= target * (1 + 1e-12)
    limit = 2 / (problem.curvature[problem.initial_second_moment > 0] ** (1 - power)).max()
    assert found.is_stable == bool((found.learning_rates < limit).all())
    if found.num_steps < 10_000:
        rates = np.repeat(found.learning_rates, found.lengths)
        ends = np.concatenate([[problem.initial_loss], losses_of(problem, batch_size, rates, power)])
        np.testing.assert_allclose(found.loss_curve()[1], ends[found.loss_curve()[0]], rtol=1e-6, atol=1e-14 * target)
    for num_steps in (1, 7):
        best = constant_losses(problem, batch_size, power, num_steps)[-1].min()
        schedule = optimal_schedule(problem, batch_size, num_steps=num_steps, num_pieces=4, preconditioner_power=power)
        assert schedule.loss <= best * (1 + 1e-9)


def test_a_problem_that_never_moves():
    assert optimal_schedule(NoisyQuadratic([1.0, 2.0], 0.0, 1.0, 0.0), 1, num_steps=3).loss == 0.0
    assert optimal_schedule(NoisyQuadratic([1.0, 2.0], 1.0, 1.0, 0.0), 1, num_steps=3).loss < 1e-12


def test_large_problems_are_solved_in_bins_first():
    problem = NoisyQuadratic.power_law(1000)
    found = optimal_schedule(problem, 64, target_loss=0.05, num_pieces=10)
    assert losses_of(problem, 64, np.repeat(found.learning_rates, found.lengths))[-1] <= 0.05
    assert optimal_schedule(problem, 64, num_steps=found.num_steps - 1, num_pieces=10).loss > 0.05


@pytest.mark.parametrize("guess", [1, 20, 5000])
def test_the_fewest_steps_do_not_depend_on_the_guess(guess):
    search = schedules._ScheduleSearch(PROBLEM, 8, 25, 0.0)
    expected = optimal_schedule(PROBLEM, 8, target_loss=0.02, num_pieces=25).num_steps
    assert search.fewest_steps(0.02, guess, Progress("", False)).num_steps == expected


def test_the_published_shape():
    problem = NoisyQuadratic.power_law(num_bins=100)
    limit = float(largest_stable_learning_rate(problem))
    gains, gaps = [], []
    for size in (16.0, 256.0, 4096.0, 2.0**18):
        schedule = optimal_schedule(problem, size, 0.01)
        constant = optimize(problem, "sgd", size, 0.01).steps[0]
        assert schedule.loss <= 0.01
        assert schedule.learning_rates[0] == pytest.approx(limit, rel=1e-6)  # starts at the largest stable rate
        assert (np.diff(schedule.learning_rates) <= 1e-9).all()
        gains.append(constant / schedule.num_steps)
        gaps.append(schedule.num_steps / float(information_bound(problem, size, 0.01)))
    assert gains[0] > 5  # closes most of the gap to the bound at small batches
    assert gaps[0] < 2
    assert gains[-1] == pytest.approx(1.0, abs=0.02)  # and gains nothing at large ones


def test_keras_follows_the_schedule():
    schedule = optimal_schedule(PROBLEM, 8, num_steps=33, num_pieces=5)
    decay = schedule.to_keras()
    rates = [float(decay(step)) for step in range(40)]
    np.testing.assert_allclose(rates[:33], np.repeat(schedule.learning_rates, schedule.lengths), rtol=1e-6)
    assert rates[33:] == [rates[32]] * 7
    optimizer, weight = keras.optimizers.SGD(decay), keras.Variable(0.0)
    optimizer.build([weight])
    for _ in range(33):
        optimizer.apply([keras.ops.ones(())])
    assert float(weight) == pytest.approx(-float(schedule.learning_rates @ schedule.lengths), rel=1e-5)
    one = optimal_schedule(PROBLEM, 8, num_steps=1).to_keras()
    assert float(one(0)) > 0


def test_slow_directions_are_not_rounded_away():
    problem = NoisyQuadratic([1e6, 1.0, 1e-6], [1e6, 1.0, 1e-6], 1.0, [1e-6, 1.0, 1e6])
    schedule = optimal_schedule(problem, 1e6, target_loss=0.1)
    assert schedule.loss_curve()[1][-1] == pytest.approx(schedule.loss, rel=1e-9)


def test_fewer_steps_than_pieces():
    schedule = optimal_schedule(PROBLEM, 8, num_steps=3)
    assert schedule.lengths.tolist() == [1, 1, 1]


def test_tables_and_figures():
    schedule = optimal_schedule(PROBLEM, 8, num_steps=50, num_pieces=5)
    frame = schedule.to_dataframe()
    assert frame["first_step"].tolist() == [0, 10, 20, 30, 40]
    assert frame["final_loss"].iloc[-1] == pytest.approx(schedule.loss)
    assert "batch size 8: 50 steps" in schedule.plot().get_legend_handles_labels()[1][0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Exactly one of `target_loss` and `num_steps` must be given"),
        ({"target_loss": 0.1, "num_steps": 5}, ValueError, "one of `target_loss` and `num_steps`"),
        ({"target_loss": 100.0}, ValueError, "`target_loss` must be below the initial loss"),
        ({"target_loss": -1.0}, ValueError, "`target_loss`"),
        ({"num_steps": 0}, ValueError, "`num_steps` must be an integer >= 1"),
        ({"num_steps": 5, "num_pieces": 0}, ValueError, "`num_pieces`"),
        ({"num_steps": 5, "preconditioner_power": -1}, ValueError, "`preconditioner_power`"),
        ({"num_steps": 5, "batch_size": 0}, ValueError, "`batch_size`"),
        ({"num_steps": 5, "batch_size": [1, 2]}, TypeError, "`batch_size`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        optimal_schedule(**{"problem": PROBLEM, "batch_size": 8, **arguments})
