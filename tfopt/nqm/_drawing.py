"""Curves that records and figures of several curves draw alike."""

from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting

if TYPE_CHECKING:
    import matplotlib.axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_TICKS = 8


def draw_by_batch_size(ax: "matplotlib.axes.Axes", sizes: np.ndarray, values: Any, label: str, ylabel: str) -> None:
    """Draw positive values, of shape (k,), against batch sizes, of shape (k,), with a marker that the axes lack."""
    ax.plot(sizes, values, marker=MARKERS[len(ax.lines) % len(MARKERS)], markersize=4, label=label)
    ax.set(xlabel="batch size", ylabel=ylabel, yscale="log")
    ax.set_xscale("log", base=2)
    ticks = np.unique(sizes)[:: -(-len(sizes) // MOST_TICKS)]
    are_powers = np.log2(ticks) % 1 == 0
    ax.set_xticks(ticks, None if are_powers.all() else [f"{tick:g}" for tick in ticks])
    _plotting.add_legend(ax)


def draw_trajectories(ax: "matplotlib.axes.Axes", steps: np.ndarray, losses: np.ndarray, label: str) -> None:
    """Draw the mean, and the range of nine in ten, of losses of shape (k, trajectories) at steps of shape (k,)."""
    (line,) = ax.plot(steps, losses.mean(axis=1), label=f"{label}: mean of {losses.shape[1]}")
    low, high = np.quantile(losses, [0.05, 0.95], axis=1)
    ax.fill_between(steps, low, high, alpha=0.2, color=line.get_color(), linewidth=0)


def finish_losses(ax: "matplotlib.axes.Axes") -> None:
    """Set names, scales and limits of axes of losses against steps, after all curves are drawn."""
    ax.set(xlabel="step", ylabel="loss", yscale="log")
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xlim(left=0.0)
    _plotting.add_legend(ax)
