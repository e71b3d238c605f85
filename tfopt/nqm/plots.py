"""Figures of several curves: steps, rates and schedules against batch size, and loss along training."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import as_numbers, check_flag, check_number
from tfopt.nqm._drawing import draw_by_batch_size, draw_trajectories, finish_losses
from tfopt.nqm.monte_carlo import Trajectories
from tfopt.nqm.schedules import Schedule
from tfopt.nqm.search import OptimalSettings

if TYPE_CHECKING:
    import matplotlib.axes


def plot_steps_to_target(
    curves: Mapping[str, Any], *, bound: Any = None, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw steps to the target against batch size, both on logarithmic scales.

    A curve has slope -1 where a larger batch does not use more examples.

    Args:
        curves: A dictionary from names to results of `optimize`, or to pairs of batch sizes and steps.
        bound: A pair of batch sizes and steps that no algorithm can beat. None (default) draws no bound.
        ax: Axes to draw into; None (default) makes new ones.

    Returns:
        The axes.

    Raises:
        TypeError: `curves` is no dictionary of curves, or another argument has the wrong type.
        ValueError: The two lists of a curve differ in length.
    """
    pairs = {
        label: (curve.batch_size, curve.steps) if isinstance(curve, OptimalSettings) else _check_pair("curves", curve)
        for label, curve in _check_named("curves", curves).items()
    }
    floor = None if bound is None else _check_pair("bound", bound)
    ax = _plotting.get_axes(ax)
    for label, (sizes, steps) in pairs.items():
        draw_by_batch_size(ax, sizes, steps, label, "steps to the target")
    if floor is not None:
        ax.plot(*floor, color="0.5", linestyle="-", linewidth=1, label="information bound")
        _plotting.add_legend(ax)
    return ax


def plot_learning_rates(
    curves: Mapping[str, OptimalSettings], *, effective: bool = True, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw the best learning rate against batch size.

    Args:
        curves: A dictionary from names to results of `optimize`.
        effective: Whether to draw a / (1 - beta) (default) or a.
        ax: Axes to draw into; None (default) makes new ones.

    Returns:
        The axes.

    Raises:
        TypeError: `curves` is no dictionary of results of `optimize`, or another argument has the wrong type.
    """
    check_flag("effective", effective)
    _check_named("curves", curves, OptimalSettings)
    ax = _plotting.get_axes(ax)
    ylabel = "effective learning rate a / (1 - momentum)" if effective else "learning rate"
    for label, curve in curves.items():
        rates = curve.effective_learning_rate if effective else curve.algorithm.learning_rate
        draw_by_batch_size(ax, curve.batch_size, rates, label, ylabel)
    return ax


def plot_schedule(
    schedules: Mapping[str, Schedule], *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw learning rates against the fraction of the steps done.

    Args:
        schedules: A dictionary from names to results of `optimal_schedule`.
        ax: Axes to draw into; None (default) makes new ones.

    Returns:
        The axes.

    Raises:
        TypeError: `schedules` is no dictionary of schedules, or `ax` has the wrong type.
    """
    _check_named("schedules", schedules, Schedule)
    ax = _plotting.get_axes(ax)
    for label, schedule in schedules.items():
        schedule.plot(ax, str(label))
    return ax


def plot_training_curves(
    curves: Mapping[str, Any], *, target_loss: float | None = None, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw losses against steps, both on logarithmic scales.

    Args:
        curves: A dictionary from names to results of `monte_carlo`, drawn as mean and range of nine in ten
            trajectories, or to pairs of steps and losses.
        target_loss: Loss at which to draw a line. None (default) draws none.
        ax: Axes to draw into; None (default) makes new ones.

    Returns:
        The axes.

    Raises:
        TypeError: `curves` is no dictionary of curves, or another argument has the wrong type.
        ValueError: The two lists of a curve differ in length.
    """
    found = {
        label: curve if isinstance(curve, Trajectories) else _check_pair("curves", curve)
        for label, curve in _check_named("curves", curves).items()
    }
    if target_loss is not None:
        check_number("target_loss", target_loss)
    ax = _plotting.get_axes(ax)
    for label, curve in found.items():
        if isinstance(curve, Trajectories):
            draw_trajectories(ax, curve.steps, curve.losses, label)
        else:
            ax.plot(*curve, label=label)
    if target_loss is not None:
        ax.axhline(target_loss, color="0.5", linestyle=":", linewidth=1)
    finish_losses(ax)
    return ax


def _check_pair(name: str, value: Any) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"`{name}` must hold pairs of lists of numbers, x and y. Received: {value!r}")
    x, y = (as_numbers(name, part, "pairs of lists of numbers, x and y") for part in value)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"`{name}` must hold lists of one length, x and y. Received shapes {x.shape} and {y.shape}")
    return x, y


def _check_named(name: str, value: Any, kind: type = object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(one, kind) for one in value.values()):
        what = f"of {kind.__name__}" if kind is not object else "of curves"
        raise TypeError(f"`{name}` must be a dictionary {what}, by name. Received: {value!r}")
    return value
