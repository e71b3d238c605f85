"""The image sets of `keras.datasets`, read from its folder of downloads and checked: Keras checks little of them."""

import gzip
import http.client
import os
from pathlib import Path

import numpy as np

# What `keras.datasets` leaves in its folder of downloads.
_FILES = {
    "mnist": "mnist.npz",
    "fashion_mnist": "the folder fashion-mnist with its four files *-ubyte.gz",
    "cifar10": "cifar-10-python.tar.gz under the name cifar-10-batches-py-target_archive",
    "cifar100": "cifar-100-python.tar.gz under the name cifar-100-python-target_archive",
}
_NUM_TEST_ROWS = 10_000
_NUM_TRAIN_ROWS = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


def read_keras_images(name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read one of Keras's image sets; Keras downloads it if it is not there.

    Args:
        name: "mnist", "fashion_mnist", "cifar10" or "cifar100".
        num_classes: How many classes it has.

    Returns:
        Training inputs in [0, 1] with channels last, and labels; then those for testing.

    Raises:
        FileNotFoundError: The files are not there and cannot be downloaded.
        ValueError: Files are damaged, cut off, or hold something else.
    """
    import keras

    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    put = f"Put {_FILES[name]} into {folder}, as keras.datasets.{name}.load_data() leaves it on a machine with access"
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # of many kinds, where an array or a pickle is damaged
        if _is_of_files_that_are_missing(error):
            raise FileNotFoundError(
                f"{name!r} is not on disk and could not be downloaded ({error}). {put} to the internet."
            ) from error
        raise ValueError(
            f"{name!r} is damaged or cut off on disk ({type(error).__name__}: {error}). {put} to the internet."
        ) from error
    for part, (x, y), expected in (("training", train, _NUM_TRAIN_ROWS[name]), ("testing", test, _NUM_TEST_ROWS)):
        found = f"{len(x):,} images and {len(y):,} labels up to {max(y.max(initial=0), 0)}"
        if not len(x) == len(y) == expected or y.max() >= num_classes:
            raise ValueError(
                f"{name!r} is damaged or cut off on disk: its part for {part} must have {expected:,} images, and as "
                f"many labels below {num_classes}. Received: {found}. {put} to the internet."
            )
    return (*_scaled(*train), *_scaled(*test))


def _is_of_files_that_are_missing(error: Exception) -> bool:
    """Return whether an error is of a download, or of a file that cannot be opened, and not of what it holds."""
    if isinstance(error, gzip.BadGzipFile):
        return False
    return type(error) is Exception or isinstance(error, OSError | http.client.HTTPException)  # Keras raises the first


def _scaled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float32) / 255.0
    return x[..., None] if x.ndim == 3 else x, y.ravel().astype(np.int64)
