"""Inputs and targets: convert them to arrays and check them against the network and the loss."""

import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt.bregman.losses import Loss
from tfopt.bregman.network import DenseChain

__all__ = ["as_array", "check_arrays", "make_targets"]


def check_arrays(x: Any, y: Any, chain: DenseChain, loss: Loss, names: tuple[str, str] = ("x", "y")) -> tuple[Any, Any]:
    """Return inputs and targets as checked arrays of numbers; memory-mapped arrays stay memory-mapped."""
    # `x` is an array, or a `tf.data.Dataset` of batches `(x, y)`, for which `y` must be None. `names` are the names of
    # x and y in messages.
    x_name, y_name = names
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise ValueError("`y` must not be given when `x` is a tf.data.Dataset: the dataset contains the targets")
        x, y = _collect(x, x_name)
    elif x is None or isinstance(x, keras.utils.PyDataset | dict) or hasattr(x, "__next__"):
        raise TypeError(f"`{x_name}` must be an array or a tf.data.Dataset. Received: {type(x).__name__}")
    elif y is None:
        raise ValueError(f"`{y_name}` must be given when `{x_name}` is an array. Received: {y_name}=None")
    x, y = as_array(x_name, x), as_array(y_name, y)
    expected = tuple(chain.model.input_shape[1:])
    for name, part in ((x_name, x), (y_name, y)):
        if part.dtype.kind not in "fiub":
            advice = ": convert it by .astype('float32')" if part.dtype.hasobject else ""
            raise TypeError(f"`{name}` must hold numbers. Received: dtype {part.dtype}{advice}")
    if x.ndim == 0 or (x.shape[1:] != expected and not _matches(x.shape[1:], expected)):
        shape = ("rows", *expected)
        raise ValueError(f"`{x_name}` must have the shape ({', '.join(map(str, shape))}). Received: shape {x.shape}")
    if len(x) == 0:
        raise ValueError(f"`{x_name}` must have at least one row. Received: no rows")
    if y.ndim == 0 or len(y) != len(x):
        raise ValueError(
            f"`{x_name}` and `{y_name}` must have the same number of rows. Received: shapes {x.shape} and {y.shape}"
        )
    _check_targets(y, chain.widths[-1], loss, y_name)
    return x, y


def as_array(name: str, part: Any) -> np.ndarray:
    """Return an array of what was passed; memory-mapped arrays stay memory-mapped."""
    if isinstance(part, np.memmap):
        return part
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(part, pandas.Series):
        return part.to_numpy()[:, None]  # Keras too makes a column of it.
    try:
        return np.asarray(part)
    except ValueError as error:  # The message of NumPy names no argument.
        raise ValueError(
            f"`{name}` must be an array, or a list of rows of equal length. Received: a {type(part).__name__}, {error}"
        ) from error


def _matches(shape: tuple[int, ...], expected: tuple[Any, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))


def _check_targets(y: Any, num_outputs: int, loss: Loss, name: str) -> None:
    is_sparse = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    shapes = [f"(rows, {num_outputs})"]
    if loss.targets != "real" or num_outputs == 1:
        shapes.insert(0, "(rows,)")
    if y.shape[1:] != (num_outputs,) and not (is_sparse and len(shapes) == 2):
        raise ValueError(
            f"`{name}` must have the shape {' or '.join(shapes)}, for {loss.name} of {num_outputs} outputs. "
            f"Received: shape {y.shape}"
        )
    if loss.targets == "real":
        return
    values = np.asarray(y, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    received = f"Received: values from {values.min():g} to {values.max():g}"
    if is_sparse and num_outputs > 1:
        if (values != np.floor(values)).any() or values.min() < 0 or values.max() >= num_outputs:
            raise ValueError(f"`{name}` must be labels 0 to {num_outputs - 1}. {received}")
    elif loss.targets in ("flags", "signs"):
        found = set(np.unique(values).tolist())
        with_signs = loss.targets == "signs"
        if not (found <= {0.0, 1.0} or (with_signs and found <= {-1.0, 1.0})):
            raise ValueError(f"`{name}` must be {'-1 and 1, or ' * with_signs}0 and 1. {received}")
    elif values.min() < 0 or values.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1] for {loss.name}. {received}")
    elif loss.targets == "distribution" and np.abs(values.sum(axis=1) - 1).max() > 1e-3:
        row = int(np.abs(values.sum(axis=1) - 1).argmax())
        raise ValueError(
            f"`{name}` must have rows that sum to 1 for {loss.name}. Received: row {row} sums to {values[row].sum():g}"
        )


def make_targets(y: np.ndarray, num_outputs: int, loss: Loss, dtype: Any) -> Any:
    """Return checked targets for the loss, shape `(rows, num_outputs)`; labels become rows of zeros and a one."""
    if y.ndim == 1 or (y.shape[1] == 1 and num_outputs > 1):
        if num_outputs > 1:
            return tf.one_hot(y.reshape(-1).astype(np.int64), num_outputs, dtype=dtype)
        y = y[:, None]
    return tf.cast(y > 0.5 if loss.targets in ("flags", "signs") else y, dtype)


def _collect(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    # Free each batch after it is copied, so that memory holds little more than one copy of the data.
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{name}` must end. Received: a tf.data.Dataset of infinite length: leave out .repeat()")
    if isinstance(dataset.element_spec, tuple) and len(dataset.element_spec) == 2:
        batches = [tuple(np.asarray(part) for part in batch) for batch in dataset]
    else:
        raise ValueError(f"`{name}` must be a tf.data.Dataset of pairs (x, y). Received: {dataset.element_spec}")
    if not batches:
        raise ValueError(f"`{name}` must have at least one row. Received: a tf.data.Dataset without batches")
    if any(part.ndim == 0 for part in batches[0]):
        raise ValueError(f"`{name}` must be a tf.data.Dataset of batches: use .batch(...)")
    count = sum(len(x) for x, _ in batches)
    arrays = tuple(np.empty((count, *part.shape[1:]), part.dtype) for part in batches[0])
    row = 0
    batches.reverse()
    while batches:
        x, y = batches.pop()
        arrays[0][row : row + len(x)], arrays[1][row : row + len(x)] = x, y
        row += len(x)
    return arrays[0], arrays[1]
