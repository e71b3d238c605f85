"""Loss and gradient along layer-wise normalised gradient descent."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfopt import _plotting
from tfopt._checks import as_numbers
from tfopt._naming import unique_paths
from tfopt._record import Record
from tfopt.communicator import Communicator
from tfopt.relative_trust.breakdown import deep_relative_trust, largest_of, norms_of, relative_gradient_breakdown
from tfopt.relative_trust.step import StepMeter

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True)
class BreakdownProfile(Record):
    """Loss and gradient along W_l - eta |W_l| g_l / |g_l|: every variable moves by the same fraction of its norm.

    Attributes:
        paths: Paths of the variables.
        etas: The relative steps, of shape (k,).
        loss: L at each relative step, of shape (k,).
        relative_gradient_breakdown: Breakdown of each variable, of shape (k, number of variables).
        deep_relative_trust: (1 + eta)^L - 1 with L the number of variables that move, of shape (k,).
        batch_norm: How batch normalisation was computed, "batch" or "moving".
    """

    paths: tuple[str, ...]
    etas: np.ndarray
    loss: np.ndarray = field(repr=False)
    relative_gradient_breakdown: np.ndarray = field(repr=False)
    deep_relative_trust: np.ndarray = field(repr=False)
    batch_norm: str

    @property
    def largest_breakdown(self) -> np.ndarray:
        """The largest breakdown of a variable at each eta, of shape (k,)."""
        return np.array([largest_of(row) for row in self.relative_gradient_breakdown])

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each eta.

        Returns:
            The columns `loss`, `deep_relative_trust`, and one for each variable's breakdown, indexed by eta.
        """
        columns = {"loss": self.loss, "deep_relative_trust": self.deep_relative_trust}
        columns |= dict(zip(self.paths, self.relative_gradient_breakdown.T, strict=True))
        return _plotting.make_dataframe(columns, index=self.etas)

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw breakdowns against eta on a logarithmic scale: the largest, the first variable's, and the expected one.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        ax = _plotting.get_axes(ax)
        lines = {
            "largest of a variable": self.largest_breakdown,
            self.paths[0]: self.relative_gradient_breakdown[:, 0],
            "deep relative trust": self.deep_relative_trust,
        }
        for name, values in lines.items():
            ax.plot(self.etas, np.where(values > 0, values, np.nan), label=f"{label or ''} {name}".strip())
        ax.set(xlabel="relative step eta", ylabel="relative gradient breakdown", yscale="log")
        _plotting.add_legend(ax)
        return ax


def breakdown_profile(
    model: keras.Model,
    loss: Any = None,
    x: Any = None,
    y: Any = None,
    etas: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int | None = None,
    batch_norm: str = "batch",
    communicator: Communicator | None = None,
) -> BreakdownProfile:
    """Measure loss and gradient along layer-wise normalised gradient descent (Figure 1 of the paper).

    Args:
        model: A Keras model with its variables, compiled or not; it is not changed.
        loss: As `compile` takes it. None (default) means the loss that the model was compiled with.
        x: The data: a `tfopt.curvature.Probe`, or the `x` of a `Probe`.
        y: As `Probe` takes it.
        etas: Relative steps, >= 0. None (default) means 21 steps from 0 to 0.1.
        sample_weight: As `Probe` takes it.
        batch_size: As `Probe` takes it.
        batch_norm: "batch" (default) normalises by each batch's own statistics, "moving" by the moving averages.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Returns:
        The profile. A variable does not move if it is zero or its gradient is.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the model or data cannot be measured; the message says why.

    Example:
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        >>> model.set_weights([np.array([[2.0]])])
        >>> profile = breakdown_profile(model, "mse", np.ones((1, 1)), np.zeros((1, 1)), etas=[0.0, 0.25])
        >>> profile.loss.tolist(), profile.largest_breakdown.tolist()
        ([4.0, 2.25], [0.0, 0.25])
    """
    steps = np.linspace(0.0, 0.1, 21) if etas is None else np.atleast_1d(as_numbers("etas", etas))
    if steps.ndim != 1 or len(steps) == 0 or not (np.isfinite(steps) & (steps >= 0)).all():
        raise ValueError(f"`etas` must be a list of finite numbers >= 0. Received: {etas!r}")
    meter = StepMeter(
        model, loss, x, y, sample_weight, batch_size=batch_size, batch_norm=batch_norm, communicator=communicator
    )
    start = [np.asarray(part, np.float64) for part in meter.weights()]
    _, gradient = meter.loss_and_gradient(start)
    sizes, norms = norms_of("weights", start), norms_of("gradient", gradient)
    moves = (sizes > 0) & (norms > 0)
    scales = np.divide(sizes, norms, out=np.zeros(len(norms)), where=moves)
    losses, breakdowns = [], []
    for eta in steps:
        found, moved = meter.loss_and_gradient([
            w - eta * s * g for w, s, g in zip(start, scales, gradient, strict=True)
        ])
        losses.append(found)
        breakdowns.append(relative_gradient_breakdown(gradient, moved))
    return BreakdownProfile(
        paths=tuple(unique_paths(meter.variables)),
        etas=steps,
        loss=np.array(losses),
        relative_gradient_breakdown=np.array(breakdowns),
        deep_relative_trust=np.array([deep_relative_trust(np.full(moves.sum(), eta)) for eta in steps]),
        batch_norm=batch_norm,
    )
