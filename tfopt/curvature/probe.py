"""The fixed data on which a model is measured."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._checks import check_integer
from tfopt.curvature.batch import Batch, map_arrays

DEFAULT_BATCH_SIZE = 512


class Probe:
    """Data that stay the same from one measurement to the next, checked and divided into batches once.

    A probe accepts all data that `fit` accepts. Infinite data sets and generators need `num_batches`. A generator is
    read once, by the constructor.

    Args:
        x: The inputs: an array of numbers or strings, or a tuple, list or dictionary of arrays, with one row per
            sample. Or all data together: a batched `tf.data.Dataset`, a `keras.utils.PyDataset`, or a generator of
            batches, whose elements are `x`, `(x, y)` or `(x, y, sample_weight)`.
        y: Targets with one row per sample; None (default) for none, or if `x` contains them.
        sample_weight: One weight per sample; None (default) for none, or if `x` contains them.
        batch_size: Rows in a batch, for arrays only; an integer >= 1. None (default) means 512, or all rows if there
            are fewer.
        num_batches: Number of batches to take from data sets and generators, an integer >= 1; None (default) means all.
        class_weight: Not supported; the error says what to pass instead.

    Attributes:
        batches: The batches, a list of `Batch`.
        num_rows: Number of rows of all batches.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There are no rows; numbers of rows differ; an entry is NaN or infinite; or infinite data have no
            `num_batches`.

    Example:
        >>> probe = Probe(np.ones((600, 2)), np.zeros(600))
        >>> probe.num_rows, len(probe.batches)
        (600, 2)
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int | None = None,
        num_batches: int | None = None,
        class_weight: None = None,
    ) -> None:
        if class_weight is not None:
            raise ValueError(
                "`class_weight` is not supported: pass the weight of each row, for integer targets "
                "sample_weight=np.array([class_weight[label] for label in y])"
            )
        if num_batches is not None:
            check_integer("num_batches", num_batches, minimum=1)
        if _brings_batches(x):
            for name, value in {"y": y, "sample_weight": sample_weight, "batch_size": batch_size}.items():
                if value is not None:
                    raise ValueError(f"`{name}` must be None if `x` is a {type(x).__name__}: `x` contains it")
            elements = _take(x, num_batches)
        else:
            if num_batches is not None:
                raise ValueError("`num_batches` is only for data sets and generators. Received: arrays")
            elements = _slices(x, y, sample_weight, batch_size)
        self.batches = [_make_batch(element, index) for index, element in enumerate(elements)]
        if not self.batches:
            raise ValueError("`x` has no batches. Received: an empty data set")
        self.num_rows = sum(batch.num_rows for batch in self.batches)
        if len({repr(keras.tree.map_structure(lambda leaf: leaf is None, b.tensors)) for b in self.batches}) > 1:
            raise ValueError("`x` must yield batches of one structure. Received: batches of different structures")

    def first(self, num_rows: int) -> "Probe":
        """Return the first rows of the first batch.

        Args:
            num_rows: Number of rows, an integer >= 1; all rows of the batch if it has fewer.

        Returns:
            A probe of one batch.

        Raises:
            TypeError: `num_rows` is not an integer.
            ValueError: `num_rows` is not >= 1.
        """
        check_integer("num_rows", num_rows, minimum=1)
        return self.from_batches([self.batches[0].rows(0, num_rows)])

    @classmethod
    def from_batches(cls, batches: Sequence[Batch]) -> "Probe":
        """Make a probe from batches of other probes.

        Args:
            batches: One or more batches, of one form.

        Returns:
            A probe, whose data are not copied.
        """
        probe = cls.__new__(cls)
        probe.batches, probe.num_rows = list(batches), sum(batch.num_rows for batch in batches)
        return probe

    def __repr__(self) -> str:
        return f"Probe({self.num_rows:,} rows in {len(self.batches)} batches)"


def as_probe(data: Any, batch_size: int | None = None, class_weight: None = None) -> Probe:
    """Return a `Probe` unchanged, and make one of `(x, y)`, `(x, y, sample_weight)`, a data set, or inputs alone."""
    parts = data if isinstance(data, tuple) else (data,)
    if isinstance(data, list):
        raise TypeError("`data` must be a tuple (x, y), not a list: a list means several inputs without targets")
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            "`data` must be (x, y), (x, y, sample_weight), a data set or a tfopt.curvature.Probe. "
            f"Received: a tuple of {len(parts)}"
        )
    if not isinstance(parts[0], Probe):
        try:
            return Probe(*parts, batch_size=batch_size, class_weight=class_weight)
        except (TypeError, ValueError) as error:
            raise type(error)(f"`data` must be what a Probe can hold: {error}") from error
    if any(given is not None for given in (*parts[1:], batch_size, class_weight)):
        raise ValueError(
            "`y`, `sample_weight` and `batch_size` must be given to the Probe. Received: a Probe and one of them"
        )
    return parts[0]


def _brings_batches(x: Any) -> bool:
    """Return whether data are a data set, a PyDataset or a generator, which yield batches with targets."""
    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset | Iterator)


