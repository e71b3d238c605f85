"""The rows that a process trains on: checked, prepared, and cut into blocks and chunks of one shape."""

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfopt._agreement import in_agreement
from tfopt.bregman.losses import KERAS_HINGE, Loss, categorical_crossentropy, squared_error
from tfopt.bregman.network import DenseChain
from tfopt.communicator import Communicator

__all__ = ["Chunk", "Rows", "choose_num_blocks"]

_MOST_BLOCKS = 32
_LONGEST_RUN = 256  # rows that stay together when rows are dealt out to blocks


class Chunk(NamedTuple):
    """Some rows; the last ones may be padding, zeros in all three."""

    inputs: Any  # A_0, shape (rows, inputs)
    targets: Any  # shape (rows, outputs)
    mask: Any  # ones, and zeros for padding, shape (rows,)


class Rows:
    """The rows of one process.

    Rows are dealt out to blocks by their number in the whole data set, so that neither the number of ranks nor the
    sizes of their shards changes what a block holds. Arrays in memory are copied into chunks once; memory-mapped ones
    are read again each time.

    Args:
        x: Inputs: an array, or a `tf.data.Dataset` of batches `(x, y)`.
        y: Targets; None with a dataset.
        chain: The network.
        loss: The loss.
        communicator: The job's processes.
        chunk_rows: Most rows in a chunk.
        num_blocks: Number of blocks; "auto" for about twice as many rows in a block as the widest layer has inputs,
            and at most 32 blocks.
        names: What messages call x and y.

    Attributes:
        num_rows: Rows of this process.
        total_rows: Rows of all processes.
        first_row: Number of this process's first row in the whole data set.
        num_blocks: Number of blocks.
        rows_per_chunk: Rows in each chunk, padding counted.
        block_sizes: Rows of each block, of all processes together.
        checksum: Of this process's rows, to know them again.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        chain: DenseChain,
        loss: Loss,
        communicator: Communicator,
        chunk_rows: int,
        num_blocks: int | str = 1,
        names: tuple[str, str] = ("x", "y"),
    ) -> None:
        self._chain, self._loss, self._names = chain, loss, names
        self._x, self._y = in_agreement(communicator, lambda: _check_arrays(x, y, chain, loss, names))
        self.is_cached = not isinstance(self._x, np.memmap)
        self.num_rows = len(self._x)
        counts = communicator.allgather_object(self.num_rows, name="numbers of rows")
        self.total_rows = sum(counts)
        first = sum(counts[: communicator.rank])
        self.num_blocks = self._choose_blocks(num_blocks)
        self.first_row = first
        self._deal_out(first, chunk_rows)
        counts = communicator.allgather_object([sum(map(len, rows)) for rows in self._members], name="sizes of blocks")
        self.block_sizes = [sum(sizes) for sizes in zip(*counts, strict=True)]
        self._cache: dict[tuple[int, int], Chunk] = {}
        in_agreement(communicator, self._check_values)
        if self.is_cached:
            self._x = self._y = None  # the chunks hold them now

    def _choose_blocks(self, num_blocks: int | str) -> int:
        if num_blocks == "auto":
            return choose_num_blocks(self.total_rows, self._chain)
        if int(num_blocks) > self.total_rows:
            raise ValueError(
                f"`num_blocks` must be at most the number of rows, {self.total_rows}. Received: num_blocks={num_blocks}"
            )
        return int(num_blocks)

    def _deal_out(self, first: int, chunk_rows: int) -> None:
        # Runs of rows go to the blocks in turn: each has rows of every rank, and of every part of the data.
        run = max(1, min(_LONGEST_RUN, self.total_rows // (64 * self.num_blocks)))
        owner = _owners((first + np.arange(self.num_rows)) // run, self.num_blocks)
        members = [np.flatnonzero(owner == block) for block in range(self.num_blocks)]
        largest = max(len(rows) for rows in members)
        num_chunks = max(1, math.ceil(largest / chunk_rows))
        self.rows_per_chunk = math.ceil(largest / num_chunks)
        cuts = range(0, largest, self.rows_per_chunk)
        self._members = [
            [part for cut in cuts if len(part := rows[cut : cut + self.rows_per_chunk])] for rows in members
        ]

    def _check_values(self) -> None:
        self.checksum = 0
        for block in range(self.num_blocks):
            for k, chunk in enumerate(self.block(block)):
                for name, part in zip(self._names, (chunk.inputs, chunk.targets), strict=True):
                    self.checksum = zlib.crc32(part.numpy(), self.checksum)
                    if not bool(tf.reduce_all(tf.math.is_finite(part))):
                        finite = np.isfinite(part.numpy()).all(axis=1)
                        row = int(self._members[block][k][int(np.argmin(finite))])
                        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity in row {row}")

    def block(self, number: int) -> Iterator[Chunk]:
        """Hand out the chunks of a block.

        Args:
            number: Which block.

        Yields:
            Chunks, all of the same shapes.
        """
        for k, members in enumerate(self._members[number]):
            chunk = self._cache.get((number, k))
            if chunk is None:
                chunk = self._load(members)
                if self.is_cached:
                    self._cache[number, k] = chunk
            yield chunk

    def all(self) -> Iterator[Chunk]:
        """Hand out all chunks.

        Yields:
            Chunks, all of the same shapes.
        """
        for number in range(self.num_blocks):
            yield from self.block(number)

    def row_numbers(self) -> Iterator[np.ndarray]:
        """Hand out which rows of this process each chunk of `all` holds.

        Yields:
            Arrays of integers.
        """
        for block in self._members:
            yield from block

    def _load(self, members: np.ndarray) -> Chunk:
        is_run = members[-1] - members[0] == len(members) - 1
        rows = slice(int(members[0]), int(members[-1]) + 1) if is_run else members
        inputs = self._chain.prepare(np.ascontiguousarray(self._x[rows]))
        targets = _targets(np.asarray(self._y[rows]), self._chain.widths[-1], self._loss, self._chain.dtype)
        mask = tf.ones(len(members), self._chain.dtype)
        missing = self.rows_per_chunk - len(members)
        if missing:
            inputs, targets = (tf.pad(part, [[0, missing], [0, 0]]) for part in (inputs, targets))
            mask = tf.pad(mask, [[0, missing]])
        return Chunk(inputs, targets, mask)


def _owners(runs: np.ndarray, num_blocks: int) -> np.ndarray:
    # In each round of runs every block gets one, in an order that is drawn anew from the round's number, so that no
    # regular order of the rows gives a block rows of one kind only.
    first = int(runs[0]) // num_blocks * num_blocks
    last = (int(runs[-1]) // num_blocks + 1) * num_blocks
    with np.errstate(over="ignore"):
        keys = np.arange(first, last, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # splitmix64's mixing
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
        keys ^= keys >> np.uint64(31)
    owners = keys.reshape(-1, num_blocks).argsort(axis=1, kind="stable").reshape(-1)
    return owners[runs - first]


def choose_num_blocks(num_rows: int, chain: DenseChain) -> int:
    """Return the number of blocks with twice as many rows as the widest layer has inputs, 1 to 32.

    Args:
        num_rows: Rows of all processes.
        chain: The network.

    Returns:
        The number.
    """
    return max(1, min(_MOST_BLOCKS, num_rows // (2 * max(chain.widths[:-1]))))


def _check_arrays(x: Any, y: Any, chain: DenseChain, loss: Loss, names: tuple[str, str]) -> tuple[Any, Any]:
    x_name, y_name = names
    if isinstance(x, tf.data.Dataset):
        if y is not None:
            raise ValueError("`y` must not be given when `x` is a tf.data.Dataset, which brings its targets")
        x, y = _collect(x, x_name)
    elif x is None or isinstance(x, keras.utils.PyDataset | dict) or hasattr(x, "__next__"):
        raise TypeError(f"`{x_name}` must be an array or a tf.data.Dataset. Received: {type(x).__name__}")
    elif y is None:
        raise ValueError(f"`{y_name}` must be given when `{x_name}` is an array. Received: {y_name}=None")
    x = x if isinstance(x, np.memmap) else np.asarray(x)
    y = y if isinstance(y, np.memmap) else np.asarray(y)
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


def _matches(shape: tuple[int, ...], expected: tuple[Any, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))


def _check_targets(y: Any, num_outputs: int, loss: Loss, name: str) -> None:
    is_sparse = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    shapes = [f"(rows, {num_outputs})"]
    if loss is not squared_error or num_outputs == 1:
        shapes.insert(0, "(rows,)")
    if y.shape[1:] != (num_outputs,) and not (is_sparse and len(shapes) == 2):
        raise ValueError(
            f"`{name}` must have the shape {' or '.join(shapes)}, for {loss.name} of {num_outputs} outputs. "
            f"Received: shape {y.shape}"
        )
    if loss is squared_error:
        return
    values = np.asarray(y, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite. Received: NaN or infinity")
    received = f"Received: values from {values.min():g} to {values.max():g}"
    if is_sparse and num_outputs > 1:
        if (values != np.floor(values)).any() or values.min() < 0 or values.max() >= num_outputs:
            raise ValueError(f"`{name}` must be labels 0 to {num_outputs - 1}. {received}")
    elif loss.name.startswith("hinge"):
        found = set(np.unique(values).tolist())
        if not (found <= {0.0, 1.0} or (loss.name == KERAS_HINGE and found <= {-1.0, 1.0})):
            raise ValueError(f"`{name}` must be {'-1 and 1, or ' * (loss.name == KERAS_HINGE)}0 and 1. {received}")
    elif values.min() < 0 or values.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1] for {loss.name}. {received}")
    elif loss is categorical_crossentropy and np.abs(values.sum(axis=1) - 1).max() > 1e-3:
        row = int(np.abs(values.sum(axis=1) - 1).argmax())
        raise ValueError(
            f"`{name}` must have rows that sum to 1 for {loss.name}. Received: row {row} sums to {values[row].sum():g}"
        )


def _targets(y: np.ndarray, num_outputs: int, loss: Loss, dtype: Any) -> Any:
    if y.ndim == 1 or (y.shape[1] == 1 and num_outputs > 1):
        if num_outputs > 1:
            return tf.one_hot(y.reshape(-1).astype(np.int64), num_outputs, dtype=dtype)
        y = y[:, None]
    return tf.cast(y > 0.5 if loss.name.startswith("hinge") else y, dtype)


def _collect(dataset: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    # The batches are let go one by one while they are copied, so that hardly more than one copy is held.
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{name}` must end. Received: a tf.data.Dataset that goes on for ever: leave out .repeat()")
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
