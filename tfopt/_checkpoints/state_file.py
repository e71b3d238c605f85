"""Nested state (dictionaries, lists, numbers, strings, arrays) in one file, which is complete or refused."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_COLLECTIONS: dict[str, Any] = {"__tuple__": tuple, "__set__": set, "__frozenset__": frozenset}
_MARKS = ("__array__", "__objects__", "__bytes__", "__complex__", "__items__", "__deque__", *_COLLECTIONS)
_SEAL = b"tfopt2 sha256 "  # precedes the checksum at the end of each file; 2 is the version of the format
_FULL = (errno.ENOSPC, errno.EDQUOT)
PARTIAL = ".partial"  # end of the name of a file while it is written


class DamagedFileError(Exception):
    """The file is damaged."""


class NotWrittenError(OSError):
    """The file was not written. A file that was there before is unchanged."""


class NoRoomError(NotWrittenError):
    """There is not enough space for the file."""


def write(path: Path, state: Any) -> None:
    """Write a state as NumPy's `.npz` plus its SHA-256 checksum, under another name until it is safely on disk."""
    # A state has numbers, strings, bytes, booleans, None, arrays and tensors (which `read` returns as arrays), and
    # dictionaries, lists, tuples, sets and deques of these.
    arrays: dict[str, np.ndarray] = {}
    text = np.frombuffer(json.dumps(_pack(state, arrays)).encode(), np.uint8)
    with _replacing(path, 0o600, sum(array.nbytes for array in arrays.values()) + text.nbytes) as stream:
        np.savez(stream, __state__=text, **arrays)  # type: ignore[arg-type]
        stream.write(_seal_of(stream, stream.seek(0, os.SEEK_END)))


