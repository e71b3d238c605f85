"""The noisy quadratic model: a quadratic loss with noisy gradients."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfopt import _plotting
from tfopt._checks import as_numbers, check_integer, check_label, check_number
from tfopt._record import Record
from tfopt.nqm._checks import check_values

if TYPE_CHECKING:
    import matplotlib.axes
    import pandas


@dataclass(frozen=True, eq=False, repr=False)
class NoisyQuadratic(Record):
    """L(theta) = 1/2 sum_i h_i theta_i^2, with mini-batch gradients h_i theta_i plus noise of variance c_i / B.

    A diagonal Hessian loses no generality for algorithms that treat all directions alike: they see only the Hessian's
    eigenvalues and the noise along its eigenvectors. Equal eigenvalues are stored once, with their multiplicity.

    Attributes:
        curvature: h, the Hessian's eigenvalues, of shape (n,), > 0.
        noise_variance: c, the variance of one example's gradient along each eigenvector, of shape (n,), >= 0.
        multiplicity: Number of directions that each entry represents, of shape (n,), > 0; need not be whole. Default 1.
        initial_second_moment: E theta_i(0)^2, of shape (n,), >= 0. Default 1.

    Raises:
        TypeError: An argument is not a list of real numbers.
        ValueError: An argument is out of its range, or the shapes differ.

    Example:
        >>> problem = NoisyQuadratic(curvature=[1.0, 0.1], noise_variance=[1.0, 0.1])
        >>> problem.initial_loss
        0.55

    References:
        Zhang et al.: Which algorithmic choices matter at which batch sizes? Insights from a noisy quadratic model.
        NeurIPS 2019, arXiv:1907.04164, section 3.
    """

    curvature: Any
    noise_variance: Any
    multiplicity: Any = 1.0
    initial_second_moment: Any = 1.0

    def __post_init__(self) -> None:
        curvature = check_values("curvature", self.curvature, positive=True)
        if curvature.ndim != 1:
            raise ValueError(f"`curvature` must be a list of one or more numbers. Received shape {curvature.shape}")
        for name, positive in (
            ("curvature", True),
            ("noise_variance", False),
            ("multiplicity", True),
            ("initial_second_moment", False),
        ):
            values = check_values(name, getattr(self, name), positive=positive)
            if values.shape not in ((), curvature.shape):
                raise ValueError(
                    f"`{name}` must be a number or have curvature's shape {curvature.shape}. Received: {values.shape}"
                )
            values = np.broadcast_to(values, curvature.shape).copy()
            values.setflags(write=False)
            object.__setattr__(self, name, values)

    @classmethod
    def power_law(cls, dim: int = 10_000, exponent: float = 1.0, num_bins: int | None = None) -> "NoisyQuadratic":
        """Make the paper's problem: h_i = i^-exponent, c_i = h_i, E theta_i(0)^2 = 1.

        Args:
            dim: Number of directions, >= 1. Default 10,000.
            exponent: How fast the eigenvalues fall, >= 0 and at most 300 / max(log10(dim), 1). Default 1.
            num_bins: None (default) keeps every eigenvalue; an integer >= 1 merges them, see `binned`.

        Returns:
            The problem. With the defaults its initial loss is 4.894.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range.
        """
        check_integer("dim", dim, minimum=1)
        # This limit keeps the smallest eigenvalue from underflowing to 0.
        check_number("exponent", exponent, minimum=0.0, maximum=300.0 / max(math.log10(dim), 1.0))
        if num_bins is not None:
            check_integer("num_bins", num_bins, minimum=1)
        curvature = np.arange(1, dim + 1, dtype=np.float64) ** -float(exponent)
        problem = cls(curvature, curvature)
        return problem if num_bins is None else problem.binned(num_bins)

    @classmethod
    def from_matrices(cls, hessian: Any, noise_covariance: Any, initial_second_moment: Any = 1.0) -> "NoisyQuadratic":
        """Make the problem from a full Hessian and a full noise covariance.

        For every algorithm that treats all directions alike, the expected loss depends on the covariance only through
        c_i = q_i' C q_i, where q_i are the Hessian's eigenvectors. The same holds for the initial second moment.

        Args:
            hessian: H, symmetric and positive definite, of shape (n, n).
            noise_covariance: C, symmetric and positive semi-definite, of shape (n, n).
            initial_second_moment: E theta(0) theta(0)', of shape (n, n), or a number m for m times the identity.
                Default 1.

        Returns:
            The problem along the Hessian's eigenvectors, largest eigenvalue first.

        Raises:
            TypeError: An argument is not a matrix of real numbers.
            ValueError: A matrix is not square, not symmetric or not positive, or the shapes differ.
        """
        matrix = _check_matrix("hessian", hessian, None)
        eigenvalues, vectors = np.linalg.eigh(matrix)
        if eigenvalues[0] <= 0:
            raise ValueError(f"`hessian` must be positive definite. Received: smallest eigenvalue {eigenvalues[0]:g}")
        along = []
        for name, value in (("noise_covariance", noise_covariance), ("initial_second_moment", initial_second_moment)):
            if name == "initial_second_moment" and np.ndim(value) == 0:
                along.append(np.full(len(matrix), check_number(name, value, minimum=0.0)))
                continue
            form = _check_matrix(name, value, matrix.shape)
            lowest = np.linalg.eigvalsh(form)[0]
            if lowest < -1e-10 * np.abs(form).max():
                raise ValueError(f"`{name}` must be positive semi-definite. Received: smallest eigenvalue {lowest:g}")
            along.append(np.maximum(np.einsum("ji,jk,ki->i", vectors, form, vectors), 0.0))
        order = slice(None, None, -1)
        return cls(eigenvalues[order], along[0][order], 1.0, along[1][order])

    @property
    def dim(self) -> float:
        """Number of directions, the sum of the multiplicities."""
        return float(self.multiplicity.sum())

    @property
    def initial_loss(self) -> float:
        """The expected loss before the first step, 1/2 sum_i h_i E theta_i(0)^2."""
        return float(0.5 * np.sum(self.multiplicity * self.curvature * self.initial_second_moment))

    def binned(self, num_bins: int) -> "NoisyQuadratic":
        """Merge directions of similar curvature, so that the problem has fewer entries. This is an approximation.

        The bins are intervals of log h. Each bin keeps its number of directions, and its sums of h, of h c and of h E
        theta(0)^2. So the initial loss does not change, and neither does the loss that the noise of one step adds.

        Args:
            num_bins: Largest number of entries afterwards, >= 1.

        Returns:
            The smaller problem, largest curvature first; this problem itself if it is small enough already.

        Raises:
            TypeError: `num_bins` is no integer.
            ValueError: `num_bins` is less than 1.
        """
        check_integer("num_bins", num_bins, minimum=1)
        if len(self.curvature) <= num_bins:
            return self
        logarithm = np.log(self.curvature)
        span = logarithm.max() - logarithm
        # Some intervals are empty, so that more intervals than bins are allowed.
        low, high = num_bins, 64 * num_bins
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if len(np.unique(_bin(span, middle))) <= num_bins else (low, middle - 1)
        bins = np.unique(_bin(span, low), return_inverse=True)[1]

        def add_up(values: np.ndarray) -> np.ndarray:
            return np.bincount(bins, weights=self.multiplicity * values)

        count, total = add_up(np.ones_like(span)), add_up(self.curvature)
        noise = add_up(self.curvature * self.noise_variance) / total
        start = add_up(self.curvature * self.initial_second_moment) / total
        return NoisyQuadratic(total / count, noise, count, start)

    def expanded(self) -> "NoisyQuadratic":
        """Return the same problem with one entry for each direction.

        Returns:
            A problem whose multiplicities are all 1.

        Raises:
            ValueError: A multiplicity is not a whole number.
        """
        count = np.rint(self.multiplicity).astype(np.int64)
        if not np.allclose(count, self.multiplicity, rtol=1e-12, atol=0):
            raise ValueError(
                "`multiplicity` must hold whole numbers here, since each direction gets its own entry. Received: "
                f"{self.multiplicity[np.argmax(np.abs(count - self.multiplicity))]:g}"
            )
        names = ("curvature", "noise_variance", "initial_second_moment")
        curvature, noise, start = (np.repeat(getattr(self, name), count) for name in names)
        return NoisyQuadratic(curvature, noise, 1.0, start)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Return a table with one row for each entry.

        Returns:
            The four arrays as columns, named as the attributes.
        """
        names = ("curvature", "noise_variance", "multiplicity", "initial_second_moment")
        return _plotting.make_dataframe({name: getattr(self, name) for name in names})

    def plot(self, ax: "matplotlib.axes.Axes | None" = None, label: str | None = None) -> "matplotlib.axes.Axes":
        """Draw curvature and noise variance against the rank of the direction.

        Args:
            ax: Axes to draw into; None (default) makes new ones.
            label: Text before the names of the lines; None (default) for none.

        Returns:
            The axes.
        """
        prefix, ax = check_label(label), _plotting.get_axes(ax)
        order = np.argsort(-self.curvature)
        rank = np.cumsum(self.multiplicity[order])
        for name in ("curvature", "noise_variance"):
            ax.plot(rank, getattr(self, name)[order], label=f"{prefix} {name.replace('_', ' ')}".strip())
        ax.set(xlabel="rank of the direction", xscale="log", yscale="log")
        _plotting.add_legend(ax)
        return ax

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy goes through the constructor, so that its arrays are read-only too.
        return type(self), (self.curvature, self.noise_variance, self.multiplicity, self.initial_second_moment)

    def __repr__(self) -> str:
        low, high = self.curvature.min(), self.curvature.max()
        return (
            f"NoisyQuadratic(dim={self.dim:g}, {len(self.curvature)} curvatures from {low:.3g} to {high:.3g}, "
            f"initial_loss={self.initial_loss:.4g})"
        )


def _bin(span: np.ndarray, num_intervals: int) -> np.ndarray:
    width = span.max() / num_intervals or 1.0
    return np.minimum((span / width).astype(np.int64), num_intervals - 1)


def _check_matrix(name: str, value: Any, shape: tuple[int, ...] | None) -> np.ndarray:
    matrix = as_numbers(name, value, "a matrix of real numbers")
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0 or shape not in (None, matrix.shape):
        raise ValueError(
            f"`{name}` must be a square matrix{f' of shape {shape}' if shape else ''}. Received shape {matrix.shape}"
        )
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T, rtol=1e-8, atol=1e-12 * np.abs(matrix).max()):
        raise ValueError(f"`{name}` must be symmetric and finite")
    return 0.5 * (matrix + matrix.T)
