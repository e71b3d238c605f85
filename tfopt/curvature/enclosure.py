"""Float64 arithmetic with a proven bound of its error.

The bounds are those of running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
chapter 3). A sum of n products, in any order and with or without fused operations, has an error of at most n u times
the sum of the products' absolute values, u = 2^-53, plus one smallest normal number for each product that underflows.
Each bound below is at least twice that, which also covers the rounding of the bound itself.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

UNIT_ROUNDOFF = 2.0**-53
SMALLEST = float(np.finfo(np.float64).tiny)
SINGULAR_VALUE_MARGIN = 1e-12  # 4,500 times float64's epsilon; LAPACK's error is a few times epsilon


@dataclass(frozen=True)
class Enclosure:
    """Float64 numbers with bounds of their distance from the exact numbers.

    Attributes:
        value: The numbers, of any shape.
        error: Bounds of |exact - value|, of the same shape.
    """

    value: np.ndarray
    error: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Upper bounds of the exact numbers' absolute values; infinite if the value is NaN."""
        bound = (np.abs(self.value) + self.error) * (1.0 + 4.0 * UNIT_ROUNDOFF)
        return np.where(np.isnan(bound), np.inf, bound)


def stored(values: Any, dtype: str) -> Enclosure:
    """Return an enclosure of numbers before and after rounding to a dtype, whose denormals may be set to zero."""
    given = np.asarray(values)
    exact = given.astype(np.float64)
    with np.errstate(over="ignore"):
        rounded = exact.astype(dtype).astype(np.float64)
    rounded = np.where(np.abs(rounded) < np.finfo(dtype).tiny, 0.0, rounded)
    error = np.abs(exact - rounded)
    if given.dtype.kind in "iu":  # float64 itself rounds large integers
        error = error + 2.0 * UNIT_ROUNDOFF * np.abs(exact)
    return Enclosure(exact, error)


def through_dense(x: Enclosure, kernel: Enclosure, bias: Enclosure | None) -> Enclosure:
    """Return an enclosure of x W + b, for x (rows, n), a kernel W (n, units), and b (units,) or None."""
    num_terms = len(kernel.value)
    size, weight = x.size, kernel.size
    slack = 4.0 * (num_terms + 4) * UNIT_ROUNDOFF
    value = x.value @ kernel.value
    error = (x.error + slack * size + SMALLEST) @ weight + size @ kernel.error + 4.0 * num_terms * SMALLEST
    if bias is not None:
        value = value + bias.value
        error = error + bias.error + 4.0 * UNIT_ROUNDOFF * np.abs(bias.value)
    return Enclosure(value, error)


def through_relu(x: Enclosure, slope: float) -> Enclosure:
    """Return an enclosure of a (leaky) ReLU whose slope, |slope| <= 1, TensorFlow may round to float32."""
    inexact = abs(slope - float(np.float32(slope))) + 4.0 * UNIT_ROUNDOFF * abs(slope)
    return Enclosure(np.where(x.value > 0, x.value, slope * x.value), x.error + inexact * x.size + SMALLEST)


def difference(x: Enclosure, y: Enclosure) -> Enclosure:
    """Return an enclosure of x - y, of shapes that broadcast."""
    value = x.value - y.value
    return Enclosure(value, x.error + y.error + 4.0 * UNIT_ROUNDOFF * (np.abs(value) + x.error + y.error))


def sum_of_squares(x: Enclosure, axis: int | None = None) -> np.ndarray:
    """Return upper bounds of sums of squares; a square that underflows counts as the smallest normal number."""
    size = x.size
    squares = np.where(size > 0, np.maximum(size * size, SMALLEST), 0.0)
    num_terms = squares.size if axis is None else squares.shape[axis]
    return np.sum(squares, axis=axis) * (1.0 + 4.0 * (num_terms + 8) * UNIT_ROUNDOFF)


def largest_row_norm(x: Enclosure) -> float:
    """Return an upper bound of the largest norm of a row of an array of shape (rows, ...)."""
    rows = Enclosure(*(part.reshape(len(part), -1) for part in (x.value, x.error)))
    return float(np.sqrt(sum_of_squares(rows, axis=1).max()) * (1.0 + 4.0 * UNIT_ROUNDOFF))


def spectral_norm(matrix: Enclosure) -> float:
    """Return an upper bound of the largest singular value of a finite matrix."""
    # LAPACK's largest singular value has a relative error of a few times epsilon times the larger dimension. It is
    # raised by `SINGULAR_VALUE_MARGIN` times that dimension. The matrix is scaled by a power of two, which rounds
    # nothing, so that no square inside LAPACK overflows or underflows.
    exponent = int(np.frexp(np.abs(matrix.value).max())[1])
    norm = np.linalg.norm(np.ldexp(matrix.value, -exponent), 2)
    norm *= 1.0 + SINGULAR_VALUE_MARGIN * max(matrix.value.shape)
    shift = np.sqrt(sum_of_squares(Enclosure(matrix.error, np.zeros_like(matrix.error))))
    return float((np.ldexp(norm, exponent) + shift) * (1.0 + 4.0 * UNIT_ROUNDOFF))
