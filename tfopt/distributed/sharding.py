"""Each rank's part of a data set, with the same number of elements on every rank."""

from typing import Any

import keras
import tensorflow as tf

from tfopt.communicator import Communicator, check_communicator


def shard(dataset: Any, communicator: Communicator | None = None) -> Any:
    """Return this rank's part of a data set; all ranks get equally many elements.

    Rank r of N takes the elements r, r + N, r + 2N, ...; the remainder at the end, fewer than N elements, is left out.
    A `tf.data.Dataset` is split by its elements: by rows before `batch`, by batches after it. In batches, a last one
    with fewer rows counts as much as those of the other ranks in its step: use `batch(..., drop_remainder=True)`.
    Shuffle after `shard`, or before it with the same seed on all ranks. Otherwise ranks would share rows.

    Args:
        dataset: A `tf.data.Dataset`, finite or not; or arrays with equally many rows, alone or in tuples, lists and
            dictionaries.
        communicator: The job's communicator; None (default) means `tfopt.communicator.current()`.

    Returns:
        The same structure as `dataset`.

    Raises:
        TypeError: `dataset` is neither.
        ValueError: There are fewer elements than ranks, or arrays have different lengths.

    Example:
        >>> import numpy as np
        >>> shard((np.arange(4), np.ones((4, 2))))[0]
        array([0, 1, 2, 3])
    """
    communicator = check_communicator(communicator)
    rank, size = communicator.rank, communicator.size
    if isinstance(dataset, tf.data.Dataset):
        return dataset if size == 1 else _shard_dataset(dataset, rank, size)
    if isinstance(dataset, keras.utils.PyDataset):
        raise TypeError(
            "`dataset` must be a tf.data.Dataset or arrays. Received: a PyDataset; shard the arrays that it is made of"
        )
    leaves = keras.tree.flatten(dataset)
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) > 0 for leaf in leaves):
        raise TypeError(
            "`dataset` must be a tf.data.Dataset or arrays. "
            f"Received: {type(dataset).__name__} of {sorted({type(leaf).__name__ for leaf in leaves})}"
        )
    lengths = sorted({int(leaf.shape[0]) for leaf in leaves})
    if len(lengths) > 1 or lengths[0] < size:
        raise ValueError(
            f"`dataset` must hold arrays of one length, at least one row for each of {size} ranks. "
            f"Received: lengths {lengths}"
        )
    stop = lengths[0] // size * size
    return keras.tree.map_structure(lambda leaf: leaf[rank:stop:size], dataset)


def _shard_dataset(dataset: tf.data.Dataset, rank: int, size: int) -> tf.data.Dataset:
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY:
        return dataset.shard(size, rank)
    if cardinality != tf.data.UNKNOWN_CARDINALITY:
        if cardinality < size:
            raise ValueError(
                f"`dataset` must hold at least one element for each of {size} ranks. Received: {cardinality} elements"
            )
        return dataset.shard(size, rank).take(cardinality // size)
    # The number of elements is known only at the end. Take them in groups of N, and drop an incomplete last group.
    groups = dataset.window(size, drop_remainder=True)
    return groups.flat_map(lambda *parts: _zip(parts).skip(rank).take(1))


def _zip(parts: tuple[Any, ...]) -> tf.data.Dataset:
    # `window` makes a data set of each component of the elements. Join the components again.
    part = parts[0] if len(parts) == 1 else parts
    return part if isinstance(part, tf.data.Dataset) else tf.data.Dataset.zip(part)
