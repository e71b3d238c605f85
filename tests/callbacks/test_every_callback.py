"""Every exported callback under every optimizer and way to run a step, alone; on ranks: tests/distributed."""

import csv
import functools

import callback_table as table
import keras
import numpy as np
import pytest
import tfopt.callbacks
from event_files import read_scalars

PROBE = (table.X, table.Y)


@functools.cache
def without(optimizer, mode):
    return table.fit(table.make_model(optimizer, mode), [])


def loggers(folder):
    return [
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.TensorBoard(folder / "board", write_graph=False),
    ]


def check_logs(name, history, folder):
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    board = read_scalars(folder / "board")
    assert len(rows) == table.EPOCHS
    for key in table.LOGGED.get(name, []):
        values = [float(value) for value in history[key]]
        assert len(values) == table.EPOCHS
        assert [float(row[key]) for row in rows] == pytest.approx(values)
        written = board[f"epoch_{key}"]
        assert [written[epoch] for epoch in range(table.EPOCHS)] == pytest.approx(values, rel=1e-5)


def check_measurements(name, mode, callback, folder):
    expected = table.expected_steps(name, mode)
    if expected is not None:
        assert callback.history["step"] == expected
        assert len(callback.to_dataframe()) == len(expected)
    if (folder / "own").exists():
        own = read_scalars(folder / "own")
        for key in set(table.LOGGED[name]) - {f"{callback.group}/seconds"}:
            known = {s: v for s, v in zip(expected, callback.history[key], strict=True) if not np.isnan(v)}
            assert own[key] == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize("mode", table.MODES)
@pytest.mark.parametrize("optimizer", table.OPTIMIZERS)
@pytest.mark.parametrize("name", table.CALLBACKS)
@pytest.mark.filterwarnings("ignore:With steps_per_execution=3 GradientBreakdown")
def test_loggers_first(name, optimizer, mode, tmp_path):
    callback = table.CALLBACKS[name](PROBE, tmp_path)
    history, values = table.fit(table.make_model(optimizer, mode), [*loggers(tmp_path), callback])
    plain_history, plain_values = without(optimizer, mode)
    for ours, plain in zip(values, plain_values, strict=True):
        np.testing.assert_array_equal(ours, plain)
    for key, plain in plain_history.items():
        assert history[key] == plain
    check_measurements(name, mode, callback, tmp_path)
    check_logs(name, history, tmp_path)


@pytest.mark.parametrize("name", table.LOGGED)
def test_loggers_last(name, tmp_path):
    callback = table.CALLBACKS[name](PROBE, tmp_path)
    history, _ = table.fit(table.make_model("adam", "graph"), [callback, *loggers(tmp_path)])
    check_measurements(name, "graph", callback, tmp_path)
    check_logs(name, history, tmp_path)


def test_the_table_has_every_callback():
    assert {name.split()[0] for name in table.CALLBACKS} == set(tfopt.callbacks.__all__)


def test_several_between_loggers(tmp_path):
    """Each comes before the loggers, in the order in which the user has put them, and none is called twice or not."""
    calls = []

    class Spy(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def on_train_begin(self, logs=None):
            calls.append(self.name)

    names = ["WeightNorms", "Convexity", "GradientBreakdown"]
    ours = [table.CALLBACKS[name](PROBE, tmp_path) for name in names]
    first, second = loggers(tmp_path)
    given = [Spy("a"), first, ours[0], Spy("b"), ours[1], second, Spy("c"), ours[2], Spy("d")]
    history, _ = table.fit(table.make_model("adam", "graph"), given)
    assert calls == ["a", "b", "c", "d"]
    for name, callback in zip(names, ours, strict=True):
        check_measurements(name, "graph", callback, tmp_path / "nowhere")
        check_logs(name, history, tmp_path)
