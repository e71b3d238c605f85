"""`shard` refuses what it cannot split, and leaves a single process's data alone; ranks are in `test_ranks.py`."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tfopt.datasets import EpochBatches
from tfopt.distributed import shard

THIRD = SimpleNamespace(rank=2, size=3)


def test_alone_it_changes_nothing():
    dataset = tf.data.Dataset.range(5)
    assert shard(dataset) is dataset
    x, y = shard((np.arange(5), np.arange(5)))
    assert x.tolist() == y.tolist() == list(range(5))


def test_arrays_in_dictionaries():
    assert shard({"a": np.arange(8)}, THIRD)["a"].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (3, TypeError, "`dataset` must be a tf.data.Dataset or arrays. Received: int"),
        ([], TypeError, "Received: list"),
        (np.float32(1.0), TypeError, "must be a tf.data.Dataset or arrays"),
        (EpochBatches(np.ones(6)), TypeError, "Received: a PyDataset; shard the arrays"),
        ((np.ones(6), np.ones(5)), ValueError, r"arrays of one length.*Received: lengths \[5, 6\]"),
        (np.ones(2), ValueError, r"one row for each of 3 ranks. Received: lengths \[2\]"),
        (tf.data.Dataset.range(2), ValueError, "one element for each of 3 ranks. Received: 2 elements"),
    ],
)
def test_refuses(dataset, error, message):
    with pytest.raises(error, match=message):
        shard(dataset, THIRD)
