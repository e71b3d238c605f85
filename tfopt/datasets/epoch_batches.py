"""Batches in an order that depends only on the seed and the epoch, split over ranks."""

import sys
from types import FrameType
from typing import Any

import keras
import numpy as np

from tfopt import _keras
from tfopt._checks import check_flag, check_integer
from tfopt._row_checksum import checksum_of
from tfopt.communicator import Communicator, check_communicator


class EpochBatches(keras.utils.PyDataset):
    """Arrays in batches for `fit`, shuffled in each epoch; only the seed and the epoch determine the order.

    Training that is interrupted and resumed (`tfopt.callbacks.ResumableCheckpoint`) sees the same batches as training
    without interruption. N ranks together see the batches of one process: rank r of N takes the r-th of N equal parts
    of each batch. If the last batch, which may be smaller, does not divide by N, its remaining rows, fewer than N, are
    left out on all ranks; they are others in each pass if the rows are shuffled. So the batches are exactly those of
    one process if the number of rows is a multiple of N. Otherwise only the last batch of each pass differs.

    Call `fit(batches, shuffle=False)`: by default Keras shuffles the order of the batches again.

    An epoch is a pass through the data. With `fit(steps_per_epoch=k)` a pass may last for several epochs of Keras, and
    the order changes only with the next pass. Reading batches changes nothing: a loop of your own calls
    `on_epoch_end()` after each pass, and otherwise reads the same order again.

    Args:
        x: Array with one row per sample, or a tuple, list or dictionary of such arrays.
        y: Targets in the same form. None (default) for no targets.
        sample_weight: One weight per sample. None (default) for no weights.
        batch_size: Rows in a batch, counted over all ranks; an integer >= 1 and a multiple of the number of ranks.
            Default 32.
        seed: An integer >= 0. Default 0.
        shuffle: Whether to shuffle. False keeps the order of the arrays. Default True.
        communicator: The job's communicator. None (default) means `tfopt.communicator.current()`.

    Attributes:
        epoch: The pass that is next or in progress, from 0. `fit` advances it, and so do `evaluate` and `predict` with
            the same object, also if they read only some of the batches: see `start_at`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The arrays have different numbers of rows, there are fewer rows than ranks, or an argument is out of
            its range.

    Example:
        >>> import numpy as np
        >>> batches = EpochBatches(np.arange(4.0), batch_size=2, seed=0)
        >>> len(batches), sorted(float(value) for (batch,) in batches for value in batch)
        (2, [0.0, 1.0, 2.0, 3.0])
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        batch_size: int = 32,
        seed: int = 0,
        shuffle: bool = True,
        communicator: Communicator | None = None,
    ) -> None:
        super().__init__()
        communicator = check_communicator(communicator)
        self._rank, self._size = communicator.rank, communicator.size
        self.batch_size = _check_batch_size(batch_size, self._size)
        self.seed = check_integer("seed", seed, minimum=0)
        self.shuffle = check_flag("shuffle", shuffle)
        parts = {"x": x, "y": y, "sample_weight": sample_weight}
        self._arrays = tuple(
            keras.tree.lists_to_tuples(keras.tree.map_structure(np.asarray, part))
            for part in parts.values()
            if part is not None
        )
        lengths = {name: _lengths(name, part) for name, part in parts.items() if part is not None}
        if "x" not in lengths or len(set().union(*lengths.values())) != 1:
            raise ValueError(f"`x`, `y` and `sample_weight` must have equally many rows. Received: {lengths}")
        if sample_weight is not None and y is None:
            raise ValueError("`sample_weight` needs `y`. Received: y=None")
        self.num_rows = lengths["x"][0]
        if self.num_rows < self._size:
            raise ValueError(
                f"`x` must have at least one row for each of {self._size} ranks. Received: {self.num_rows}"
            )
        self.epoch = 0
        self._order: np.ndarray | None = None
        self._is_serving = False

    def __len__(self) -> int:
        full, rest = divmod(self.num_rows, self.batch_size)
        return full + (rest >= self._size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}")
        if self._order is None:
            self._order = self.order(self.epoch)
        rows = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        part = len(rows) // self._size
        rows = rows[self._rank * part : (self._rank + 1) * part]
        return tuple(keras.tree.map_structure(lambda array: array[rows], arrays) for arrays in self._arrays)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of the rows in an epoch.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            A permutation of the row numbers, of shape (num_rows,).
        """
        if not self.shuffle:
            return np.arange(self.num_rows)
        return np.random.default_rng([self.seed, check_integer("epoch", epoch, minimum=0)]).permutation(self.num_rows)

    @property
    def checksums(self) -> dict[str, int]:
        """Checksums by "x", "y" and "sample_weight", to recognise the data; for large arrays, of some rows only."""
        return {name: checksum_of(part) for name, part in zip(("x", "y", "sample_weight"), self._arrays, strict=False)}

    def start_at(self, epoch: int) -> None:
        """Set the next epoch.

        Args:
            epoch: Number of the epoch, from 0.
        """
        self.epoch = check_integer("epoch", epoch, minimum=0)
        self._order = None
        self._is_serving = False

    def on_epoch_begin(self) -> None:
        """Fix the order of the rows. Keras calls this; a loop of your own need not."""
        iterator, only_looks = _caller()
        if only_looks:
            return
        if iterator is not None and self._is_serving:
            if _is_within_a_pass(iterator):
                self._check_workers(iterator)
                return
            self.start_at(self.epoch + 1)  # `predict` left the pass early.
        self._order = self.order(self.epoch)
        self._is_serving = True

    def on_epoch_end(self) -> None:
        """Advance to the next epoch, unless Keras's epoch ends within a pass. Keras calls this; so must your own loop.

        Keras's call before the first epoch has no effect.
        """
        iterator, _ = _caller()
        if iterator is None or (self._is_serving and not _is_within_a_pass(iterator)):
            self.start_at(self.epoch + 1)

    def _check_workers(self, iterator: Any) -> None:
        if getattr(iterator.data_adapter, "enqueuer", None) is not None:
            raise ValueError(
                f"`steps_per_epoch` must not be less than the {len(self)} batches of a pass if EpochBatches has "
                "several workers: Keras then begins with the first batch again in each epoch. "
                f"Received: steps_per_epoch={iterator.steps_per_epoch} and workers={self.workers}. Set workers=1"
            )


