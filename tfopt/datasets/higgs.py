"""The HIGGS data set, parsed from its text file once and cached as an array that maps into memory."""

import gzip
import itertools
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfopt._progress import Progress
from tfopt.datasets.dataset import Raw

_NUM_FEATURES = 28
_NUM_TEST_ROWS = 500_000  # by convention the last rows of HIGGS.csv are the test set
_FEWEST_ROWS = 8
_CHUNK_ROWS = 200_000
_LAST_BYTES = 10_000  # read at the end of a text file; no row is longer
_EXPECTED = f"expected a label 0 or 1 and {_NUM_FEATURES} finite numbers"
# Without `header=None` or `header=False` pandas writes the numbers of the columns, which look like a row.
_HEADER = "the numbers of the columns, as pandas writes them. Delete this row, or write the file with header=False"


def read_higgs(data_dir: Path | None, num_rows: int | None) -> tuple[Raw, Raw]:
    """Return `num_rows` (None: all) training rows of 28 features, and the test rows, mapped from the cached file."""
    # `data_dir` holds HIGGS.csv or HIGGS.csv.gz (the newer one is used) and the cache, HIGGS.npy, which is rebuilt when
    # the text is newer. The last 500,000 rows are for testing; in a shorter file, the last quarter.
    folder = data_dir if data_dir is not None else Path.home() / ".tfopt" / "datasets"
    cache = folder / "HIGGS.npy"
    sources = [path for path in (folder / "HIGGS.csv", folder / "HIGGS.csv.gz") if path.exists()]
    if not sources and not cache.exists():
        raise FileNotFoundError(
            f"'higgs' needs HIGGS.csv or HIGGS.csv.gz in {folder}: 11,000,000 rows of a label and 28 features, "
            "from the UCI Machine Learning Repository (data set HIGGS). Put the file there, pass `data_dir=`, or use "
            "'higgs_like'."
        )
    source = max(sources, key=lambda path: path.stat().st_mtime, default=None)
    is_new = source is not None and (not cache.exists() or cache.stat().st_mtime < source.stat().st_mtime)
    if source is not None and is_new:
        _parse_higgs(source, cache)
    rows = _open_cache(cache)
    if source is not None and not is_new:
        _check_is_of(rows, source, cache)
    num_test = min(_NUM_TEST_ROWS, len(rows) // 4)
    train = rows[: len(rows) - num_test]
    if num_rows is not None and num_rows > len(train):
        raise ValueError(f"`num_rows` must be at most the {len(train):,} training rows. Received: num_rows={num_rows}")
    return _checked_rows(rows, 0, len(train[:num_rows]), cache), _checked_rows(rows, len(train), len(rows), cache)


def _open_cache(cache: Path) -> np.ndarray:
    advice = "Delete it: it is rebuilt from HIGGS.csv or HIGGS.csv.gz"
    try:
        rows = np.load(cache, mmap_mode="r")
    except PermissionError:
        raise
    except Exception as error:  # NumPy raises errors of many kinds for a damaged header
        raise ValueError(f"{cache} is damaged ({type(error).__name__}: {error}). {advice}") from error
    if not isinstance(rows, np.memmap):
        raise ValueError(f"{cache} must hold one array. Received: a {type(rows).__name__}. {advice}")
    if rows.ndim != 2 or rows.shape[1] != _NUM_FEATURES + 1 or len(rows) < _FEWEST_ROWS or rows.dtype != np.float32:
        raise ValueError(
            f"{cache} must hold {_FEWEST_ROWS} or more rows of {_NUM_FEATURES + 1} float32 numbers, a label and "
            f"{_NUM_FEATURES} features. Received: an array of shape {rows.shape} and dtype {rows.dtype}. {advice}"
        )
    expected, found = rows.offset + rows.nbytes, cache.stat().st_size
    if found != expected:
        raise ValueError(f"{cache} is damaged: it has {found:,} bytes, and its header says {expected:,}. {advice}")
    return rows


def _check_is_of(rows: np.ndarray, source: Path, cache: Path) -> None:
    """Check that a cache begins like the text file beside it and, if the text is not compressed, ends like it.

    Raises:
        ValueError: The rows differ, so the cache was made from another file.
    """
    first = next(_read_chunks(source, _FEWEST_ROWS), np.empty((0, _NUM_FEATURES + 1), np.float32))
    is_same = np.array_equal(rows[: len(first)], first)
    if is_same and source.suffix != ".gz":
        with source.open("rb") as text:
            text.seek(max(source.stat().st_size - _LAST_BYTES, 0))
            last = text.read().decode("ascii", errors="replace").rstrip().splitlines()[-1:]
        is_same = np.array_equal(rows[-1:], _parse_rows(last, source, len(rows)))
    if not is_same:
        raise ValueError(
            f"{cache} was not made from {source.name} beside it: their rows differ. Delete one of the two files"
        )


def _checked_rows(rows: np.ndarray, start: int, stop: int, cache: Path) -> Raw:
    """Return rows start to stop with the features still mapped from the file; refuse bad rows by number."""
    y = np.empty(stop - start, np.int64)
    for first in range(start, stop, _CHUNK_ROWS):
        chunk = rows[first : min(first + _CHUNK_ROWS, stop)]
        if first == 0 and _is_header(chunk[0]):
            raise ValueError(f"{cache}, row 1: {_EXPECTED}. Received: {_HEADER}")
        bad = _bad_rows(chunk)
        if bad.any():
            raise ValueError(
                f"{cache}, row {first + 1 + int(np.argmax(bad)):,}: {_EXPECTED}. Delete the file: it is rebuilt from "
                "HIGGS.csv or HIGGS.csv.gz"
            )
        y[first - start : first - start + len(chunk)] = chunk[:, 0]
    return Raw(rows[start:stop, 1:], y)


def _is_header(row: np.ndarray) -> bool:
    return bool((np.diff(row) == 1).all())


def _bad_rows(rows: np.ndarray) -> np.ndarray:
    return ~np.isfinite(rows).all(axis=1) | ~np.isin(rows[:, 0], (0.0, 1.0))


def _parse_higgs(source: Path, cache: Path, chunk_rows: int = _CHUNK_ROWS) -> None:
    """Stream the text into a .npy file, which is written under another name and renamed when it is complete."""
    columns, title = _NUM_FEATURES + 1, f"reading {source.name} once"
    with tempfile.TemporaryDirectory(dir=cache.parent) as scratch, Progress(title, None) as bar:
        raw, num_rows = Path(scratch) / "rows", 0
        with raw.open("wb") as sink:
            for rows in _read_chunks(source, chunk_rows):
                sink.write(rows.tobytes())
                num_rows += len(rows)
                bar.show(f"{num_rows:,} of 11,000,000 rows")
        if num_rows < _FEWEST_ROWS:
            raise ValueError(f"{source} holds {num_rows} rows; expected the 11,000,000 of HIGGS, or a part of them")
        complete = Path(scratch) / "HIGGS.npy"
        target = np.lib.format.open_memmap(complete, mode="w+", dtype=np.float32, shape=(num_rows, columns))
        written = np.memmap(raw, dtype=np.float32, mode="r", shape=(num_rows, columns))
        for start in range(0, num_rows, chunk_rows):
            target[start : start + chunk_rows] = written[start : start + chunk_rows]
        target.flush()
        os.replace(complete, cache)


def _read_chunks(source: Path, chunk_rows: int) -> Iterator[np.ndarray]:
    """Yield the rows in order, in arrays of shape (chunk_rows or fewer, 29), after checking them."""
    first_row, lines = 1, _read_lines(source)
    while chunk := list(itertools.islice(lines, chunk_rows)):
        yield _parse_rows(chunk, source, first_row)
        first_row += len(chunk)
        if not chunk[-1].endswith("\n"):  # the last number may be cut off, and a shorter number is valid too
            raise ValueError(
                f"{source} is damaged or cut off: row {first_row - 1:,} has no line break at its end. If the file is "
                "complete, add a line break"
            )


def _read_lines(source: Path) -> Iterator[str]:
    """Yield the lines with their line breaks, without blank lines at the end of the file."""
    num_blank = 0
    with gzip.open(source, "rt") if source.suffix == ".gz" else source.open() as lines:
        try:
            for line in lines:
                if line.isspace():
                    num_blank += 1
                    continue
                yield from itertools.repeat("\n", num_blank)
                num_blank = 0
                yield line
        except (EOFError, OSError, UnicodeDecodeError, zlib.error) as error:
            raise ValueError(f"{source} is damaged or cut off: {error}") from error


def _parse_rows(lines: list[str], source: Path, first_row: int) -> np.ndarray:
    expected = f"{_EXPECTED}, separated by commas"
    for index, line in enumerate(lines):
        if line.count(",") != _NUM_FEATURES:
            raise ValueError(f"{source}, row {first_row + index:,}: {expected}. Received: {line[:80]!r}")
    try:
        rows = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2, comments=None)
    except ValueError as error:
        raise ValueError(f"{source}, rows from {first_row:,} on: {expected}. {error}") from error
    if first_row == 1 and _is_header(rows[0]):
        raise ValueError(f"{source}, row 1: {expected}. Received: {_HEADER}")
    bad = _bad_rows(rows)
    if bad.any():
        raise ValueError(f"{source}, row {first_row + int(np.argmax(bad)):,}: {expected}")
    return rows
