"""The steps of an algorithm along one direction of the quadratic: a small linear system, and its powers.

The code uses only `+` and `*`, so that entries can be NumPy arrays or tensors of any shape. None is an entry that is
always zero.
"""

from dataclasses import dataclass
from typing import Any

# An array, a tensor, a number, or None for zero.
Entry = Any
Vector = tuple[Entry, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True)
class LinearSystem:
    """z(t+1) = A z(t) + b e(t), with z(0) = s theta(0) and white noise e of unit variance.

    Attributes:
        matrix: A, for the state (theta), (theta, velocity), (theta, average) or (theta, velocity, average).
        noise: b.
        start: s.
        readout: Index of the component of z at which the loss is read.
    """

    matrix: Matrix
    noise: Vector
    start: Vector
    readout: int


def make_system(
    step: Entry, contraction: Entry, momentum: Entry | None, ema_decay: Entry | None, nesterov: bool
) -> LinearSystem:
    """Return an algorithm's steps along one direction as a linear system, with the noise of c / B = 1."""
    # With `step` a h^-p, x = a h^(1-p) and the velocity u' = beta u + x theta + e, the algorithms are
    # SGD: theta' = theta - x theta - e; heavy ball: theta' = theta - u';
    # Nesterov's momentum, as in Keras: theta' = theta - beta u' - x theta - e.
    # The average is avg' = gamma avg + (1 - gamma) theta'. A momentum or decay of None means none.
    x = contraction
    if momentum is None:
        rows: list[list[Entry]] = [[1.0 - x]]
        noise = [-step]
    elif nesterov:
        rows = [[1.0 - (1.0 + momentum) * x, -momentum * momentum], [x, momentum]]
        noise = [-(1.0 + momentum) * step, step]
    else:
        rows = [[1.0 - x, -momentum], [x, momentum]]
        noise = [-step, step]
    start: list[Entry] = [1.0] + [0.0] * (len(rows) - 1)
    if ema_decay is not None:
        average = [(1.0 - ema_decay) * entry for entry in rows[0]]
        rows = [[*row, None] for row in rows] + [[*average, ema_decay]]
        noise = [*noise, (1.0 - ema_decay) * noise[0]]
        start = [*start, 1.0]
    readout = 0 if ema_decay is None else len(rows) - 1
    return LinearSystem(tuple(map(tuple, rows)), tuple(noise), tuple(start), readout)


def multiply(left: Matrix, right: Matrix) -> Matrix:
    """Return the product of two matrices."""
    columns = tuple(zip(*right, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in left)


def apply(matrix: Matrix, vector: Vector) -> Vector:
    """Return the product of a matrix and a vector."""
    return tuple(_dot(row, vector) for row in matrix)


def outer(vector: Vector) -> Matrix:
    """Return the product of a vector and its transpose, a symmetric matrix."""
    return tuple(tuple(left * right for right in vector) for left in vector)


def add_noise(power: Matrix, gram: Matrix, later: Matrix) -> Matrix:
    """Return the second moment of the noise of s + t steps, G(s + t) = G(t) + A^t G(s) A^t'."""
    # `power` is A^t, `gram` is G(s) of the first s steps, and `later` is G(t) of the last t steps.
    # All terms of the diagonal are squares, so that nothing cancels.
    half = multiply(power, gram)
    size = len(power)
    upper = {(i, j): later[i][j] + _dot(half[i], power[j]) for i in range(size) for j in range(i, size)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(size)) for i in range(size))


def pack(matrix: Matrix) -> Vector:
    """Return the entries that are not always zero, row by row."""
    return tuple(entry for row in matrix for entry in row if entry is not None)


def unpack(entries: Vector, like: Matrix) -> Matrix:
    """Undo `pack`, for a matrix with None at the same indices as `like`."""
    remaining = iter(entries)
    return tuple(tuple(None if entry is None else next(remaining) for entry in row) for row in like)


def pack_symmetric(matrix: Matrix) -> Vector:
    """Return the entries on and above the diagonal, row by row."""
    return tuple(matrix[i][j] for i in range(len(matrix)) for j in range(i, len(matrix)))


def unpack_symmetric(entries: Vector) -> Matrix:
    """Undo `pack_symmetric`, of 1, 3 or 6 entries."""
    size = {1: 1, 3: 2, 6: 3}[len(entries)]
    remaining = iter(entries)
    upper = {(i, j): next(remaining) for i in range(size) for j in range(i, size)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(size)) for i in range(size))


def _dot(left: Vector, right: Vector) -> Entry:
    terms = [a * b for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return sum(terms[1:], terms[0]) if terms else None
