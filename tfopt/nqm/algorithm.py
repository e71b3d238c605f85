"""The algorithms whose expected loss on a noisy quadratic is exact, their stability limits and steady states."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt._checks import check_flag, check_indices
from tfopt._record import Record
from tfopt.nqm._checks import check_kind, check_values
from tfopt.nqm.problem import NoisyQuadratic

# Whether the state has momentum, whether that is Nesterov's, and whether the state has an average.
Structure = tuple[bool, bool, bool]
FAMILIES = ("sgd", "momentum", "nesterov", "ema", "momentum_ema")


@dataclass(frozen=True, eq=False)
class Algorithm(Record):
    """Gradient descent with momentum, averaging and preconditioning. Settings are numbers, or arrays for a grid.

    theta' = theta - u' with u' = beta u + a H^-p g. With Nesterov's momentum, as Keras defines it,
    theta' = theta - beta u' - a H^-p g. With an average, avg' = gamma avg + (1 - gamma) theta' from
    avg(0) = theta(0), and the loss is that of avg. (Keras starts its average after the first step.)

    Attributes:
        learning_rate: a, >= 0.
        momentum: beta, in [0, 1). Default 0.
        nesterov: Whether momentum is Nesterov's. Default False.
        ema_decay: gamma, in [0, 1); 0 (default) means no average.
        preconditioner_power: p, in [0, 1]; 0 (default) means none, 1 is Newton's method.

    Raises:
        TypeError: An argument is not a real number or an array of them.
        ValueError: An argument is out of its range, or the shapes do not broadcast.

    Example:
        >>> Algorithm(learning_rate=0.1, momentum=[0.0, 0.9]).shape
        (2,)
    """

    learning_rate: Any
    momentum: Any = 0.0
    nesterov: bool = False
    ema_decay: Any = 0.0
    preconditioner_power: Any = 0.0

    def __post_init__(self) -> None:
        check_flag("nesterov", self.nesterov)
        for name, below_one, top in (
            ("learning_rate", False, np.inf),
            ("momentum", True, 1.0),
            ("ema_decay", True, 1.0),
            ("preconditioner_power", False, 1.0),
        ):
            object.__setattr__(
                self, name, check_values(name, getattr(self, name), maximum=top, exclusive_maximum=below_one)
            )
        try:
            np.broadcast_shapes(*(np.shape(part) for part in self.settings))
        except ValueError as error:
            shapes = ", ".join(str(np.shape(part)) for part in self.settings)
            raise ValueError(
                "`learning_rate`, `momentum`, `ema_decay` and `preconditioner_power` must have shapes that broadcast. "
                f"Received: {shapes}"
            ) from error

    @property
    def settings(self) -> tuple[np.ndarray, ...]:
        """Learning rate, momentum, decay and power."""
        return self.learning_rate, self.momentum, self.ema_decay, self.preconditioner_power

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that the settings broadcast to; () for a single setting."""
        return np.broadcast_shapes(*(part.shape for part in self.settings))

    @property
    def structure(self) -> Structure:
        """Whether the state has momentum, Nesterov's momentum, and an average."""
        has_momentum = bool(np.any(self.momentum != 0))
        return has_momentum, has_momentum and self.nesterov, bool(np.any(self.ema_decay != 0))

    def flat(self, *others: Any) -> tuple[Any, ...]:
        """Broadcast the settings with other arrays, and flatten all of them.

        Args:
            *others: Arrays whose shapes broadcast with the settings.

        Returns:
            An algorithm with settings of shape (k,), followed by the other arrays, of shape (k,) too.
        """
        arrays = np.broadcast_arrays(*self.settings, *others)
        rate, momentum, decay, power, *rest = (np.ravel(part) for part in arrays)
        return (Algorithm(rate, momentum, self.nesterov, decay, power), *rest)

    def take(self, indices: Any) -> "Algorithm":
        """Select settings of a flat grid.

        Args:
            indices: One or more integers >= 0 and < k.

        Returns:
            An algorithm with the selected settings.

        Raises:
            TypeError: `indices` does not hold integers.
            ValueError: An index is out of range, or the grid is not flat.
        """
        if len(self.shape) != 1:
            raise ValueError(
                f"`indices` select from a flat grid of settings only. Received settings of shape {self.shape}"
            )
        chosen = check_indices("indices", indices, self.shape[0])
        rate, momentum, decay, power = (part[chosen] for part in np.broadcast_arrays(*self.settings))
        return Algorithm(rate, momentum, self.nesterov, decay, power)


