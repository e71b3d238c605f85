"""Random trajectories, whose mean the dynamics give exactly: with noise of any distribution, by any update rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfopt import _keras, _plotting
from tfopt._checks import check_integer, check_label, check_number
from tfopt._lazy import tf
from tfopt._record import Record
from tfopt.nqm._checks import check_kind
from tfopt.nqm._drawing import draw_trajectories, finish_losses
from tfopt.nqm.algorithm import Algorithm
from tfopt.nqm.kernels import finite_or_infinite
from tfopt.nqm.noise import LARGEST_SEED, UnitNoise
from tfopt.nqm.problem import NoisyQuadratic

if TYPE_CHECKING:
    import matplotlib.axes


class UpdateRule(Protocol):
    """The update of a user's algorithm, for `monte_carlo`. Tensors are float64, of shape (num_trajectories, dim).

    The methods are traced into a graph, so that branches on tensors must be `tf.cond` or `tf.where`. An optional method
    `readout(theta, state)` returns the point at which the loss is read, of theta's shape. Without it, that is theta.
    """

    def initial_state(self, theta: tf.Tensor) -> Any:
        """Return the state before the first step.

        Args:
            theta: The start of the trajectories.

        Returns:
            A structure of tensors, such as () or a tuple of tensors.
        """
        ...

    def update(self, theta: tf.Tensor, state: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, Any]:
        """Make one step.

        Args:
            theta: The points before the step.
            state: The state before the step.
            gradient: Noisy gradients at theta.

        Returns:
            The new theta and the new state.
        """
        ...


@dataclass(frozen=True, eq=False)
class Trajectories(Record):
    """Losses of independent trajectories.

    Attributes:
        steps: Numbers of steps, of shape (k,), from 0 on.
        losses: Losses, of shape (k, num_trajectories).
    """

    steps: np.ndarray
    losses: np.ndarray = field(repr=False)

    @property
    def mean(self) -> np.ndarray:
        """Mean loss at each step, of shape (k,)."""
        return self.losses.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of `mean`, of shape (k,); NaN where losses overflow. Valid if the noise has a 4th moment."""
        with np.errstate(invalid="ignore", over="ignore"):
            return self.losses.std(axis=1, ddof=1) / np.sqrt(self.losses.shape[1])

    def plot(self, ax: matplotlib.axes.Axes | None = None, label: str | None = None) -> matplotlib.axes.Axes:
        """Draw the mean, and the range of nine in ten trajectories.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Name of the line; None (default) for "samples".

        Returns:
            The axes.
        """
        name, ax = check_label(label, "samples"), _plotting.get_axes(ax)
        draw_trajectories(ax, self.steps, self.losses, name)
        finish_losses(ax)
        return ax


def monte_carlo(
    problem: NoisyQuadratic,
    algorithm: Algorithm | UpdateRule,
    batch_size: float,
    num_steps: int,
    *,
    num_trajectories: int = 1000,
    record_every: int = 1,
    noise: Any = None,
    seed: int = 0,
) -> Trajectories:
    """Run an algorithm many times with random noise.

    Every trajectory starts at theta_i(0) = +- sqrt(E theta_i(0)^2), with random signs. The expected loss of SGD and
    heavy ball depends only on the variance of the noise. That of other rules, such as sign descent, depends on the
    whole distribution.

    Args:
        problem: The problem, whose multiplicities must be whole numbers: each direction is simulated.
        algorithm: One setting, not a grid; or an `UpdateRule`.
        batch_size: B, > 0.
        num_steps: Number of steps, >= 1.
        num_trajectories: Number of trajectories, >= 2. Default 1,000.
        record_every: Steps between two records, from 1 to `num_steps`. Steps after the last full interval are left out.
            Default 1.
        noise: A `tensorflow_probability` distribution of mean 0 and finite variance. It is scaled to variance c / B,
            and drawn independently for each direction and step. None (default) is the normal distribution.
        seed: Seed, from 0 to 2^31 - 1; the result depends on it alone. Default 0.

    Returns:
        The losses, of the averages if there are any.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0], noise_variance=[1.0])
        >>> found = monte_carlo(problem, Algorithm(0.5), batch_size=4, num_steps=20)
        >>> bool(abs(found.mean[-1] - 1 / 24) < 4 * found.standard_error[-1])  # a c / (2 B (2 - a h))
        True
    """
    check_kind("problem", problem, NoisyQuadratic)
    size = check_number("batch_size", batch_size, minimum=0.0, exclusive_minimum=True)
    check_integer("num_steps", num_steps, minimum=1)
    check_integer("num_trajectories", num_trajectories, minimum=2)
    check_integer("record_every", record_every, minimum=1, maximum=num_steps)
    check_integer("seed", seed, minimum=0, maximum=LARGEST_SEED)
    whole = problem.expanded()
    rule = _as_rule(algorithm, whole)
    trajectories = _Sampler(whole, rule, size, num_trajectories, UnitNoise(noise), seed)
    num_records = num_steps // record_every
    losses = trajectories.run(tf.constant(num_records), tf.constant(record_every))
    return Trajectories(record_every * np.arange(num_records + 1), finite_or_infinite(losses))


