"""The callbacks for several ranks, in one process: they change nothing, and check what they can."""

import functools

import keras
import numpy as np
import pytest

from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    WarmupLearningRate,
    WeightNorms,
)
from tfopt.distributed import DistributedOptimizer


def make_model(optimizer="sgd"):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
    model.compile(optimizer, "mse")
    return model


def fit(model, callbacks, num_rows=8, **options):
    return model.fit(np.ones((num_rows, 2)), np.ones(num_rows), batch_size=4, verbose=0, callbacks=callbacks, **options)


def test_alone_they_change_nothing():
    plain, watched = make_model(), make_model(DistributedOptimizer("sgd"))
    one = fit(plain, [], epochs=2).history
    two = fit(watched, [BroadcastVariables(), AverageMetrics()], epochs=2).history
    assert one == two
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_warm_up_alone_is_no_warm_up_unless_asked_for():
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(round(float(np.asarray(self.model.optimizer.learning_rate)), 6))

    fit(make_model(keras.optimizers.SGD(0.1)), [WarmupLearningRate(epochs=1), Rates()])
    assert rates == [0.1, 0.1]
    rates.clear()
    callbacks = [WarmupLearningRate(epochs=1.5, initial_fraction=0.0), Rates()]
    fit(make_model(keras.optimizers.SGD(0.3)), callbacks, epochs=3)
    assert rates == [0.0, 0.1, 0.2, 0.3, 0.3, 0.3]


def test_warm_up_goes_on_in_a_second_fit():
    model = make_model(keras.optimizers.SGD(0.8))
    warm_up = WarmupLearningRate(epochs=4, initial_fraction=0.0)
    fit(model, [warm_up], epochs=2)
    halfway = float(np.asarray(model.optimizer.learning_rate))
    assert 0.3 < halfway < 0.45
    history = fit(model, [warm_up], epochs=6, initial_epoch=2).history
    assert history["learning_rate"][0] > halfway
    assert history["learning_rate"][-1] == pytest.approx(0.8)


def test_after_the_warm_up_the_learning_rate_is_left_alone():
    model = make_model(keras.optimizers.SGD(0.4))
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100.0)
    history = fit(model, [WarmupLearningRate(epochs=1, initial_fraction=0.5), plateau], epochs=4).history
    assert float(model.optimizer.learning_rate) < 0.4
    assert history["learning_rate"][-1] < history["learning_rate"][1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "`epochs` must be a finite number > 0"),
        ({"initial_fraction": 1.5}, ValueError, "`initial_fraction` must be a finite number >= 0 and <= 1"),
        ({"steps_per_epoch": 2.5}, TypeError, "`steps_per_epoch` must be an integer >= 1"),
    ],
)
def test_arguments_of_the_warm_up(arguments, error, message):
    with pytest.raises(error, match=message):
        WarmupLearningRate(**arguments)


def test_a_schedule_is_refused_with_the_way_out():
    model = make_model(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)))
    with pytest.raises(ValueError, match="needs an optimizer with a number as its learning rate.*WithWarmup"):
        fit(model, [WarmupLearningRate()])


def test_several_optimizers_are_refused():
    class Several(keras.optimizers.SGD):
        optimizers = ()

    with pytest.raises(ValueError, match="needs an optimizer with a number as its learning rate"):
        fit(make_model(Several()), [WarmupLearningRate()])


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed", "ignore:Your input ran out of data")
def test_an_unknown_number_of_batches_must_be_told():
    def batches():
        for _ in range(4):
            yield np.ones((4, 2)), np.ones(4)

    with pytest.raises(ValueError, match="does not know how many batches.*pass `steps_per_epoch`"):
        make_model().fit(batches(), verbose=0, callbacks=[WarmupLearningRate()])
    make_model().fit(batches(), verbose=0, callbacks=[WarmupLearningRate(steps_per_epoch=4)])


def test_a_root_that_is_no_rank_is_refused():
    with pytest.raises(ValueError, match="`root_rank` must be an integer >= 0 and <= 0. Received: root_rank=1"):
        BroadcastVariables(root_rank=1)


class _FromHorovod(keras.optimizers.SGD):
    __module__ = "horovod._keras"


@pytest.mark.parametrize("make", [_FromHorovod, lambda: keras.optimizers.LossScaleOptimizer(_FromHorovod())])
@pytest.mark.parametrize(
    "callback",
    [
        AverageMetrics,
        BroadcastVariables,
        WarmupLearningRate,
        WeightNorms,
        *(functools.partial(c, (np.ones((4, 2)), np.ones(4))) for c in (Convexity, GradientBreakdown)),
    ],
)
def test_every_callback_names_horovods_own_wrapper(callback, make):
    with pytest.raises(ValueError, match="horovod.tensorflow.keras.DistributedOptimizer, which does not average"):
        fit(make_model(make()), [callback()])
