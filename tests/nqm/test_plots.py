"""Figures show what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tfopt.nqm import (
    Algorithm,
    NoisyQuadratic,
    expected_loss,
    information_bound,
    monte_carlo,
    optimal_schedule,
    optimize,
    plot_learning_rates,
    plot_schedule,
    plot_steps_to_target,
    plot_training_curves,
)

PROBLEM = NoisyQuadratic([1.0, 0.1], [1.0, 0.1])
SIZES = np.array([1.0, 16.0, 256.0])


@pytest.fixture(scope="module")
def curves():
    return {family: optimize(PROBLEM, family, SIZES, 0.01) for family in ("sgd", "momentum")}


def labels(ax):
    return ax.get_legend_handles_labels()[1]


def test_steps(curves):
    bound = (SIZES, information_bound(PROBLEM, SIZES, 0.01))
    ax = plot_steps_to_target({**curves, "measured": (SIZES, [3.0, 2.0, 1.0])}, bound=bound)
    assert labels(ax) == ["sgd", "momentum", "measured", "information bound"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curves["sgd"].steps)
    np.testing.assert_array_equal(ax.lines[3].get_ydata(), bound[1])
    # Told apart in black and white: by lines and by markers.
    assert len({(line.get_linestyle(), line.get_marker()) for line in ax.lines}) == 4
    assert ax.get_xscale() == ax.get_yscale() == "log"
    _, given = plt.subplots()
    assert plot_steps_to_target(curves, ax=given) is given


def test_records_draw_into_one_figure(curves):
    ax = curves["momentum"].plot(curves["sgd"].plot())
    assert labels(ax) == ["sgd", "momentum"]
    assert len({line.get_marker() for line in ax.lines}) == 2
    schedule = optimal_schedule(PROBLEM, 4, num_steps=20, num_pieces=4)
    assert labels(schedule.plot(schedule.plot(label="first"))) == ["first: 20 steps", "batch size 4: 20 steps"]


@pytest.mark.parametrize("effective", [True, False])
def test_rates(curves, effective):
    ax = plot_learning_rates(curves, effective=effective)
    expected = curves["momentum"].effective_learning_rate if effective else curves["momentum"].algorithm.learning_rate
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), expected)


def test_schedules():
    schedule = optimal_schedule(PROBLEM, 4, num_steps=20, num_pieces=4)
    ax = plot_schedule({"B = 4": schedule})
    assert labels(ax) == ["B = 4: 20 steps"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata()[:-1], schedule.learning_rates)


def test_training_curves():
    samples = monte_carlo(PROBLEM, Algorithm(0.5), 4, 10, num_trajectories=20)
    steps = np.arange(11)
    ax = plot_training_curves(
        {"samples": samples, "theory": (steps, expected_loss(PROBLEM, Algorithm(0.5), 4, steps))}, target_loss=0.1
    )
    assert labels(ax) == ["samples: mean of 20", "theory"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), samples.mean)
    assert ax.lines[2].get_ydata()[0] == 0.1
    assert samples.plot().get_legend_handles_labels()[1] == ["samples: mean of 20"]


@pytest.mark.parametrize("plot", [plot_steps_to_target, plot_learning_rates, plot_schedule, plot_training_curves])
def test_bad_arguments(plot):
    for value in ({}, [1], None):
        with pytest.raises(TypeError, match="must be a dictionary of"):
            plot(value)
    if plot in (plot_steps_to_target, plot_training_curves):
        with pytest.raises(TypeError, match="`curves` must hold pairs of lists of numbers"):
            plot({"a": 5})
    if plot in (plot_learning_rates, plot_schedule):
        with pytest.raises(TypeError, match="must be a dictionary of (OptimalSettings|Schedule), by name"):
            plot({"a": 1})