def _take(data: Any, num_batches: int | None) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        available: float = math.inf if data.num_batches is None else data.num_batches
        source: Iterable[Any] = (data[index] for index in itertools.count())
    elif isinstance(data, tf.data.Dataset):
        available = math.inf if _may_be_endless(data) else -1
        source = data
    else:
        available = math.inf  # a generator may or may not end
        source = data
    if num_batches is None:
        if available == math.inf:
            raise ValueError(f"`num_batches` must be given for a {type(data).__name__}, which may be infinite")
        return source if available < 0 else itertools.islice(source, int(available))
    count = num_batches if available < 0 else min(num_batches, available)
    taken = list(itertools.islice(source, int(count)))
    if len(taken) < num_batches:
        raise ValueError(f"`x` must have `num_batches` batches. Received: num_batches={num_batches} of {len(taken)}")
    return taken


def _may_be_endless(data: Any) -> bool:
    cardinality = int(data.cardinality())
    if cardinality != tf.data.UNKNOWN_CARDINALITY:
        return cardinality == tf.data.INFINITE_CARDINALITY
    return any(_may_be_endless(source) for source in _keras.dataset_inputs(data)())


def _slices(x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> Iterator[tuple[Any, ...]]:
    if batch_size is not None:
        check_integer("batch_size", batch_size, minimum=1)
    parts = {"x": x, "y": y, "sample_weight": sample_weight}
    if x is None:
        raise ValueError("`x` must be the inputs on which to measure. Received: None")
    lengths = {}
    for name, part in parts.items():
        parts[name] = map_arrays(lambda leaf, name=name: _as_array(name, leaf), part)
        leaves = [leaf for leaf in keras.tree.flatten(parts[name]) if leaf is not None]
        if part is not None and not leaves:
            raise ValueError(f"`{name}` must hold one or more arrays. Received: {part!r}")
        if leaves:
            lengths[name] = sorted({len(leaf) for leaf in leaves})
    if len(set().union(*lengths.values())) != 1:
        raise ValueError(f"`x`, `y` and `sample_weight` must have equally many rows. Received: {lengths}")
    num_rows = lengths["x"][0]
    size = batch_size or DEFAULT_BATCH_SIZE
    return (
        tuple(map_arrays(lambda leaf, start=start: leaf[start : start + size], part) for part in parts.values())
        for start in range(0, num_rows, size)
    )


def _as_array(name: str, leaf: Any) -> Any:
    if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
        raise TypeError(f"`{name}` must be dense. Received: a {type(leaf).__name__}")
    array = leaf.numpy() if isinstance(leaf, tf.Tensor | tf.Variable) else np.asarray(leaf)
    if array.dtype.kind == "T":  # TensorFlow does not support NumPy's variable-length strings
        array = array.astype(object)
    if array.ndim == 0 or not (_is_floating(array) or array.dtype.kind in "biucSU" or _is_text(array)):
        raise TypeError(
            f"`{name}` must hold arrays of numbers or strings with one row per sample. Received: {leaf!r}, an array of "
            f"shape {array.shape} and dtype {array.dtype}"
        )
    return array


def _is_floating(array: np.ndarray) -> bool:
    # NumPy does not count bfloat16, an extension type of JAX and TensorFlow, as a number.
    return np.issubdtype(array.dtype, np.floating) or array.dtype == tf.bfloat16.as_numpy_dtype


def _is_text(array: np.ndarray) -> bool:
    return array.dtype == object and all(isinstance(item, str | bytes) for item in array.flat)


def _make_batch(element: Any, index: int) -> Batch:
    parts = tuple(element) if isinstance(element, tuple | list) else (element,)  # as Keras unpacks a batch
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"`x` must yield x, (x, y) or (x, y, sample_weight). Received: a tuple of {len(parts)} in batch {index}"
        )
    x, y, weight = (*parts, None, None)[:3]
    named = {}
    lengths = set()
    for name, part in {"x": x, "y": y, "sample_weight": weight}.items():
        named[name] = map_arrays(lambda leaf, name=name: _as_array(name, leaf), part)
        for leaf in [] if part is None else keras.tree.flatten(named[name]):
            lengths.add(len(leaf))
            _check_finite(name, leaf, index)
    if len(lengths) != 1:
        raise ValueError(
            f"All arrays of a batch must have equally many rows. Received: {sorted(lengths)} rows in batch {index}. "
            "Call `batch` on a data set that is not batched"
        )
    if lengths == {0}:
        raise ValueError(f"A batch must have rows. Received: none in batch {index}")
    x, y, weight = (map_arrays(tf.convert_to_tensor, part) for part in named.values())
    return Batch(x, y, weight, lengths.pop())


def _check_finite(name: str, array: np.ndarray, index: int) -> None:
    if (_is_floating(array) or np.iscomplexobj(array)) and not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        raise ValueError(
            f"`{name}` must be finite. Received: {array[tuple(bad)]} in batch {index}, row {bad[0]}, and "
            f"{np.count_nonzero(~np.isfinite(array))} such entries in that batch"
        )
