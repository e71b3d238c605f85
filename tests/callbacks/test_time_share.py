"""Callbacks that measure keep to their share of the time, by a clock that the tests move."""

import functools

import keras
import numpy as np
import pytest

from tfopt.callbacks import (
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    Measurement,
    ResumableCheckpoint,
    _time_share,
)
from tfopt.callbacks._time_share import TimeShare
from tfopt.communicator import SerialCommunicator
from tfopt.curvature import HessianOperator

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X[:, :1]
EPOCHS, EPOCH_SECONDS = 30, 10.0
MAKING, COMPILING, MEASURING = 0.25, 0.5, 2.0


@pytest.fixture
def clock(monkeypatch):
    """Seconds in a list, which the tests move."""
    now = [100.0]
    monkeypatch.setattr(_time_share, "clock", lambda: now[0])
    monkeypatch.setattr(_time_share, "FREE_SECONDS", 1.0)
    return now


class Slow(Measurement):
    """Takes seconds of the clock."""

    group = "slow"
    needs_probe = False

    def __init__(self, clock, data=None, measuring=MEASURING, **options):
        super().__init__(data, **options)
        self.now, self.measuring = clock, measuring

    def _make_instruments(self):
        self.now[0] += MAKING
        return object()

    def _measure(self):
        self.now[0] += self.measuring + COMPILING * (not self.history["step"])
        return {}, {}


class Train(keras.callbacks.Callback):
    """Makes an epoch take seconds of the clock."""

    def __init__(self, clock, seconds=EPOCH_SECONDS):
        super().__init__()
        self.now, self.seconds = clock, seconds

    def on_train_batch_end(self, batch, logs=None):
        self.now[0] += self.seconds


@functools.cache
def make_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile("sgd", "mse")
    return model


def fit(clock, *callbacks, epochs=EPOCHS, verbose=0, seconds=EPOCH_SECONDS):
    options = {"epochs": epochs, "verbose": verbose, "shuffle": False, "batch_size": 16}
    return make_model().fit(X, Y, callbacks=[Train(clock, seconds), *callbacks], **options)


# --- how often


def test_the_default_interval_adapts_and_the_history_says_so(clock):
    slow = Slow(clock)
    logs = fit(clock, slow).history
    epochs = slow.history["epoch"]
    assert epochs[0] == 0
    assert epochs[-1] == EPOCHS
    assert len(epochs) == 4  # 3% of 300 s are 9 s
    assert slow.history["interval"] == [0, *np.diff(epochs)]
    assert slow.history["put_off"][-1] == EPOCHS + 1 - len(epochs)
    assert slow.history["setup_seconds"][0] == MAKING + COMPILING + MEASURING  # a second one tells them apart
    assert slow.history["setup_seconds"][-1] == MAKING + COMPILING
    assert len(logs["slow/put_off"]) == EPOCHS
    assert logs["slow/put_off"][-1] == slow.history["put_off"][-1]
    assert logs["slow/interval"][-1] == slow.history["interval"][-1]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 4),
        ({"max_share": 0.1}, 15),
        ({"max_share": 0.5}, EPOCHS + 1),
        ({"max_share": 1.0}, EPOCHS + 1),
        ({"max_share": None}, EPOCHS + 1),
        ({"max_share": 0.001}, 3),  # the first one after the start is taken, because nobody knows what it takes
        ({"every_n_epochs": 1}, EPOCHS + 1),  # a given interval is kept exactly
        ({"every_n_epochs": 3, "max_share": 0.001}, 11),
        ({"every_n_steps": 10}, 4),
    ],
)
def test_only_the_default_interval_adapts(clock, options, count):
    slow = Slow(clock, **options)
    logs = fit(clock, slow).history
    assert len(slow.history["step"]) == count
    is_limited = "every_n" not in str(options) and options.get("max_share", 0.03) not in (None, 1.0)
    assert ("put_off" in slow.history) == is_limited == ("slow/put_off" in logs)


def test_what_takes_a_second_in_all_is_free(clock):
    slow = Slow(clock, measuring=0.5 / (EPOCHS + 2))  # compiling takes the other half
    fit(clock, slow, seconds=0.01)
    assert slow.history["epoch"] == list(range(EPOCHS + 1))


def test_it_is_told_once_and_only_where_fit_prints(clock, capsys):
    fit(clock, Slow(clock), verbose=2)
    text = "Slow measures less often, to take 0.03 of the time at most (`max_share`)"
    assert capsys.readouterr().out.count(text) == 1
    fit(clock, Slow(clock))
    assert "measures" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.1, float("nan"), "3%", True])
def test_bad_shares_are_named(value):
    with pytest.raises(
        (TypeError, ValueError), match=r"`max_share` must be a finite number > 0 and <= 1. Received: ma"
    ):
        Convexity((X, Y), max_share=value)


def test_steps_are_put_off_too(clock, monkeypatch):
    measure = GradientBreakdown._measure

    def slowly(self):
        clock[0] += MEASURING
        return measure(self)

    monkeypatch.setattr(GradientBreakdown, "_measure", slowly)
    breakdown = GradientBreakdown((X, Y), num_points=1)
    fit(clock, breakdown)
    steps = np.subtract(breakdown.history["step"], breakdown.history["step"][0] - 1)
    assert [steps[0], steps[-1]] == [1, EPOCHS]
    assert len(breakdown.history["step"]) == 4


