"""Vectors in float64 whose entries are computed block by block, without arrays as large as the vector."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

BLOCK = 2**15  # entries: three blocks fit into the second-level cache


class Parts:
    """A vector, from arrays or tensors of any shapes; operations are entry by entry."""

    # Sums of whole vectors would allocate arrays as large as the model, and leave the cache.
    def __init__(self, arrays: Sequence[Any]) -> None:
        flat = [np.asarray(array).reshape(-1) for array in arrays]  # a view of a tensor in this machine's memory
        self.size = sum(array.size for array in flat)
        self._blocks: Callable[[], Iterator[np.ndarray]] = lambda: (
            array[start : start + BLOCK].astype(np.float64, copy=False)
            for array in flat
            for start in range(0, array.size, BLOCK)
        )

    def __add__(self, other: "Parts") -> "Parts":
        return self._made(lambda: (a + b for a, b in self._pairs(other)))

    def __sub__(self, other: "Parts") -> "Parts":
        return self._made(lambda: (a - b for a, b in self._pairs(other)))

    def __mul__(self, other: "Parts") -> "Parts":
        return self._made(lambda: (a * b for a, b in self._pairs(other)))

    def __abs__(self) -> "Parts":
        return self._made(lambda: map(np.abs, self._blocks()))

    def __matmul__(self, other: "Parts") -> float:
        # The threads of a linear algebra library, woken for a short product, take longer.
        return float(sum(np.einsum("i,i->", a, b) for a, b in self._pairs(other)))

    def times(self, number: float) -> "Parts":
        """Return the vector times a number."""
        return self._made(lambda: (number * block for block in self._blocks()))

    @property
    def length(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(sum(float(np.einsum("i,i->", block, block)) for block in self._blocks()))

    @property
    def is_finite(self) -> bool:
        """Whether all entries are finite."""
        return all(bool(np.isfinite(block).all()) for block in self._blocks())

    def any(self) -> bool:
        """Return whether an entry is not zero."""
        return any(bool(block.any()) for block in self._blocks())

    def sum(self) -> float:
        """Return the sum of all entries."""
        return float(sum(block.sum() for block in self._blocks()))

    def _made(self, blocks: Callable[[], Iterator[np.ndarray]]) -> "Parts":
        made = Parts([])
        made.size, made._blocks = self.size, blocks
        return made

    def _pairs(self, other: "Parts") -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return zip(self._blocks(), other._blocks(), strict=True)
