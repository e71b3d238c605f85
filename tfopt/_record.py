"""Results that `save` writes to a file as JSON, and `load` reads back bit for bit."""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, Self

import numpy as np

from tfopt._checkpoints import state_file
from tfopt._checks import check_path

FORMAT = 1
_NAN = struct.pack(">d", math.nan).hex()


class Record:
    """A dataclass whose `save` and `load` keep every bit of its fields."""

    def save(self, path: Any) -> None:
        """Write the record to a file as JSON, either completely or not at all.

        Args:
            path: The file; an existing one is replaced.

        Raises:
            TypeError: `path` is no path, or the record holds an object that is neither a number, text, an array nor
                another record.
            ValueError: `path` is a folder, or its folder does not exist.
            OSError: The file cannot be written; an existing one is unchanged.
        """
        target = check_path("path", path)
        if target.is_dir() or not target.parent.is_dir():
            raise ValueError(f"`path` must be a file in an existing folder. Received: path={str(path)!r}")
        content = _to_text(_encode_content(self))
        head = f'{{"tfopt_record": {FORMAT},\n "class": "{type(self).__name__}",\n "sha256": "{_digest(content)}",\n'
        with state_file.replacing(target) as stream:
            stream.write(f'{head} "content": {content}}}\n'.encode())

    @classmethod
    def load(cls, path: Any) -> Self:
        """Read a record that `save` has written.

        Args:
            path: The file.

        Returns:
            A record with the same values, types, dtypes and shapes.

        Raises:
            TypeError: `path` is no path.
            ValueError: The file is damaged, was written by a newer version, or holds something else.
            FileNotFoundError: There is no such file.
        """
        source = check_path("path", path)
        if not source.is_file():
            raise FileNotFoundError(f"`path` must be a file that `save` has written. Received: path={str(path)!r}")
        try:
            return _read(cls, source.read_bytes())
        except ValueError as error:
            raise ValueError(f"{source} cannot be read as a {cls.__name__}: {error}") from error

    def _content(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]

    @classmethod
    def _from_content(cls, content: dict[str, Any]) -> Self:
        known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(content.keys() - known.keys())
        needed = (each for each in known.values() if each.default is MISSING and each.default_factory is MISSING)
        missing = sorted({each.name for each in needed} - content.keys())
        if unknown or missing:
            found = f"unknown: {', '.join(unknown) or 'none'}; missing: {', '.join(missing) or 'none'}"
            raise ValueError(f"its fields are not those of {cls.__name__}. Fields that are {found}")
        return cls(**content)


def _read(cls: type[Any], data: bytes) -> Any:
    try:
        parts = json.loads(data)
        version, checksum, content = (parts[key] for key in ("tfopt_record", "sha256", "content"))
        name = str(parts["class"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"it is damaged or cut off, or `save` has not written it ({error!r})") from error
    if version != FORMAT:
        raise ValueError(f"a newer version of tfopt has written it, in format {version!r}; this one reads {FORMAT}")
    kinds = {kind.__name__: kind for kind in _family_of(cls)}
    if name not in kinds:
        raise ValueError(f"it holds a {name}")
    found = _decode_content(kinds[name], content)
    if checksum != _digest(_to_text(content)):
        raise ValueError("it is damaged or was edited: its checksum differs")
    return found


def _family_of(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for part in kind.__subclasses__():
        yield from _family_of(part)


def _to_text(content: Any) -> str:
    return json.dumps(content, allow_nan=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _encode_content(record: Record) -> dict[str, Any]:
    found = {}
    for name, value in record._content().items():
        try:
            found[name] = _encode(value)
        except TypeError as error:
            raise TypeError(f"{type(record).__name__} cannot be saved, because of `{name}`: {error}") from error
    return found


def _decode_content(kind: type[Any], content: dict[str, Any]) -> Any:
    try:
        return kind._from_content({name: _decode(value) for name, value in content.items()})
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"it is damaged or was edited ({error!r})") from error


# JSON holds None, booleans, text, integers and finite numbers. Everything else is an object whose key begins with
# "$".
def _encode(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": _name_of(value)}
    if kind is list:
        return [_encode(item) for item in value]
    if kind is tuple:
        return {"$tuple": [_encode(item) for item in value]}
    if isinstance(value, Record):
        return {"$record": [kind.__name__, _encode_content(value)]}
    if isinstance(value, np.generic):
        return {"$scalar": _encode_array(np.asarray(value))}
    if kind is np.ndarray:
        return {"$array": _encode_array(value)}
    if kind is dict:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item) for key, item in value.items()}
        return {"$items": [[_encode(key), _encode(item)] for key, item in value.items()]}
    raise TypeError(f"no file can hold an object of type {kind.__name__}")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next(iter(value), "")
    if not mark.startswith("$"):
        return {key: _decode(item) for key, item in value.items()}
    part = value[mark]
    if mark == "$record":
        kinds = {kind.__name__: kind for kind in _family_of(Record)}
        return _decode_content(kinds[part[0]], part[1])
    if mark == "$items":
        return {_decode(key): _decode(item) for key, item in part}
    if mark == "$tuple":
        return tuple(map(_decode, part))
    if mark == "$float":
        return _number_of(part)
    array = _decode_array(*part)
    return {"$array": array, "$scalar": array[()]}[mark]


def _encode_array(array: np.ndarray) -> list[Any]:
    dtype = array.dtype
    is_float = "float" in dtype.name and dtype.itemsize <= 8  # NumPy has no kind for bfloat16
    if not (is_float or dtype.kind in "biuU"):
        raise TypeError(f"no file can hold an array of dtype {dtype}")
    values = (array.astype(np.float64) if is_float else array).ravel()
    listed = values.tolist()
    if is_float and not np.isfinite(values).all():
        listed = [number if math.isfinite(number) else _name_of(number) for number in listed]
    return [dtype.name if dtype.isnative and dtype.kind != "U" else dtype.str, list(array.shape), listed]


def _decode_array(dtype: str, shape: list[int], values: list[Any]) -> np.ndarray:
    kind = np.dtype(dtype)
    if "float" not in kind.name:
        return np.array(values, kind).reshape(shape)
    numbers = [_number_of(number) if isinstance(number, str) else number for number in values]
    return np.array(numbers, np.float64).astype(kind).reshape(shape)


def _name_of(number: float) -> str:
    if math.isnan(number):  # A NaN has a sign and a payload.
        bits = struct.pack(">d", number).hex()
        return "nan" if bits == _NAN else f"nan {bits}"
    return "inf" if number > 0 else "-inf"


def _number_of(name: str) -> float:
    if name.startswith("nan "):
        (number,) = struct.unpack(">d", bytes.fromhex(name.removeprefix("nan ")))
        return number
    return float(name)