def _caller() -> tuple[Any, bool]:
    """Return Keras's iterator that is calling, None for other callers, and whether it only looks for shapes."""
    frame: FrameType | None = sys._getframe(2)
    iterator = None
    while frame is not None:
        caller = frame.f_locals.get("self")
        iterator = caller if iterator is None and isinstance(caller, _keras.EpochIterator) else iterator
        if iterator is not None and frame.f_code.co_name in _keras.LOOKS_FOR_SHAPES:
            return iterator, True
        frame = frame.f_back
    return iterator, False


def _is_within_a_pass(iterator: Any) -> bool:
    """Return whether Keras will go on in the middle of the data; with `steps_per_epoch` its epochs end there."""
    is_kept = bool(iterator.steps_per_epoch) and _keras.current_iterator(iterator) is not None
    return is_kept and _keras.steps_seen(iterator) > 0


def _check_batch_size(batch_size: Any, num_ranks: int) -> int:
    size = check_integer("batch_size", batch_size, minimum=1)
    if size % num_ranks:
        smaller = max(size // num_ranks, 1) * num_ranks
        raise ValueError(
            f"`batch_size` must be a multiple of the number of ranks, {num_ranks}, which take equal parts of each "
            f"batch. Received: batch_size={batch_size}. The nearest are {smaller} and {smaller + num_ranks}"
        )
    return size


def _lengths(name: str, part: Any) -> list[int]:
    leaves = keras.tree.flatten(part)
    if not leaves or any(np.ndim(leaf) == 0 for leaf in leaves):
        raise TypeError(f"`{name}` must hold arrays with one row per sample. Received: {part!r}")
    return sorted({len(leaf) for leaf in leaves})