# --- ranks


class Other(SerialCommunicator):
    """Another rank answers too, always the same."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.names = answer, []

    def allgather_object(self, value, name):
        self.names.append(name)
        return [value, self.answer] if "share of time" in name else [value]


def test_all_ranks_put_off_what_one_of_them_has_no_time_for(clock):
    for answer, count in ((0, 2), (1, 4)):
        slow = Slow(clock, communicator=Other(answer))
        fit(clock, slow)
        assert len(slow.history["step"]) == count


def test_ranks_ask_each_other_only_where_a_measurement_is_due(clock):
    for options, count in (({}, EPOCHS - 1), ({"every_n_steps": 1}, 0), ({"max_share": None}, 0)):
        ranks = Other(1)
        fit(clock, Slow(clock, communicator=ranks, **options))
        assert sum("share of time" in name for name in ranks.names) == count
    ranks = Other(1)  # after every tenth part of training
    fit(clock, GradientNoiseScale((X, Y), group_size=4, communicator=ranks))
    assert sum("share of time" in name for name in ranks.names) == 9


# --- resuming


def test_a_resumed_training_goes_on_with_its_interval(clock, tmp_path):
    straight = Slow(clock)
    fit(clock, straight)
    clock[0] = 0.0
    for epochs in (12, EPOCHS):
        slow = Slow(clock)
        fit(clock, slow, ResumableCheckpoint(tmp_path, verbose=0, stateless=[Train]), epochs=epochs)
        clock[0] += 1e6  # the time between does not count
    # Resuming compiles again, and epoch 12 was the last one of its `fit`.
    assert slow.history["epoch"][:2] == straight.history["epoch"][:2]
    assert 4 <= len(slow.history["epoch"]) <= 5
    assert slow.history["put_off"][-1] >= straight.history["put_off"][-1] - 2
    assert slow.history["setup_seconds"][-1] == 2 * MAKING + COMPILING


def test_seconds_before_an_interruption_count(clock):
    share = TimeShare(0.1, SerialCommunicator())
    clock[0] += 100.0
    share.add(7.0, is_first=True)
    share.add(2.0, is_first=False)
    resumed = TimeShare(0.1, SerialCommunicator())
    resumed.set_state(share.get_state())
    assert resumed.left() == share.left() == 10.0 - 4.0 - 5.0
    clock[0] += 10.0
    assert resumed.left() == share.left() == 11.0 - 4.0 - 5.0
    resumed.add(5.0, is_first=True)  # compiled again: 2 s of them are the measurement
    assert resumed.left() == 11.0 - 6.0 - 11.0 / 2
    assert resumed.setup == 5.0 + 3.0


@pytest.mark.parametrize(("setup", "left"), [(0.0, 10.0), (2.0, 8.0), (5.0, 5.0), (50.0, 5.0)])
def test_compiling_counts_for_half_of_the_share_at_most(clock, setup, left):
    counted = TimeShare(0.1, SerialCommunicator())
    counted.add_setup(setup)
    clock[0] += 100.0
    assert counted.left() == left
    running = TimeShare(0.1, SerialCommunicator())
    clock[0] += 100.0 - setup
    running.begin(is_first=True)
    clock[0] += setup
    assert running.left() == left
    running.add(setup, is_first=True)
    assert running.left() == left


# --- eigenvalues

PRODUCT, GRADIENT = 0.16, 0.1  # seconds, as of a convolutional network on 512 rows


@pytest.fixture
def slow_products(clock, monkeypatch):
    matvec, gradient = HessianOperator.matvec, HessianOperator.loss_and_gradient

    def slow_matvec(self, vector):
        clock[0] += PRODUCT + 3.0 * (not self.num_matvecs)
        return matvec(self, vector)

    def slow_gradient(self):
        clock[0] += GRADIENT
        return gradient(self)

    monkeypatch.setattr(HessianOperator, "matvec", slow_matvec)
    monkeypatch.setattr(HessianOperator, "loss_and_gradient", slow_gradient)


def wide(clock, convexity, epochs, seconds):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(20, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile("sgd", "mse")
    start = clock[0]
    model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, callbacks=[Train(clock, seconds), convexity])
    return clock[0] - start


@pytest.mark.parametrize(("epochs", "seconds"), [(5, 12.0), (12, 5.0), (10, 20.0)])
def test_eigenvalues_keep_to_the_share_and_are_known_at_the_end(clock, slow_products, epochs, seconds):
    convexity = Convexity((X, Y), self_check=False)
    passed = wide(clock, convexity, epochs, seconds)
    measuring = passed - epochs * seconds
    least = 2 * (GRADIENT + PRODUCT) + 7 * PRODUCT  # both ends, with a product to know what it takes and six at the end
    assert measuring - 3.0 <= max(0.03 * epochs * seconds / 2 + 0.5, least + 0.01)  # compiling takes the other half
    found = np.array(convexity.history["hessian/lambda_max"])
    assert np.isfinite(found[-1])
    assert convexity.history["epoch"][-1] == epochs
    assert convexity.history["put_off"][-1] > 0


def test_eigenvalues_of_a_long_training_are_measured_at_every_tenth(clock, slow_products):
    convexity = Convexity((X, Y), self_check=False)
    wide(clock, convexity, 10, 3600.0)
    assert np.isfinite(convexity.history["hessian/lambda_max"][1:]).all()