def largest_stable_learning_rate(
    problem: NoisyQuadratic, momentum: Any = 0.0, *, nesterov: bool = False, preconditioner_power: Any = 0.0
) -> np.ndarray:
    """Return the limit of stability: above it the iterates grow without bound, and at it they never settle.

    x = a h^(1-p) must stay below 2 for SGD, 2 (1 + beta) for heavy ball, and (2 + 2 beta) / (1 + 2 beta) for Nesterov's
    momentum. Averaging does not change the limit.

    Args:
        problem: The problem.
        momentum: beta, in [0, 1). Default 0.
        nesterov: Whether momentum is Nesterov's. Default False.
        preconditioner_power: p, in [0, 1]. Default 0.

    Returns:
        The limits, of the shape that the arguments broadcast to.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range, or the shapes do not broadcast.
    """
    beta = check_values("momentum", momentum, maximum=1.0, exclusive_maximum=True)
    power = check_values("preconditioner_power", preconditioner_power, maximum=1.0)
    check_kind("problem", problem, NoisyQuadratic)
    try:
        beta, power = np.broadcast_arrays(beta, power)
    except ValueError as error:
        raise ValueError(
            "`momentum` and `preconditioner_power` must have shapes that broadcast. Received: "
            f"{beta.shape} and {power.shape}"
        ) from error
    limit = 2.0 * (1.0 + beta) / (1.0 + 2.0 * beta if check_flag("nesterov", nesterov) else 1.0)
    return limit / problem.curvature.max() ** (1.0 - power)


def convergence_rate(problem: NoisyQuadratic, algorithm: Algorithm) -> np.ndarray:
    """Return the factor by which the slowest component of theta (or of its average) shrinks per step, in the long run.

    This is the largest |r| over all directions. For heavy ball r are the roots of r^2 - (1 - x + beta) r + beta = 0.
    They are real (overdamped) for beta below (1 - sqrt(x))^2, and |r| = sqrt(beta) above. An average adds the root
    gamma.

    Args:
        problem: The problem.
        algorithm: The settings.

    Returns:
        The factors, of the settings' shape; 1 or more where the iterates do not settle.

    Raises:
        TypeError: An argument has the wrong type.
    """
    trace, determinant = trace_and_determinant(problem, algorithm)
    with np.errstate(over="ignore"):
        discriminant = trace * trace - 4.0 * determinant
    real = 0.5 * (np.abs(trace) + np.sqrt(np.maximum(discriminant, 0.0)))
    roots = np.where(discriminant < 0, np.sqrt(np.maximum(determinant, 0.0)), real)
    slowest = np.max(roots, axis=-1)
    return np.maximum(slowest, algorithm.ema_decay) if algorithm.structure[2] else slowest


def steady_state_loss(problem: NoisyQuadratic, algorithm: Algorithm, batch_size: Any) -> np.ndarray:
    """Return the expected loss after infinitely many steps.

    Per direction and without an average, the loss of SGD is a c / (2 B (2 - a h)). For heavy ball,
    (2 + 2 beta - a h) (1 - beta) / (1 + beta) replaces 2 - a h. All cases follow from the autocovariance of the
    autoregression v(t) = f1 v(t-1) + f2 v(t-2) + e(t), filtered by the average.

    Args:
        problem: The problem.
        algorithm: The settings.
        batch_size: B, > 0.

    Returns:
        The losses, of the shape that settings and batch sizes broadcast to; infinite where the iterates do not settle.
        At a learning rate of 0 nothing moves, and the loss is the initial loss.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A batch size is not > 0, or shapes do not broadcast.
    """
    batch_size = check_batch_size(batch_size)
    check_kind("algorithm", algorithm, Algorithm)
    shape = broadcast_with(algorithm, batch_size)
    noise = noise_in_steady_state(problem, algorithm)
    return np.where(np.broadcast_to(algorithm.learning_rate == 0, shape), problem.initial_loss, noise / batch_size)


