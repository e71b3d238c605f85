"""The image sets, read from files that a user has or that were downloaded, and checked.

`mnist` and `fashion_mnist` are four IDX files or one .npz file, `cifar10` and `cifar100` the files of their binary
version, the archive of these files, or one .npz file. No file is unpickled.
"""

import http.client
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tfopt.datasets.cifar import CIFAR, read_cifar
from tfopt.datasets.dataset import Raw
from tfopt.datasets.idx import read_idx

_NUM_TEST_ROWS = 10_000
_NUM_TRAIN_ROWS = {"mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
# The two sets have files of the same names and sizes. Their first training labels tell them apart.
_FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
_NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # x_train, y_train, x_test, y_test


def read_images(name: str, num_classes: int, data_dir: Path | None) -> tuple[Raw, Raw]:
    """Return images (n, height, width, channels) uint8 and labels (n,) int64 for training, then for testing."""
    # Without a `data_dir` the default folders are searched, and what is missing is downloaded into Keras's folder.
    folders = [data_dir] if data_dir is not None else [Path.home() / ".tfopt" / "datasets", _keras_folder()]
    arrays = _read_first(name, folders)
    if arrays is None and data_dir is None:
        _download(name, folders)
        arrays = _read_first(name, folders)
    if arrays is None:
        raise FileNotFoundError(f"{name!r} is not in {folders[-1]}. {_advice(name, folders)}")
    for part, expected in (("train", _NUM_TRAIN_ROWS[name]), ("test", _NUM_TEST_ROWS)):
        _check(name, part, *arrays[:2] if part == "train" else arrays[2:], expected, num_classes)
    x_train, y_train, x_test, y_test = arrays
    _check_first_labels(name, y_train)
    return _raw(x_train, y_train), _raw(x_test, y_test)


def _raw(x: np.ndarray, y: np.ndarray) -> Raw:
    return Raw(x[..., None] if x.ndim == 3 else x, y.ravel().astype(np.int64), divisor=255.0)


def _keras_folder() -> Path:
    return Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets"


def _advice(name: str, folders: list[Path]) -> str:
    files = (
        f"{CIFAR[name].archive} (the binary version; pickled files are not read), or its folder {CIFAR[name].folder},"
        if name in CIFAR
        else "the four files {train,t10k}-{images-idx3,labels-idx1}-ubyte, compressed or not,"
    )
    return (
        f"Put {files} or {name}.npz (arrays {', '.join(_NPZ_KEYS)}) into {folders[0]}, or pass the folder that holds "
        "them as `data_dir=`"
    )


def _read_first(name: str, folders: list[Path]) -> Arrays | None:
    """Return the arrays from the first folder that has files of the set; None if no folder has any."""
    spellings = (name, name.replace("_", "-"))
    for folder in folders:
        for path in (folder / f"{spelling}.npz" for spelling in spellings):
            if path.is_file():
                return _read_npz(path)
        for place in (folder, *(folder / spelling for spelling in spellings)):
            found = _read_cifar(name, place) if name in CIFAR else _read_idx_files(place)
            if found is not None:
                return found
    return None


def _read_npz(path: Path) -> Arrays:
    try:
        # NumPy does not close a file that it cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            missing = [key for key in _NPZ_KEYS if key not in content]
            arrays = {key: content[key] for key in _NPZ_KEYS if key not in missing}
    except PermissionError:
        raise
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut off: {error}") from error
    if missing:
        raise ValueError(f"{path} must hold the arrays {', '.join(_NPZ_KEYS)}. Missing: {', '.join(missing)}")
    x_train, y_train, x_test, y_test = (arrays[key] for key in _NPZ_KEYS)
    return x_train, y_train, x_test, y_test


def _read_idx_files(folder: Path) -> Arrays | None:
    """Return the arrays of the four IDX files in a folder; None if it has none of them."""
    found: dict[str, Path | None] = {}
    for part in ("train", "t10k"):
        for stem in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            spellings = [f"{spelling}{end}" for spelling in (stem, stem.replace("-idx", ".idx")) for end in ("", ".gz")]
            found[stem] = next((folder / one for one in spellings if (folder / one).is_file()), None)
    missing = [stem for stem, path in found.items() if path is None]
    if len(missing) == len(found):
        return None
    if missing:
        raise FileNotFoundError(f"{folder} must hold four IDX files. Missing: {', '.join(missing)} (or .gz)")
    x_train, y_train, x_test, y_test = (
        read_idx(path, 3 if "images" in stem else 1) for stem, path in found.items() if path
    )
    return x_train, y_train, x_test, y_test


def _read_cifar(name: str, folder: Path) -> Arrays | None:
    """Return the arrays of a binary CIFAR in a folder or its archive; None if there is none."""
    cifar = CIFAR[name]
    files = (*cifar.train, *cifar.test)
    for place in (folder, folder / cifar.folder):
        missing = [file for file in files if not (place / file).is_file()]
        if 0 < len(missing) < len(files):
            raise FileNotFoundError(f"{place} must hold {len(files)} files. Missing: {', '.join(missing)}")
        if not missing:
            break
    else:
        place = folder / cifar.archive
        if not place.is_file():
            return None
    train, test = (read_cifar(place, part, cifar.num_labels) for part in (cifar.train, cifar.test))
    return (*train, *test)


def _download(name: str, folders: list[Path]) -> None:
    """Download the files of a set into Keras's folder."""
    import keras

    keras_folder = folders[-1]
    try:
        if name in CIFAR:
            cifar = CIFAR[name]
            keras_folder.mkdir(parents=True, exist_ok=True)  # else Keras would use another folder
            keras.utils.get_file(cifar.archive, cifar.url, file_hash=cifar.md5, cache_dir=str(keras_folder.parent))
        else:
            getattr(keras.datasets, name).load_data()
    except ValueError:  # Keras leaves a file of the wrong hash in its place, where it would be read the next time
        if name in CIFAR:
            (keras_folder / CIFAR[name].archive).unlink(missing_ok=True)
        raise
    except Exception as error:
        # Keras raises a plain Exception if a download fails.
        if type(error) is Exception or isinstance(error, OSError | http.client.HTTPException):
            raise FileNotFoundError(
                f"{name!r} is not on disk and could not be downloaded ({error}). {_advice(name, folders)}"
            ) from error
        raise


def _check(name: str, part: str, x: np.ndarray, y: np.ndarray, num_rows: int, num_classes: int) -> None:
    """Check the shapes, dtypes and values of one part, and its number of rows."""
    size = (32, 32, 3) if name in CIFAR else (28, 28)
    if x.shape[1:] not in (size, (*size, 1)) or x.dtype != np.uint8 or y.shape not in ((len(x),), (len(x), 1)):
        raise ValueError(
            f"{name!r} must have images of shape {size} of unsigned bytes, and a label for each. Received: x_{part} of "
            f"shape {x.shape} and dtype {x.dtype}, and y_{part} of shape {y.shape}"
        )
    if len(x) != num_rows or y.dtype.kind not in "iu" or y.min(initial=0) < 0 or y.max(initial=0) >= num_classes:
        found = f"{len(x):,} images and labels from {y.min(initial=0)} to {y.max(initial=0)}"
        raise ValueError(
            f"{name!r} is damaged or cut off: its {part} part must have {num_rows:,} images, and integer labels from 0 "
            f"to {num_classes - 1}. Received: {found}"
        )


def _check_first_labels(name: str, y: np.ndarray) -> None:
    """Refuse other data under the name of a set; shuffled or changed rows belong into `from_arrays`."""
    if name not in _FIRST_LABELS:
        return
    first = y.ravel()[:10].tolist()
    if first != _FIRST_LABELS[name]:
        owner = next((other for other, labels in _FIRST_LABELS.items() if labels == first), None)
        found = f", which are those of {owner!r}" if owner else ". For other data use `tfopt.datasets.from_arrays`"
        raise ValueError(
            f"The first ten training labels of {name!r} are {_FIRST_LABELS[name]}. Received: {first}{found}"
        )
