"""IDX files, the format of MNIST: a magic number, the size of each dimension, and one byte per value.

The magic number has four bytes: 0, 0, the type of the values (8 for unsigned bytes) and the number of dimensions. Sizes
are big-endian integers of four bytes.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

_UNSIGNED_BYTES = 8


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes, compressed or not, with `num_dimensions` dimensions."""
    content = _read(path)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with the bytes {content[:4].hex(' ')!r}")
    kind, found = content[2], content[3]
    if kind != _UNSIGNED_BYTES or found != num_dimensions:
        raise ValueError(
            f"{path} must hold {'labels' if num_dimensions == 1 else 'images'}: unsigned bytes (type 8) in "
            f"{num_dimensions} dimension(s). Received: values of type {kind} in {found} dimension(s)"
        )
    start = 4 + 4 * num_dimensions
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    expected = start + math.prod(shape)
    if len(content) < start or len(content) != expected:
        raise ValueError(
            f"{path} is damaged or cut off: its header says {shape}, thus {expected:,} bytes. Received: "
            f"{len(content):,} bytes"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
