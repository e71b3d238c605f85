"""Every public record, and the history of every callback, comes back from a file bit for bit, or not at all."""

import dataclasses
import importlib
import inspect
import json
import pickle
import struct
import types
import typing
from typing import Any

import callback_table
import keras
import ml_dtypes
import numpy as np
import pytest

import tfopt
from tfopt import bregman, callbacks, nqm, planning
from tfopt._record import Record
from tfopt.callbacks import MeasurementHistory

NAN_BITS = struct.unpack(">d", bytes.fromhex("fff8000000000abc"))[0]  # a negative NaN with a payload
HOSTILE = np.array([0.1, -0.0, np.nan, NAN_BITS, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, 1 / 3])
with np.errstate(over="ignore"):
    SHORT = HOSTILE.astype("float32")
PACKAGES = [importlib.import_module(f"tfopt.{name}") for name in sorted(set(tfopt.__all__) - {"__version__"})]
# The data of `tfopt.datasets` are an input and not a result.
PUBLIC = {
    name: getattr(package, name)
    for package in PACKAGES
    for name in getattr(package, "__all__", ())
    if dataclasses.is_dataclass(getattr(package, name)) and name != "Dataset"
}

ALGORITHM = nqm.Algorithm([0.1, 1 / 3], momentum=0.9, nesterov=True)
PROBLEM = nqm.NoisyQuadratic([1.0, 1 / 3], [0.0, 5e-324], 2.5, 1e300)
# Records that check their fields.
CHECKED = {
    "Algorithm": ALGORITHM,
    "NoisyQuadratic": PROBLEM,
    "Settings": bregman.Settings(linear_penalty=(0.1, 1 / 3)),
    "RestartedSettings": bregman.RestartedSettings(num_blocks=3, state_dtype="float16"),
    "SplittingSettings": bregman.SplittingSettings(multiplier="admm", seed=2**31 - 1),
}
VALUES = {bool: [True, False], int: [2**60, -3], str: ["", 'a "path"\nin two lines, \u00fc'], type(None): [None]}
VALUES |= {float: HOSTILE.tolist(), np.ndarray: [HOSTILE.reshape(3, 3), SHORT[::2], np.array([], bool)]}
VALUES |= {Any: [0.1, HOSTILE, np.float32(0.1)]}


def make(hint, index):
    """A value of a type; `index` chooses one of those that its records can hold."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint).items()
        return CHECKED.get(hint.__name__) or hint(**{name: make(part, index) for name, part in hints})
    if kind is types.UnionType:
        return make(parts[index % len(parts)], index)
    if kind is dict:
        return {make(parts[0], k): make(parts[1], index + k) for k in range(2)}
    if kind in (list, tuple):
        return kind(make(parts[0], index + k) for k in range(2))
    return VALUES[hint][index % len(VALUES[hint])]


EXAMPLES = {name: make(kind, 0) for name, kind in PUBLIC.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Anything(Record):
    """A record of one value of any kind."""

    value: object
    other: object = None


def bits_of(value):
    """A value with its type, as text that shows every bit."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray | np.generic):
        return kind, str(value.dtype), value.shape, value.tolist() if value.dtype.kind == "U" else value.tobytes()
    if isinstance(value, float):
        return kind, struct.pack(">d", value)
    if isinstance(value, Record):
        return kind, bits_of(dict(value._content()))
    if isinstance(value, dict):
        return kind, [(bits_of(key), bits_of(item)) for key, item in value.items()]
    return (kind, [bits_of(item) for item in value]) if isinstance(value, list | tuple) else (kind, repr(value))


def assert_comes_back(record, path):
    record.save(path)
    found = type(record).load(path)
    assert bits_of(found) == bits_of(record)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_records_come_back(name, tmp_path):
    assert issubclass(PUBLIC[name], Record)
    for index in range(9):
        assert_comes_back(make(PUBLIC[name], index), tmp_path / "record.json")


