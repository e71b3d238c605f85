"""How the square of a vector is spread over the spectrum of a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from tfopt.curvature.lanczos import Tridiagonal, iterate
from tfopt.curvature.linear_map import as_linear_map


@dataclass(frozen=True)
class SpectralMeasure:
    """Masses at points: an approximation of sum_i (q_i'v)^2 at h_i, with eigenvalues h_i and eigenvectors q_i.

    Attributes:
        nodes: Points, of shape (m,).
        masses: Masses, of shape (m,), >= 0; they add up to |v|^2.
    """

    nodes: np.ndarray
    masses: np.ndarray

    @classmethod
    def of(cls, result: Tridiagonal | None, square: float) -> "SpectralMeasure":
        """Take the nodes and weights of Gauss's quadrature from Lanczos's iteration.

        Exact for polynomials up to degree 2 m - 1 (Golub and Meurant, "Matrices, moments and quadrature", 2010,
        chapter 6).

        Args:
            result: Of the iteration from v; None for v = 0.
            square: |v|^2.

        Returns:
            The measure; without points if v is zero.
        """
        if result is None:
            return cls(np.empty(0), np.empty(0))
        nodes, vectors, _ = result.ritz()
        return cls(nodes, square * vectors[0] ** 2)

    def moment(self, power: int, smallest: float) -> float:
        """Return sum_i h_i^power (q_i'v)^2 over all but the flattest directions.

        Args:
            power: The power, which may be negative.
            smallest: Points below this are left out, > 0.

        Returns:
            The sum.
        """
        kept = self.nodes >= smallest
        return float(self.masses[kept] @ self.nodes[kept] ** float(power))


def run_lanczos(
    operator: Any, vector: np.ndarray, num_matvecs: int, is_over: Callable[[int], bool] | None = None
) -> Tridiagonal | None:
    """Run Lanczos's iteration from a vector.

    Args:
        operator: A symmetric matrix, as `tfopt.curvature.lanczos` takes it.
        vector: v, of shape (n,).
        num_matvecs: m, number of products.
        is_over: Says, when told the number of products so far, whether to end earlier; None for never.

    Returns:
        What it makes of the matrix; None if v is zero.
    """
    length = np.linalg.norm(vector)
    if length == 0.0:
        return None
    linear = as_linear_map(operator)
    for result in iterate(linear, (vector / length).astype(linear.dtype), num_matvecs):
        if is_over is not None and is_over(len(result.diagonal)):
            break
    return result


def newton_step(result: Tridiagonal, length: float, smallest: float) -> np.ndarray:
    """Return -H^-1 v within the space that Lanczos's iteration from v has spanned.

    Args:
        result: Of the iteration.
        length: |v|.
        smallest: Curvatures below this, relative to the largest, are left out.

    Returns:
        A vector of shape (n,).
    """
    nodes, vectors, _ = result.ritz()
    kept = (nodes > 0.0) & (nodes >= smallest * nodes[-1])
    inverse = np.divide(1.0, nodes, out=np.zeros_like(nodes), where=kept)
    return -length * np.asarray((vectors @ (inverse * vectors[0])) @ result.basis, np.float64)


@dataclass(frozen=True)
class Bins:
    """Intervals of log curvature, and a curvature for each that stands for all in it.

    Attributes:
        edges: Of shape (k + 1,), rising.
        used: Which intervals hold anything, of shape (k,).
        curvature: Mean of the points in each of these, of shape (number used,), rising.
    """

    edges: np.ndarray
    used: np.ndarray
    curvature: np.ndarray

    @classmethod
    def around(cls, measures: Sequence[SpectralMeasure], num_bins: int, smallest: float) -> "Bins":
        """Make bins for some measures.

        Args:
            measures: The measures, each of which has the same say in the bins' curvatures.
            num_bins: Number of intervals.
            smallest: Where the first begins, relative to the largest point of all.

        Returns:
            The bins.

        Raises:
            ValueError: No point is positive.
        """
        largest = max((measure.nodes.max() for measure in measures if len(measure.nodes)), default=0.0)
        if not largest > 0.0:
            raise ValueError(
                "`loss` must curve upwards along some direction of `model` for a quadratic to have a minimum. "
                f"Received: curvatures of at most {largest:g}. Losses that are linear in the outputs, such as 'mae', "
                "have no Gauss-Newton matrix (matrix='hessian' may help), nor have rows without weight"
            )
        edges = np.geomspace(smallest * largest, largest, num_bins + 1)
        edges[-1] = np.nextafter(largest, np.inf)  # within the last, in spite of rounding
        bins = cls(edges, np.ones(num_bins, bool), np.zeros(0))
        shares = [_scaled(measure) for measure in measures if len(measure.nodes)]
        mass = np.sum([bins.fill(share)[1] for share in shares], axis=0)
        moment = np.sum([bins.fill(SpectralMeasure(s.nodes, s.masses * s.nodes))[1] for s in shares], axis=0)
        used = mass > 0.0
        return cls(edges, used, np.clip(moment[used] / mass[used], edges[:-1][used], edges[1:][used]))

    def fill(self, measure: SpectralMeasure) -> tuple[float, np.ndarray]:
        """Add up masses.

        Args:
            measure: The measure.

        Returns:
            What lies below the first bin, and in each of the bins used, of shape (number used,).
        """
        places = np.clip(np.searchsorted(self.edges, measure.nodes, side="right"), 0, len(self.edges) - 1)
        totals = np.bincount(places, weights=measure.masses, minlength=len(self.edges))
        return float(totals[0]), totals[1:][self.used]


def without_negatives(parts: np.ndarray) -> np.ndarray:
    """Return the non-negative numbers whose running sums come closest to those of numbers with errors.

    What is negative by chance is taken from its neighbours; cut off it would make the sum too large. Isotonic
    regression of the sums, from the last to the first.

    Args:
        parts: Estimates of numbers >= 0, of shape (k,).

    Returns:
        Numbers >= 0, of shape (k,).
    """
    sums = np.maximum(isotonic_regression(np.cumsum(parts[::-1])).x, 0.0)
    return np.diff(sums, prepend=0.0)[::-1]


def _scaled(measure: SpectralMeasure) -> SpectralMeasure:
    return SpectralMeasure(measure.nodes, measure.masses / measure.masses.sum())
