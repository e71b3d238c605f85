"""The rows that a process trains on: checked, prepared, and cut into blocks and chunks of one shape."""

import math
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfopt._agreement import in_agreement
from tfopt.bregman.arrays import check_arrays, make_targets
from tfopt.bregman.losses import Loss
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
        self._x, self._y = in_agreement(communicator, lambda: check_arrays(x, y, chain, loss, names))
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
        targets = make_targets(np.asarray(self._y[rows]), self._chain.widths[-1], self._loss, self._chain.dtype)
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