@pytest.mark.parametrize(
    "value",
    [
        *[None, True, 2**100, -3, "", "$float", ["a", [1, 1.0]], (), ((1,), [2]), {}, {"a": (1, None)}, 1e22, -0.0],
        *[float(number) for number in HOSTILE],
        *[{"$float": "nan"}, {1: "a", (2, "b"): [np.float32(0.1)], None: {}}],
        *[np.float16(0.1), np.float32(np.nan), np.int8(-3), np.uint64(2**64 - 1), np.bool_(True), np.float64(0.1)],
        *[
            SHORT,
            SHORT.astype(">f4"),
            SHORT.astype(ml_dtypes.bfloat16),
            HOSTILE.astype(">f8"),
            SHORT[:3].astype("f2"),
        ],
        *[np.array([2**63 - 1, -(2**63)]), np.array([[True], [False]]), np.array(["a", "\u00fc"]), np.array(7.0)],
        *[np.zeros((0, 3), "int16"), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.arange(6)[::2]],
        *[[ALGORITHM, (PROBLEM, {"a": EXAMPLES["Interval"]})], Anything(Anything(np.nan))],
    ],
    ids=repr,
)
def test_values_of_every_kind_come_back(value, tmp_path):
    with np.errstate(all="ignore"):
        assert_comes_back(Anything(value), tmp_path / "record.json")


@pytest.mark.parametrize("value", [object(), 1j, {1, 2}, b"a", np.array([None]), np.array([1j]), np.longdouble(1)])
def test_values_that_no_file_can_hold_are_named_before_anything_is_written(value, tmp_path):
    with pytest.raises(TypeError, match=r"^Anything cannot be saved, because of `other`"):
        Anything(0, [{"a": value}]).save(tmp_path / "record.json")
    assert not list(tmp_path.iterdir())


def test_a_base_class_reads_its_subclasses(tmp_path):
    EXAMPLES["RestartedSettings"].save(tmp_path / "settings.json")
    assert bregman.Settings.load(tmp_path / "settings.json") == EXAMPLES["RestartedSettings"]
    with pytest.raises(ValueError, match=r"settings.json cannot be read as a SplittingSettings: it holds a Restarted"):
        bregman.SplittingSettings.load(tmp_path / "settings.json")


@pytest.fixture
def saved(tmp_path):
    """The file of a plan, whose parts are records too."""
    EXAMPLES["BatchSizePlan"].save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def test_every_cut_is_noticed(saved):
    whole = saved.read_bytes()
    for length in [*range(0, len(whole) - 3, 97), len(whole) - 3]:
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"plan.json cannot be read as a BatchSizePlan: it is damaged or cut off"):
            planning.BatchSizePlan.load(saved)


