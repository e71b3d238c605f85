"""The learning rate that Convexity multiplies lambda_max by is that of the step which is taken next."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from event_files import read_scalars

from tfopt.callbacks import Convexity, ResumableCheckpoint, WarmupLearningRate
from tfopt.datasets import EpochBatches

BATCHES, EPOCHS, RATE = 3, 4, 0.1
PRODUCT = "hessian/learning_rate_times_lambda_max"
X, Y = np.ones((BATCHES, 1), "float32"), np.zeros((BATCHES, 1), "float32")


class Set(keras.callbacks.Callback):
    """Sets the learning rate of each epoch, or of each step, in the hook of this name."""

    def __init__(self, hook):
        super().__init__()
        self.hook, self.count = hook, 0
        setattr(self, hook, self._set)

    def _set(self, number, logs=None):
        self.count += 1
        self.model.optimizer.learning_rate = RATE / (1 + self.count)

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def scheduler():
    return [keras.callbacks.LearningRateScheduler(lambda epoch, rate: RATE / (2 + epoch))]


DECAY = keras.optimizers.schedules.ExponentialDecay(RATE, 1, 0.9)
# The optimizer's learning rate, callbacks that change it, and the learning rate of each step (from 0).
KINDS = {
    "constant": (RATE, list, lambda step: RATE),
    "schedule": (DECAY, list, lambda step: RATE * 0.9**step),
    "warm-up": (RATE, lambda: [WarmupLearningRate(2, 0.1)], lambda step: RATE * min(0.1 + 0.9 * step / 6, 1)),
    "scheduler": (RATE, scheduler, lambda step: RATE / (2 + step // BATCHES)),
    "epoch_begin": (RATE, lambda: [Set("on_epoch_begin")], lambda step: RATE / (2 + step // BATCHES)),
    "epoch_end": (RATE, lambda: [Set("on_epoch_end")], lambda step: RATE / (1 + step // BATCHES)),
    "batch_begin": (RATE, lambda: [Set("on_train_batch_begin")], lambda step: RATE / (2 + step)),
    "batch_end": (RATE, lambda: [Set("on_train_batch_end")], lambda step: RATE / (1 + step)),
}
AFTER_THE_LAST_STEP = ("epoch_end", "batch_end")  # These change the learning rate, with or without a next step.


def make_model(rate=RATE, **options):
    """A model with the loss w^2, whose curvature is 2: a step multiplies w by 1 - 2 rate."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(rate), "mse", **{"jit_compile": False, **options})
    return model


def fit(model, callbacks, epochs=EPOCHS, **options):
    return model.fit(X, Y, batch_size=1, epochs=epochs, verbose=0, callbacks=callbacks, **options).history


def expected_products(rates, rows, is_number):
    """Twice the rate of the step after each row; after the last step a number stays, and a schedule goes on."""
    last = BATCHES * EPOCHS - 1 if is_number else BATCHES * EPOCHS
    return [2 * rates(min(row, last)) for row in rows]


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_the_rate_of_the_next_step(kind, is_first, tmp_path):
    rate, make, rates = KINDS[kind]
    for options in ({"spectrum_every_n_epochs": 1}, {"every_n_steps": 2}):
        folder = tmp_path / next(iter(options))
        model, convexity = make_model(rate), Convexity((X, Y), self_check=False, log_dir=folder, **options)
        fit(model, [convexity, *make()] if is_first else [*make(), convexity])
        taken = np.prod([1 - 2 * rates(step) for step in range(BATCHES * EPOCHS)])
        assert model.get_weights()[0].item() == pytest.approx(taken, rel=1e-5)  # The table is right.
        table = convexity.to_dataframe().dropna(subset=[PRODUCT])
        assert len(table) >= 2
        found = dict(zip(table["step"], table[PRODUCT], strict=True))
        assert read_scalars(folder)[PRODUCT] == pytest.approx(found, rel=1e-6)
        if kind in AFTER_THE_LAST_STEP:
            found.popitem()
        assert list(found.values()) == pytest.approx(expected_products(rates, found, rate is not DECAY), rel=1e-4)


@pytest.mark.parametrize("kind", ["schedule", "scheduler", "epoch_end"])
def test_several_steps_in_one_execution(kind):
    rate, make, rates = KINDS[kind]
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    fit(make_model(rate, steps_per_execution=2), [convexity, *make()])
    found, steps = convexity.history[PRODUCT][:-1], convexity.history["step"][:-1]
    assert steps == [0, 3, 6, 9]
    assert found == pytest.approx([2 * rates(step) for step in steps], rel=1e-4)


def test_logs_have_the_rate_of_the_next_step_from_the_next_epoch_on():
    convexity = Convexity((X, Y), spectrum_every_n_epochs=3)
    logs = fit(make_model(), [convexity, *scheduler()])
    # The product before the first step, in two epochs; that after the third epoch, with its last step; after the last.
    assert logs[PRODUCT] == pytest.approx([RATE, RATE, 2 * RATE / 4, 2 * RATE / 5], rel=1e-4)
    assert convexity.history[PRODUCT][3] == pytest.approx(2 * RATE / 5, rel=1e-4)


def test_two_callbacks_have_the_same_products():
    both = [Convexity((X, Y), log_name=name, spectrum_every_n_epochs=1) for name in ("one", "two")]
    fit(make_model(), [*both, Set("on_train_batch_begin")])
    one, two = (c.history[f"{name}/{PRODUCT}"] for c, name in zip(both, ("one", "two"), strict=True))
    assert one == two == pytest.approx([2 * RATE / (2 + min(step, 11)) for step in (0, 3, 6, 9, 12)], rel=1e-4)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length():
    """Keras begins one more batch at the end of such data."""
    rows = tf.data.Dataset.from_tensor_slices((X, Y)).batch(1).filter(lambda x, y: True)
    convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
    make_model().fit(rows, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[convexity, *scheduler()])
    assert convexity.history[PRODUCT] == pytest.approx([2 * RATE / n for n in (2, 3, 4, 5, 5)], rel=1e-4)


def test_a_model_that_is_compiled_again_keeps_the_products_of_its_old_optimizer():
    class Compile(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
                self.model.make_train_function()

    for is_first in (True, False):
        convexity = Convexity((X, Y), spectrum_every_n_epochs=1)
        fit(make_model(), [convexity, Compile()] if is_first else [Compile(), convexity])
        found = dict(zip(convexity.history["step"], convexity.history[PRODUCT], strict=True))
        assert [found[step] for step in (0, 3, 6)] == pytest.approx([2 * RATE] * 3, rel=1e-4)
        assert found[12] == pytest.approx(0.02, rel=1e-4)


@pytest.mark.usefixtures("each_fit_in_its_own_process")
@pytest.mark.parametrize("is_first", [True, False])
def test_a_resumed_training_has_the_same_products(is_first, tmp_path):
    def train(folder, epochs):
        keras.utils.set_random_seed(0)
        model, convexity = make_model(), Convexity((X, Y), spectrum_every_n_epochs=1)
        callbacks = [convexity, Set("on_epoch_begin")]
        callbacks = callbacks if is_first else callbacks[::-1]
        batches = EpochBatches(X, Y, batch_size=1)
        callbacks.append(ResumableCheckpoint(folder, verbose=0))
        model.fit(batches, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        return convexity.history[PRODUCT]

    whole = train(tmp_path / "whole", EPOCHS)
    train(tmp_path / "parts", 2)
    assert train(tmp_path / "parts", EPOCHS) == whole
    assert whole == pytest.approx([2 * RATE / (2 + min(epoch, 3)) for epoch in range(5)], rel=1e-4)
