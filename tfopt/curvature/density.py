"""The distribution of the eigenvalues of a matrix, estimated without computing them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt._checks import as_numbers, check_integer, check_label, check_number
from tfopt._plotting import get_axes
from tfopt._record import Record
from tfopt.curvature.estimate import Estimate
from tfopt.curvature.lanczos import lanczos
from tfopt.curvature.linear_map import as_linear_map

if TYPE_CHECKING:
    import matplotlib.axes


@dataclass(frozen=True)
class SpectralDensity(Record):
    """An estimate of the distribution of a matrix's eigenvalues, from several random vectors.

    Each vector gives one distribution: masses `weights` at the points `nodes`. Means over the vectors estimate the
    distribution of the eigenvalues, and their scatter gives the standard errors.

    Attributes:
        nodes: Points, of shape (num_vectors, m). If an iteration ended early, its remaining points have weight 0.
        weights: Masses, of shape (num_vectors, m); each row sums to 1.
        size: Number of rows of the matrix.
        batch_norm: How batch normalisation was computed, "batch" or "moving"; None for a matrix without a model.
    """

    nodes: np.ndarray = field(repr=False)
    weights: np.ndarray = field(repr=False)
    size: int
    batch_norm: str | None = None

    def cumulative(self, points: Any) -> Estimate:
        """Return the fraction of eigenvalues up to some points.

        Args:
            points: The points, of shape (k,).

        Returns:
            Fractions from 0 to 1, of shape (k,).

        Raises:
            TypeError: `points` does not hold numbers.
            ValueError: `points` is not one-dimensional.
        """
        points = _check_points(points)
        below = self.nodes[:, :, None] <= points
        return self._mean(np.einsum("pm,pmk->pk", self.weights, below))

    def density(self, points: Any, width: float | None = None) -> Estimate:
        """Return the density, smoothed by a Gaussian.

        Args:
            points: The points, of shape (k,).
            width: Standard deviation of the Gaussian, > 0; None (default) means a hundredth of the spectrum's width.

        Returns:
            The density, whose integral is 1, of shape (k,).

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: `points` is not one-dimensional, or `width` is not > 0.
        """
        width = self._width if width is None else check_number("width", width, minimum=0.0, exclusive_minimum=True)
        distance = (_check_points(points) - self.nodes[:, :, None]) / width
        bumps = np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))
        return self._mean(np.einsum("pm,pmk->pk", self.weights, bumps))

    def moment(self, power: int) -> Estimate:
        """Return the mean of a power of the eigenvalues.

        Args:
            power: The power, an integer >= 0. Up to 2 num_matvecs - 1 the quadrature is exact for each random vector.

        Returns:
            The mean, a number.
        """
        check_integer("power", power, minimum=0)
        return self._mean((self.weights * self.nodes**power).sum(axis=1))

    def _mean(self, draws: np.ndarray) -> Estimate:
        return Estimate.from_draws(draws, self.batch_norm)

    @property
    def _width(self) -> float:
        low, high = self.nodes.min(), self.nodes.max()
        return 0.01 * (high - low) or 0.01 * abs(high) or 0.01

    def plot(
        self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None, width: float | None = None
    ) -> "matplotlib.axes.Axes":
        """Draw the density on a logarithmic scale, with a band of one standard error on both sides.

        Args:
            ax: The axes; None (default) for new ones.
            label: Name of the curve in a legend; None (default) for none.
            width: As in `density`.

        Returns:
            The axes.
        """
        width = self._width if width is None else check_number("width", width, minimum=0.0, exclusive_minimum=True)
        points = np.linspace(self.nodes.min() - 3 * width, self.nodes.max() + 3 * width, 500)
        found = self.density(points, width)
        mean, error = found.value, found.standard_error
        name, ax = check_label(label) or None, get_axes(ax)
        floor = max(mean.max() * 1e-6, np.finfo(np.float64).tiny)
        ax.semilogy(points, np.maximum(mean, floor), label=name)
        if np.isfinite(error).all():
            ax.fill_between(points, np.maximum(mean - error, floor), np.maximum(mean + error, floor), alpha=0.3)
        ax.set_xlabel("eigenvalue")
        ax.set_ylabel("density")
        return ax


def spectral_density(operator: Any, num_vectors: int = 5, num_matvecs: int = 30, seed: int = 0) -> SpectralDensity:
    """Estimate the distribution of a symmetric matrix's eigenvalues, by stochastic Lanczos quadrature.

    The Lanczos iteration from a random vector v gives nodes (eigenvalues of T) and weights (squared first entries of
    its eigenvectors) of the Gauss quadrature for v'f(A)v, whose mean over v is tr f(A) / n (Ubaru, Chen and Saad,
    2017).

    Args:
        operator: A symmetric matrix, as `extremal_eigenvalues` takes it.
        num_vectors: Number of random vectors, >= 1; standard errors need two or more. Default 5.
        num_matvecs: Number of products for each vector, >= 1. Default 30.
        seed: Seed of the vectors, an integer >= 0. Default 0.

    Returns:
        The estimate.

    Raises:
        TypeError: `operator` is not a matrix.
        ValueError: An argument is out of its range.

    Example:
        >>> density = spectral_density(np.diag([0.0] * 50 + [1.0] * 50), num_vectors=20, num_matvecs=3)
        >>> share = density.cumulative([0.5])
        >>> bool(abs(share.value[0] - 0.5) < 4 * share.standard_error[0])
        True
    """
    linear = as_linear_map(operator)
    check_integer("num_vectors", num_vectors, minimum=1)
    check_integer("num_matvecs", num_matvecs, minimum=1)
    check_integer("seed", seed, minimum=0)
    count = min(num_matvecs, linear.size)
    nodes, weights = np.zeros((num_vectors, count)), np.zeros((num_vectors, count))
    with linear.shared():
        for index in range(num_vectors):
            start = np.random.default_rng([seed, index]).standard_normal(linear.size)
            values, vectors, _ = lanczos(linear, num_matvecs, start=start).ritz()
            nodes[index], weights[index, : len(values)] = values[-1], vectors[0] ** 2
            nodes[index, : len(values)] = values
    return SpectralDensity(nodes, weights, linear.size, linear.batch_norm)


def _check_points(points: Any) -> np.ndarray:
    values = as_numbers("points", points)
    if values.ndim != 1:
        raise ValueError(f"`points` must be a list of numbers. Received shape {values.shape}")
    return values
