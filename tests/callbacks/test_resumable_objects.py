"""State in the user's own Python objects: what training changes is resumed, what the user changes is named."""

import functools
import itertools
import os
import random
import time
import uuid
import warnings
from collections import deque

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

from tfopt.callbacks import ResumableCheckpoint
from tfopt.callbacks._resuming.layer_arguments import own_attributes
from tfopt.callbacks._resuming.of_the_run import of_the_run
from tfopt.callbacks._resuming.optimizer_arguments import describe

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class M(keras.Model):
    """A name of one letter is part of many words."""

    def __init__(self):
        super().__init__()
        self.dense, self.kind = layers.Dense(1), "m for model"

    def call(self, x):
        return self.dense(x)


def of_class(cls=M, optimizer="sgd", **options):
    model = cls()
    model(X[:1])
    model.compile(optimizer, "mse", **{"jit_compile": False, **options})
    return model


def fit(folder, epochs, model, callbacks=(), seed=0):
    keras.utils.set_random_seed(seed)
    checkpoint = ResumableCheckpoint(folder, verbose=0)
    options = {"shuffle": False, "epochs": epochs, "verbose": 0, "callbacks": [*callbacks, checkpoint]}
    model.fit(X, Y, batch_size=8, **options)
    return [np.asarray(variable).tobytes() for variable in model.variables]


def closing_over_objects():
    optimizer, seeds = optimizers.SGD(0.1, momentum=0.9), keras.random.SeedGenerator(3)
    held = {"optimizer": optimizer, "others": [keras.metrics.Mean(), layers.Dense(1)], "part": tf.Module()}

    class Closing(M):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(data[0]) - data[1]) ** 2) + keras.random.normal((), seed=seeds)
            optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            held["optimizer"].learning_rate.assign(optimizer.learning_rate * 0.9)
            held["others"][0].update_state(loss)
            return {"loss": loss}

    return of_class(Closing, None)


class Counting(keras.losses.Loss):
    def __init__(self):
        super().__init__()
        self.calls, self.log = 0, []

    def call(self, y_true, y_pred):
        self.calls += 1
        self.log.append(1.0)
        return keras.ops.mean((y_true - y_pred) ** 2, -1) * self.calls


def counting_loss():
    model = of_class()
    model.compile("sgd", Counting(), run_eagerly=True)
    return model


@pytest.mark.parametrize("make", [closing_over_objects, of_class, counting_loss])
def test_objects_that_training_changes_are_no_difference(make, tmp_path):
    def begin():
        keras.utils.set_random_seed(0)
        return make()

    whole = fit(tmp_path / "whole", 4, begin())
    fit(tmp_path / "parts", 2, begin())
    living = begin()
    fit(tmp_path / "parts", 3, living)
    assert fit(tmp_path / "parts", 4, living) == whole


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 3:
            raise KeyboardInterrupt

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


def test_a_living_model_goes_on_after_an_interrupt(tmp_path):
    keras.utils.set_random_seed(0)
    whole = fit(tmp_path / "whole", 3, counting_loss())
    keras.utils.set_random_seed(0)
    model = counting_loss()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", 3, model, [Interrupt()])
    quiet = Interrupt()
    quiet.on_train_batch_end = lambda batch, logs: None
    assert fit(tmp_path / "parts", 3, model, [quiet]) == whole


COUNT = 0
LOG, NUMBERS, TABLE, QUEUE = [], np.zeros(1), {"calls": 0}, deque([0.0], maxlen=3)
PYTHONS, NUMPYS = random.Random(0), np.random.default_rng(0)


def of_globals():
    global COUNT
    COUNT += 1
    LOG.append(1.0)
    NUMBERS[0] += 1
    TABLE["calls"] += 1
    QUEUE.append(QUEUE[-1] + 1)
    return COUNT + len(LOG) + NUMBERS[0] + TABLE["calls"] + sum(QUEUE) + PYTHONS.random() + NUMPYS.random()


