"""Means, variances and ranges of columns over the rows of all ranks, and pooling over the columns of a channel."""

import numpy as np
import tensorflow as tf

from tfopt.communicator import Communicator

__all__ = ["ROWS_AT_ONCE", "Moments", "pool_channels"]

ROWS_AT_ONCE = 1024  # Keeps float64 temporaries small.
# Columns of a channel are of one kind if the channel's range is at most this multiple of the smallest range of a
# column. For bytes the ratio is at most 255.
_LARGEST_RATIO_OF_RANGES = 300.0


class Moments:
    """Means, sums of squares and ranges of columns, in float64, over rows that are added in parts.

    Each part is summed about its own mean, and parts are joined by the differences of their means (Chan, Golub, LeVeque
    1983). Therefore an origin far from zero costs no digits, and a constant column has a sum of squares of exactly 0.
    """

    def __init__(self, num_columns: int) -> None:
        self._count = 0
        self._mean, self._squares = np.zeros(num_columns), np.zeros(num_columns)
        self._low, self._high = np.full(num_columns, np.inf), np.full(num_columns, -np.inf)

    def add(self, rows: np.ndarray) -> None:
        """Add rows, shape `(rows, num_columns)`, finite."""
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            piece = rows[begin : begin + ROWS_AT_ONCE].astype(np.float64)
            self._low = np.minimum(self._low, piece.min(axis=0))
            self._high = np.maximum(self._high, piece.max(axis=0))
            first = piece[0].copy()
            piece -= first
            mean = piece.mean(axis=0)
            piece -= mean
            self._join(len(piece), first + mean, (piece * piece).sum(axis=0))

    def _join(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        total = self._count + count
        gap = mean - self._mean
        self._squares += squares + gap * gap * (self._count * count / total)
        self._mean += gap * (count / total)
        self._count = total

    def reduced(self, communicator: Communicator) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and variance of each column over the rows of all ranks."""
        count, mean, squares = float(self._count), self._mean, self._squares
        if communicator.size > 1:
            parts = [tf.constant(count, tf.float64), tf.constant(count * mean)]
            count, sums = (part.numpy() for part in communicator.allreduce_sum(parts, name="means of columns"))
            mean = sums / count
            squares = squares + self._count * (self._mean - mean) ** 2
            (total,) = communicator.allreduce_sum([tf.constant(squares)], name="variances of columns")
            squares = total.numpy()
        return mean, squares / count

    def limits(self, communicator: Communicator) -> tuple[np.ndarray, np.ndarray]:
        """Return the smallest and the largest value of each column over the rows of all ranks."""
        parts = communicator.allgather_object((self._low, self._high), name="ranges of columns")
        lows, highs = zip(*parts, strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)


def pool_channels(
    mean: np.ndarray, variance: np.ndarray, limits: tuple[np.ndarray, np.ndarray], num_channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each column, pooled over a channel if its columns are of one kind, such as pixels."""
    # All arrays have shape `(columns,)`. Column c belongs to channel c modulo `num_channels`, a divisor of the number
    # of columns. Columns are of one kind if the range of the channel is at most 300 times the range of each column that
    # varies. Pooling keeps columns that hardly vary, such as the border of images, from being amplified. Other columns,
    # such as those of a table, keep their own moments.
    means, variances, lows, highs = (part.reshape(-1, num_channels) for part in (mean, variance, *limits))
    ranges = highs - lows
    smallest = np.min(ranges, axis=0, initial=np.inf, where=ranges > 0)
    is_one_kind = np.isfinite(smallest) & (highs.max(axis=0) - lows.min(axis=0) <= _LARGEST_RATIO_OF_RANGES * smallest)
    of_channel = means.mean(axis=0)
    pooled = (variances + (means - of_channel) ** 2).mean(axis=0)
    return np.where(is_one_kind, of_channel, means).ravel(), np.where(is_one_kind, pooled, variances).ravel()
