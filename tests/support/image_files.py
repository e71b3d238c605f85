"""Small image sets in files of the true format."""

import struct

import numpy as np

from tfopt.datasets import images
from tfopt.datasets.cifar import CIFAR

NUM_TEST = 100


def write_small_image_set(name, folder, monkeypatch, num_train=300):
    """Write images whose brightness tells their class, and expect as many rows of the set."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(images, "_NUM_TRAIN_ROWS", {**images._NUM_TRAIN_ROWS, name: num_train})
    monkeypatch.setattr(images, "_NUM_TEST_ROWS", NUM_TEST)
    for part, count in (("train", num_train), ("test", NUM_TEST)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        labels[:10] = images._FIRST_LABELS.get(name, labels[:10])
        shape = (32, 32, 3) if name == "cifar10" else (28, 28)
        pixels = 20 * labels.reshape(-1, *[1] * len(shape)) + rng.integers(0, 30, (count, *shape), dtype=np.uint8)
        (write_cifar if name == "cifar10" else write_idx)(folder, part, pixels, labels)


def write_idx(folder, part, pixels, labels):
    """Write the two IDX files of a part."""
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        header = struct.pack(f">I{array.ndim}I", 2048 + array.ndim, *array.shape)
        spelling = {"train": "train", "test": "t10k"}[part]
        (folder / f"{spelling}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_cifar(folder, part, pixels, labels):
    """Write the files of a part of CIFAR-10's binary version: a label and then the channels of each image."""
    rows = np.hstack([labels[:, None], pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)])
    files = getattr(CIFAR["cifar10"], part)
    for file, content in zip(files, np.array_split(rows, len(files)), strict=True):
        (folder / file).write_bytes(content.tobytes())
