"""The record that every data set ends in: split, cut to some rows, and standardised in the same way."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfopt._checks import check_flag, check_integer, check_number

_CHUNK_VALUES = 2**22  # The largest temporary array of a conversion has this many values: 32 MB in float64.


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays for training, validation and testing.

    Inputs are float32 with one example per row.

    Attributes:
        name: Name of the data set.
        x_train: Inputs, shape `(num_train, *input_shape)`.
        y_train: Labels, integers in [0, num_classes) of shape `(num_train,)`; or, for regression, float32 numbers of
            shape `(num_train,)` or `(num_train, num_targets)`.
        x_validation: Inputs held out of the training part. They have no rows unless a validation part was requested.
        y_validation: Labels of `x_validation`.
        x_test: Inputs for testing.
        y_test: Labels of `x_test`.
        num_classes: Number of classes; None for regression.
        class_names: The label in words of each class, if the labels were words; otherwise empty.
    """

    name: str
    x_train: np.ndarray = field(repr=False)
    y_train: np.ndarray = field(repr=False)
    x_validation: np.ndarray = field(repr=False)
    y_validation: np.ndarray = field(repr=False)
    x_test: np.ndarray = field(repr=False)
    y_test: np.ndarray = field(repr=False)
    num_classes: int | None
    class_names: tuple[str, ...] = ()

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
        task = "regression" if self.num_classes is None else f"{self.num_classes} classes"
        return f"Dataset({self.name!r}: {sizes}; inputs {self.input_shape}, {task})"

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


@dataclass(frozen=True)
class Raw:
    """Inputs x (n, ...) of any real dtype, still to be divided by `divisor`, and labels y (n,)."""

    x: np.ndarray
    y: np.ndarray
    divisor: float = 1.0

    def __getitem__(self, rows: slice | np.ndarray) -> "Raw":
        return replace(self, x=self.x[rows], y=self.y[rows])


def check_options(seed: Any, validation_fraction: Any, standardize: Any, num_rows: Any) -> dict[str, Any]:
    """Return the options that `make_dataset` takes, after checking them."""
    check_number("validation_fraction", validation_fraction, minimum=0, maximum=1, exclusive_maximum=True)
    return {
        "seed": check_integer("seed", seed, minimum=0, maximum=2**32 - 1),
        "validation_fraction": validation_fraction,
        "standardize": check_flag("standardize", standardize),
        "num_rows": None if num_rows is None else check_integer("num_rows", num_rows, minimum=2),
    }


def check_test_fraction(value: Any) -> None:
    """Check that a fraction is inside (0, 1)."""
    check_number("test_fraction", value, minimum=0, maximum=1, exclusive_minimum=True, exclusive_maximum=True)


def make_dataset(
    name: str,
    train: Raw,
    test: Raw,
    num_classes: int | None,
    *,
    num_rows: int | None = None,
    seed: int,
    validation_fraction: float,
    standardize: bool,
    advice: str = "",
) -> Dataset:
    """Return the data set of the first `num_rows` (None: all) rows of `train`; copies each input array once."""
    if num_rows is not None:
        if num_rows > len(train.y):
            raise ValueError(
                f"`num_rows` must be at most the {len(train.y):,} training rows. Received: num_rows={num_rows}"
            )
        train = train[:num_rows]
    validation = train[:0]
    if validation_fraction:
        share, has_classes = validation_fraction, num_classes is not None
        train, validation = split(train, "validation_fraction", share, seed, has_classes, advice)
    shift, scale = _standardisation(train) if standardize else (0.0, 1.0)
    x_train, x_validation, x_test = (_converted(part, shift, scale) for part in (train, validation, test))
    return Dataset(name, x_train, train.y, x_validation, validation.y, x_test, test.y, num_classes)


def split(
    rows: Raw, name: str, fraction: float, seed: int, is_classification: bool, advice: str = ""
) -> tuple[Raw, Raw]:
    """Return the rows in two parts, of which the second one has a fraction of the rows, and of each class."""
    # `advice` ends the messages about classes.
    from sklearn.model_selection import train_test_split

    num_rows = len(rows.y)
    classes, sizes = np.unique(rows.y, return_counts=True) if is_classification else (np.zeros(1), np.array([num_rows]))
    if (sizes == 1).any() and is_classification:
        raise ValueError(
            f"`{name}` needs two or more rows of each class, since both parts get some. Received: {len(classes):,} "
            f"classes in {num_rows:,} rows, and one row of class {classes[int(np.argmax(sizes == 1))]}{advice}"
        )
    smallest = len(classes) / num_rows
    if not smallest <= fraction <= 1 - smallest:
        needed = f"a row of each of the {len(classes):,} classes" if is_classification else "a row"
        raise ValueError(
            f"`{name}` must leave {needed} in both parts of the {num_rows:,} rows. Received: {name}={fraction}"
            f"{advice if is_classification else ''}"
        )
    first, second = train_test_split(
        np.arange(num_rows), test_size=fraction, random_state=seed, stratify=rows.y if is_classification else None
    )
    return rows[first], rows[second]


def _standardisation(rows: Raw) -> tuple[np.ndarray, np.ndarray]:
    """Return the shift and the scale, per feature or channel, that give mean 0 and standard deviation 1, float64."""
    # Constant features are only shifted. The extremes tell which features are constant, because the mean of equal
    # numbers is not exactly this number. The squares are those of deviations, because the mean of a column (a year, a
    # time stamp) may be many times larger than its deviation.
    axes = tuple(range(rows.x.ndim - 1))  # for images, this gives one mean per channel
    num_values = max(math.prod(rows.x.shape[:-1]), 1)
    mean, low, high = np.zeros(rows.x.shape[-1:]), np.inf, -np.inf
    for _, chunk in _chunks(rows):
        mean += chunk.sum(axis=axes, dtype=np.float64) / num_values
        low, high = np.minimum(low, chunk.min(axis=axes)), np.maximum(high, chunk.max(axis=axes))
    mean = np.where(low == high, low, mean)
    squares = np.zeros_like(mean)
    for _, chunk in _chunks(rows):
        squares += np.square(chunk - mean).sum(axis=axes) / num_values
    deviation = np.sqrt(squares)
    precision = np.finfo(np.result_type(rows.x.dtype, np.float32)).eps
    return mean, 1.0 / np.where(deviation <= precision * np.abs(mean), 1.0, deviation)


def _converted(rows: Raw, shift: np.ndarray | float, scale: np.ndarray | float) -> np.ndarray:
    """Return (x / divisor - shift) * scale as a new float32 array of the shape of x, with temporary chunks only."""
    converted = np.empty(rows.x.shape, np.float32)
    for start, chunk in _chunks(rows):
        dtype = chunk.dtype
        # A shift in float32 would leave a mean of many times its own rounding.
        coarse = np.asarray(shift, dtype)
        chunk -= coarse
        chunk -= np.asarray(shift - coarse.astype(np.float64), dtype)
        converted[start : start + len(chunk)] = chunk * np.asarray(scale, dtype)
    return converted


def _chunks(rows: Raw) -> Iterator[tuple[int, np.ndarray]]:
    """Yield index and x / divisor of some rows, in float32, or float64 for a dtype that float32 does not hold."""
    num_rows = max(_CHUNK_VALUES // max(math.prod(rows.x.shape[1:]), 1), 1)
    dtype = np.result_type(rows.x.dtype, np.float32)
    for start in range(0, len(rows.x), num_rows):
        chunk = rows.x[start : start + num_rows].astype(dtype)
        yield start, chunk / dtype.type(rows.divisor) if rows.divisor != 1.0 else chunk