def begin_globals():
    global COUNT
    COUNT, NUMBERS[0], TABLE["calls"] = 0, 0, 0
    LOG.clear()
    QUEUE.clear()
    QUEUE.append(0.0)
    PYTHONS.seed(0)
    NUMPYS.bit_generator.state = np.random.default_rng(0).bit_generator.state
    return of_globals


def closed_over():
    count, drawn = 0, np.random.default_rng(1)

    def factor():
        nonlocal count
        count += 1
        return count + drawn.random()

    return factor


def of_the_function():
    def factor():
        factor.count += 1
        return factor.count

    factor.count = 0
    return factor


class Counter:
    count = 0

    def __init__(self):
        self.drawn, self.old = np.random.default_rng(2), np.random.RandomState(3)

    def __call__(self):
        type(self).count += 1
        return self.count + self.drawn.random() + self.old.random()


def of_an_object():
    Counter.count = 0
    return Counter()


def of_a_method():
    return of_an_object().__call__


def of_a_partial():
    def factor(box, log, step=1):
        box["calls"] += step
        log.append(1.0)
        return box["calls"] + len(log)

    return functools.partial(factor, {"calls": 0}, log=[])


def of_a_default():
    def factor(box={"calls": 0}, *, log=[]):  # noqa: B006
        box["calls"] += 1
        log.append(1.0)
        return box["calls"] + len(log)

    return factor


class Meter:
    def __init__(self):
        self.total, self.calls = 0.0, []

    def update(self, value):
        self.total += value
        self.calls.append(value)


METER = Meter()


def with_meter():
    METER.update(1.0)
    return METER.total + len(METER.calls)


def begin_meter():
    METER.__init__()
    return with_meter


FACTORS = [
    *(begin_globals, closed_over, of_the_function, of_an_object),
    *(of_a_method, of_a_partial, of_a_default, begin_meter),
]


def scaled_by(factor, is_eager):
    class Scaled(M):
        def train_step(self, data):
            scale = tf.constant(factor(), tf.float32) if is_eager else tf.numpy_function(number, [], tf.float32)
            return super().train_step((data[0] * 0.01 * tf.ensure_shape(scale, ()), data[1]))

    def number():
        return np.float32(factor())

    return of_class(Scaled, run_eagerly=is_eager)


# What a function holds is looked for in the same way wherever the function is found.
@pytest.mark.parametrize(
    ("begin", "is_eager"), [*[(begin, True) for begin in FACTORS], (begin_globals, False), (of_a_method, False)]
)
def test_what_the_code_of_a_step_changes_outside_is_resumed(begin, is_eager, tmp_path):
    def run(place, epochs, seed=0):
        keras.utils.set_random_seed(seed)
        return fit(tmp_path / place, epochs, scaled_by(begin(), is_eager))

    whole = run("whole", 2)
    run("parts", 1)
    assert run("parts", 2, seed=9) == whole


@pytest.mark.parametrize("begin", [begin_globals, closed_over, of_a_partial])
def test_what_functions_in_callbacks_change_is_resumed(begin, tmp_path):
    def run(place, epochs):
        keras.utils.set_random_seed(0)
        model, factor = of_class(), begin()
        callbacks = [
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.01 / factor()),
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: model.optimizer.learning_rate.assign(0.01 / factor())
            ),
        ]
        return fit(tmp_path / place, epochs, model, callbacks)

    whole = run("whole", 4)
    run("parts", 2)
    assert run("parts", 4) == whole


class Trainer:
    def __init__(self):
        self.scale, self.log = 1.0, []

    def loss(self, y_true, y_pred, power=2):
        self.scale *= 0.9
        self.log.append(self.scale)
        return self.scale * len(self.log) * tf.reduce_mean(tf.abs(y_true - y_pred) ** power)

    def rate(self, epoch, rate):
        self.log.append(rate)
        return 0.1 / len(self.log)


