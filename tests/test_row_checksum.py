"""Arrays are known again by a checksum of their rows, whatever holds them."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from tfopt import _row_checksum
from tfopt._row_checksum import checksum_of

X = np.arange(24.0, dtype="float32").reshape(8, 3) % 5


@pytest.mark.parametrize(
    "make",
    [
        np.asarray,
        np.asfortranarray,
        tf.constant,
        lambda x: x.astype(str),
        lambda x: x.astype(object),
        lambda x: (x, {"b": x[:, 0], "a": x}),
        scipy.sparse.csr_matrix,
        scipy.sparse.coo_matrix,
        tf.sparse.from_dense,
        tf.RaggedTensor.from_tensor,
        lambda x: tf.cast(x, "bfloat16"),
    ],
    ids=["numpy", "columns", "tensor", "text", "objects", "nested", "csr", "coo", "sparse", "ragged", "bfloat16"],
)
def test_equal_arrays_have_equal_checksums_and_others_have_not(make):
    other = X.copy()
    other[5, 1] += 1
    assert checksum_of(make(X)) == checksum_of(make(X.copy())) != checksum_of(make(other))
    assert checksum_of(make(X)) != checksum_of(make(X[::-1].copy()))


def test_the_holder_and_the_layout_do_not_matter():
    assert checksum_of(X) == checksum_of(tf.constant(X)) == checksum_of(np.asfortranarray(X))
    assert checksum_of(X) != checksum_of(X.reshape(4, 6)) != checksum_of(X.astype("float64"))


def test_of_large_arrays_rows_are_read_that_are_spread_over_them(monkeypatch):
    monkeypatch.setattr(_row_checksum, "_LARGEST", 1000)
    x = np.zeros((10**4, 2))
    before = checksum_of(x)
    last, between = x.copy(), x.copy()
    last[-1], between[1] = 1, 1
    assert checksum_of(last) != before == checksum_of(between)
