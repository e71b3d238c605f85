"""Every exported callback under every optimizer and way to run a step, alone; on ranks: tests/distributed."""

import csv
import functools
import pickle

import callback_table as table
import keras
import numpy as np
import pytest
from event_files import read_scalars

import tfopt.callbacks

PROBE = (table.X, table.Y)


@functools.cache
def without(optimizer, mode):
    return table.fit(table.model_at_its_start(optimizer, mode), [])


def loggers(folder):
    return [
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.TensorBoard(folder / "board", write_graph=False),
    ]


def check_untouched(found, plain):
    """The callback has changed neither the variables nor what Keras logs."""
    for ours, theirs in zip(found[1], plain[1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for key, series in plain[0].items():
        assert found[0][key] == series


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


# Every pair of a callback and a way to step, and of an optimizer and a way to step. What logs runs in graphs below.
CELLS = [
    (name, optimizer, mode)
    for place, name in enumerate(table.CALLBACKS)
    for row, optimizer in enumerate(table.OPTIMIZERS)
    for column, mode in enumerate(table.MODES)
    if (place + row + column) % 3 == 0 and not (mode == "graph" and name in table.LOGGED)
]


@pytest.mark.parametrize(("name", "optimizer", "mode"), CELLS)
@pytest.mark.filterwarnings("ignore:With steps_per_execution=3 GradientBreakdown")
def test_loggers_first(name, optimizer, mode, tmp_path):
    plain = without(optimizer, mode)  # before any callback has touched this model
    callback = table.CALLBACKS[name](PROBE, tmp_path)
    found = table.fit(table.model_at_its_start(optimizer, mode), [*loggers(tmp_path), callback])
    check_untouched(found, plain)
    check_measurements(name, mode, callback, tmp_path)
    check_logs(name, found[0], tmp_path)


@pytest.mark.parametrize("name", table.LOGGED)
def test_loggers_last(name, tmp_path):
    plain = without("adam", "graph")
    callback = table.CALLBACKS[name](PROBE, tmp_path)
    found = table.fit(table.model_at_its_start("adam", "graph"), [callback, *loggers(tmp_path)])
    check_untouched(found, plain)
    check_measurements(name, "graph", callback, tmp_path)
    check_logs(name, found[0], tmp_path)


def test_the_table_has_every_callback():
    others = {"Measurement", "MeasurementHistory"}
    assert {name.split()[0] for name in table.CALLBACKS} | others == set(tfopt.callbacks.__all__)


def test_the_table_says_what_each_measurement_logs():
    assert [name for name in table.MEASURING if name not in table.LOGGED] == []


@pytest.mark.parametrize("name", table.MEASURING)
def test_copies_hold_the_measurements_and_nothing_of_the_model(name, tmp_path):
    """Also those made during a training."""
    callback = table.CALLBACKS[name](PROBE, tmp_path)
    made = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: made.append(pickle.dumps(callback)))
    table.fit(table.model_at_its_start("adam", "graph"), [callback, spy])
    made.append(pickle.dumps(callback))
    assert max(map(len, made)) < 50_000
    steps = callback.history["step"]
    lines = callback.plot(label="run 1").lines
    is_alone = sum(not line.get_label().startswith("_") for line in lines) == 1  # the label is then its whole name
    assert all(line.get_label().startswith(("run 1" if is_alone else "run 1 ", "_")) for line in lines)
    assert [pickle.loads(each).history["step"] for each in made] == [
        *(steps[: end - 2] for end in (0, 1)),
        steps,
        steps,
    ]


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


@pytest.mark.parametrize("policy", ["float64", "mixed_float16", "mixed_bfloat16"])
def test_other_dtypes(policy, tmp_path):
    """Under loss scaling the first steps overflow and are skipped: what is measured are steps that move the weights."""
    keras.config.set_dtype_policy(policy)
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    try:
        names = table.MEASURING
        ours = [table.CALLBACKS[name](PROBE, tmp_path) for name in names]
        history, values = table.fit(table.make_model("adam", "graph"), ours)
        _, plain = table.fit(table.make_model("adam", "graph"), [])
    finally:
        keras.config.set_dtype_policy("float32")
        keras.config.set_floatx("float32")
    for a, b in zip(values, plain, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(np.isfinite(history[key]).all() for name in names for key in table.LOGGED[name])
    breakdown = ours[names.index("GradientBreakdown")]
    assert min(breakdown.history["breakdown/relative_perturbation"]) > 0


@pytest.mark.parametrize("given", [{}, {"epochs": 3, "steps": 1}])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_loop_that_is_not_fit(is_compiled, given):
    """A trainer without an optimizer, whose epochs are its steps, that calls the hooks itself."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    if is_compiled:
        model.compile("sgd", loss="mse")
    callbacks = [table.CALLBACKS[name](PROBE, None) for name in ("WeightNorms", "AverageMetrics", "BroadcastVariables")]
    callbacks.append(tfopt.callbacks.Convexity(PROBE, "mse", num_matvecs=2))
    callbacks.append(tfopt.callbacks.Convexity(PROBE, "mse", every_n_steps=1, eigenvalues=False, log_name="by steps"))
    callbacks.append(tfopt.callbacks.GradientNoiseScale(PROBE, "mse", every_n_epochs=1, group_size=4))
    breakdown = tfopt.callbacks.GradientBreakdown(PROBE, "mse")
    hooks = keras.callbacks.CallbackList([*callbacks, breakdown], model=model, **given)
    hooks.on_train_begin()
    for epoch in range(3):
        hooks.on_epoch_begin(epoch)
        hooks.on_train_batch_begin(0)
        model.layers[0].kernel.assign(0.9 * model.layers[0].kernel)
        hooks.on_train_batch_end(0)
        hooks.on_epoch_end(epoch)
    hooks.on_train_end()
    assert [c.history["step"] for c in callbacks if hasattr(c, "history")] == [[0, 1, 2, 3]] * 4
    assert "hessian/stability_limit" not in callbacks[3].history  # Nothing is known of the loop's steps.
    assert breakdown.history["step"] == [1, 2, 3]
    assert breakdown.history["breakdown/relative_perturbation"] == pytest.approx([0.1] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "is_compiled", "message"),
    [
        ("WarmupLearningRate", False, "needs an optimizer with a number as its learning rate. Received: .*None"),
        ("WarmupLearningRate", True, "the training of Sequential has taken no step with it"),
        ("ResumableCheckpoint", False, "Received: a model that was not compiled, and has none"),
    ],
)
def test_a_loop_whose_optimizer_is_not_known(name, is_compiled, message, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    if is_compiled:
        model.compile("sgd", loss="mse")
    hooks = keras.callbacks.CallbackList([table.CALLBACKS[name](PROBE, tmp_path)], model=model, epochs=1, steps=1)

    def loop():
        hooks.on_train_begin()
        hooks.on_epoch_begin(0)
        hooks.on_train_batch_begin(0)
        hooks.on_epoch_end(0)

    with pytest.raises(ValueError, match=message):
        loop()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_what_measures_says_in_which_precision(policy):
    hidden = keras.layers.Dense(2, dtype=policy)
    model = keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.random.default_rng(0).normal(size=(8, 3)), np.ones((8, 1))
    kinds = (tfopt.callbacks.Convexity, tfopt.callbacks.GradientBreakdown)
    callbacks = [*(kind((x, y)) for kind in kinds), tfopt.callbacks.GradientNoiseScale((x, y), group_size=2)]
    model.fit(x, y, verbose=0, callbacks=callbacks)
    expected = "model" if policy == "float32" else "float32"
    for callback in callbacks:
        assert callback.precision == expected
        other = type(callback)((x, y))
        other.set_state(callback.get_state())
        assert other.precision == expected