class _Sampler:
    """All trajectories at once, compiled into one loop."""

    def __init__(
        self, problem: NoisyQuadratic, rule: Any, batch_size: float, num_trajectories: int, noise: UnitNoise, seed: int
    ) -> None:
        self._rule, self._noise, self._seed = rule, noise, seed
        self._shape = (num_trajectories, len(problem.curvature))
        self._curvature = tf.constant(problem.curvature)
        self._start = tf.constant(np.sqrt(problem.initial_second_moment))
        self._scale = tf.constant(np.sqrt(problem.noise_variance / batch_size))
        self.run = tf.function(self._run, autograph=False)
        _keras.without_retracing_warning.set(self.run, True)  # Each call traces once on purpose.

    def _run(self, num_records: tf.Tensor, record_every: tf.Tensor) -> tf.Tensor:
        signs = tf.random.stateless_uniform(self._shape, (self._seed, -1), 0, 2, tf.int32)
        theta = self._start * tf.cast(2 * signs - 1, tf.float64)
        losses = tf.TensorArray(tf.float64, num_records + 1, element_shape=self._shape[:1])
        state = self._rule.initial_state(theta)
        losses = losses.write(0, self._loss(theta, state))

        def step(number: Any, theta: Any, state: Any, losses: Any) -> Any:
            noise = self._noise.sample(self._shape, tf.stack([self._seed, number]))
            theta, state = self._rule.update(theta, state, self._curvature * theta + self._scale * noise)
            done, rest = (number + 1) // record_every, (number + 1) % record_every
            losses = tf.cond(rest == 0, lambda: losses.write(done, self._loss(theta, state)), lambda: losses)
            return number + 1, theta, state, losses

        last = num_records * record_every
        loop = (tf.constant(0), theta, state, losses)
        return tf.while_loop(lambda number, *_: number < last, step, loop)[3].stack()

    def _loss(self, theta: tf.Tensor, state: Any) -> tf.Tensor:
        point = self._rule.readout(theta, state) if hasattr(self._rule, "readout") else theta
        return 0.5 * tf.linalg.matvec(point**2, self._curvature)


class _AlgorithmRule:
    """The update of an `Algorithm` of one setting, on the curvatures h."""

    def __init__(self, algorithm: Algorithm, curvature: np.ndarray) -> None:
        rate, self._momentum, self._decay, power = (float(part) for part in algorithm.settings)
        self._nesterov = algorithm.nesterov
        self._rates = tf.constant(rate * curvature**-power)

    def initial_state(self, theta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.zeros_like(theta), theta

    def update(self, theta: tf.Tensor, state: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, Any]:
        velocity, average = state
        change = self._rates * gradient
        velocity = self._momentum * velocity + change
        theta = theta - (self._momentum * velocity + change if self._nesterov else velocity)
        return theta, (velocity, self._decay * average + (1.0 - self._decay) * theta)

    def readout(self, theta: tf.Tensor, state: Any) -> tf.Tensor:
        return state[1]


def _as_rule(algorithm: Any, problem: NoisyQuadratic) -> Any:
    if isinstance(algorithm, Algorithm):
        if algorithm.shape:
            raise ValueError(
                f"`algorithm` must be one setting, not a grid. Received settings of shape {algorithm.shape}"
            )
        return _AlgorithmRule(algorithm, problem.curvature)
    if isinstance(algorithm, type) or not (hasattr(algorithm, "initial_state") and hasattr(algorithm, "update")):
        raise TypeError(
            "`algorithm` must be an Algorithm, or an object with the methods `initial_state` and `update`. Received: "
            f"{algorithm!r}"
        )
    return algorithm
