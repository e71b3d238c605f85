"""State survives the way through a file unchanged, and damage never passes for state."""

import errno
import hashlib
import io
import math
import os
import resource
from collections import deque
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfopt._checkpoints import state_file

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
    state_file.write(path, state)
    assert same(state, state_file.read(path))
    assert [p.name for p in path.parent.iterdir()] == ["state.npz"]


def test_half_precision_infinities_and_scalars_of_numpy(tmp_path):
    values = np.array([1.5, math.inf], ml_dtypes.bfloat16)
    state_file.write(tmp_path / "x", {"values": values, "nan": math.nan, "scalar": np.float32(0.1)})
    state = state_file.read(tmp_path / "x")
    assert state["values"].dtype == ml_dtypes.bfloat16
    assert state["values"].tolist() == [1.5, math.inf]
    assert math.isnan(state["nan"])
    assert state["scalar"] == np.float32(0.1)
    assert state["scalar"].dtype == np.float32


class Memory:
    """A file without a disk, which would be the slowest part of thousands of reads."""

    def __init__(self, content):
        self.content = content

    def open(self, mode):
        return io.BytesIO(self.content)

    def __str__(self):
        return "state.npz"


def test_every_truncation_and_every_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "state.npz"
    state_file.write(path, {"weights": np.arange(3, dtype="uint8"), "epoch": 3})
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"0", whole[1:]]
    for place in range(len(whole)):
        for bit in range(8):
            damaged.append(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    assert state_file.read(Memory(whole))["epoch"] == 3
    for content in damaged:
        with pytest.raises(state_file.DamagedFileError, match="state.npz: its checksum"):
            state_file.read(Memory(content))


def _sealed(content):
    return content + b"tfopt2 sha256 " + hashlib.sha256(content).digest()


@pytest.mark.parametrize("content", [b"", b"nothing", b"PK\x05\x06" + bytes(18)])
def test_what_another_program_has_sealed_is_refused_too(content, tmp_path):
    (tmp_path / "state.npz").write_bytes(_sealed(content))
    with pytest.raises(state_file.DamagedFileError, match=r"state.npz"):
        state_file.read(tmp_path / "state.npz")


def test_what_cannot_be_opened_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing", Path("/proc/self/mem")):
        with pytest.raises(state_file.DamagedFileError, match=str(path)):
            state_file.read(path)


def test_a_full_disk_is_named_and_nothing_stays_behind(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    state_file.write(path, {"epoch": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            state_file.NoRoomError, match=f"quota of {tmp_path} is full: 8[0-9][0-9] bytes.*[0-9]+ bytes"
        ):
            state_file.write(path, {"weights": np.zeros(100)})
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    assert state_file.read(path) == {"epoch": 1}


@pytest.mark.parametrize(
    "state",
    [
        {0: 1.5, (1, "a"): "b", None: [], 2.5: {True: b"x"}},
        {"__array__": 1, "__items__": 2},
        {"a": {3, 4}, "b": frozenset({"c"}), "d": 1 + 2j, "e": b"\x00\xff"},
        deque([1.0, np.float32(2.0)], maxlen=3),
        np.array([["a", "bcd"]]),
        np.array([b"a", None, "c", 1.5], object).reshape(2, 2),
        np.array(["2026-01-01", "NaT"], "datetime64[D]"),
        np.array("text"),
    ],
)
def test_what_callbacks_and_logs_hold_is_read_as_it_was(tmp_path, state):
    state_file.write(tmp_path / "x", state)
    found = state_file.read(tmp_path / "x")
    assert type(found) is (np.str_ if isinstance(state, np.ndarray) and state.ndim == 0 else type(state))
    assert repr(found) == repr(state if not isinstance(found, np.generic) else state[()])
    assert getattr(found, "maxlen", None) == getattr(state, "maxlen", None)


def test_a_file_that_is_larger_than_the_process_may_write_is_named(tmp_path):
    path = tmp_path / "state.npz"
    state_file.write(path, {"epoch": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(state_file.NoRoomError, match="too large for this process: 400[0-9]+ bytes.*ulimit -f"):
            state_file.write(path, {"weights": np.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]
    assert state_file.read(path) == {"epoch": 1}


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.EROFS])
def test_whatever_the_system_says_is_named(number, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    match = (
        "quota of .* is full"
        if number == errno.EDQUOT
        else f"cannot be written: .*{os.strerror(number)}.*files are unchanged"
    )
    with pytest.raises(state_file.NotWrittenError, match=match):
        state_file.write(tmp_path / "state.npz", {})
    assert not list(tmp_path.iterdir())


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "state.npz").mkdir()
    with pytest.raises(state_file.NotWrittenError, match=r"state.npz is a directory.*Move it elsewhere"):
        state_file.write(tmp_path / "state.npz", {})
    with pytest.raises(state_file.NotWrittenError, match=r"The folder .*gone no longer exists"):
        state_file.write(tmp_path / "gone" / "state.npz", {})
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


def test_a_file_that_is_being_written_cannot_be_guessed_or_read_by_others(tmp_path, monkeypatch):
    seen = []

    def look(descriptor):
        seen.extend((path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", look)
    for _ in range(2):
        state_file.write(tmp_path / "state.npz", {})
        (tmp_path / "state.npz").unlink()
    names = {name for name, mode in seen if name.endswith(".partial") and mode == 0o600}
    assert len(names) == 2


def test_a_link_in_the_place_of_the_new_file_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file.secrets, "token_hex", lambda _: "known")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "state.npz.known.partial").symlink_to(victim)
    with pytest.raises(state_file.NotWrittenError, match="File exists"):
        state_file.write(tmp_path / "state.npz", {})
    assert victim.read_text() == "mine"


def test_an_old_file_stays_whole_while_a_new_one_fails_to_be_written(tmp_path):
    path = tmp_path / "state.npz"
    state_file.write(path, {"epoch": 1})
    with pytest.raises(TypeError, match="A checkpoint cannot hold <object"):
        state_file.write(path, {"epoch": 2, "what": object()})
    assert state_file.read(path) == {"epoch": 1}


def test_the_order_of_bytes_does_not_matter(tmp_path):
    state_file.write(tmp_path / "state.npz", np.array([1.0, 2.0], ">f4"))
    assert state_file.read(tmp_path / "state.npz").tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (np.array([1], [("a", "i4")]), "cannot hold an array of type ndarray and dtype .*'a'"),
        (np.ma.masked_array([1, 2], [True, False]), "cannot hold an array of type MaskedArray"),
        ([np.array([None, object()])], "cannot hold <object object"),
        ({"a": {"b": [object()]}}, "cannot hold <object .* of type object, under 'b', under 'a'"),
        ({1: {2: print}}, "cannot hold <built-in function print>"),
    ],
)
def test_what_would_not_come_back_is_refused(tmp_path, state, message):
    with pytest.raises(TypeError, match=message):
        state_file.write(tmp_path / "state.npz", state)
    assert not list(tmp_path.iterdir())
