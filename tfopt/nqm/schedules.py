"""The piecewise constant learning rate that reaches a target in the fewest steps."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import minimize

from tfopt import _plotting
from tfopt._checks import check_integer, check_number
from tfopt.nqm._progress import Progress
from tfopt.nqm.algorithm import check_batch_size, largest_stable_learning_rate
from tfopt.nqm.batch_size import information_bound
from tfopt.nqm.kernels import compiled, problem_tensors
from tfopt.nqm.problem import NoisyQuadratic
from tfopt.nqm.search import optimize

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas

OPTIONS = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 30}
RANGE = 1e8  # a rate is at least the limit of stability divided by this


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
        ends = np.cumsum(self.lengths)[:-1]
        # Keras holds a value up to and including its boundary, and counts steps from 0.
        return keras.optimizers.schedules.PiecewiseConstantDecay((ends - 1).tolist(), self.learning_rates.tolist())

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
            kept = (1.0 - x) ** (2 * int(length))
            sustained = step * self.problem.noise_variance / (self.batch_size * self.problem.curvature * (2.0 - x))
            moment = kept * moment + (1.0 - kept) * sustained
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

        return plot_schedule({label or f"batch size {self.batch_size:g}": self}, ax=ax)


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
        >>> optimal_schedule(problem, 1, target_loss=0.01, num_pieces=20).num_steps  # the best constant rate takes 74
        61
    """
    size = float(check_batch_size(check_number("batch_size", batch_size)))
    check_integer("num_pieces", num_pieces, minimum=1)
    power = check_number("preconditioner_power", preconditioner_power, minimum=0.0, maximum=1.0)
    if (target_loss is None) == (num_steps is None):
        raise ValueError(
            f"one of `target_loss` and `num_steps` must be given. Received: target_loss={target_loss!r}, "
            f"num_steps={num_steps!r}"
        )
    solver = _Solver(problem, size, num_pieces, power)
    if num_steps is not None:
        return solver.solve(check_integer("num_steps", num_steps, minimum=1))
    target = check_number("target_loss", target_loss, minimum=0.0, exclusive_minimum=True)
    if problem.initial_loss <= target:
        raise ValueError(f"`target_loss` must be below the initial loss {problem.initial_loss:g}. Received: {target:g}")
    with Progress(f"schedule to a loss of {target:g}", progress) as bar:
        return _fewest_steps(solver, target, bar)


# Close in on the smallest number of steps: by interpolation of log loss over log steps, halving every third time.
def _fewest_steps(solver: "_Solver", target: float, bar: Progress) -> Schedule:
    constant = optimize(
        solver.problem, "sgd", solver.batch_size, target, preconditioner_power=solver.power, progress=False
    )
    bound = float(information_bound(solver.problem, solver.batch_size, target))
    low = max(int(np.ceil(bound)) - 1, 0)
    known = {low: np.log(solver.problem.initial_loss / target)} if low == 0 else {}
    best = solver.solve(int(constant.steps[0]))
    while best.loss > target:  # the constant rate was beyond the limit of stability
        best = solver.solve(2 * best.num_steps)
    while best.num_steps - low > 1:
        bar.show(f"between {low} and {best.num_steps} steps")
        trial = solver.solve(_next_trial(low, known.get(low), best, target, halve=len(known) % 3 == 2))
        known[trial.num_steps] = np.log(trial.loss / target)
        if trial.loss <= target:
            best = trial
        else:
            low = trial.num_steps
    return best


def _next_trial(low: int, above: float | None, best: Schedule, target: float, halve: bool) -> int:
    left, right = np.log(max(low, 1)), np.log(best.num_steps)
    share = 0.5
    if above is not None and not halve:
        below = np.log(target / best.loss)
        share = above / (above + below) if above + below > 0 else 0.5
    guess = round(np.exp(left + share * (right - left)))
    return int(np.clip(guess, low + 1, best.num_steps - 1))


class _Solver:
    """Minimises the final loss for any number of steps, each time from the last solution.

    Args:
        problem: The problem.
        batch_size: B.
        num_pieces: Largest number of pieces.
        power: p.
    """

    def __init__(self, problem: NoisyQuadratic, batch_size: float, num_pieces: int, power: float) -> None:
        self.problem, self.batch_size, self.power = problem, batch_size, power
        self._num_pieces = num_pieces
        # Just below the limit, where the noise still has a steady state.
        self._limit = float(np.log(largest_stable_learning_rate(problem, preconditioner_power=power) * (1.0 - 1e-9)))
        self._rates: np.ndarray | None = None
        scaled = problem.curvature ** (1.0 - power)
        self._arguments = (*problem_tensors(problem), tf.constant(scaled), tf.constant(batch_size, tf.float64))

    def solve(self, num_steps: int) -> Schedule:
        """Return the best schedule of some steps."""
        count = min(self._num_pieces, num_steps)
        ends = np.round(np.arange(1, count + 1) * (num_steps / count)).astype(np.int64)
        lengths = np.diff(ends, prepend=0)
        tensor = tf.constant(lengths, tf.float64)

        def loss_and_gradient(rates: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = _schedule_kernel()(tf.constant(rates), tensor, *self._arguments)
            return float(loss.numpy()), gradient.numpy()

        bounds = [(self._limit - np.log(RANGE), self._limit)] * count
        found = min(
            (
                minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=OPTIONS)
                for start in self._starts(count, num_steps)
            ),
            key=lambda result: result.fun,
        )
        self._rates = found.x
        schedule = Schedule(
            self.batch_size, num_steps, lengths, np.exp(found.x), self.power, float(np.exp(found.fun)), self.problem
        )
        return schedule

    def _starts(self, count: int, num_steps: int) -> list[np.ndarray]:
        if self._rates is not None and len(self._rates) == count:
            return [self._rates]
        # The limit at first, then the hyperbola of an average over all examples since.
        places = (np.arange(count) + 0.5) / count
        slowest = float((self.problem.curvature ** (1.0 - self.power)).min())
        decay = -np.log1p(places * num_steps * slowest * np.exp(self._limit))
        return [self._limit + np.maximum(decay, -0.5 * np.log(RANGE)), np.full(count, self._limit - 1.0)]


# Logarithm of the final loss and its gradient in the logarithms of the rates.
@functools.cache
def _schedule_kernel() -> Callable[..., Any]:
    @compiled
    def kernel(logs, lengths, curvature, starts, noises, scaled, batch_size):  # type: ignore[no-untyped-def]
        with tf.GradientTape() as tape:
            tape.watch(logs)
            rates = tf.exp(logs)[:, None]
            x = rates * scaled
            # (1 - x)^2 = 1 - x (2 - x); exactly 0 would have no logarithm.
            shrink = lengths[:, None] * tf.math.log1p(-tf.minimum(x * (2.0 - x), 1.0 - 1e-15))
            after = tf.cumsum(shrink, axis=0, exclusive=True, reverse=True)
            added = rates * (scaled / curvature) / (curvature * (2.0 - x)) * -tf.math.expm1(shrink)
            moments = tf.reduce_sum(added * tf.exp(after), axis=0) / batch_size
            loss = tf.reduce_sum(starts * tf.exp(tf.reduce_sum(shrink, axis=0)) + noises * moments)
            result = tf.math.log(loss)
        return result, tape.gradient(result, logs)

    return kernel