def weighted(box, y_true, y_pred, log):
    box["scale"] *= 0.9
    log.append(box["scale"])
    return box["scale"] * len(log) * tf.reduce_mean((y_true - y_pred) ** 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: (Trainer().loss, Trainer().rate),
        lambda: (functools.partial(Trainer().loss, power=2), functools.partial(Trainer().rate)),
        lambda: (functools.partial(weighted, {"scale": 1.0}, log=[]), lambda epoch, rate: rate),
    ],
    ids=["methods", "partial_methods", "partial"],
)
def test_what_a_loss_and_a_schedule_hold_is_resumed(make, tmp_path):
    def run(place, epochs):
        keras.utils.set_random_seed(0)
        loss, rate = make()
        model = of_class()
        model.compile("sgd", loss, run_eagerly=True)
        return fit(tmp_path / place, epochs, model, [keras.callbacks.LearningRateScheduler(rate)])

    whole = run("whole", 2)
    run("parts", 1)
    assert run("parts", 2) == whole


def generated():
    numbers = itertools.cycle([1.0, 2.0])
    return lambda: next(numbers)


class Row:
    pass


def gathered():
    rows = []
    return lambda: len(rows.append(Row()) or rows)


@pytest.mark.parametrize(("begin", "name"), [(generated, "numbers in .*factor"), (gathered, "rows in .*factor")])
def test_what_cannot_be_saved_is_named(begin, name, tmp_path):
    with pytest.warns(UserWarning, match=f"uses {name}.*cannot be saved: after a restart it begins anew"):
        fit(tmp_path, 1, scaled_by(begin(), is_eager=True))


def test_what_callbacks_change_late_and_cannot_be_saved_is_named_once(tmp_path):
    rows = []
    late = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epoch and rows.append(Row()))
    with pytest.warns(UserWarning, match="uses rows in LambdaCallback") as caught:
        fit(tmp_path, 4, of_class(), [late])
    assert len(caught) == 1


class OwnRate(optimizers.SGD):
    """Has an argument that its config lacks."""

    def __init__(self, factor):
        super().__init__(0.1)
        self._factor = factor

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient * self._factor, variable, learning_rate)


class OwnSchedule(optimizers.schedules.LearningRateSchedule):
    def __init__(self, factor):
        self._factor = factor

    def __call__(self, step):
        return 0.1 * self._factor

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (OwnRate, "optimizer's _factor was 1.0, is 2.0"),
        (lambda factor: optimizers.SGD(OwnSchedule(factor)), "learning_rate was OwnSchedule {_factor: 1.0}, is"),
    ],
    ids=["optimizer", "schedule"],
)
def test_private_arguments_of_own_optimizers_are_compared(make, message, tmp_path):
    fit(tmp_path, 1, of_class(optimizer=make(1.0)))
    fit(tmp_path, 2, of_class(optimizer=make(1.0)))
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, 3, of_class(optimizer=make(2.0)))


def with_code(power):
    if power == 1:

        class Own(optimizers.schedules.LearningRateSchedule):
            def __call__(self, step):
                return 0.1 / (step + 1.0)

    else:

        class Own(optimizers.schedules.LearningRateSchedule):
            def __call__(self, step):
                return 0.1 / (step + 1.0) ** 2

    return optimizers.SGD(Own())


def test_other_code_of_a_schedule_is_named(tmp_path):
    fit(tmp_path, 1, of_class(optimizer=with_code(1)))
    with pytest.warns(UserWarning, match="other code in .*Own.__call__"):
        fit(tmp_path, 2, of_class(optimizer=with_code(2)))


def stopping(patience):
    return keras.callbacks.EarlyStopping("loss", patience=patience, min_delta=1e-9)


def scheduling(factor):
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * factor)


def reducing(factor):
    return keras.callbacks.ReduceLROnPlateau("loss", factor=factor)


