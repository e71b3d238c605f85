"""Which optimizers a model may have on ranks, in one process that stands for two equal ranks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import AverageMetrics, BroadcastVariables
from tfopt.communicator import SerialCommunicator
from tfopt.distributed import DistributedOptimizer

SGD = keras.optimizers.SGD
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class OneOfTwo(SerialCommunicator):
    """The other rank has the same rows, and says the same."""

    size = 2

    def allgather_object(self, item, name="object"):
        return [item, item]


RANKS = OneOfTwo()


def distributed(**options):
    return DistributedOptimizer(SGD(0.05, **options), communicator=RANKS)


class TwoParts(keras.Model):
    """Trains as `steps(model, batch)` says: it yields pairs of an optimizer and the part that it trains."""

    def __init__(self, steps=None, **attributes):
        super().__init__()
        self.first, self.second = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]) for _ in range(2))
        self.built = True
        self.steps = steps or own
        self.clock = tf.Variable(0, trainable=False)
        for name, value in attributes.items():
            setattr(self, name, value)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_mean((self.first(x) + self.second(x) - y) ** 2)
        for optimizer, part in self.steps(self):
            optimizer.apply(tape.gradient(loss, part.trainable_variables), part.trainable_variables)
        self.clock.assign_add(1)
        return {"loss": loss}


def own(model):
    return [(model.d_optimizer, model.first), (model.g_optimizer, model.second)]


def own_and_compiled(model):
    return [(model.d_optimizer, model.first), (model.optimizer, model.second)]


def of_parts(model):
    return [(model.first.optimizer, model.first), (model.second.optimizer, model.second)]


def made_late(model):
    if not hasattr(model, "late"):
        model.late = SGD(0.05)
    return [(model.d_optimizer, model.first), (model.late, model.second)]


def compiled_from_third_batch(model):
    yield model.d_optimizer, model.first
    model.optimizer.build(model.second.trainable_variables)
    model.optimizer.iterations.assign_add(tf.cast(model.clock >= 2, model.optimizer.iterations.dtype))


def by_hand(model):
    model.first.trainable_variables[0].assign_add(tf.ones((3, 1)))
    return []


def pair(first=distributed, second=distributed):
    return {"d_optimizer": first(), "g_optimizer": second()}


def with_compiled_parts(first, second, steps=of_parts, **attributes):
    model = TwoParts(steps, **attributes)
    model.first.compile(first)
    model.second.compile(second)
    return model


def used_before():
    optimizer = SGD(0.1)
    optimizer.apply([tf.ones(())], [keras.Variable(0.0)])
    return optimizer


def fit(model, options, callbacks=(), data=(X, Y), epochs=2, **arguments):
    model.compile(**{"jit_compile": False, **options})
    callbacks = [BroadcastVariables(communicator=RANKS), AverageMetrics(RANKS), *callbacks]
    model.fit(*data, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks, **arguments)


class CompileAgain(keras.callbacks.Callback):
    def __init__(self, make, loss="mse"):
        super().__init__()
        self.make, self.loss = make, loss

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.compile(self.make(), self.loss, jit_compile=False)
            self.model.make_train_function()


class SetCounters(keras.callbacks.Callback):
    """As a checkpoint does that is restored after `BroadcastVariables` has begun."""

    def on_train_begin(self, logs=None):
        self.model.optimizer.iterations.assign(5)


DEFAULT, NONE, PLAIN = {}, {"optimizer": None}, {"optimizer": "sgd"}
ACCEPTED = {
    "Keras's default": (lambda: TwoParts(**pair()), DEFAULT, ()),
    "none": (lambda: TwoParts(**pair()), NONE, ()),
    "plain": (lambda: TwoParts(**pair()), PLAIN, ()),
    "used before": (lambda: TwoParts(**pair()), lambda: {"optimizer": used_before()}, ()),
    "counters restored": (lambda: TwoParts(**pair()), DEFAULT, [SetCounters()]),
    "parts": (lambda: with_compiled_parts(distributed(), distributed()), NONE, ()),
    "parts of an earlier training": (lambda: with_compiled_parts("sgd", "adam", own, **pair()), DEFAULT, ()),
    "in several steps": (lambda: TwoParts(**pair()), {"steps_per_execution": 2}, ()),
    "compiled again": (lambda: TwoParts(**pair()), DEFAULT, [CompileAgain(lambda: "adam")]),
    "own and compiled": (
        lambda: TwoParts(own_and_compiled, d_optimizer=distributed()), lambda: {"optimizer": distributed()}, ()
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ACCEPTED)
def test_models_whose_own_optimizers_are_distributed_are_trained(case):
    make, options, callbacks = ACCEPTED[case]
    model = make()
    before = model.get_weights()
    fit(model, options() if callable(options) else options, callbacks)
    assert int(model.clock) == 8
    assert all((now != then).any() for now, then in zip(model.get_weights(), before, strict=True) if now.ndim)


COMPILED = "Rank 0: The model was compiled with a plain {}: each rank would train on its own. Use model.compile"
OWN = "Rank 0: The model has the optimizer '{}', a plain SGD: each rank would train on its own"
REFUSED_BEFORE = {
    "one of its own": (lambda: TwoParts(**pair(second=SGD)), DEFAULT, OWN.format("g_optimizer")),
    "all of its own": (lambda: TwoParts(**pair(SGD, SGD)), DEFAULT, OWN.format("d_optimizer")),
    "all parts": (lambda: with_compiled_parts(SGD(), SGD()), DEFAULT, COMPILED.format("RMSprop")),
    "no other": (lambda: TwoParts(by_hand), PLAIN, COMPILED.format("SGD")),
    "none at all": (lambda: TwoParts(by_hand), NONE, "Rank 0: The model was compiled without an optimizer: each rank"),
}


@pytest.mark.parametrize("case", REFUSED_BEFORE)
def test_plain_optimizers_are_refused_before_training(case):
    make, options, message = REFUSED_BEFORE[case]
    model = make()
    with pytest.raises(ValueError, match=message):
        fit(model, options)
    assert int(model.clock) == 0


def test_keras_s_own_step_needs_a_distributed_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.other = distributed()
    with pytest.raises(ValueError, match=COMPILED.format("SGD")):
        fit(model, {"optimizer": "sgd", "loss": "mse"})


def one_distributed(steps, **attributes):
    return lambda: TwoParts(steps, d_optimizer=distributed(), **attributes)


RARE_STEPS = {"optimizer": lambda: SGD(0.1, gradient_accumulation_steps=4)}
# The model, the arguments of `compile`, the number of batches that are trained, and the message.
REFUSED_AFTER = {
    "compiled": (one_distributed(own_and_compiled), DEFAULT, 1, COMPILED.format("RMSprop")),
    "eager": (one_distributed(own_and_compiled), {"run_eagerly": True}, 1, COMPILED.format("RMSprop")),
    "several steps": (one_distributed(own_and_compiled), {"steps_per_execution": 2}, 2, COMPILED.format("RMSprop")),
    "accumulated": (one_distributed(own_and_compiled), RARE_STEPS, 1, COMPILED.format("SGD")),
    "third batch": (one_distributed(compiled_from_third_batch), DEFAULT, 3, COMPILED.format("RMSprop")),
    "a part": (lambda: with_compiled_parts(distributed(), SGD(0.1)), DEFAULT, 1, OWN.format("second.optimizer")),
    "a part beside compile's": (
        lambda: with_compiled_parts(distributed(), SGD(0.1)), {"optimizer": distributed}, 1, OWN.format("second.opt.*")
    ),
    "made late": (one_distributed(made_late), DEFAULT, 1, OWN.format("late")),
    "made late, without compile's": (one_distributed(made_late), NONE, 1, OWN.format("late")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_AFTER)
def test_a_plain_optimizer_that_takes_a_step_is_refused_at_once(case):
    make, options, batches, message = REFUSED_AFTER[case]
    model = make()
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(ValueError, match=message):
        fit(model, options)
    assert int(model.clock) == batches


def test_a_step_in_a_batch_whose_end_is_not_reported_is_seen():
    """Keras 3.10 reports only the beginning of an execution of several steps that the end of the data cuts off."""
    model = TwoParts(own_and_compiled, d_optimizer=distributed())
    model.compile(jit_compile=False)
    events = keras.callbacks.CallbackList([BroadcastVariables(communicator=RANKS)], model=model)
    events.on_train_begin()
    events.on_epoch_begin(0)
    events.on_train_batch_begin(0)
    model.train_step((X, Y))
    with pytest.raises(ValueError, match=COMPILED.format("RMSprop")):
        events.on_epoch_end(0)


def test_a_plain_optimizer_of_a_compile_within_fit_is_refused_before_it_steps():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = SGD(0.1)
    with pytest.raises(ValueError, match=COMPILED.format("SGD")):
        fit(model, {"optimizer": distributed(), "loss": "mse"}, [CompileAgain(lambda: optimizer)])
    assert int(optimizer.iterations) == 0


def test_a_compile_within_fit_keeps_the_sums_of_gradients():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer, loss = distributed(), keras.losses.MeanSquaredError("sum")
    again = CompileAgain(lambda: optimizer, loss)
    fit(model, {"optimizer": distributed(), "loss": loss}, [again])
    assert model.optimizer is optimizer
    assert optimizer.sums_gradients
    assert int(optimizer.iterations) == 4
