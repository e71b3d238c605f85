"""CIFAR-10 and CIFAR-100 in their binary version: a row is one or two labels, then 3,072 bytes of an image.

An image is stored channel by channel, each channel row by row. CIFAR-100 has a coarse label before the fine one; the
fine one is used. The other version of these data sets is pickled, and reading a pickle runs code of whoever wrote it.
"""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """Where a data set is: its archive, the folder in it, files for training and testing, and labels in a row."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_labels: int
    url: str
    md5: str


_SITE = "https://www.cs.toronto.edu/~kriz/"
CIFAR = {
    "cifar10": Cifar(
        "cifar-10-binary.tar.gz",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{index}.bin" for index in range(1, 6)),
        ("test_batch.bin",),
        1,
        f"{_SITE}cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    ),
    "cifar100": Cifar(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        2,
        f"{_SITE}cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
    ),
}


def read_cifar(place: Path, files: tuple[str, ...], num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 32, 32, 3) and labels (n,), uint8, of files in a folder or in an archive `place`."""
    rows = np.concatenate([_rows(place, file, num_labels) for file in files])
    images = rows[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, rows[:, num_labels - 1]


def _rows(place: Path, file: str, num_labels: int) -> np.ndarray:
    content, size = _content(place, file), num_labels + _PIXELS
    if not content or len(content) % size:
        raise ValueError(
            f"{place}, {file} is damaged or cut off: its size must be a multiple of {size:,} bytes. Received: "
            f"{len(content):,} bytes"
        )
    return np.frombuffer(content, np.uint8).reshape(-1, size)


def _content(place: Path, file: str) -> bytes:
    if place.is_dir():
        return (place / file).read_bytes()
    try:
        with tarfile.open(place) as archive:
            member = next((one for one in archive if Path(one.name).name == file and one.isfile()), None)
            if member is not None and (opened := archive.extractfile(member)) is not None:
                return opened.read()
    except (EOFError, OSError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{place} is damaged or cut off: {error}") from error
    raise ValueError(f"{place} does not hold {file}")
