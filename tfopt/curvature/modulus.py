"""A lower bound of the strong convexity of a network's loss (Milne, NeurIPS 2019, arXiv 1810.12805)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfopt._checks import as_numbers, check_choice, check_integer, check_number
from tfopt._record import Record
from tfopt.curvature.enclosure import SMALLEST, UNIT_ROUNDOFF

KINDS = ("paper", "sharp")
MODULUS_MARGIN = 32.0 * UNIT_ROUNDOFF  # the formula rounds about 12 times, by at most the unit roundoff each time


@dataclass(frozen=True)
class ConvexityCertificate(Record):
    """The bound of the strong-convexity theorem at a network's weights W.

    The network has H hidden layers of (leaky) ReLUs, k linear outputs, Keras's loss "mse" and an L2 penalty l2 |W|^2.
    With c = H (H + 1) in the paper, and c = H in a sharper form of the same proof, the smallest eigenvalue of the
    Hessian is, on the region on which the activation pattern does not change, at least

        theta = 2 l2 - 2 c r sqrt(mse / k) |W|_*^(H - 1).

    If theta is positive, the loss is strongly convex there: a critical point in that region is an isolated local
    minimum. If theta is not positive, the theorem says nothing.

    Every number is rounded to the safe side, so that theta is a lower bound: for the network in exact arithmetic with
    the weights as they are stored, and for its evaluation in float64. See `convexity_certificate`.

    Attributes:
        l2: Coefficient of the penalty l2 |W|^2, at most the one that Keras uses; the paper's lambda is k l2.
        mean_squared_error: An upper bound of Keras's "mse" on the probe, without the penalty; the paper's l(W) is k / 2
            times it. Infinite if the outputs overflow: then nothing is certified.
        spectral_norm: An upper bound of |W|_*, the largest singular value among the weight matrices.
        input_radius: An upper bound of r, the largest norm of an input; with biases, of sqrt(r^2 + 1).
        num_hidden_layers: H.
        num_outputs: k.
    """

    l2: float
    mean_squared_error: float
    spectral_norm: float
    input_radius: float
    num_hidden_layers: int
    num_outputs: int

    @property
    def theta_paper(self) -> float:
        """The modulus that the paper's theorem certifies, in units of the loss that Keras minimises."""
        return self.modulus("paper")

    @property
    def theta_sharp(self) -> float:
        """The modulus by the sharper form of the proof; never below `theta_paper`."""
        return self.modulus("sharp")

    def modulus(self, kind: str = "sharp", norm_bound: float | None = None) -> float:
        """Return theta.

        Args:
            kind: "paper" or "sharp" (default).
            norm_bound: A bound R of the spectral norms, at least `spectral_norm`. Then theta holds for all weights with
                |W|_* <= R and no larger mean squared error. None (default) means `spectral_norm`.

        Returns:
            A lower bound of the Hessian's eigenvalues, of either sign, in units of the loss that Keras minimises: the
            formula's value minus 32 * 2^-53 times the sum of the sizes of its two terms, which covers its own rounding.

        Raises:
            ValueError: An argument is out of its range.
        """
        sizes = (self.input_radius, self.num_hidden_layers, self.num_outputs)
        theta = float(convexity_modulus(self.l2, self.mean_squared_error, self._norm(norm_bound), *sizes, kind))
        return theta - self._rounding(theta)

    def contains(self, theta: float = 0.0, kind: str = "sharp", norm_bound: float | None = None) -> bool:
        """Return whether the weights are in U(lambda, theta), the set where the modulus is above theta.

        Args:
            theta: In units of the loss that Keras minimises; 2 / k times the paper's theta. Default 0.
            kind: "paper" or "sharp" (default).
            norm_bound: As `modulus` takes it.

        Returns:
            Whether they are.

        Raises:
            ValueError: An argument is out of its range.
        """
        return self.modulus(kind, norm_bound) > check_number("theta", theta)

    def largest_mean_squared_error(
        self, theta: float = 0.0, kind: str = "sharp", norm_bound: float | None = None
    ) -> float:
        """Return the mean squared error below which weights of these norms are in U(lambda, theta).

        Args:
            theta: In units of the loss that Keras minimises, at most 2 l2. Default 0.
            kind: "paper" or "sharp" (default).
            norm_bound: As `modulus` takes it; the result then holds in the whole ball |W|_* <= R.

        Returns:
            The mean squared error; infinite without hidden layers.

        Raises:
            ValueError: An argument is out of its range.
        """
        check_number("theta", theta, maximum=2.0 * self.l2)
        sizes = (self.input_radius, self.num_hidden_layers, self.num_outputs)
        unit = -float(convexity_modulus(0.0, 1.0, self._norm(norm_bound), *sizes, kind))
        if unit == 0.0:
            return float("inf")
        room = max(2.0 * self.l2 - theta - 2.0 * self._rounding(theta), 0.0)
        root = (1.0 - MODULUS_MARGIN) * room / unit
        return root * root

    def _rounding(self, theta: float) -> float:
        # Without hidden layers theta is exactly 2 l2.
        return MODULUS_MARGIN * (4.0 * self.l2 - theta) if self.num_hidden_layers else 0.0

    def _norm(self, norm_bound: float | None) -> float:
        if norm_bound is None:
            return self.spectral_norm
        return check_number("norm_bound", norm_bound, minimum=self.spectral_norm)

    def __repr__(self) -> str:
        return (
            f"ConvexityCertificate(theta_paper={self.theta_paper:.4g}, theta_sharp={self.theta_sharp:.4g}, "
            f"l2={self.l2:g}, mean_squared_error={self.mean_squared_error:.4g}, "
            f"spectral_norm={self.spectral_norm:.4g}, input_radius={self.input_radius:.4g}, "
            f"num_hidden_layers={self.num_hidden_layers}, num_outputs={self.num_outputs})"
        )


