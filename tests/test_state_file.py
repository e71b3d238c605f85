"""State survives the way through a file unchanged, and damage never passes for state."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt import _state_file

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
ARRAYS = hnp.arrays(st.sampled_from(["float32", "float64", "int64", "uint32", "bool"]), hnp.array_shapes(min_dims=1))
STATES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text("ab"), inner),
    max_leaves=6,
)


def same(one, two):
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    return type(one) is type(two) and one == two


@given(STATES)
def test_what_is_written_is_read(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("state") / "state.npz"
    _state_file.write(path, state)
    assert same(state, _state_file.read(path))
    assert [p.name for p in path.parent.iterdir()] == ["state.npz"]


def test_half_precision_infinities_and_scalars_of_numpy(tmp_path):
    values = np.array([1.5, math.inf], ml_dtypes.bfloat16)
    _state_file.write(tmp_path / "x", {"values": values, "nan": math.nan, "scalar": np.float32(0.1)})
    state = _state_file.read(tmp_path / "x")
    assert state["values"].dtype == ml_dtypes.bfloat16
    assert state["values"].tolist() == [1.5, math.inf]
    assert math.isnan(state["nan"])
    assert state["scalar"] == np.float32(0.1)
    assert state["scalar"].dtype == np.float32


def test_every_truncation_is_noticed(tmp_path):
    path = tmp_path / "state.npz"
    _state_file.write(path, {"weights": np.arange(50.0), "epoch": 3})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(_state_file.DamagedFileError, match="state.npz"):
            _state_file.read(path)


def test_a_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "state.npz"
    _state_file.write(path, {"weights": np.arange(50.0)})
    content = bytearray(path.read_bytes())
    place = content.index(np.arange(50.0).tobytes()[100:108])
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(_state_file.DamagedFileError):
        _state_file.read(path)


def test_an_old_file_stays_whole_while_a_new_one_fails_to_be_written(tmp_path):
    path = tmp_path / "state.npz"
    _state_file.write(path, {"epoch": 1})
    with pytest.raises(TypeError, match="A checkpoint cannot hold <object"):
        _state_file.write(path, {"epoch": 2, "what": object()})
    assert _state_file.read(path) == {"epoch": 1}


def test_the_order_of_bytes_does_not_matter(tmp_path):
    _state_file.write(tmp_path / "state.npz", np.array([1.0, 2.0], ">f4"))
    assert _state_file.read(tmp_path / "state.npz").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.array(["a", "b"]), "cannot hold an array of dtype <U1"),
        ([np.array([None])], "cannot hold an array of dtype object"),
        ({1: 2}, r"keys \[1\]: they must be strings"),
        ({"__array__": 2}, r"keys \['__array__'\]"),
        ({"a": {1, 2}}, "cannot hold {1, 2} of type set"),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        _state_file.write(tmp_path / "state.npz", state)
    assert not list(tmp_path.iterdir())
