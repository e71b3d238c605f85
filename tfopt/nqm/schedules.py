"""The piecewise constant learning rate that reaches a target in the fewest steps."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import keras
import numpy as np

from tfopt import _plotting
from tfopt._checks import check_integer, check_number, check_text
from tfopt._progress import Progress
from tfopt.nqm._checks import check_kind
from tfopt.nqm.batch_size import information_bound
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.schedule_solver import ScheduleSolver
from tfopt.nqm.search import MAX_SEARCH_CURVATURES, optimize

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True, eq=False)
class Schedule:
    """A piecewise constant learning rate for SGD, and what it achieves.

    Attributes:
        batch_size: B.
        num_steps: The number of steps.
        lengths: How many steps each piece takes, of shape (num_pieces,).
        learning_rates: The rate of each piece, of shape (num_pieces,).
        preconditioner_power: p.
        loss: The expected loss after the last step.
        problem: The problem.
    """

    batch_size: float
    num_steps: int
    lengths: np.ndarray = field(repr=False)
    learning_rates: np.ndarray = field(repr=False)
    preconditioner_power: float
    loss: float
    problem: NoisyQuadratic = field(repr=False)

    def to_keras(self) -> keras.optimizers.schedules.PiecewiseConstantDecay:
        """Return the schedule for a Keras optimizer.

        Returns:
            What `learning_rate=` takes; after the last step the last rate is kept.
        """
        ends = np.cumsum(self.lengths)
        rates = np.append(self.learning_rates, self.learning_rates[-1])  # Keras wants a boundary also for one piece
        # A value holds up to and including its boundary, and steps count from 0.
        return keras.optimizers.schedules.PiecewiseConstantDecay((ends - 1).tolist(), rates.tolist())

    def loss_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected loss along training.

        Returns:
            Numbers of steps (0 and the end of each piece) and losses, of shape (num_pieces + 1,).
        """
        moment = self.problem.initial_second_moment
        weights = 0.5 * self.problem.multiplicity * self.problem.curvature
        losses = [np.sum(weights * moment)]
        for length, rate in zip(self.lengths, self.learning_rates, strict=True):
            step = rate * self.problem.curvature**-self.preconditioner_power
            x = step * self.problem.curvature
            # (1 - x)^2 = 1 - x (2 - x), without rounding a small x.
            shrink = length * np.log1p(-np.minimum(x * (2.0 - x), 1.0 - 1e-15))
            sustained = step * self.problem.noise_variance / (self.batch_size * self.problem.curvature * (2.0 - x))
            moment = np.exp(shrink) * moment - np.expm1(shrink) * sustained
            losses.append(np.sum(weights * moment))
        return np.concatenate([[0], np.cumsum(self.lengths)]), np.array(losses)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each piece.

        Returns:
            First step, number of steps, rate, and the loss at the piece's end.
        """
        steps, losses = self.loss_curve()
        columns = {"first_step": steps[:-1], "num_steps": self.lengths, "learning_rate": self.learning_rates}
        return _plotting.make_dataframe(columns | {"final_loss": losses[1:]})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str = "") -> "matplotlib.axes.Axes":
        """Draw the rate against the step.

        Args:
            ax: Axes to draw into; None makes new ones.
            label: Name of the line; empty for the batch size.

        Returns:
            The axes.
        """
        from tfopt.nqm.plots import plot_schedule

        return plot_schedule({check_text("label", label) or f"batch size {self.batch_size:g}": self}, ax=ax)


def optimal_schedule(
    problem: NoisyQuadratic,
    batch_size: float,
    target_loss: float | None = None,
    num_steps: int | None = None,
    *,
    num_pieces: int = 50,
    preconditioner_power: float = 0.0,
    progress: bool | None = None,
) -> Schedule:
    """Find the best piecewise constant learning rate for SGD.

    The final loss is minimised over the logarithms of the rates, up to the limit of stability, by L-BFGS-B with exact
    gradients. The pieces are of equal length, to one step. With a target, the smallest number of steps whose best
    schedule reaches it is sought, from below by the information bound and from above by the best constant rate.

    Args:
        problem: The problem.
        batch_size: B, > 0.
        target_loss: The target, > 0; or None, and `num_steps` instead.
        num_steps: The number of steps, >= 1; or None, and `target_loss` instead.
        num_pieces: Largest number of pieces, >= 1. Default 50.
        preconditioner_power: p, in [0, 1]. Default 0.
        progress: Whether to show a progress bar; None (default) does in a terminal.

    Returns:
        The schedule; with a target, it reaches it, and no schedule that was found for one step fewer does.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range; not exactly one of `target_loss` and `num_steps` is given; or the
            target is not below the initial loss.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
        >>> optimal_schedule(problem, 1, target_loss=0.01, num_pieces=20).num_steps  # the best constant rate takes 553
        146
    """
    check_kind("problem", problem, NoisyQuadratic)
    size = check_number("batch_size", batch_size, minimum=0.0, exclusive_minimum=True)
    check_integer("num_pieces", num_pieces, minimum=1)
    power = check_number("preconditioner_power", preconditioner_power, minimum=0.0, maximum=1.0)
    if (target_loss is None) == (num_steps is None):
        raise ValueError(
            f"one of `target_loss` and `num_steps` must be given. Received: target_loss={target_loss!r}, "
            f"num_steps={num_steps!r}"
        )
    search = _ScheduleSearch(problem, size, num_pieces, power)
    if num_steps is not None:
        return search.best(check_integer("num_steps", num_steps, minimum=1))
    target = check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    if problem.initial_loss <= target:
        raise ValueError(f"`target_loss` must be below the initial loss {problem.initial_loss:g}. Received: {target:g}")
    with Progress(f"schedule to a loss of {target:g}", progress) as bar:
        small = _ScheduleSearch(problem.binned(MAX_SEARCH_CURVATURES), size, num_pieces, power)
        constant = optimize(small.problem, "sgd", size, target, preconditioner_power=power, progress=False)
        found = small.fewest_steps(target, int(constant.steps[0]), bar)
        if small.problem is problem:
            return found
        search.solver.logarithms = np.log(found.learning_rates)
        return search.fewest_steps(target, found.num_steps, bar)


class _ScheduleSearch:
    """Looks for the fewest steps that the best schedules take.

    Args:
        problem: The problem.
        batch_size: B.
        num_pieces: Largest number of pieces.
        power: p.
    """

    def __init__(self, problem: NoisyQuadratic, batch_size: float, num_pieces: int, power: float) -> None:
        self.problem, self._batch_size, self._power = problem, batch_size, power
        self.solver = ScheduleSolver(problem, batch_size, num_pieces, power)

    def best(self, num_steps: int) -> Schedule:
        """Return the best schedule of some steps."""
        lengths, rates, loss = self.solver.solve(num_steps)
        return Schedule(self._batch_size, num_steps, lengths, rates, self._power, loss, self.problem)

    def fewest_steps(self, target: float, guess: int, bar: Progress) -> Schedule:
        """Return the best schedule of the fewest steps to a target: strides from a guess, then interpolation."""
        low = max(int(np.ceil(float(information_bound(self.problem, self._batch_size, target)))) - 1, 0)
        above: float | None = None  # log of loss over target at `low`, where that has been tried
        best, trial, stride = None, self.best(max(guess, low + 1)), 1
        while True:
            bar.show(f"between {low} and {best.num_steps if best else 'more'} steps")
            if trial.loss <= target:
                best = trial
            else:
                low, above = trial.num_steps, float(np.log(trial.loss / target))
            if best is None:
                trial = self.best(low + stride)
            elif best.num_steps - low <= 1:
                return best
            elif above is None:
                trial = self.best(max(best.num_steps - stride, low + 1))
            else:
                trial = self.best(_between(low, above, best, target, halve=stride % 3 == 2))
            stride = 4 * stride if best is None or above is None else stride + 1


def _between(low: int, above: float, best: Schedule, target: float, halve: bool) -> int:
    # Where log loss, linear in log steps, is that of the target; or half way, so that neither end stays for long.
    below = float(np.log(target / best.loss))
    share = 0.5 if halve or above + below <= 0 else above / (above + below)
    guess = round(np.exp(np.log(max(low, 1)) + share * np.log(best.num_steps / max(low, 1))))
    return int(np.clip(guess, low + 1, best.num_steps - 1))
