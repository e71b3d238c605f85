"""The rows that a process trains on: checked, prepared, standardised, and cut into blocks and chunks of one shape."""

import math
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfopt.bregman.arrays import check_arrays, make_targets
from tfopt.bregman.losses import Loss
from tfopt.bregman.moments import Moments, pool_channels
from tfopt.bregman.network import DenseChain
from tfopt.bregman.standardisation import ADVICE, Standardisation, check_quotients, choose_units
from tfopt.communicator import Communicator
from tfopt.communicator.agreement import in_agreement

__all__ = ["Chunk", "Rows", "choose_num_blocks"]

_MOST_BLOCKS = 32
_LONGEST_RUN = 256  # Most consecutive rows that are assigned to one block together.


class Chunk(NamedTuple):
    """Some rows; the last ones may be padding, which is zero in all three arrays."""

    inputs: Any  # A_0, shape (rows, inputs).
    targets: Any  # Shape (rows, outputs).
    mask: Any  # Ones, and zeros for padding, shape (rows,).


class Rows:
    """The rows of one process.

    Rows are assigned to blocks by their number in the whole data set. Therefore a block holds the same rows for any
    number of ranks and any sizes of their shards. Arrays in memory are copied into chunks once, by `use`. Memory-mapped
    arrays are read again each time. The targets are also kept as they were given, for metrics.

    Args:
        x: Inputs: an array, or a `tf.data.Dataset` of batches `(x, y)`.
        y: Targets; None with a dataset.
        chain: The network.
        loss: The loss.
        communicator: The job's communicator.
        chunk_rows: Maximum number of rows in a chunk.
        num_blocks: Number of blocks. "auto": a block has about twice as many rows as the widest layer has inputs, and
            there are at most 32 blocks.
        names: Names of x and y in messages.

    Attributes:
        num_rows: Rows of this process.
        total_rows: Rows of all processes.
        first_row: Number of this process's first row in the whole data set.
        num_blocks: Number of blocks.
        rows_per_chunk: Rows in each chunk, padding counted.
        block_sizes: Rows of each block, over all processes.
        checksum: Checksum of this process's rows, with which a checkpoint recognises them.
        standardisation: Standardisation of the chunks; at first it changes nothing.
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
        self._chain, self._loss, self._names, self._communicator = chain, loss, names, communicator
        self.standardisation = Standardisation.none(chain.widths[0], chain.widths[-1])
        self._x, self._y = in_agreement(communicator, lambda: check_arrays(x, y, chain, loss, names))
        self._is_dataset = isinstance(x, tf.data.Dataset)
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
        self._moments = Moments(chain.widths[0]), Moments(chain.widths[-1])
        self._target_mean: np.ndarray | None = None
        in_agreement(communicator, self._look_through)

    def _choose_blocks(self, num_blocks: int | str) -> int:
        if num_blocks == "auto":
            return choose_num_blocks(self.total_rows, self._chain)
        if int(num_blocks) > self.total_rows:
            raise ValueError(
                f"`num_blocks` must be at most the number of rows, {self.total_rows}. Received: num_blocks={num_blocks}"
            )
        return int(num_blocks)

    def _deal_out(self, first: int, chunk_rows: int) -> None:
        # Blocks take runs of rows in turn, so that each block has rows of every rank and of every part of the data.
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

    def _look_through(self) -> None:
        # Check that all values are finite, and sum the moments for the standardisation.
        self.checksum = 0
        for members in self.row_numbers():
            inputs, targets = self._read(members)
            with np.errstate(over="ignore"):
                parts = (inputs, targets.astype(inputs.dtype))
            for name, part in zip(self._names, parts, strict=True):
                self.checksum = zlib.crc32(part.data, self.checksum)
                finite = np.isfinite(part).all(axis=1)
                if not finite.all():
                    row = int(members[int(np.argmin(finite))])
                    raise ValueError(self._say_what_is_not_finite(name, row))
            self._moments[0].add(inputs)
            if self._loss.is_quadratic:
                self._moments[1].add(targets)

    def _say_what_is_not_finite(self, name: str, row: int) -> str:
        given = np.asarray((self._x, self._y)[self._names.index(name)][row])
        if not np.isfinite(given).all():
            return f"`{name}` must be finite. Received: NaN or infinity in row {row}"
        dtypes = " or ".join(sorted({self._chain.input_dtype.name, self._chain.dtype.name}))
        return (
            f"`{name}` must be finite where the network computes, in {dtypes}. Received: values of magnitude "
            f"{np.abs(given).max():.3g} in row {row}, infinite or NaN there. Multiply the column by a power of ten"
        )

    def target_mean(self) -> Any:
        """Return the targets' float64 mean, shape `(outputs,)`, 0 if the loss is not quadratic; all ranks must call."""
        if not self._loss.is_quadratic:
            return 0.0
        if self._target_mean is None:
            self._target_mean = self._moments[1].reduced(self._communicator)[0]
        return self._target_mean

    def find_standardisation(self) -> Standardisation:
        """Return origins and units over the rows of all ranks; raise `ValueError` if the dtype cannot hold a unit."""
        # Targets are standardised for a squared error only. A layer without a bias allows no origin.
        chain, (inputs, targets) = self._chain, self._moments
        kind = chain.dtype.as_numpy_dtype
        plain = Standardisation.none(chain.widths[0], chain.widths[-1])
        found_inputs = inputs.reduced(self._communicator)
        if chain.num_channels < chain.widths[0]:
            found_inputs = pool_channels(*found_inputs, inputs.limits(self._communicator), chain.num_channels)
        origin, unit, is_constant = choose_units(
            *found_inputs,
            has_origin=chain.uses_bias[0],
            name=self._names[0],
            dtype=kind,
            noise=float(np.finfo(np.float32 if chain.input_dtype == tf.float32 else kind).eps),
            rounding=chain.input_rounding,
        )
        self._warn_of_lost_columns(is_constant)
        found = replace(plain, input_origin=origin, input_unit=unit, is_constant=is_constant)
        if self._loss.is_quadratic:
            origin, unit, _ = choose_units(
                *targets.reduced(self._communicator),
                has_origin=chain.uses_bias[-1],
                name=self._names[1],
                dtype=kind,
                noise=float(np.finfo(np.float32 if self._y.dtype == np.float32 else np.float64).eps),
                rounding=float(np.finfo(kind).eps),
            )
            found = replace(found, target_origin=origin, target_unit=unit, has_targets=True)
            if len(chain.layers) == 1:
                check_quotients(found, self._names, kind)
        return found

    def _warn_of_lost_columns(self, is_constant: np.ndarray) -> None:
        # Find columns that vary in the user's data, but not after the cast to the dtype of the model's inputs.
        columns = np.flatnonzero(is_constant)
        if len(columns) == 0 or math.prod(self._x.shape[1:]) != len(is_constant):
            return
        given = Moments(len(columns))
        for members in self.row_numbers():
            given.add(np.asarray(self._x[members]).reshape(len(members), -1)[:, columns])
        low, high = given.limits(self._communicator)
        noise = np.finfo(self._x.dtype).eps if self._x.dtype.kind == "f" else 0.0
        is_lost = high - low > 16 * noise * np.maximum(np.abs(low), np.abs(high))
        if is_lost.any():
            index = int(np.argmax(is_lost))
            warnings.warn(
                f"`{self._names[0]}` varies in column {columns[index]}, from {low[index]:.9g} to {high[index]:.9g}, by "
                f"less than the rounding of the model's inputs: the column has no influence. {ADVICE}",
                stacklevel=2,
            )

    def use(self, standardisation: Standardisation) -> None:
        """Standardise all chunks from now on; copy arrays in memory into chunks and release the inputs."""
        self.standardisation = standardisation
        self._cache.clear()
        if self.is_cached:
            for _ in self.all():
                pass
            self._x = None

    def block(self, number: int) -> Iterator[Chunk]:
        """Yield the chunks of a block, all of the same shapes."""
        for k, members in enumerate(self._members[number]):
            chunk = self._cache.get((number, k))
            if chunk is None:
                chunk = self._load(members)
                if self.is_cached:
                    self._cache[number, k] = chunk
            yield chunk

    def all(self) -> Iterator[Chunk]:
        """Yield all chunks, all of the same shapes."""
        for number in range(self.num_blocks):
            yield from self.block(number)

    def row_numbers(self) -> Iterator[np.ndarray]:
        """Yield the numbers of this process's rows in each chunk of `all`, as integer arrays."""
        for block in self._members:
            yield from block

    @property
    def target_shape(self) -> tuple[int, ...]:
        """Shape of one row of the targets as they were given; `()` for a number."""
        return self._y.shape[1:]

    def given_targets(self, members: np.ndarray) -> Any:
        """Return targets as `keras.Model.evaluate` passes them to metrics: as they were given, arrays in `floatx`."""
        targets = np.asarray(self._y[self._slice(members)])
        if targets.dtype.kind == "f" and not self._is_dataset:
            targets = targets.astype(keras.config.floatx(), copy=False)
        return tf.constant(targets)

    @staticmethod
    def _slice(members: np.ndarray) -> Any:
        is_run = members[-1] - members[0] == len(members) - 1
        return slice(int(members[0]), int(members[-1]) + 1) if is_run else members

    def _read(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Return prepared inputs and targets in the user's units. Targets are float64 if they will be standardised.
        rows = self._slice(members)
        dtype = tf.float64 if self._loss.is_quadratic else self._chain.dtype
        inputs = self._chain.prepare(np.ascontiguousarray(self._x[rows]))
        targets = make_targets(np.asarray(self._y[rows]), self._chain.widths[-1], self._loss, dtype)
        return inputs.numpy(), targets.numpy()

    def _load(self, members: np.ndarray) -> Chunk:
        inputs, targets = self._read(members)
        inputs, targets = self.standardisation.inputs(inputs), self.standardisation.targets(targets, inputs.dtype)
        missing = self.rows_per_chunk - len(members)
        mask = np.ones(len(members), inputs.dtype)
        if missing:
            inputs, targets = (np.pad(part, [(0, missing), (0, 0)]) for part in (inputs, targets))
            mask = np.pad(mask, (0, missing))
        return Chunk(tf.constant(inputs), tf.constant(targets), tf.constant(mask))


def _owners(runs: np.ndarray, num_blocks: int) -> np.ndarray:
    # In each round, every block gets one run. The order of the blocks is a random function of the round's number, so
    # that no periodic order of the rows gives a block rows of one kind only.
    first = int(runs[0]) // num_blocks * num_blocks
    last = (int(runs[-1]) // num_blocks + 1) * num_blocks
    with np.errstate(over="ignore"):
        keys = np.arange(first, last, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)  # The mixing of splitmix64.
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(factor)
        keys ^= keys >> np.uint64(31)
    owners = keys.reshape(-1, num_blocks).argsort(axis=1, kind="stable").reshape(-1)
    return owners[runs - first]


def choose_num_blocks(num_rows: int, chain: DenseChain) -> int:
    """Return the number of blocks with twice as many rows as the widest layer has inputs, 1 to 32."""
    return max(1, min(_MOST_BLOCKS, num_rows // (2 * max(chain.widths[:-1]))))