def noise_in_steady_state(problem: NoisyQuadratic, algorithm: Algorithm) -> np.ndarray:
    """Return the steady-state loss that noise sustains at B = 1, of the settings' shape; infinite where unstable."""
    trace, determinant = trace_and_determinant(problem, algorithm)
    step = algorithm.learning_rate[..., None] * problem.curvature ** -algorithm.preconditioner_power[..., None]
    x, beta, gamma = step * problem.curvature, algorithm.momentum[..., None], algorithm.ema_decay[..., None]
    first, second = trace, -determinant
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        plain = (1.0 - second) / ((1.0 + second) * x * (1.0 + first - second))  # Here x = 1 - f1 - f2.
        denominator = (1.0 - gamma) * (1.0 - gamma * determinant) + gamma * x
        ratio = first / (1.0 - second)  # This is the autocorrelation at lag 1.
        filtered = (1.0 + first * gamma * (1.0 + second) / (1.0 - second) + second * gamma**2) / denominator
        variance = plain * filtered * (1.0 - gamma) / (1.0 + gamma)
        if algorithm.structure[1]:
            # Nesterov's momentum has (1 + beta) e(t) - beta e(t-1) in place of e(t). Its variance needs
            # (1 - gamma)^2 (V(0) - V(1)) of the filtered autoregression, with
            # V(1) = gamma V(0) + sum_{k >= 1} gamma^(k-1) R(k).
            ahead = (ratio + second * gamma) / denominator * plain
            difference = (1.0 - gamma) * (variance - (1.0 - gamma) * ahead)
            variance = variance + 2.0 * beta * (1.0 + beta) * difference
        noise = 0.5 * problem.multiplicity * problem.curvature * problem.noise_variance
        loss = np.sum(np.where(noise > 0, noise * step**2 * variance, 0.0), -1)
    # A direction without noise and without an initial distance never moves, so it cannot diverge.
    moves = (problem.noise_variance > 0) | (problem.initial_second_moment > 0)
    return np.where(_is_stable(trace, determinant, moves), loss, np.inf)


def trace_and_determinant(problem: NoisyQuadratic, algorithm: Algorithm) -> tuple[np.ndarray, np.ndarray]:
    """Return trace and determinant of the matrix that moves (theta, velocity), of the settings' shape + (n,)."""
    # Stability and convergence follow from the roots of r^2 - trace r + determinant = 0.
    check_kind("problem", problem, NoisyQuadratic)
    check_kind("algorithm", algorithm, Algorithm)
    rate, beta, _, power = (np.asarray(part)[..., None] for part in algorithm.settings)
    x = rate * problem.curvature ** (1.0 - power)
    shape = np.broadcast_shapes(x.shape, (*algorithm.shape, 1))
    if algorithm.structure[1]:
        return np.broadcast_to((1.0 + beta) * (1.0 - x), shape), np.broadcast_to(beta * (1.0 - x), shape)
    return np.broadcast_to(1.0 - x + beta, shape), np.broadcast_to(beta + 0.0 * x, shape)


def check_batch_size(batch_size: Any, name: str = "batch_size") -> np.ndarray:
    """Return batch sizes > 0 as a float64 array, or raise an error that names the argument."""
    return check_values(name, batch_size, positive=True)


def broadcast_with(algorithm: Algorithm, batch_size: np.ndarray) -> tuple[int, ...]:
    """Return the shape that settings and batch sizes broadcast to, or raise ValueError."""
    try:
        return np.broadcast_shapes(algorithm.shape, batch_size.shape)
    except ValueError as error:
        raise ValueError(
            f"`batch_size` must broadcast with the settings' shape {algorithm.shape}. Received shape {batch_size.shape}"
        ) from error


def _is_stable(trace: np.ndarray, determinant: np.ndarray, moves: np.ndarray) -> np.ndarray:
    inside = (np.abs(trace) < 1.0 + determinant) & (np.abs(determinant) < 1.0)
    return (inside | ~moves).all(axis=-1)
