"""A user's own arrays and tables as a `Dataset`: split, standardised and checked like every other one."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tfopt._checks import as_items, check_path, check_text
from tfopt.datasets.dataset import Dataset, Raw, check_options, check_test_fraction, make_dataset, split

_ADVICE = (
    ". Labels that are integers or words are taken as classes. For a regression, convert them to floating-point "
    "numbers, for example by .astype('float64')"
)


def from_arrays(
    x: Any,
    y: Any,
    *,
    x_test: Any = None,
    y_test: Any = None,
    name: str = "arrays",
    seed: int = 0,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.0,
    standardize: bool = True,
    num_rows: int | None = None,
) -> Dataset:
    """Split and standardise arrays as `load` does.

    Integer labels make a classification: splits keep the fractions of the classes. Floating-point labels make a
    regression: splits ignore them, and they are not standardised. Convert integer targets of a regression (prices,
    counts) by `.astype("float64")`.

    Args:
        x: Inputs, real numbers of shape `(rows, ..., features)`. Each index of the last axis (features, or colour
            channels of images) has a mean and a deviation of its own. Inputs in float64 are standardised in float64.
        y: Labels, shape `(rows,)` or `(rows, 1)`: for classes, integers >= 0, or words, which become 0, 1, ... in
            alphabetical order (see `Dataset.class_names`). For regression, floating-point numbers of shape `(rows,)` or
            `(rows, num_targets)`.
        x_test: Inputs for testing; None (default) means that a part of `x` is used.
        y_test: Labels of `x_test`; None if and only if `x_test` is None.
        name: Name of the data set. Default "arrays".
        seed: Seed of the splits; an integer >= 0 and < 2^32. Default 0.
        test_fraction: Fraction of the rows used for testing, in (0, 1). Default 0.25. Ignored if there is `x_test`.
        validation_fraction: Fraction of the training part held out for validation, in [0, 1). Default 0.
        standardize: Whether to subtract the mean and divide by the standard deviation of the training part. Default
            True.
        num_rows: Number of training rows to use, including validation, an integer >= 2; None (default) means all.

    Returns:
        The data. The given arrays are not changed.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: Shapes do not match, a number is not finite, a label is negative, or an argument is out of its
            range.

    Example:
        >>> import numpy as np
        >>> from_arrays(np.random.rand(100, 3), np.arange(100) % 2)
        Dataset('arrays': 75 train, 25 test; inputs (3,), 2 classes)
    """
    check_text("name", name)
    options = check_options(seed, validation_fraction, standardize, num_rows)
    check_test_fraction(test_fraction)
    if (x_test is None) != (y_test is None):
        raise ValueError("`x_test` and `y_test` must both be given, or both be None")
    y, y_test, class_names = _numbered(y, y_test)
    rows = _checked_rows("x", x, "y", y)
    is_classification = rows.y.dtype.kind == "i"
    if x_test is None:
        train, test = split(rows, "test_fraction", test_fraction, options["seed"], is_classification, _ADVICE)
    else:
        train, test = rows, _checked_rows("x_test", x_test, "y_test", y_test)
        _check_alike(train, test)
    num_classes = 1 + int(max(train.y.max(), test.y.max(initial=0))) if is_classification else None
    data = make_dataset(name, train, test, num_classes, advice=_ADVICE, **options)
    return replace(data, class_names=class_names) if class_names else data


def from_table(
    table: Any, target: str, *, features: Sequence[str] | None = None, name: str | None = None, **options: Any
) -> Dataset:
    """Split and standardise the columns of a table as `load` does.

    Args:
        table: A pandas data frame; or the path of a file that pandas reads: .csv (also .csv.gz) or .parquet.
        target: The column of the labels. Integers, booleans and words make a classification (words become 0, 1, ... in
            alphabetical order: see `Dataset.class_names`), floating-point numbers a regression. For a regression on
            integers, convert the column before.
        features: The columns of the inputs, which must hold numbers or booleans. None (default) means all others.
        name: Name of the data set. None (default) means the name of the file, or "table".
        **options: `seed`, `test_fraction`, `validation_fraction`, `standardize` and `num_rows`, as in `from_arrays`.

    Returns:
        The data.

    Raises:
        ImportError: pandas is not installed, or no library for Parquet is.
        TypeError: An argument has the wrong type.
        ValueError: A column is missing, holds no numbers, or has gaps; the message names it.
        FileNotFoundError: There is no such file.
    """
    frame = _read_frame(table)
    others = [column for column in frame.columns if column != target]
    columns = others if features is None else list(as_items("features", features, "hold names of columns"))
    if missing := [column for column in (target, *columns) if column not in frame.columns]:
        known = ", ".join(map(str, frame.columns))
        raise ValueError(f"The table has no column {missing[0]!r}. Its columns are: {known}")
    if twice := [column for column in (target, *columns) if np.sum(frame.columns == column) > 1]:
        raise ValueError(f"The table has more than one column {twice[0]!r}. Give each column a name of its own")
    if target in columns or not columns:
        raise ValueError(f"`features` must name columns other than the target {target!r}. Received: {features=}")
    for column in (target, *columns):
        _check_column(frame[column], is_target=column == target)
    labels = _labels(frame[target])
    return from_arrays(frame[columns].to_numpy(np.float64), labels, name=name or _name_of(table), **options)


def _checked_rows(name_of_x: str, x: Any, name_of_y: str, y: Any) -> Raw:
    """Return inputs (n, ...) and labels (n,) or (n, targets) as int64 or float32, after checking them."""
    x, y = np.asarray(x), np.asarray(y)
    for name, array in ((name_of_x, x), (name_of_y, y)):
        if array.dtype.kind not in "biuf":
            or_words = ", or words" if name == name_of_y else ""
            raise TypeError(f"`{name}` must hold real numbers{or_words}. Received: dtype {array.dtype}")
    if x.ndim < 2 or not x.size:
        raise ValueError(f"`{name_of_x}` must have one or more rows of features. Received: shape {x.shape}")
    is_regression = y.dtype.kind == "f"
    if y.ndim == 2 and y.shape[1] == 1 and not is_regression:
        y = y[:, 0]
    if y.ndim not in ((1, 2) if is_regression else (1,)) or len(y) != len(x):
        raise ValueError(
            f"`{name_of_y}` must have a label for each of the {len(x):,} rows of `{name_of_x}`: integers of shape "
            "(rows,) or floating-point numbers of shape (rows,) or (rows, targets). Received: dtype "
            f"{y.dtype}, shape {y.shape}{'' if is_regression else _ADVICE}"
        )
    for name, array in ((name_of_x, x), (name_of_y, y)):
        bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        if bad.any():
            raise ValueError(f"`{name}` must hold finite numbers. Row {int(np.argmax(bad)):,} does not")
    if not is_regression and y.min() < 0:
        raise ValueError(f"`{name_of_y}` must hold classes >= 0. Received: {y.min()}{_ADVICE}")
    return Raw(x, y.astype(np.float32 if is_regression else np.int64))


def _check_alike(train: Raw, test: Raw) -> None:
    """Check that the test rows have the shapes of the training rows and the same kind of labels."""
    for name, first, second in (("x_test", train.x, test.x), ("y_test", train.y, test.y)):
        if first.shape[1:] != second.shape[1:] or (name == "y_test" and first.dtype != second.dtype):
            raise ValueError(
                f"`{name}` must have rows like `{name[0]}`: shape {first.shape[1:]} and dtype {first.dtype}. Received: "
                f"shape {second.shape[1:]} and dtype {second.dtype}"
            )


def _read_frame(table: Any) -> Any:
    """Return a pandas data frame from itself or from the path of a file."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("Tables need pandas: pip install 'tfopt[plot]'") from error
    if isinstance(table, pandas.DataFrame):
        return table.reset_index(drop=True)
    path = check_path("table", table)
    readers = {".csv": pandas.read_csv, ".csv.gz": pandas.read_csv, ".parquet": pandas.read_parquet}
    reader = next((reader for ending, reader in readers.items() if path.name.lower().endswith(ending)), None)
    if reader is None:
        raise ValueError(f"`table` must be a data frame or a file {', '.join(readers)}. Received: {str(path)!r}")
    try:
        return reader(path)
    except (ImportError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # pandas and its engines raise errors of many kinds
        raise ValueError(f"{path} could not be read as a table: {error}") from error


def _name_of(table: Any) -> str:
    return check_path("table", table).name.split(".")[0] if not hasattr(table, "columns") else "table"


def _check_column(column: Any, is_target: bool) -> None:
    """Check that a column has no gaps, and numbers where they are needed."""
    if (gaps := column.isna().to_numpy()).any():
        raise ValueError(
            f"Column {column.name!r} has {gaps.sum():,} gaps, the first in row {int(gaps.argmax()) + 1:,}. Fill them "
            "or drop these rows"
        )
    if not is_target and getattr(column.dtype, "kind", "O") not in "biuf":
        raise ValueError(
            f"Column {column.name!r} must hold numbers. Received: {column.dtype}, such as {column.iloc[0]!r}. Encode "
            "it, for example with pandas.get_dummies, or leave it out of `features`"
        )


def _labels(column: Any) -> np.ndarray:
    """Return a target column as numbers (rows,), or as words of dtype object."""
    if getattr(column.dtype, "kind", "O") in "biuf":
        return column.to_numpy(np.float64 if column.dtype.kind == "f" else np.int64)
    return column.astype(str).to_numpy(object)


def _numbered(y: Any, y_test: Any) -> tuple[Any, Any, tuple[str, ...]]:
    """Return labels with the numbers of their classes in place of words, and the names of the classes if there were."""
    both = [_as_text(np.asarray(part)) for part in (y, y_test) if part is not None]
    are_words = [_are_words(part) for part in both]
    if y is None or not any(are_words):
        return y, y_test, ()
    if not all(are_words):
        dtypes = " and ".join(str(part.dtype) for part in both)
        raise TypeError(f"`y` and `y_test` must both hold words, or both hold numbers. Received: dtypes {dtypes}")
    names, numbers = np.unique(np.concatenate([part.astype(str).ravel() for part in both]), return_inverse=True)
    y = numbers[: both[0].size].reshape(both[0].shape)
    return y, None if y_test is None else numbers[y.size :].reshape(both[1].shape), tuple(names.tolist())


def _as_text(labels: np.ndarray) -> np.ndarray:
    """Return labels with text in place of bytes, as files in ARFF or HDF5 hold them."""
    if labels.dtype == object and labels.size and all(isinstance(v, bytes) for v in labels.flat):
        labels = labels.astype("S")
    return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels


def _are_words(labels: np.ndarray) -> bool:
    return labels.dtype.kind in "UT" or (labels.dtype == object and all(isinstance(v, str) for v in labels.flat))
