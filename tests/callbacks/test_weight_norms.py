import csv

import keras
import numpy as np
import pytest
from tfopt.callbacks import WeightNorms
from tfopt.models import mlp
from trajectories import values

from tfopt.optimizers import Fromage

X = np.random.default_rng(0).standard_normal((16, 4)).astype("float32")
Y = X[:, :2]


def make_model(optimizer=None):
    model = mlp(4, [8], 2, seed=0)
    model.compile(optimizer or Fromage(), "mse", jit_compile=False)
    return model


@pytest.mark.parametrize(("every", "epochs", "measured"), [(1, 3, [0, 1, 2, 3]), (2, 5, [0, 2, 4, 5]), (7, 3, [0, 3])])
def test_measures_at_the_start_on_schedule_and_at_the_end(every, epochs, measured):
    callback = WeightNorms(every_n_epochs=every)
    make_model().fit(X, Y, batch_size=4, epochs=epochs, verbose=0, callbacks=[callback])
    assert callback.history["epoch"] == measured
    assert callback.history["step"] == [4 * epoch for epoch in measured]


def test_norms_are_those_of_the_weights():
    model, callback = make_model(), WeightNorms()
    start = {v.path: np.linalg.norm(values(v)) for v in model.trainable_variables}
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    end = {v.path: np.linalg.norm(values(v)) for v in model.trainable_variables}
    for recorded, expected in ((callback.history["norms"][0], start), (callback.history["norms"][-1], end)):
        assert recorded == pytest.approx(expected, rel=1e-6)


def test_logs_reach_history_and_csv_from_the_first_epoch_on(tmp_path):
    path, callback = tmp_path / "log.csv", WeightNorms(every_n_epochs=2)
    history = make_model().fit(X, Y, epochs=3, verbose=0, callbacks=[callback, keras.callbacks.CSVLogger(path)]).history
    largest = [max(entry.values()) for entry in callback.history["norms"]]
    assert history["weight_norms/max"] == pytest.approx([largest[0], largest[1], largest[2]])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["weight_norms/max"]) for row in rows] == pytest.approx(history["weight_norms/max"])
    assert all(
        0 < low <= high for low, high in zip(history["weight_norms/min"], history["weight_norms/max"], strict=True)
    )


def test_training_is_the_same_with_it_and_without():
    with_it, without = make_model(), make_model()
    for model, callbacks in ((with_it, [WeightNorms()]), (without, [])):
        keras.utils.set_random_seed(0)
        model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
    for a, b in zip(with_it.get_weights(), without.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_second_fit_starts_a_new_history():
    model, callback = make_model(), WeightNorms()
    for _ in range(2):
        model.fit(X, Y, epochs=1, verbose=0, callbacks=[callback])
    assert callback.history["epoch"] == [0, 1]
    assert callback.history["step"] == [1, 2]


def test_a_model_that_is_built_by_fit():
    model, callback = keras.Sequential([keras.layers.Dense(2)]), WeightNorms(every_n_epochs=5)
    model.compile("sgd", "mse")
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    assert callback.history["epoch"] == [1, 2]


def test_table_and_plot():
    callback = WeightNorms()
    assert len(callback.plot().lines) == 0  # nothing measured yet: empty axes
    make_model().fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    table = callback.to_dataframe()
    assert list(table.columns) == ["epoch", "step", *callback.history["norms"][0]]
    assert list(table["epoch"]) == [0, 1, 2]
    ax = callback.plot()
    assert len(ax.lines) == 4
    assert ax.get_yscale() == "log"
    assert callback.plot(ax=ax) is ax


def test_bad_arguments():
    with pytest.raises(ValueError, match="`every_n_epochs` must be an integer >= 1"):
        WeightNorms(every_n_epochs=0)