def test_every_changed_byte_is_noticed(saved):
    whole = saved.read_bytes()
    for index in range(0, len(whole) - 2, 41):
        damaged = bytearray(whole)
        damaged[index] ^= 1
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"plan.json cannot be read as a BatchSizePlan: "):
            planning.BatchSizePlan.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts | {"tfopt_record": 2}, "a newer version of tfopt has written it, in format 2"),
        (lambda parts: parts | {"class": "Schedule"}, "it holds a Schedule"),
        (lambda parts: parts | {"class": ["a"]}, "it holds a "),
        (lambda parts: parts | {"content": parts["content"] | {"colour": 1}}, "unknown: colour; missing: none"),
        (lambda parts: parts | {"content": {"target_loss": 1.0}}, "missing: batch_sizes, critical"),
        (lambda parts: parts | {"content": parts["content"] | {"target_loss": 0.2}}, "its checksum differs"),
        (lambda parts: parts | {"content": [1]}, "it is damaged"),
        (lambda parts: parts | {"content": parts["content"] | {"curves": {"$what": 1}}}, "it is damaged"),
        (lambda parts: parts | {"content": parts["content"] | {"fit": {"$record": ["Popen", {}]}}}, "it is damaged"),
        (lambda parts: [parts], "`save` has not written it"),
        (lambda parts: parts["content"], "`save` has not written it"),
    ],
)
def test_other_content_is_named(saved, change, message):
    saved.write_text(json.dumps(change(json.loads(saved.read_text()))))
    with pytest.raises(ValueError, match=f"plan.json cannot be read as a BatchSizePlan: .*{message}"):
        planning.BatchSizePlan.load(saved)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\xff\xfe", pickle.dumps([1]), b"[" * 100_000])
def test_other_files_are_named(saved, data):
    saved.write_bytes(data)
    with pytest.raises(ValueError, match=r"plan.json cannot be read as a BatchSizePlan: it is damaged or cut off"):
        planning.BatchSizePlan.load(saved)


def test_paths_are_checked(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "record.json"):
        with pytest.raises(ValueError, match="`path` must be a file in an existing folder"):
            ALGORITHM.save(path)
        with pytest.raises(FileNotFoundError, match="`path` must be a file that `save` has written"):
            nqm.Algorithm.load(path)
    for method in (ALGORITHM.save, nqm.Algorithm.load):
        with pytest.raises(TypeError, match="`path` must be a path"):
            method(3)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match=r"plan\.json was not written"):
        ALGORITHM.save(saved)
    assert [path.read_bytes() for path in saved.parent.iterdir()] == [before]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every callback that has measured something, by the name of its class; batch normalisation makes it NaN at 0."""
    folder, probe = tmp_path_factory.mktemp("events"), (callback_table.X, callback_table.Y)
    used = [make(probe, folder) for name, make in callback_table.CALLBACKS.items() if not name.endswith("steps")]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(*probe, epochs=2, batch_size=14, verbose=0, callbacks=used)
    return {type(callback).__name__: callback for callback in used}


def test_histories_of_all_callbacks_come_back(measured, tmp_path):
    public = {name: getattr(callbacks, name) for name in callbacks.__all__}
    bases = {base for kind in public.values() for base in kind.__mro__[1:]}
    expected = {name for name, kind in public.items() if issubclass(kind, keras.callbacks.Callback)}
    assert measured.keys() == {name for name in expected if public[name] not in bases}
    with_history = {name: one for name, one in measured.items() if hasattr(one, "history")}
    assert len(with_history) >= 4
    for name, callback in with_history.items():
        assert type(callback.history) is MeasurementHistory, name
        assert len(callback.history["step"]) >= 2, name
        assert_comes_back(callback.history, tmp_path / "history.json")
        assert callback.to_dataframe().equals(MeasurementHistory.load(tmp_path / "history.json").to_dataframe())
        callback.set_state(pickle.loads(pickle.dumps(callback.get_state())) | {"history": dict(callback.history)})
        assert type(callback.history) is MeasurementHistory, name


def test_only_lists_are_a_history(tmp_path):
    MeasurementHistory(epoch=3).save(tmp_path / "history.json")
    with pytest.raises(ValueError, match="it holds more than lists"):
        MeasurementHistory.load(tmp_path / "history.json")


def test_drawings_tables_and_progress_have_one_form():
    """Here and not beside each, so that a new one that differs fails."""
    for package in PACKAGES:
        for name in getattr(package, "__all__", ()):
            item = getattr(package, name)
            if inspect.isclass(item):
                if hasattr(item, "plot"):
                    parameters = inspect.signature(item.plot).parameters
                    assert list(parameters)[:3] == ["self", "ax", "label"], name
                    assert all(each.default is None for each in list(parameters.values())[1:]), name
                if hasattr(item, "to_dataframe"):
                    parameters = list(inspect.signature(item.to_dataframe).parameters.values())[1:]
                    assert all(each.default is not inspect.Parameter.empty for each in parameters), name
            elif inspect.isfunction(item):
                parameters = inspect.signature(item).parameters
                assert "verbose" not in parameters, name
                if "progress" in parameters:
                    progress = parameters["progress"]
                    assert progress.default is None, name
                    assert progress.kind is inspect.Parameter.KEYWORD_ONLY, name
                if "seed" in parameters:
                    default = None if package.__name__ == "tfopt.models" else 0
                    assert parameters["seed"].default == default, name
