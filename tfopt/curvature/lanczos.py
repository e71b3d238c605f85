"""The Lanczos iteration, and the signed extreme eigenvalues that it finds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import eigh_tridiagonal
from scipy.linalg.blas import get_blas_funcs

from tfopt._checks import as_numbers, check_integer, check_number
from tfopt._record import Record
from tfopt.curvature.linear_map import LinearMap, as_linear_map, multiply_quietly

_FEWEST = 10  # the smallest number of products before the iteration may stop


@dataclass(frozen=True)
class Tridiagonal(Record):
    """The result of m steps of the Lanczos iteration for a symmetric matrix A: A Q = Q T + beta_m q_{m+1} e_m'.

    Attributes:
        diagonal: The diagonal of T (alpha), of shape (m,), float64.
        off_diagonal: The entries beside it (beta), of shape (m - 1,), float64.
        residual: beta_m, the norm of the part of A q_m outside the span of Q; 0 if the span is invariant.
        rounding: The contribution of the dtype's rounding to the bounds: 4 epsilon times the largest entry of T.
        basis: The vectors of Q as rows, of shape (m, n), orthonormal.
    """

    diagonal: np.ndarray
    off_diagonal: np.ndarray
    residual: float
    rounding: float
    basis: np.ndarray = field(repr=False)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the eigenvalues of T, its eigenvectors, and bounds of the distance to an eigenvalue of A.

        Returns:
            Values in rising order, of shape (m,); vectors as columns, of shape (m, m); bounds, of shape (m,): within
            the bound of each value there is an eigenvalue of A. A bound is beta_m |s_m|, with s_m the vector's last
            entry, plus `rounding`.
        """
        values, vectors = eigh_tridiagonal(self.diagonal, self.off_diagonal)
        return values, vectors, self.residual * np.abs(vectors[-1]) + self.rounding

    def eigenvector(self, index: int) -> np.ndarray:
        """Return the approximate eigenvector of A for a value of `ritz`.

        Args:
            index: Index of the value; 0 is the smallest, -1 the largest.

        Returns:
            A vector of n entries and norm 1.

        Raises:
            TypeError: `index` is not an integer.
            ValueError: `index` is out of range.
        """
        count = len(self.diagonal)
        check_integer("index", index, minimum=-count, maximum=count - 1)
        _, vectors, _ = self.ritz()
        vector = self.basis.T @ vectors[:, index].astype(self.basis.dtype)
        return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class ExtremalEigenvalues(Record):
    """The smallest and the largest eigenvalue of a matrix.

    Attributes:
        lambda_min: The smallest eigenvalue, with its sign; never below the true one, except for rounding.
        lambda_max: The largest eigenvalue, with its sign; never above the true one, except for rounding.
        lambda_min_bound: There is an eigenvalue within this distance of `lambda_min`.
        lambda_max_bound: There is an eigenvalue within this distance of `lambda_max`.
        num_matvecs: Number of products used.
        converged: Whether both bounds are within the tolerance. A bound guarantees an eigenvalue near the value, and
            not that there is none beyond it: an end may be missed if its eigenvector is almost orthogonal to the random
            first vector. More products make that less likely.
        vector_min: Approximate eigenvector of `lambda_min`, of shape (n,) and norm 1.
        vector_max: Approximate eigenvector of `lambda_max`, of shape (n,) and norm 1.
        batch_norm: How batch normalisation was computed, "batch" or "moving"; None for a matrix without a model.
        precision: "float32" if the model trains in half precision and its layers were computed in float32; "model" if
            all layers were computed as in training; "bfloat16" if the model or loss casts to it; None for a matrix
            without a model.
    """

    lambda_min: float
    lambda_max: float
    lambda_min_bound: float
    lambda_max_bound: float
    num_matvecs: int
    converged: bool
    vector_min: np.ndarray = field(repr=False)
    vector_max: np.ndarray = field(repr=False)
    batch_norm: str | None = field(default=None, repr=False)
    precision: str | None = field(default=None, repr=False)

    @property
    def spectral_radius(self) -> float:
        """The largest absolute value of an eigenvalue."""
        return max(abs(self.lambda_min), abs(self.lambda_max))


def lanczos(operator: Any, num_matvecs: int, seed: int = 0, start: Any = None) -> Tridiagonal:
    """Run the Lanczos iteration with full re-orthogonalisation.

    Each new vector is orthogonalised against all others, again if much cancels (Daniel, Gragg, Kaufman and Stewart,
    1976), so that no eigenvalue appears twice. Vectors are stored in the matrix's dtype, T in float64. Memory:
    `num_matvecs` vectors.

    Args:
        operator: A symmetric matrix, as `extremal_eigenvalues` takes it.
        num_matvecs: Number of products, >= 1. The iteration ends earlier if the vectors span an invariant space.
        seed: Seed of the random first vector, an integer >= 0. Default 0.
        start: The first vector, of n entries; None (default) for a random one.

    Returns:
        The tridiagonal matrix and the basis.

    Raises:
        TypeError: `operator` is not a matrix.
        ValueError: An argument is out of its range, or a product is not finite.

    Example:
        >>> lanczos(np.diag([1.0, 2.0, 5.0]), 3).ritz()[0].round(6).tolist()
        [1.0, 2.0, 5.0]
    """
    linear = as_linear_map(operator)
    check_integer("num_matvecs", num_matvecs, minimum=1)
    first = _first_vector(linear, seed, start)
    with linear.shared():
        for result in iterate(linear, first, num_matvecs):  # noqa: B007
            pass
    return result