def convexity_modulus(
    l2: Any,
    mean_squared_error: Any,
    spectral_norm: Any,
    input_radius: Any,
    num_hidden_layers: int,
    num_outputs: int = 1,
    kind: str = "sharp",
) -> np.ndarray:
    """Return the certified modulus theta = 2 l2 - 2 c r sqrt(mse / k) |W|_*^(H - 1) of numbers or arrays.

    Args:
        l2: Coefficient of the penalty l2 |W|^2, >= 0.
        mean_squared_error: Keras's "mse", a mean over rows and outputs, >= 0.
        spectral_norm: |W|_*, the largest singular value among the weight matrices, >= 0.
        input_radius: r, the largest norm of an input, >= 0.
        num_hidden_layers: H, an integer >= 0.
        num_outputs: k, an integer >= 1. Default 1.
        kind: "paper" (c = H (H + 1)) or "sharp" (c = H; default).

    Returns:
        Moduli, of the shape to which the arrays broadcast, rounded to float64; minus infinity if a power overflows.
        A factor that underflows counts as the smallest normal number.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> float(convexity_modulus(1.0, 0.25, 3.0, 1.0, num_hidden_layers=1, kind="paper"))
        0.0
    """
    depth = check_integer("num_hidden_layers", num_hidden_layers, minimum=0)
    check_integer("num_outputs", num_outputs, minimum=1)
    check_choice("kind", kind, KINDS)
    factor = depth * (depth + 1) if kind == "paper" else depth
    given = {"l2": l2, "mean_squared_error": mean_squared_error, "spectral_norm": spectral_norm}
    given |= {"input_radius": input_radius}
    numbers = {name: as_numbers(name, value, "numbers >= 0") for name, value in given.items()}
    for name, values in numbers.items():
        if (values < 0).any():
            raise ValueError(f"`{name}` must hold numbers >= 0. Received: {name}={given[name]!r}")
    decay, squares, norm, radius = numbers.values()
    decay = 2.0 * decay
    if factor == 0:
        return np.array(np.broadcast_to(decay, np.broadcast_shapes(*(part.shape for part in numbers.values()))))
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.sqrt(squares / num_outputs) * radius
        size = np.where((squares > 0) & (radius > 0), np.maximum(size, SMALLEST), size)
        theta = decay - 2.0 * factor * size * np.maximum(norm ** (depth - 1), SMALLEST)
    return np.where(np.isnan(theta), -np.inf, theta)
