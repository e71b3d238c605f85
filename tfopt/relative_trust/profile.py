"""Loss and gradient along layer-wise normalised gradient descent."""

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import as_numbers, check_label
from tfopt._record import Record
from tfopt._variables import unique_paths
from tfopt.curvature.objective import Objective, check_objective
from tfopt.relative_trust.breakdown import deep_relative_trust, largest_of, norms_of, relative_gradient_breakdown
from tfopt.relative_trust.rounding import is_rounding, rounding_errors
from tfopt.relative_trust.step import StepMeter

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True)
class BreakdownProfile(Record):
    """Loss and gradient along W_l - eta |W_l| g_l / |g_l|: every variable moves by the same fraction of its norm.

    Attributes:
        paths: Paths of the variables.
        relative_steps: The relative steps eta, of shape (k,).
        loss: L at each relative step, of shape (k,).
        relative_gradient_breakdown: Breakdown of each variable, of shape (k, number of variables); NaN if its gradient
            is lost in rounding.
        deep_relative_trust: (1 + eta)^L - 1 with L the number of variables that move, of shape (k,).
        batch_norm: How batch normalisation was computed, "batch" or "moving".
        lost_in_rounding: Paths of the variables whose gradient cannot be told from rounding, as in `StepBreakdown`.
    """

    paths: tuple[str, ...]
    relative_steps: np.ndarray
    loss: np.ndarray = field(repr=False)
    relative_gradient_breakdown: np.ndarray = field(repr=False)
    deep_relative_trust: np.ndarray = field(repr=False)
    batch_norm: str
    lost_in_rounding: tuple[str, ...] = ()

    @property
    def largest_breakdown(self) -> np.ndarray:
        """The largest breakdown that is known of a variable at each relative step, of shape (k,); NaN if none is."""
        return np.array([largest_of(row) for row in self.relative_gradient_breakdown])

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each relative step.

        Returns:
            The columns `loss`, `deep_relative_trust`, and one for each variable's breakdown. The index is the
            relative step.
        """
        columns = {"loss": self.loss, "deep_relative_trust": self.deep_relative_trust}
        columns |= dict(zip(self.paths, self.relative_gradient_breakdown.T, strict=True))
        return _plotting.make_dataframe(columns, index=self.relative_steps)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the largest, the first variable's and the expected breakdown against the relative step, on a log scale.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        lines = {
            "largest of a variable": self.largest_breakdown,
            self.paths[0]: self.relative_gradient_breakdown[:, 0],
            "deep relative trust": self.deep_relative_trust,
        }
        for name, values in lines.items():
            ax.plot(self.relative_steps, np.where(values > 0, values, np.nan), label=f"{prefix} {name}".strip())
        ax.set(xlabel="relative step eta", ylabel="relative gradient breakdown", yscale="log")
        _plotting.add_legend(ax)
        return ax


def breakdown_profile(objective: Objective, relative_steps: Any = None) -> BreakdownProfile:
    """Measure loss and gradient along layer-wise normalised gradient descent (Figure 1 of the paper).

    Args:
        objective: An `Objective`, of which all variables move.
        relative_steps: Relative steps eta, >= 0. None (default) means 21 steps from 0 to 0.1.

    Returns:
        The profile. A variable does not move if it is zero, or its gradient is zero or lost in rounding.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A relative step is negative or not finite.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[2.0]])])
        >>> objective = Objective(model, "mse", (np.ones((1, 1)), np.zeros((1, 1))))
        >>> profile = breakdown_profile(objective, [0.0, 0.25])
        >>> profile.loss.tolist(), profile.largest_breakdown.tolist()
        ([4.0, 2.25], [0.0, 0.25])
    """
    meter = StepMeter(check_objective(objective))
    steps = np.linspace(0.0, 0.1, 21)
    if relative_steps is not None:
        steps = np.atleast_1d(as_numbers("relative_steps", relative_steps))
    if steps.ndim != 1 or len(steps) == 0 or not (np.isfinite(steps) & (steps >= 0)).all():
        raise ValueError(f"`relative_steps` must be a list of finite numbers >= 0. Received: {relative_steps!r}")
    start = [np.asarray(part, np.float64) for part in meter.weights()]
    _, gradient = meter.loss_and_gradient(start)
    sizes, norms = norms_of("weights", start), norms_of("gradient", gradient)
    errors = rounding_errors(
        lambda weights: meter.loss_and_gradient(weights)[1],
        start,
        gradient,
        norms > 0,
        objective.batch_loss.epsilon,
    )
    is_lost = is_rounding(norms, errors)
    moves = (sizes > 0) & (norms > 0) & ~is_lost
    scales = np.divide(sizes, norms, out=np.zeros(len(norms)), where=moves)
    losses, breakdowns = [], []
    for eta in steps:
        found, moved = meter.loss_and_gradient([
            w - eta * s * g for w, s, g in zip(start, scales, gradient, strict=True)
        ])
        losses.append(found)
        breakdowns.append(np.where(is_lost, np.nan, relative_gradient_breakdown(gradient, moved)))
    paths = unique_paths(objective.variables)
    return BreakdownProfile(
        paths=tuple(paths),
        relative_steps=steps,
        loss=np.array(losses),
        relative_gradient_breakdown=np.array(breakdowns),
        deep_relative_trust=np.array([deep_relative_trust(np.full(moves.sum(), eta)) for eta in steps]),
        batch_norm=objective.batch_norm,
        lost_in_rounding=tuple(itertools.compress(paths, is_lost)),
    )
