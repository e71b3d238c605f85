"""A small image set as the four IDX files of Fashion-MNIST."""

import struct

import numpy as np

from tfopt.datasets import images


def write_small_fashion_mnist(folder, monkeypatch, num_train=300, num_test=100):
    """Write images whose brightness tells their class, and expect as many rows of the set."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(images, "_NUM_TRAIN_ROWS", {**images._NUM_TRAIN_ROWS, "fashion_mnist": num_train})
    monkeypatch.setattr(images, "_NUM_TEST_ROWS", num_test)
    for part, count in (("train", num_train), ("t10k", num_test)):
        labels = rng.integers(0, 10, count).astype(np.uint8)
        labels[:10] = images._FIRST_LABELS["fashion_mnist"]
        pixels = 20 * labels[:, None, None] + rng.integers(0, 30, (count, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            header = struct.pack(f">I{array.ndim}I", 2048 + array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
