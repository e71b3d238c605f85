import csv

import keras
import numpy as np
import pytest
from trajectories import values

from tfopt.callbacks import WeightNorms
from tfopt.models import mlp
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
    assert list(table.columns) == ["epoch", "step", *(f"norms/{path}" for path in callback.history["norms"][0])]
    assert list(table["epoch"]) == [0, 1, 2]
    ax = callback.plot()
    assert len(ax.lines) == 4
    assert ax.get_yscale() == "log"
    assert callback.plot(ax=ax) is ax


def test_bad_arguments():
    with pytest.raises(ValueError, match="`every_n_epochs` must be an integer >= 1"):
        WeightNorms(every_n_epochs=0)


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch + 1 == self.epoch


@pytest.mark.parametrize("order", [1, -1])
def test_the_end_is_measured_when_training_stops_early(order):
    callback = WeightNorms(every_n_epochs=5)
    make_model().fit(X, Y, epochs=20, verbose=0, callbacks=[callback, StopAfter(7)][::order])
    assert callback.history["epoch"] == [0, 5, 7]


def test_epochs_count_from_initial_epoch():
    model, callback = make_model(), WeightNorms(every_n_epochs=5)
    model.fit(X, Y, batch_size=4, epochs=10, verbose=0)
    model.fit(X, Y, batch_size=4, initial_epoch=10, epochs=13, verbose=0, callbacks=[callback])
    assert callback.history["epoch"] == [10, 13]
    assert callback.history["step"] == [40, 52]


def test_variables_of_the_same_path_are_told_apart():
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.first, self.second = (keras.layers.Dense(2, name="d") for _ in range(2))

        def call(self, x):
            return self.first(x) + self.second(x)

    model, callback = Twice(), WeightNorms()
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, callbacks=[callback])
    paths = sorted(path.split("/", 1)[1] for path in callback.history["norms"][-1])
    assert paths == ["d/bias", "d/bias (2)", "d/kernel", "d/kernel (2)"]


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_without_trainable_variables():
    model = make_model()
    model.trainable = False
    model.compile("sgd", "mse")
    history = model.fit(X, Y, verbose=0, callbacks=[WeightNorms()]).history
    assert history["weight_norms/max"] == [0.0]
