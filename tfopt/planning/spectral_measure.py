"""The distribution of the squared norm of a vector over the spectrum of a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from tfopt.curvature.lanczos import Tridiagonal, iterate
from tfopt.curvature.linear_map import as_linear_map


@dataclass(frozen=True)
class SpectralMeasure:
    """Masses at points: an approximation of sum_i (q_i'v)^2 at h_i, with eigenvalues h_i and eigenvectors q_i."""

    nodes: np.ndarray  # Points, of shape (m,)
    masses: np.ndarray  # Masses, of shape (m,), >= 0; they add up to |v|^2

    @classmethod
    def from_lanczos(cls, result: Tridiagonal | None, square: float) -> "SpectralMeasure":
        """Return Gauss's quadrature from Lanczos's iteration from v, where `square` is |v|^2; None means v = 0."""
        # Exact for polynomials up to degree 2 m - 1 (Golub and Meurant, "Matrices, moments and quadrature", 2010,
        # chapter 6).
        if result is None:
            return cls(np.empty(0), np.empty(0))
        nodes, vectors, _ = result.ritz()
        return cls(nodes, square * vectors[0] ** 2)

    def moment(self, power: int, smallest: float) -> float:
        """Return sum_i h_i^power (q_i'v)^2 over the directions of curvature >= `smallest`, which is > 0."""
        kept = self.nodes >= smallest
        return float(self.masses[kept] @ self.nodes[kept] ** float(power))


def run_lanczos(
    operator: Any, vector: np.ndarray, num_matvecs: int, is_over: Callable[[int], bool] | None = None
) -> Tridiagonal | None:
    """Run Lanczos's iteration from a vector, until `is_over(number of products)`; return None for a zero vector."""
    length = np.linalg.norm(vector)
    if length == 0.0:
        return None
    linear = as_linear_map(operator)
    for result in iterate(linear, (vector / length).astype(linear.dtype), num_matvecs):
        if is_over is not None and is_over(len(result.diagonal)):
            break
    return result


def newton_step(result: Tridiagonal, length: float, smallest: float) -> np.ndarray:
    """Return -H^-1 v, of shape (n,), within the space of Lanczos's iteration from v, where `length` is |v|."""
    # Curvatures below `smallest`, relative to the largest, are left out.
    nodes, vectors, _ = result.ritz()
    kept = (nodes > 0.0) & (nodes >= smallest * nodes[-1])
    inverse = np.divide(1.0, nodes, out=np.zeros_like(nodes), where=kept)
    return -length * np.asarray((vectors @ (inverse * vectors[0])) @ result.basis, np.float64)


@dataclass(frozen=True)
class Bins:
    """Intervals of log curvature, each with one curvature that represents it."""

    edges: np.ndarray  # Edges of the intervals, of shape (k + 1,), rising
    used: np.ndarray  # Whether each interval holds any mass, of shape (k,)
    curvature: np.ndarray  # Mean of the points in each used interval, of shape (number used,), rising

    @classmethod
    def around(cls, measures: Sequence[SpectralMeasure], num_bins: int, smallest: float) -> "Bins":
        """Return bins from `smallest` times the largest point of all measures up to that point; all weigh the same."""
        largest = max((measure.nodes.max() for measure in measures if len(measure.nodes)), default=0.0)
        if not largest > 0.0:
            raise ValueError(
                "`loss` must curve upwards along some direction of `model`, so that a quadratic has a minimum. "
                f"Received: curvatures of at most {largest:g}. The Gauss-Newton matrix is zero for losses that are "
                "linear in the outputs, such as 'mae' (matrix='hessian' may help), and for rows of weight 0"
            )
        edges = np.geomspace(smallest * largest, largest, num_bins + 1)
        edges[-1] = np.nextafter(largest, np.inf)  # Rounding must not exclude the largest point.
        bins = cls(edges, np.ones(num_bins, bool), np.zeros(0))
        shares = [_scaled(measure) for measure in measures if len(measure.nodes)]
        mass = np.sum([bins.fill(share)[1] for share in shares], axis=0)
        moment = np.sum([bins.fill(SpectralMeasure(s.nodes, s.masses * s.nodes))[1] for s in shares], axis=0)
        used = mass > 0.0
        return cls(edges, used, np.clip(moment[used] / mass[used], edges[:-1][used], edges[1:][used]))

    def fill(self, measure: SpectralMeasure) -> tuple[float, np.ndarray]:
        """Return a measure's mass below the first bin, and its mass in each used bin, of shape (number used,)."""
        bins = np.clip(np.searchsorted(self.edges, measure.nodes, side="right"), 0, len(self.edges) - 1)
        totals = np.bincount(bins, weights=measure.masses, minlength=len(self.edges))
        return float(totals[0]), totals[1:][self.used]


def without_negatives(parts: np.ndarray) -> np.ndarray:
    """Return numbers >= 0 whose running sums are closest to those of estimates with errors, of shape (k,)."""
    # Negative estimates are compensated by their neighbours. Setting them to zero would make the sum too large.
    # The method is isotonic regression of the sums, from the last to the first.
    sums = np.maximum(isotonic_regression(np.cumsum(parts[::-1])).x, 0.0)
    return np.diff(sums, prepend=0.0)[::-1]


def _scaled(measure: SpectralMeasure) -> SpectralMeasure:
    return SpectralMeasure(measure.nodes, measure.masses / measure.masses.sum())
