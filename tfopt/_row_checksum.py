"""Checksums that recognise arrays again without reading very large arrays completely."""

import zlib
from typing import Any

import keras
import numpy as np

_LARGEST = 2**26  # bytes of one array to read at most
_FEWEST = 64  # rows to read at least


def checksum_of(arrays: Any) -> int:
    """Return a checksum in [0, 2^32) of shape, dtype and rows (some rows if large) of an array or a nest of arrays."""
    # Each array has one row per sample: of NumPy or TensorFlow, convertible to NumPy, sparse or ragged.
    checksum = 0
    for array in keras.tree.flatten(arrays):
        checksum = _checksum_of_one(array, checksum)
    return checksum


def _checksum_of_one(array: Any, checksum: int) -> int:
    checksum = zlib.crc32(str(getattr(array, "shape", type(array).__name__)).encode(), checksum)
    for part in _dense_parts(array):
        rows = part[_row_indices(part)] if part.ndim else part
        checksum = zlib.crc32(f"{part.shape} {part.dtype}".encode(), checksum)
        content = str(rows.tolist()).encode() if rows.dtype.hasobject else np.ascontiguousarray(rows).tobytes()
        checksum = zlib.crc32(content, checksum)
    return checksum


def _row_indices(array: np.ndarray) -> Any:
    num_rows = len(array)
    if array.nbytes <= _LARGEST:
        return slice(None)
    number = min(num_rows, max(_FEWEST, _LARGEST * num_rows // array.nbytes))
    return np.linspace(0, num_rows - 1, number).astype(np.int64)


def _dense_parts(array: Any) -> list[np.ndarray]:
    names = (
        ("data", "indices", "indptr", "row", "col"),  # of SciPy's sparse matrices
        ("values", "indices"),  # of TensorFlow's sparse tensors
        ("flat_values", "nested_row_splits"),  # of TensorFlow's ragged tensors
    )
    if hasattr(array, "__array__"):
        return [np.asarray(array)]
    parts = next(
        (found for some in names if len(found := [getattr(array, n) for n in some if hasattr(array, n)]) > 1), []
    )
    flat = [item for part in parts for item in (part if isinstance(part, tuple | list) else [part])]
    return [np.asarray(item) for item in flat]
