"""The settings that reach a target loss in the fewest steps, for every batch size."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_choice, check_label, check_number
from tfopt._progress import Progress
from tfopt._record import Record
from tfopt.nqm._checks import check_kind
from tfopt.nqm._drawing import draw_by_batch_size
from tfopt.nqm.algorithm import FAMILIES, Algorithm, check_batch_size, noise_in_steady_state
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.refinement import Refinement
from tfopt.nqm.settings_space import CLOSEST_TO_ONE, SettingsSpace

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

# A problem with more curvatures is searched in bins, and the result is refined on the whole problem.
MAX_SEARCH_CURVATURES = 256


@dataclass(frozen=True, eq=False, repr=False)
class OptimalSettings(Record):
    """For every batch size, the settings that reach the target first and the step at which they do.

    Attributes:
        family: Which settings were free, see `optimize`.
        target_loss: The target.
        batch_size: B, of shape (k,).
        steps: The first step at which the loss is at most the target, of shape (k,); infinity where the search found no
            setting that reaches it.
        algorithm: The settings, of shape (k,).
        is_stable: Whether the iterates settle, of shape (k,). If not, the loss passes the target and then grows again.
    """

    family: str
    target_loss: float
    batch_size: np.ndarray
    steps: np.ndarray
    algorithm: Algorithm
    is_stable: np.ndarray

    @property
    def examples(self) -> np.ndarray:
        """Examples used, steps times batch size, of shape (k,)."""
        return self.steps * self.batch_size

    @property
    def effective_learning_rate(self) -> np.ndarray:
        """The rate divided by 1 - momentum, of shape (k,): the rate of an equivalent SGD if momentum is overdamped."""
        return self.algorithm.learning_rate / (1.0 - self.algorithm.momentum)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each batch size.

        Returns:
            Steps, settings and `is_stable`, indexed by batch size.
        """
        settings = self.algorithm
        columns = {
            "steps": self.steps,
            "learning_rate": settings.learning_rate,
            "momentum": settings.momentum,
            "ema_decay": settings.ema_decay,
            "preconditioner_power": settings.preconditioner_power,
            "is_stable": self.is_stable,
        }
        frame = _plotting.make_dataframe(columns, index=self.batch_size)
        frame.index.name = "batch_size"
        return frame

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw steps against batch size.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Name of the line; None (default) for the family's name.

        Returns:
            The axes.
        """
        name, ax = check_label(label, self.family), _plotting.get_axes(ax)
        draw_by_batch_size(ax, self.batch_size, self.steps, name, "steps to the target")
        return ax

    def __repr__(self) -> str:
        lines = [f"OptimalSettings({self.family}, target_loss={self.target_loss:g})"]
        header = ("batch size", "steps", "learning rate", "momentum", "EMA decay")
        settings = self.algorithm
        cells = [
            (f"{size:g}", f"{steps:.0f}", f"{rate:.4g}", f"{beta:.7g}", f"{gamma:.7g}")
            for size, steps, rate, beta, gamma in zip(
                self.batch_size, self.steps, settings.learning_rate, settings.momentum, settings.ema_decay, strict=True
            )
        ]
        lines += ["".join(f"{cell:>15}" for cell in row) for row in (header, *cells)]
        for row in np.flatnonzero(~self.is_stable):
            lines[2 + row] += "  unstable: passes the target once"
        return "\n".join(lines)


def optimize(
    problem: NoisyQuadratic,
    family: str,
    batch_sizes: Any,
    target_loss: float,
    *,
    preconditioner_power: float = 0.0,
    largest_momentum: float | None = None,
    progress: bool | None = None,
) -> OptimalSettings:
    """Find the settings that reach a target loss in the fewest steps, for every batch size.

    The loss after t steps is transient + noise / B, so one grid of settings serves all batch sizes. The grid is
    followed in octaves of t until some setting has reached the target at each batch size. The logarithms of the best
    settings are then refined to 0.1%: the search lowers the loss one step before the best step found so far, until that
    step is out of reach. Random hops look for other valleys, and batch sizes try each other's settings. Step counts are
    exact first passages. There is no proof that no other setting takes fewer steps. Settings above the limit of
    stability take part, because they may pass the target first.

    Args:
        problem: The problem.
        family: Which settings are free beside the learning rate: "sgd" none; "momentum" heavy ball's beta; "nesterov"
            Nesterov's beta; "ema" the decay of an average of SGD's iterates; "momentum_ema" heavy ball's beta and the
            decay.
        batch_sizes: B, numbers > 0, of shape (k,) or a single one.
        target_loss: The target, > 0.
        preconditioner_power: p, in [0, 1]. Default 0.
        largest_momentum: Largest beta to try, in [0, 1). None (default) means 1 - 1e-10, as for decays. At small
            batches the best momentum then warms the rate up over the whole training, which real networks do not
            tolerate.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.

    Returns:
        The best settings for each batch size, in the order given.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or no setting of the grid reaches the target within 2^50 steps.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
        >>> optimize(problem, "sgd", [1, 1000], target_loss=0.01).steps.tolist()
        [553.0, 6.0]
    """
    check_choice("family", family, FAMILIES)
    check_kind("problem", problem, NoisyQuadratic)
    sizes = np.atleast_1d(check_batch_size(batch_sizes, "batch_sizes"))
    if sizes.ndim != 1:
        raise ValueError(f"`batch_sizes` must be a list of numbers > 0. Received shape {sizes.shape}")
    check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    check_number("preconditioner_power", preconditioner_power, minimum=0.0, maximum=1.0)
    if largest_momentum is None:
        largest_momentum = 1.0 - CLOSEST_TO_ONE
    check_number("largest_momentum", largest_momentum, minimum=0.0, maximum=1.0, exclusive_maximum=True)
    space = SettingsSpace(family, preconditioner_power, largest_momentum)
    if problem.initial_loss <= target_loss:
        nothing = np.zeros(len(sizes))  # No step is needed.
        settings = Algorithm(nothing, nothing, space.nesterov, nothing, nothing + preconditioner_power)
        return OptimalSettings(family, float(target_loss), sizes, nothing, settings, np.ones(len(sizes), bool))
    small = problem.binned(MAX_SEARCH_CURVATURES)
    with Progress(f"steps to a loss of {target_loss:g}: {family}", progress) as bar:
        best = Refinement(small, space, sizes, target_loss, bar).run()
        if small is not problem:
            best = Refinement(problem, space, sizes, target_loss, bar).polish(best.points[:, :1])
    settings = space.algorithm(best.points[:, 0])
    is_stable = np.isfinite(noise_in_steady_state(problem, settings))
    return OptimalSettings(family, float(target_loss), sizes, best.steps[:, 0], settings, is_stable)
