"""Checksums by which arrays are known again without reading very large ones as a whole."""

import zlib
from typing import Any

import keras
import numpy as np

_LARGEST = 2**26  # bytes of one array that are read
_FEWEST = 64  # rows


def checksum_of(arrays: Any) -> int:
    """Return a checksum of the shape, type and rows of arrays: of all rows, or of some where they are many.

    Args:
        arrays: An array of NumPy or TensorFlow, or what NumPy can make one of, with one row per sample; also sparse or
            ragged; or a tuple, list or dictionary of such.

    Returns:
        A number from 0 to 2^32 - 1.
    """
    checksum = 0
    for array in keras.tree.flatten(arrays):
        checksum = _checksum_of_one(array, checksum)
    return checksum


def _checksum_of_one(array: Any, checksum: int) -> int:
    checksum = zlib.crc32(str(getattr(array, "shape", type(array).__name__)).encode(), checksum)
    for part in _dense_parts(array):
        rows = part[_places(part)] if part.ndim else part
        checksum = zlib.crc32(f"{part.shape} {part.dtype}".encode(), checksum)
        content = str(rows.tolist()).encode() if rows.dtype.hasobject else np.ascontiguousarray(rows).tobytes()
        checksum = zlib.crc32(content, checksum)
    return checksum


def _places(array: np.ndarray) -> Any:
    num_rows = len(array)
    if array.nbytes <= _LARGEST:
        return slice(None)
    number = min(num_rows, max(_FEWEST, _LARGEST * num_rows // array.nbytes))
    return np.linspace(0, num_rows - 1, number).astype(np.int64)


def _dense_parts(array: Any) -> list[np.ndarray]:
    names = (
        ("data", "indices", "indptr", "row", "col"),  # SciPy's
        ("values", "indices"),  # TensorFlow's sparse ones
        ("flat_values", "nested_row_splits"),  # TensorFlow's ragged ones
    )
    if hasattr(array, "__array__"):
        return [np.asarray(array)]
    parts = next(
        (found for some in names if len(found := [getattr(array, n) for n in some if hasattr(array, n)]) > 1), []
    )
    flat = [item for part in parts for item in (part if isinstance(part, tuple | list) else [part])]
    return [np.asarray(item) for item in flat]