@pytest.mark.parametrize(
    ("make", "one", "other", "message"),
    [
        (stopping, 5, 6, "EarlyStopping of loss's patience was 5, is 6"),
        (scheduling, 0.5, 0.25, "LearningRateScheduler's schedule was .*0.5.*, is .*0.25"),
        (reducing, 0.5, 0.25, "ReduceLROnPlateau of loss's factor was 0.5, is 0.25"),
    ],
    ids=["stopping", "scheduling", "reducing"],
)
def test_other_arguments_of_callbacks_are_named(make, one, other, message, tmp_path):
    fit(tmp_path, 1, of_class(), [make(one)])
    same = make(one)
    for epochs in (2, 3):
        fit(tmp_path, epochs, of_class(), [same])
    with pytest.warns(UserWarning, match=f"other arguments of callbacks: {message}"):
        fit(tmp_path, 4, of_class(), [make(other)])


class Stamped(M):
    def __init__(self):
        super().__init__()
        self.began, self.date, self.run, self.process = time.time(), time.ctime(), uuid.uuid4().hex, os.getpid()


def test_attributes_that_say_when_a_run_began_are_warned_about(tmp_path):
    fit(tmp_path, 1, of_class(Stamped))
    with pytest.warns(UserWarning, match="attribute began was .*attribute run was .* They look like times"):
        fit(tmp_path, 2, of_class(Stamped))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = of_class(Stamped)
        model.run = "mean"
        with pytest.raises(ValueError, match="attribute run was .*, is mean"):
            fit(tmp_path, 3, model)


@pytest.mark.parametrize(
    ("there", "here", "expected"),
    [
        ("1795854195.8", "1795854200.25", True),
        ("1795854195840103123", "1795854200840103123", True),
        ("77", "this process", True),
        ("2026-11-28T08:22:25", "2026-11-29T08:22:25", True),
        ("20261128", "20261129", True),
        ("Sat Nov 28 08:22:25 2026", "Sun Nov 29 08:22:25 2026", True),
        ("0.5", "0.25", False),
        ("78", "this process", False),
        ("1000000000", "2000000000.0", False),
        ("mean", "2026-11-28", False),
    ],
)
def test_what_looks_like_a_time_or_a_process(there, here, expected):
    here = str(os.getpid()) if here == "this process" else here  # an id of a test must not change
    name = "layer 0 (M)'s attribute began"
    assert of_the_run({name: there}, {name: here}, 77) == [name] * expected
    assert of_the_run({"batch_size": there}, {"batch_size": here}, 77) == []


def test_a_data_set_that_is_made_anew_with_another_seed_is_refused_with_advice(tmp_path):
    def run(epochs):
        data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(16).batch(8)
        checkpoint = ResumableCheckpoint(tmp_path, verbose=0)
        of_class().fit(data, shuffle=None, epochs=epochs, verbose=0, callbacks=[checkpoint])

    keras.utils.set_random_seed(0)
    run(1)
    with pytest.raises(ValueError, match=r"data set was .*call keras.utils.set_random_seed.*shuffle\(..., seed=...\)"):
        run(2)
    keras.utils.set_random_seed(0)
    run(2)


def test_texts_of_functions_do_not_follow_what_training_changes():
    optimizer = optimizers.SGD(0.1)
    texts = []
    for seeds in (keras.random.SeedGenerator(), keras.random.SeedGenerator()):

        def step(seeds=seeds):
            return optimizer, seeds

        texts.append(describe(step))
        optimizer.learning_rate.assign(0.5)
    assert texts[0] == texts[1]


def test_numbered_names_of_models_are_no_difference_and_train_functions_no_attribute():
    keras.utils.clear_session()  # so that the first has a name without a number
    first, second = of_class(), of_class()
    texts = own_attributes(first)
    first.make_train_function()
    assert texts == own_attributes(first) == own_attributes(second)
    assert texts["layer 0 (M)'s attribute kind"] == "m for model"
