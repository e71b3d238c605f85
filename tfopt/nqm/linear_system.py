"""What the algorithms do to one direction of the quadratic: a small linear system, and its powers.

Everything is written with `+` and `*` alone, so that the entries can be NumPy arrays or tensors of any shape. None is
an entry that is always zero.
"""

from dataclasses import dataclass
from typing import Any

Entry = Any  # an array, a tensor, a number, or None for zero
Vector = tuple[Entry, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True)
class LinearSystem:
    """z(t+1) = A z(t) + b e(t), with z(0) = s theta(0) and white noise e of unit variance.

    Attributes:
        matrix: A, for the state (theta), (theta, velocity), (theta, average) or (theta, velocity, average).
        noise: b.
        start: s.
        readout: Which component of z the loss is read at.
    """

    matrix: Matrix
    noise: Vector
    start: Vector
    readout: int


def make_system(
    step: Entry, contraction: Entry, momentum: Entry | None, ema_decay: Entry | None, nesterov: bool
) -> LinearSystem:
    """Write an algorithm's steps along one direction as a linear system.

    With x = a h^(1-p), the gradient's change of theta, and velocity u' = beta u + x theta + e:
    SGD theta' = theta - x theta - e; heavy ball theta' = theta - u'; Nesterov's, as Keras has it,
    theta' = theta - beta u' - x theta - e. The average is avg' = gamma avg + (1 - gamma) theta'.

    Args:
        step: a h^-p, which multiplies the gradient.
        contraction: x = a h^(1-p).
        momentum: beta; None for plain SGD.
        ema_decay: gamma; None for no average.
        nesterov: Whether momentum is Nesterov's.

    Returns:
        The system; the noise is that of one direction with c / B = 1.
    """
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
    """Return a product of matrices.

    Args:
        left: The left factor.
        right: The right factor.

    Returns:
        The product.
    """
    columns = tuple(zip(*right, strict=True))
    return tuple(tuple(_dot(row, column) for column in columns) for row in left)


def apply(matrix: Matrix, vector: Vector) -> Vector:
    """Return a matrix times a vector.

    Args:
        matrix: The matrix.
        vector: The vector.

    Returns:
        The product.
    """
    return tuple(_dot(row, vector) for row in matrix)


def outer(vector: Vector) -> Matrix:
    """Return a vector times its transpose.

    Args:
        vector: The vector.

    Returns:
        A symmetric matrix.
    """
    return tuple(tuple(left * right for right in vector) for left in vector)


def add_noise(power: Matrix, gram: Matrix, later: Matrix) -> Matrix:
    """Return the second moment of the noise of s + t steps, G(s + t) = G(t) + A^t G(s) A^t'.

    All terms of the diagonal are squares, so nothing cancels.

    Args:
        power: A^t.
        gram: G(s), of the noise of the first s steps.
        later: G(t), of the noise of the last t steps.

    Returns:
        G(s + t).
    """
    half = multiply(power, gram)
    size = len(power)
    upper = {(i, j): later[i][j] + _dot(half[i], power[j]) for i in range(size) for j in range(i, size)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(size)) for i in range(size))


def pack(matrix: Matrix) -> Vector:
    """List the entries that are not always zero.

    Args:
        matrix: The matrix.

    Returns:
        Its entries, row by row.
    """
    return tuple(entry for row in matrix for entry in row if entry is not None)


def unpack(entries: Vector, like: Matrix) -> Matrix:
    """Undo `pack`.

    Args:
        entries: The entries.
        like: A matrix with None at the same places.

    Returns:
        The matrix.
    """
    remaining = iter(entries)
    return tuple(tuple(None if entry is None else next(remaining) for entry in row) for row in like)


def pack_symmetric(matrix: Matrix) -> Vector:
    """List the entries on and above the diagonal.

    Args:
        matrix: A symmetric matrix.

    Returns:
        Its entries, row by row.
    """
    return tuple(matrix[i][j] for i in range(len(matrix)) for j in range(i, len(matrix)))


def unpack_symmetric(entries: Vector) -> Matrix:
    """Undo `pack_symmetric`.

    Args:
        entries: 1, 3 or 6 entries.

    Returns:
        The matrix.
    """
    size = {1: 1, 3: 2, 6: 3}[len(entries)]
    remaining = iter(entries)
    upper = {(i, j): next(remaining) for i in range(size) for j in range(i, size)}
    return tuple(tuple(upper[min(i, j), max(i, j)] for j in range(size)) for i in range(size))


def _dot(left: Vector, right: Vector) -> Entry:
    terms = [a * b for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return sum(terms[1:], terms[0]) if terms else None
