"""Nested state (dictionaries, lists, numbers, strings, arrays) in one file that is either whole or refused."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_MARKS = ("__array__", "__tuple__")
_SEAL = b"tfopt2 sha256 "  # before the checksum, at the end of each file; its number is that of the format
_FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL = ".partial"  # what the names of files end in that are being written


class DamagedFileError(Exception):
    """The file is not whole."""


class NoRoomError(OSError):
    """The disk is full; the file was not written."""


def write(path: Path, state: Any) -> None:
    """Write state to a file: first under another name, and renamed when it is safe on the disk.

    The file is NumPy's `.npz`, followed by the SHA-256 checksum of all of it.

    Args:
        path: Where to.
        state: Dictionaries with string keys, lists, tuples, arrays of numbers, numbers, strings, booleans, None.

    Raises:
        TypeError: It contains something else.
    """
    arrays: dict[str, np.ndarray] = {}
    text = np.frombuffer(json.dumps(_pack(state, arrays)).encode(), np.uint8)
    with _replacing(path, 0o600, sum(array.nbytes for array in arrays.values()) + text.nbytes) as stream:
        np.savez(stream, __state__=text, **arrays)  # type: ignore[arg-type]
        stream.write(_seal_of(stream, stream.seek(0, os.SEEK_END)))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under another name, which is renamed when all of it is safe on the disk.

    Args:
        path: The file. Its permissions are those that new files have.

    Yields:
        The stream to write to.

    Raises:
        NoRoomError: The disk is full.
    """
    with _replacing(path, 0o666, 0) as stream:
        yield stream


@contextlib.contextmanager
def _replacing(path: Path, mode: int, num_bytes: int) -> Iterator[BinaryIO]:
    # Nobody can guess the name and put a link there; and where there is a file or link of that name, this fails.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _FULL:
            raise _no_room(path, num_bytes, error) from error
        raise
    _sync_folder(path.parent)


def _no_room(path: Path, num_bytes: int, error: OSError) -> NoRoomError:
    needed = f" {num_bytes} bytes are needed," if num_bytes else ""
    free = shutil.disk_usage(path.parent).free
    return NoRoomError(
        error.errno,
        f"The disk or quota of {path.parent} is full:{needed} {free} bytes are free there. {path.name} was not "
        "written, and the files written before are as they were. Make room, or choose another folder",
    )


def _sync_folder(folder: Path) -> None:
    # The new name, too, must be on the disk. Some file systems cannot do this for folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> Any:
    """Read back what `write` has written, after its checksum has been compared.

    Args:
        path: The file.

    Returns:
        The state. Arrays have the dtypes that they had.

    Raises:
        DamagedFileError: The file was cut off or changed, is no file of this kind, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            if not _has_right_seal(stream):
                raise DamagedFileError("its checksum is missing or wrong: it was cut off or changed, or is another's")
            with np.load(stream, allow_pickle=False) as arrays:
                contents = {name: arrays[name] for name in arrays.files}
        return _unpack(json.loads(contents["__state__"].tobytes().decode()), contents)
    except Exception as error:  # whatever the content is, it is not what `write` has written
        raise DamagedFileError(f"{path}: {error}") from error


def _has_right_seal(stream: BinaryIO) -> bool:
    # Compares the checksum at the end of a file with its content, and goes back to the beginning.
    length = max(0, stream.seek(0, os.SEEK_END) - len(_SEAL) - hashlib.sha256().digest_size)
    stream.seek(length)
    is_right = stream.read() == _seal_of(stream, length)
    stream.seek(0)
    return is_right


def _seal_of(stream: BinaryIO, length: int) -> bytes:
    """Return what must stand behind the first bytes of a file; the stream is behind them afterwards."""
    digest = hashlib.sha256()
    stream.seek(0)
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return _SEAL + digest.digest()


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
