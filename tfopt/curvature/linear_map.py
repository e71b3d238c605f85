"""A common interface to symmetric matrices: operators of a model, NumPy arrays, scipy's matrices."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse

from tfopt._checks import as_numbers
from tfopt.curvature.hessian import HessianOperator
from tfopt.curvature.objective import Objective
from tfopt.curvature.operator import CurvatureOperator


@dataclass(frozen=True)
class LinearMap:
    """A symmetric matrix as a function."""

    size: int  # Number of rows
    dtype: Any  # Dtype of the vectors: float32 or float64
    matvec: Callable[[np.ndarray], np.ndarray]  # Takes a vector of `size` entries and returns the product
    # Returns a context within which the matrix does not change, so that products can share work.
    shared: Callable[[], Any] = contextlib.nullcontext
    batch_norm: str | None = None  # How a model's batch normalisation is computed; None for other matrices
    precision: str | None = None  # How a model's layers are computed; None for other matrices
    # Takes a matrix of columns and returns the products with them.
    multiply_columns: Callable[[np.ndarray], np.ndarray] | None = None

    def matmat(self, columns: np.ndarray) -> np.ndarray:
        """Return the products with the columns of a matrix of shape (size, k)."""
        if self.multiply_columns is not None:
            return self.multiply_columns(columns)
        return np.stack([np.asarray(self.matvec(column)) for column in np.ascontiguousarray(columns.T)], axis=1)


def as_linear_map(operator: Any) -> LinearMap:
    """Return a symmetric matrix, as `extremal_eigenvalues` takes it, as a function; integers become float64."""
    # Raises TypeError if it is not a matrix; ValueError if it is not square or has complex entries, or if an array or a
    # sparse matrix is not symmetric or not finite. Other objects need `shape` and `matvec` or `@`.
    if isinstance(operator, LinearMap):
        return operator
    if isinstance(operator, Objective):
        operator = HessianOperator(operator)
    if isinstance(operator, CurvatureOperator):
        return LinearMap(
            operator.shape[0],
            operator.dtype,
            operator.matvec,
            operator.shared,
            operator.batch_norm,
            operator.precision,
            operator.matmat,
        )
    if isinstance(operator, list | tuple):
        operator = np.asarray(operator)
    shape = getattr(operator, "shape", None)
    if shape is None or not (hasattr(operator, "matvec") or hasattr(operator, "__matmul__")):
        raise TypeError(
            "`operator` must be a CurvatureOperator, an Objective, a matrix, or have `shape` and `matvec`. "
            f"Received: {operator!r} of type {type(operator).__name__}"
        )
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"`operator` must be a square matrix. Received: shape {tuple(shape)}")
    dtype = np.dtype(getattr(operator, "dtype", None) or np.float64)
    if dtype.kind == "c":
        raise ValueError(f"`operator` must be real. Received: dtype {dtype}")
    dtype = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)
    multiply = getattr(operator, "matvec", None) or (lambda vector: operator @ vector)
    if isinstance(operator, np.ndarray):
        _check_symmetric(operator)
        multiply = functools.partial(multiply_quietly, operator)
    elif scipy.sparse.issparse(operator):
        _check_symmetric(operator.tocoo())
    return LinearMap(shape[0], dtype, lambda vector: np.asarray(multiply(vector)).reshape(-1))


def multiply_quietly(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Multiply a finite matrix (m, n) with a finite vector (n,), without NumPy's warning of invalid values."""
    # OpenBLAS's float32 kernel for rows of five entries (0.3.31, AVX-512) reads a few bytes beyond the matrix. The
    # product is right, but in one of several hundred processes these bytes make NumPy warn.
    with np.errstate(invalid="ignore"):
        return matrix @ vector


def _check_symmetric(matrix: Any) -> None:
    if not np.isfinite(matrix.data if scipy.sparse.issparse(matrix) else matrix).all():
        raise ValueError("`operator` must be finite. Received: a matrix with NaN or infinite entries")
    largest, difference = abs(matrix).max(), abs(matrix - matrix.T).max()
    if difference > 1e-4 * largest:
        raise ValueError(
            f"`operator` must be symmetric. Received: a matrix that differs from its transpose by {difference:.2g}, "
            f"with entries up to {largest:.2g}"
        )


def as_vector(name: str, value: Any) -> np.ndarray:
    """Return a vector, or a list of arrays joined in order, as a float64 vector; TypeError for non-numbers."""
    parts = value if isinstance(value, list | tuple) and any(hasattr(part, "shape") for part in value) else None
    if parts is None or all(np.shape(part) == () for part in parts):
        return as_numbers(name, value)
    return np.concatenate([as_numbers(name, part).reshape(-1) for part in parts])


def curvature_along(operator: Any, direction: Any) -> float:
    """Return the curvature along a direction, d'Ad / d'd: the second derivative of the loss along d / |d|.

    Args:
        operator: A symmetric matrix, as `extremal_eigenvalues` takes it.
        direction: A vector of n entries; for a `CurvatureOperator` also a list of arrays shaped like its variables.

    Returns:
        The curvature, a number between the smallest and the largest eigenvalue.

    Raises:
        TypeError: `operator` is not a matrix.
        ValueError: The matrix is not square or not symmetric; the direction has another shape, is zero, or not finite.

    Example:
        >>> round(curvature_along(np.diag([1.0, 3.0]), [1.0, 1.0]), 6)
        2.0
    """
    operator = HessianOperator(operator) if isinstance(operator, Objective) else operator
    linear = as_linear_map(operator)
    vector = as_vector("direction", direction)
    if isinstance(operator, CurvatureOperator):
        operator.vectors.split(direction, "direction")
    if vector.shape != (linear.size,):
        raise ValueError(f"`direction` must have {linear.size} entries. Received: shape {vector.shape}")
    norm = np.linalg.norm(vector.astype(np.float64))
    if not (np.isfinite(norm) and norm > 0.0):
        raise ValueError(f"`direction` must be finite and not zero. Received: a vector of norm {norm}")
    unit = (vector / norm).astype(linear.dtype)
    return float(unit.astype(np.float64) @ np.asarray(linear.matvec(unit), np.float64))
