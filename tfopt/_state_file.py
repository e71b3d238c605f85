"""Nested state (dictionaries, lists, numbers, strings, arrays) in one file that is either whole or refused."""

import contextlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MARKS = ("__array__", "__tuple__")


class DamagedFileError(Exception):
    """The file is not whole."""


def write(path: Path, state: Any) -> None:
    """Write state to a file: first under another name, and renamed when it is safe on the disk.

    Args:
        path: Where to.
        state: Dictionaries with string keys, lists, tuples, arrays of numbers, numbers, strings, booleans, None.

    Raises:
        TypeError: It contains something else.
    """
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(_pack(state, arrays))
    with replacing(path) as stream:
        np.savez(stream, __state__=np.frombuffer(text.encode(), np.uint8), **arrays)  # type: ignore[arg-type]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under another name, which is renamed when all of it is safe on the disk.

    Args:
        path: The file.

    Yields:
        The stream to write to.
    """
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read(path: Path) -> Any:
    """Read back what `write` has written; checksums are compared.

    Args:
        path: The file.

    Returns:
        The state. Arrays have the dtypes that they had.

    Raises:
        DamagedFileError: The file was cut off or changed.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            contents = {name: arrays[name] for name in arrays.files}
        state = json.loads(contents["__state__"].tobytes().decode())
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError) as error:
        raise DamagedFileError(f"{path}: {error}") from error
    return _unpack(state, contents)


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    # JSON holds everything but arrays; these go aside, as bytes, with their dtype and shape in the text.
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject or value.dtype.kind in "SUmM" or value.dtype.names:
            raise TypeError(f"A checkpoint cannot hold an array of dtype {value.dtype}")
        value = value.astype(value.dtype.newbyteorder("="), copy=False)
        name = f"array{len(arrays)}"
        arrays[name] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        return {"__array__": [name, value.dtype.name, list(value.shape)]}
    if isinstance(value, tuple):
        return {"__tuple__": [_pack(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key not in _MARKS for key in value):
            raise TypeError(f"A checkpoint cannot hold a dictionary with the keys {list(value)}: they must be strings")
        return {key: _pack(item, arrays) for key, item in value.items()}
    if isinstance(value, np.generic):
        return _pack(np.asarray(value), arrays)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"A checkpoint cannot hold {value!r} of type {type(value).__name__}")


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if isinstance(value, dict):
        if "__array__" in value:
            name, dtype, shape = value["__array__"]
            array = arrays[name].view(np.dtype(dtype)).reshape(shape)
            return array if shape else array[()]
        if "__tuple__" in value:
            return tuple(_unpack(item, arrays) for item in value["__tuple__"])
        return {key: _unpack(item, arrays) for key, item in value.items()}
    return value
