"""The piecewise constant learning rate that reaches a target in the fewest steps."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tfopt import _plotting
from tfopt._checks import check_integer, check_label, check_number
from tfopt._progress import Progress
from tfopt._record import Record
from tfopt.nqm._checks import check_kind
from tfopt.nqm.constant_rate import ConstantRate, stable_limit
from tfopt.nqm.information_bound import information_bound
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.schedule_solver import ScheduleSolver
from tfopt.nqm.search import MAX_SEARCH_CURVATURES, optimize

if TYPE_CHECKING:
    import keras
    import matplotlib.axes
    import pandas


@dataclass(frozen=True, eq=False)
class Schedule(Record):
    """A piecewise constant learning rate for SGD, and the loss that it reaches.

    Attributes:
        batch_size: B.
        num_steps: The number of steps.
        lengths: Number of steps of each piece, of shape (num_pieces,).
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

    @property
    def is_stable(self) -> bool:
        """Whether all rates are below the limit of stability; if not, the loss grows again after its minimum."""
        return bool(self.learning_rates.max() < stable_limit(self.problem, self.preconditioner_power))

    def to_keras(self) -> "keras.optimizers.schedules.PiecewiseConstantDecay":
        """Return the schedule for a Keras optimizer.

        Returns:
            A value for the optimizer's `learning_rate`. After the last step it keeps the last rate.
        """
        import keras

        ends = np.cumsum(self.lengths)
        # Keras needs a boundary even for one piece.
        rates = np.append(self.learning_rates, self.learning_rates[-1])
        # In Keras a value holds up to and including its boundary, and steps count from 0.
        return keras.optimizers.schedules.PiecewiseConstantDecay((ends - 1).tolist(), rates.tolist())

    def loss_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the expected loss along training.

        Returns:
            Numbers of steps (0 and the end of each piece) and losses, of shape (num_pieces + 1,).
        """
        sgd = ConstantRate(self.problem, self.batch_size, self.preconditioner_power)
        losses = sgd.losses(self.learning_rates, self.lengths)
        return np.concatenate([[0], np.cumsum(self.lengths)]), losses

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each piece.

        Returns:
            First step, number of steps, rate, and the loss at the end of the piece.
        """
        steps, losses = self.loss_curve()
        columns = {"first_step": steps[:-1], "num_steps": self.lengths, "learning_rate": self.learning_rates}
        return _plotting.make_dataframe(columns | {"final_loss": losses[1:]})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw the rate against the fraction of the steps done.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Name of the line; None (default) for the batch size.

        Returns:
            The axes.
        """
        name, ax = check_label(label, f"batch size {self.batch_size:g}"), _plotting.get_axes(ax)
        ends = np.concatenate([[0], np.cumsum(self.lengths)]) / self.num_steps
        rates = np.append(self.learning_rates, self.learning_rates[-1])
        ax.plot(ends, rates, drawstyle="steps-post", label=f"{name}: {self.num_steps:,} steps")
        ax.set(xlabel="share of the steps", ylabel="learning rate", yscale="log")
        _plotting.add_legend(ax)
        return ax


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

    L-BFGS-B with exact gradients minimises the final loss over the logarithms of the rates, up to the limit of
    stability. The lengths of the pieces differ by one step at most. With a target, the function looks for the fewest
    steps whose best schedule reaches it, between the information bound and the steps of the best constant rate.

    For few steps a constant rate above the limit of stability may be better than all schedules below it. Then the
    schedule is that constant rate, and its `is_stable` is False. With a target, the schedule never takes more steps
    than the rate that `optimize` finds with the family "sgd". Without one, no constant rate of a fine grid ends at a
    lower loss.

    Args:
        problem: The problem.
        batch_size: B, > 0.
        target_loss: The target, > 0 and below the initial loss. None (default) means that `num_steps` is given.
        num_steps: The number of steps, >= 1. None (default) means that `target_loss` is given.
        num_pieces: Largest number of pieces, >= 1. Default 50.
        preconditioner_power: p, in [0, 1]. Default 0.
        progress: Whether to show a progress bar; None (default) shows it in a terminal.

    Returns:
        The schedule. With a target, it reaches the target, and the best schedule found for one step fewer does not.

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
            f"Exactly one of `target_loss` and `num_steps` must be given. Received: target_loss={target_loss!r}, "
            f"num_steps={num_steps!r}"
        )
    if num_steps is not None:
        return _ScheduleSearch(problem, size, num_pieces, power).best(check_integer("num_steps", num_steps, minimum=1))
    target = check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    if problem.initial_loss <= target:
        raise ValueError(f"`target_loss` must be below the initial loss {problem.initial_loss:g}. Received: {target:g}")
    with Progress(f"schedule to a loss of {target:g}", progress) as bar:
        constant = optimize(problem, "sgd", size, target, preconditioner_power=power, progress=False)
        steps, rate = float(constant.steps[0]), float(constant.algorithm.learning_rate[0])
        search = _ScheduleSearch(problem, size, num_pieces, power, target)
        guess = int(steps) if np.isfinite(steps) else 1
        known = search.constant(guess, rate)
        small = problem.binned(MAX_SEARCH_CURVATURES)
        if small is not problem:
            found = _ScheduleSearch(small, size, num_pieces, power, target).fewest_steps(target, guess, bar)
            guess, search.solver.logarithms = found.num_steps, np.log(found.learning_rates)
        return search.fewest_steps(target, guess, bar, known)


class _ScheduleSearch:
    """A search for the fewest steps that a best schedule of at most `num_pieces` pieces takes; no target is None."""

    def __init__(
        self, problem: NoisyQuadratic, batch_size: float, num_pieces: int, power: float, target: float | None = None
    ) -> None:
        self.problem, self._batch_size, self._power = problem, batch_size, power
        self.solver = ScheduleSolver(problem, batch_size, num_pieces, power, target)
        self._sgd = ConstantRate(problem, batch_size, power)

    def best(self, num_steps: int) -> Schedule:
        """Return the best schedule of some steps: below the limit of stability, or of a single rate."""
        rate = self._sgd.best(num_steps, self.solver.least_rate)
        constant = self.constant(num_steps, rate)
        found = self._schedule(num_steps, self.solver.solve(num_steps, rate, constant.loss))
        return constant if constant.loss < found.loss else found

    def constant(self, num_steps: int, rate: float) -> Schedule:
        """Return the schedule of a single rate."""
        return self._schedule(num_steps, np.full(len(self.solver.lengths(num_steps)), rate))

    def _schedule(self, num_steps: int, rates: np.ndarray) -> Schedule:
        lengths = self.solver.lengths(num_steps)
        loss = float(self._sgd.losses(rates, lengths)[-1])
        return Schedule(self._batch_size, num_steps, lengths, rates, self._power, loss, self.problem)

    def fewest_steps(self, target: float, guess: int, bar: Progress, known: Schedule | None = None) -> Schedule:
        """Return the best schedule of the fewest steps to a target, at most those of `known` if that reaches it."""
        # Strides from the guess find an interval, and interpolation narrows it. The factors below absorb rounding:
        # the bound may be reached exactly, and the loss of `known` may equal the target.
        bound = (1.0 - 1e-9) * float(information_bound(self.problem, self._batch_size, target))
        low = max(int(np.ceil(bound)) - 1, 0)
        best = known if known is not None and known.loss <= target * (1.0 + 1e-12) else None
        if best is not None:
            low, guess = min(low, best.num_steps - 1), min(guess, best.num_steps)
        above: float | None = None  # This is log(loss / target) at `low`, after a trial there.
        trial, stride = self.best(max(guess, low + 1)), 1
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
    # Interpolates log loss linearly in log steps. Regular bisection keeps either end from staying for long.
    below = float(np.log(target / best.loss))
    share = 0.5 if halve or above + below <= 0 else above / (above + below)
    guess = round(np.exp(np.log(max(low, 1)) + share * np.log(best.num_steps / max(low, 1))))
    return int(np.clip(guess, low + 1, best.num_steps - 1))
