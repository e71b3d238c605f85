"""Data sets that are always loaded, split and standardised in the same way.

`load(name)` returns a `Dataset`. `digits` and `breast_cancer` are part of scikit-learn. `mnist`, `fashion_mnist`,
`cifar10` and `cifar100` come from `keras.datasets`, which downloads them once. `higgs` is read from a local file, and
`higgs_like` is synthetic.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from tfopt._checks import check_choice, check_flag, check_integer, check_number
from tfopt.datasets.higgs import read_higgs
from tfopt.datasets.higgs_like import make_higgs_like
from tfopt.datasets.keras_images import read_keras_images

_NUM_CLASSES = {
    "digits": 10,
    "breast_cancer": 2,
    "mnist": 10,
    "fashion_mnist": 10,
    "cifar10": 10,
    "cifar100": 100,
    "higgs": 2,
    "higgs_like": 2,
}
NAMES = tuple(_NUM_CLASSES)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays for training, validation and testing.

    Inputs are float32 with one example per row. Labels are integers in [0, num_classes).

    Attributes:
        name: Name of the data set.
        x_train: Inputs, shape `(num_train, *input_shape)`.
        y_train: Labels, shape `(num_train,)`.
        x_validation: Inputs held out of the training part. They have no rows unless a validation part was requested.
        y_validation: Labels of `x_validation`.
        x_test: Inputs for testing.
        y_test: Labels of `x_test`.
        num_classes: Number of classes.
    """

    name: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_validation: np.ndarray = field(repr=False)
    y_validation: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    num_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.x_train.shape[1:]

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{len(part):,} {label}"
            for part, label in ((self.y_train, "train"), (self.y_validation, "validation"), (self.y_test, "test"))
            if len(part)
        )
        return f"Dataset({self.name!r}: {sizes}; inputs {self.input_shape}, {self.num_classes} classes)"

    def flattened(self) -> "Dataset":
        """Return the same data with each example as a flat vector.

        Returns:
            A `Dataset` with inputs of shape `(rows, features)`.
        """
        size = math.prod(self.input_shape)
        return replace(
            self,
            x_train=self.x_train.reshape(-1, size),
            x_validation=self.x_validation.reshape(-1, size),
            x_test=self.x_test.reshape(-1, size),
        )


def load(
    name: str,
    *,
    seed: int = 0,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.0,
    standardize: bool = True,
    data_dir: str | os.PathLike | None = None,
    num_rows: int | None = None,
) -> Dataset:
    """Load a data set, split it and standardise it.

    Splits keep the fractions of the classes and depend only on `seed`. Mean and standard deviation are those of the
    training part only: one pair per feature of a table, one pair per colour channel of images.

    Args:
        name: One of `tfopt.datasets.NAMES`.
        seed: Seed of the splits, and of the rows of `higgs_like`; an integer >= 0 and < 2^32. Default 0.
        test_fraction: Fraction of the rows used for testing, in (0, 1). Default 0.25. The image sets and `higgs` have a
            test part already and ignore it.
        validation_fraction: Fraction of the training part held out for validation, in [0, 1). Default 0.
        standardize: Whether to subtract the mean and divide by the standard deviation. Default True.
        data_dir: For `higgs`: the folder that holds HIGGS.csv or HIGGS.csv.gz, and the cache `HIGGS.npy` of the parsed
            rows. None (default) means `~/.tfopt/datasets`.
        num_rows: For `higgs`: the number of training rows to use; None (default) means all. For `higgs_like`: the total
            number of rows for training and testing; None (default) means 200,000. An integer >= 100.

    Returns:
        The data.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The name is unknown, an argument is out of its range, or files are damaged or have other content.
        FileNotFoundError: The data are not on disk and cannot be downloaded. The message says which file goes where.

    Example:
        >>> load("digits")
        Dataset('digits': 1,347 train, 450 test; inputs (8, 8, 1), 10 classes)
    """
    check_choice("name", name, NAMES)
    seed = check_integer("seed", seed, minimum=0, maximum=2**32 - 1)
    check_flag("standardize", standardize)
    check_number("test_fraction", test_fraction, minimum=0, maximum=1, exclusive_minimum=True, exclusive_maximum=True)
    check_number("validation_fraction", validation_fraction, minimum=0, maximum=1, exclusive_maximum=True)
    if num_rows is not None:
        if not name.startswith("higgs"):
            raise ValueError(f"`num_rows` applies only to 'higgs' and 'higgs_like'. Received: name={name!r}")
        num_rows = check_integer("num_rows", num_rows, minimum=100)
    if data_dir is not None and (name != "higgs" or not isinstance(data_dir, (str, os.PathLike))):
        raise ValueError(f"`data_dir` must be a path and applies only to 'higgs'. Received: {data_dir=}, {name=}")
    if name == "higgs":
        x_train, y_train, x_test, y_test = read_higgs(data_dir, num_rows)
    elif name == "higgs_like":
        x, y = make_higgs_like(num_rows or 200_000, seed)
        x_train, x_test, y_train, y_test = _split(x, y, "test_fraction", test_fraction, seed)
    elif name in ("digits", "breast_cancer"):
        x_train, x_test, y_train, y_test = _split(*_read_scikit_learn(name), "test_fraction", test_fraction, seed)
    else:
        x_train, y_train, x_test, y_test = read_keras_images(name, _NUM_CLASSES[name])
    x_validation, y_validation = x_train[:0], y_train[:0]
    if validation_fraction:
        x_train, x_validation, y_train, y_validation = _split(
            x_train, y_train, "validation_fraction", validation_fraction, seed
        )
    if standardize:
        transform = _fit_standardisation(x_train)
        x_train, x_validation, x_test = transform(x_train), transform(x_validation), transform(x_test)
    return Dataset(name, x_train, y_train, x_validation, y_validation, x_test, y_test, _NUM_CLASSES[name])


def _split(x: np.ndarray, y: np.ndarray, name: str, fraction: float, seed: int) -> list[np.ndarray]:
    from sklearn.model_selection import train_test_split

    smallest = len(np.unique(y)) / len(y)  # both parts hold at least as many rows as there are classes
    if not smallest <= fraction <= 1 - smallest:
        raise ValueError(
            f"`{name}` must leave a row of each class in both parts of the {len(y):,} rows. Received: {name}={fraction}"
        )
    return train_test_split(x, y, test_size=fraction, random_state=seed, stratify=y)


def _fit_standardisation(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map that gives `x` mean 0 and standard deviation 1; constant features are only shifted."""
    axes = tuple(range(x.ndim - 1))  # for images, this gives one mean per channel
    mean = x.mean(axis=axes, dtype=np.float64)
    deviation = np.sqrt(np.maximum(np.square(x, dtype=np.float64).mean(axis=axes) - mean**2, 0.0))
    deviation = np.where(deviation > 1e-7 * np.maximum(np.abs(mean), 1.0), deviation, 1.0)
    shift, scale = mean.astype(np.float32), (1.0 / deviation).astype(np.float32)
    return lambda values: (values - shift) * scale


def _read_scikit_learn(name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets

    if name == "digits":
        data = datasets.load_digits()
        return (data.images[..., None] / 16.0).astype(np.float32), data.target.astype(np.int64)
    data = datasets.load_breast_cancer()
    return data.data.astype(np.float32), data.target.astype(np.int64)
