"""The image sets of `keras.datasets`, read from Keras's download folder and checked, because Keras checks little."""

import gzip
import http.client
import os
from pathlib import Path

import numpy as np

# These files are in the download folder after `keras.datasets` has loaded a set.
_FILES = {
    "mnist": "mnist.npz",
    "fashion_mnist": "the folder fashion-mnist with its four files *-ubyte.gz",
    "cifar10": "cifar-10-python.tar.gz under the name cifar-10-batches-py-target_archive",
    "cifar100": "cifar-100-python.tar.gz under the name cifar-100-python-target_archive",
}
_NUM_TEST_ROWS = 10_000
_NUM_TRAIN_ROWS = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


def read_keras_images(name: str, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x (n, height, width, channels) float32 in [0, 1] and y (n,) int64 for training, then for testing."""
    import keras

    folder = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"
    put = f"Put {_FILES[name]} into {folder}, as keras.datasets.{name}.load_data() leaves it on a machine with access"
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # a damaged array or pickle raises errors of many kinds
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
                f"{name!r} is damaged or cut off on disk: its {part} part must have {expected:,} images, and as many "
                f"labels below {num_classes}. Received: {found}. {put} to the internet."
            )
    return (*_scaled(*train), *_scaled(*test))


def _is_of_files_that_are_missing(error: Exception) -> bool:
    """Return whether an error is of a download or of opening a file, and not of the content of a file."""
    if isinstance(error, gzip.BadGzipFile):
        return False
    # Keras raises a plain Exception if a download fails.
    return type(error) is Exception or isinstance(error, OSError | http.client.HTTPException)


def _scaled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float32) / 255.0
    return x[..., None] if x.ndim == 3 else x, y.ravel().astype(np.int64)