def extremal_eigenvalues(
    operator: Any, num_matvecs: int = 100, tolerance: float = 0.01, seed: int = 0
) -> ExtremalEigenvalues:
    """Find the smallest and the largest eigenvalue of a symmetric matrix, with their signs and error bounds.

    The Lanczos iteration converges to both ends at once, whichever is larger in absolute value. After at least ten
    products it stops when both bounds are within `tolerance` of the values. For a value near zero, the bound must be
    within `tolerance` squared of the larger absolute value.

    Args:
        operator: A symmetric matrix: a `HessianOperator` or `GaussNewtonOperator`; an `Objective`, for its Hessian; a
            NumPy array of shape (n, n); a sparse matrix or `LinearOperator` of scipy; or any object with `shape` and
            `matvec`. Several estimates share the compilation and the self-check of one operator, not of an objective.
        num_matvecs: The largest number of products, >= 1. Default 100.
        tolerance: Relative size of the bounds at which to stop, in (0, 1). Default 0.01.
        seed: Seed of the random first vector, an integer >= 0. Default 0.

    Returns:
        The eigenvalues. If they have not converged within `num_matvecs`, `converged` is False.

    Raises:
        TypeError: `operator` is not a matrix.
        ValueError: An argument is out of its range, the matrix is not square or not symmetric, or a product is not
            finite.

    Example:
        >>> ends = extremal_eigenvalues(np.diag([-2.0, 0.5, 1.0]))
        >>> round(ends.lambda_min, 6), round(ends.lambda_max, 6), ends.converged
        (-2.0, 1.0, True)
    """
    linear = as_linear_map(operator)
    check_integer("num_matvecs", num_matvecs, minimum=1)
    check_number("tolerance", tolerance, minimum=0.0, maximum=1.0, exclusive_minimum=True, exclusive_maximum=True)
    with linear.shared():
        for result in iterate(linear, _first_vector(linear, seed, None), num_matvecs):
            values, _, bounds = result.ritz()
            radius = max(abs(values[0]), abs(values[-1]))
            ends = [0, -1]
            converged = all(bounds[end] <= tolerance * max(abs(values[end]), tolerance * radius) for end in ends)
            if converged and len(values) >= _FEWEST:
                break
    return ExtremalEigenvalues(
        lambda_min=float(values[0]),
        lambda_max=float(values[-1]),
        lambda_min_bound=float(bounds[0]),
        lambda_max_bound=float(bounds[-1]),
        num_matvecs=len(result.diagonal),
        converged=converged,
        vector_min=result.eigenvector(0),
        vector_max=result.eigenvector(-1),
        batch_norm=linear.batch_norm,
        precision=linear.precision,
    )


def iterate(linear: LinearMap, first: np.ndarray, num_matvecs: int) -> Iterator[Tridiagonal]:
    """Yield the tridiagonal matrix after each product, from `first` of norm 1; fewer if the space is exhausted."""
    basis = np.empty((min(num_matvecs, 16), linear.size), linear.dtype)
    basis[0] = first
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    epsilon = float(np.finfo(linear.dtype).eps)
    for count in range(1, min(num_matvecs, linear.size) + 1):
        product = np.asarray(linear.matvec(basis[count - 1]))
        length = _norm(product)
        if not np.isfinite(length):
            raise ValueError(f"The product of `operator` and a vector must be finite. Received: norm {length}")
        diagonal.append(_dot(basis[count - 1], product))
        rest, residual = _orthogonalize(product, basis[:count])
        largest = max(length, *map(abs, diagonal))
        if residual <= 10 * epsilon * largest or count == linear.size:
            residual = 0.0
        yield Tridiagonal(np.array(diagonal), np.array(off_diagonal), residual, 4 * epsilon * largest, basis[:count])
        if residual == 0.0 or count == num_matvecs:
            return
        off_diagonal.append(residual)
        if count == len(basis):
            basis = np.concatenate([basis, np.empty((min(num_matvecs - count, count), linear.size), linear.dtype)])
        np.divide(rest, residual, out=basis[count])


def _orthogonalize(vector: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, float]:
    # Repeat if most of the vector cancelled, because rounding errors along the basis then remain.
    before = _norm(vector)
    for _ in range(3):
        vector = vector - multiply_quietly(basis, vector) @ basis
        after = _norm(vector)
        if after > 0.7 * before:
            break
        before = after
    return vector, after


def _norm(vector: np.ndarray) -> float:
    # BLAS's norm overflows or underflows only if the result does.
    return float(get_blas_funcs("nrm2", (vector,))(vector))


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.astype(np.float64) @ b.astype(np.float64))


def _first_vector(linear: LinearMap, seed: int, start: Any) -> np.ndarray:
    if start is None:
        seed = check_integer("seed", seed, minimum=0)
        vector = np.random.default_rng(seed).standard_normal(linear.size)
    else:
        vector = as_numbers("start", start)
        if vector.shape != (linear.size,):
            raise ValueError(f"`start` must have {linear.size} entries. Received: shape {vector.shape}")
    norm = np.linalg.norm(vector)
    if not (np.isfinite(norm) and norm > 0.0):
        raise ValueError(f"`start` must be finite and not zero. Received: a vector of norm {norm}")
    return (vector / norm).astype(linear.dtype)