def check(state: Any) -> None:
    """Raise TypeError if `write` cannot write this state."""
    _pack(state, {})


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream for a file with default permissions, which is renamed to `path` when it is safely on disk."""
    with _replacing(path, 0o666, 0) as stream:
        yield stream


@contextlib.contextmanager
def _replacing(path: Path, mode: int, num_bytes: int) -> Iterator[BinaryIO]:
    # The name cannot be guessed, so nobody can put a link there; if a file or link has this name, `open` fails.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), mode)
    except OSError as error:
        raise _not_written(path, num_bytes, error) from error
    try:
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise _not_written(path, num_bytes, error) from error
        raise
    _sync_folder(path.parent)


def _not_written(path: Path, num_bytes: int, error: OSError) -> NotWrittenError:
    kind, needed = NotWrittenError, f" {num_bytes} bytes are needed," if num_bytes else ""
    advice = "Free space, or choose another folder"
    if error.errno in _FULL:
        kind = NoRoomError
        free = shutil.disk_usage(path.parent).free
        why = f"The disk or quota of {path.parent} is full:{needed} {free} bytes are free there."
    elif error.errno == errno.EFBIG:
        kind, advice = NoRoomError, "Raise the limit (`ulimit -f`), or choose another folder"
        why = f"A file in {path.parent} is too large for this process:{needed} and the limit is lower."
    elif not path.parent.is_dir():
        why, advice = f"The folder {path.parent} no longer exists.", "Keep it while a program writes there"
    elif path.is_dir():
        why, advice = f"{path} is a directory.", "Move it elsewhere"
    else:
        why, advice = f"{path.parent} cannot be written: {error}.", "Choose another folder"
    return kind(error.errno, f"{why} {path.name} was not written, and earlier files are unchanged. {advice}")


def _sync_folder(folder: Path) -> None:
    # The new name must be on the disk too. Some file systems do not support this for folders.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> Any:
    """Return the state that `write` has written, with the same dtypes, after a comparison of the checksum."""
    try:
        with path.open("rb") as stream:
            if not _has_right_seal(stream):
                raise DamagedFileError(
                    "its checksum is missing or wrong: it was cut off or changed, or has another format"
                )
            with np.load(stream, allow_pickle=False) as arrays:
                contents = {name: arrays[name] for name in arrays.files}
        return _unpack(json.loads(contents["__state__"].tobytes().decode()), contents)
    except Exception as error:  # of any kind: `write` has not written this content
        raise DamagedFileError(f"{path}: {error}") from error


def _has_right_seal(stream: BinaryIO) -> bool:
    # This compares the checksum at the end of a file with its content, and then rewinds the stream.
    length = max(0, stream.seek(0, os.SEEK_END) - len(_SEAL) - hashlib.sha256().digest_size)
    stream.seek(length)
    is_right = stream.read() == _seal_of(stream, length)
    stream.seek(0)
    return is_right


def _seal_of(stream: BinaryIO, length: int) -> bytes:
    """Return the bytes that must follow the first `length` bytes of a file; the stream is then behind these."""
    digest = hashlib.sha256()
    stream.seek(0)
    while length > 0 and (block := stream.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return _SEAL + digest.digest()


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    # JSON holds numbers, strings, lists and dictionaries with string keys. Every other type gets a mark. The bytes of
    # arrays are stored separately.
    if value is None or isinstance(value, bool | int | float | str):
        return value if not isinstance(value, np.generic) else _pack(np.asarray(value), arrays)
    if isinstance(value, list):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in _MARKS for key in value):
            return {key: _pack_under(key, item, arrays) for key, item in value.items()}
        return {"__items__": [[_pack(key, arrays), _pack(item, arrays)] for key, item in value.items()]}
    if isinstance(value, deque):
        return {"__deque__": [[_pack(item, arrays) for item in value], value.maxlen]}
    for mark, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return {mark: [_pack(item, arrays) for item in value]}
    if isinstance(value, complex):
        return {"__complex__": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"__bytes__": _pack(np.frombuffer(value, np.uint8), arrays)}
    if hasattr(value, "__array__") and not isinstance(value, type):  # arrays of NumPy, and tensors
        return _pack_array(value, arrays)
    raise TypeError(f"A checkpoint cannot hold {value!r} of type {type(value).__name__}")


def _pack_under(key: str, value: Any, arrays: dict[str, np.ndarray]) -> Any:
    try:
        return _pack(value, arrays)
    except TypeError as error:
        raise TypeError(f"{error}, under {key!r}") from error


def _pack_array(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    try:
        array = np.asarray(value)
    except Exception as error:  # for example, of a tensor that has no value
        raise TypeError(f"A checkpoint cannot hold {value!r} of type {type(value).__name__}") from error
    if array.dtype.names or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"A checkpoint cannot hold an array of type {type(value).__name__} and dtype {array.dtype}")
    if array.dtype.hasobject:
        return {"__objects__": [[_pack(item, arrays) for item in array.ravel().tolist()], list(array.shape)]}
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    name = f"array{len(arrays)}"
    arrays[name] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    # `dtype.name` lacks the length of text and the unit of times; `dtype.str` does not tell bfloat16 from raw bytes.
    dtype = array.dtype.str if array.dtype.kind in "SUmM" else array.dtype.name
    return {"__array__": [name, dtype, list(array.shape)]}


def _unpack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next((mark for mark in _MARKS if mark in value), None)
    if mark is None:
        return {key: _unpack(item, arrays) for key, item in value.items()}
    content = value[mark]
    if mark == "__array__":
        name, dtype, shape = content
        array = arrays[name].view(np.dtype(dtype)).reshape(shape)
        return array if shape else array[()]
    content = _unpack(content, arrays)
    if mark == "__items__":
        return dict(content)
    if mark == "__deque__":
        return deque(content[0], maxlen=content[1])
    if mark == "__complex__":
        return complex(*content)
    if mark == "__bytes__":
        return content.tobytes()
    if mark == "__objects__":
        array = np.empty(len(content[0]), object)
        array[:] = content[0]
        return array.reshape(content[1])
    return _COLLECTIONS[mark](content)
