"""The order of the rows that `fit` shuffles, as a function of a seed and the epoch."""

import random
import zlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfopt import _keras
from tfopt._keras import array_slicing, context


class RowOrder:
    """Shuffles arrays instead of Keras, unless `tf.random.set_seed` was called, and batches of a `PyDataset`.

    With a seed, Keras's order of rows follows from it, and is the same in all epochs. Without a seed, the order depends
    on states that cannot be saved. So does the order of batches, which a thread draws. The epoch iterator is changed.
    """

    def __init__(self, epoch_iterator: Any) -> None:
        self.seed = zlib.crc32(repr(random.getstate()).encode())  # Draws no number, so that all others stay the same.
        self.epoch = 0
        # An order can be resumed only from one with the same source.
        self.source = "that of the data"
        if shuffles_arrays(epoch_iterator) and context.global_seed() is not None:
            self.source = f"Keras's, from the seed {context.global_seed()} of tf.random"
        elif shuffles_arrays(epoch_iterator):
            _keras.distributed_dataset.set(epoch_iterator, self._rows(epoch_iterator.data_adapter))
            self.source = "ResumableCheckpoint's"
        elif shuffles_batches(epoch_iterator) and context.global_seed() is None:
            self._take_over_batches(epoch_iterator.data_adapter)
            self.source = "ResumableCheckpoint's"

    @property
    def is_drawn(self) -> bool:
        """Whether the order follows from the seed of this object, which each `fit` draws anew."""
        return self.source == "ResumableCheckpoint's"

    def order(self, length: int) -> np.ndarray:
        """Return the indices of the rows or batches of this epoch, of shape `(length,)`."""
        return np.random.default_rng([self.seed, self.epoch]).permutation(length)

    def _take_over_batches(self, adapter: Any) -> None:
        adapter.py_dataset, adapter.shuffle = _Reordered(adapter.py_dataset, self), False
        if adapter.enqueuer is not None:
            adapter.enqueuer.py_dataset, adapter.enqueuer.shuffle = adapter.py_dataset, False

    def _rows(self, adapter: Any) -> tf.data.Dataset:
        """Return a data set of the batches of shuffled arrays, which draws its rows again in each iteration."""
        num_rows, size = _keras.array_num_samples(adapter), _keras.array_batch_size(adapter)

        def indices() -> Iterator[np.ndarray]:
            order = self.order(num_rows)
            yield from (order[start : start + size] for start in range(0, num_rows, size))

        def pick(rows: Any, arrays: Any) -> Any:
            return keras.tree.map_structure(lambda array: None if array is None else tf.gather(array, rows), arrays)

        length = size if num_rows % size == 0 else None  # The training step knows it, as with Keras.
        rows = tf.data.Dataset.from_generator(indices, output_signature=tf.TensorSpec((length,), tf.int64))
        arrays = tf.data.Dataset.from_tensors(_sliceable(adapter)).repeat()
        return (
            tf.data.Dataset
            .zip(rows, arrays)
            .map(pick, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .apply(tf.data.experimental.assert_cardinality(adapter.num_batches))
            .prefetch(tf.data.AUTOTUNE)
        )


class _Reordered:
    """A `PyDataset` whose batches come in the order of an epoch."""

    def __init__(self, py_dataset: Any, row_order: RowOrder) -> None:
        self.in_its_own_order, self._row_order = py_dataset, row_order

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Copies ask for these before they have any attribute.
            raise AttributeError(name)
        return getattr(self.in_its_own_order, name)

    def __len__(self) -> int:
        return len(self.in_its_own_order)

    def __getitem__(self, index: int) -> Any:
        return self.in_its_own_order[int(self._row_order.order(len(self))[index])]


def shuffles_batches(epoch_iterator: Any) -> bool:
    """Return whether `fit` shuffles the batches of a `PyDataset`; the epoch iterator may be None."""
    adapter: Any = getattr(epoch_iterator, "data_adapter", None)
    return hasattr(adapter, "py_dataset") and bool(adapter.shuffle) and adapter.num_batches not in (None, 1)


def shuffles_arrays(epoch_iterator: Any) -> bool:
    """Return whether `fit` shuffles arrays that `RowOrder` can shuffle instead: dense arrays, on one device."""
    adapter = getattr(epoch_iterator, "data_adapter", None)
    return bool(_keras.array_shuffle(adapter, False)) and not why_not_taken_over(epoch_iterator)


def why_not_taken_over(epoch_iterator: Any) -> str:
    """Return why `RowOrder` cannot shuffle the arrays of a `fit`, as the end of a sentence; empty if it can."""
    adapter = epoch_iterator.data_adapter
    if _keras.array_shuffle(adapter) == "batch":
        return 'shuffle="batch" mixes the rows within each batch'
    dataset = _keras.distributed_dataset(epoch_iterator, None)
    if not isinstance(dataset, tf.data.Dataset):
        return "they are spread over devices"
    specs = tf.nest.flatten(dataset.element_spec)
    if any(isinstance(spec, tf.SparseTensorSpec | tf.RaggedTensorSpec) for spec in specs):
        return "they are sparse or ragged"
    return ""


def _sliceable(adapter: Any) -> Any:
    arrays = array_slicing.convert_to_sliceable(_keras.array_inputs(adapter), target_backend="tensorflow")
    return keras.tree.lists_to_tuples(arrays)
