"""Whatever state a training has, it is resumed to the same bits, or refused by name."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers
from resumable_trainings import RNG, Drawing, X, Y, plain, train

from tfopt.callbacks import ResumableCheckpoint
from tfopt.optimizers import LARS

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

SEQUENCES = RNG.normal(size=(16, 3, 4)).astype("float32")


class TwoParts(keras.Model):
    """Two parts, each with an optimizer of its own; no `call`, as Keras's GANs have none."""

    def __init__(self):
        super().__init__()
        self.coder = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh")])
        self.decoder = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        self.optimizers = {"coder": LARS(5.0), "decoder": optimizers.Adam(0.05)}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.decoder(self.coder(x)) - y))
        parts = self.coder.trainable_variables, self.decoder.trainable_variables
        for optimizer, gradients, variables in zip(
            self.optimizers.values(), tape.gradient(loss, parts), parts, strict=True
        ):
            optimizer.apply(gradients, variables)
        return {"loss": loss}


class Holder:
    """Somebody's own object, with a state."""

    def __init__(self):
        self.average = keras.Variable(0.0, trainable=False)


OUTSIDE = tf.Variable(0.0)


class Steered(keras.Model):
    """Its steps depend on variables in all places where people put them."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.scale, self.held = tf.Variable(1.0), [Holder()]
        self.noise = tf.random.Generator.from_seed(3)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        noise = self.noise.normal(()) + tf.random.get_global_generator().normal(())
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x) - y)) * self.scale
            loss += (noise + OUTSIDE + self.held[0].average) * tf.reduce_sum(self.dense.kernel)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.scale.assign(self.scale * 0.9)
        self.held[0].average.assign(0.5 * self.held[0].average + 0.5 * loss)
        OUTSIDE.assign_add(0.1)
        return {"loss": loss}


def steered():
    OUTSIDE.assign(0.0)
    tf.random.set_global_generator(tf.random.Generator.from_seed(5))
    model = Steered()
    model.compile(optimizers.SGD(0.01))
    return model


def two_parts(**options):
    model = TwoParts()
    model.compile(**options)
    return model


def stateful():
    model = keras.Sequential([
        keras.Input((3, 4), batch_size=8),
        layers.SimpleRNN(2, stateful=True),
        layers.Dense(1),
    ])
    model.compile(optimizers.SGD(0.1), "mse")
    return model


def choosing():
    one, other = (optimizers.SGD(0.05, momentum=momentum) for momentum in (0.5, 0.9))
    chosen = optimizers.MultiOptimizer(lambda variable: one if "kernel" in variable.path else other)
    return plain(chosen)


def mapped():
    parts = optimizers.OptimizerMap(LARS(5.0), {".*bias": optimizers.SGD(0.05, momentum=0.9)})
    return plain(optimizers.MultiOptimizer(parts))


def scaled():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, dtype="mixed_float16")])
    inner = optimizers.Adam(0.05)
    model.compile(optimizers.LossScaleOptimizer(inner, dynamic_growth_steps=3), "mse", jit_compile=False)
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: two_parts(optimizer=None),
        lambda: two_parts(optimizer="sgd"),
        steered,
        stateful,
        choosing,
        mapped,
        scaled,
        lambda: plain(optimizers.SGD(lambda: 0.1)),
    ],
    ids=["two_parts", "two_parts_unused", "steered", "stateful", "choosing", "mapped", "scaled", "rate_function"],
)
def test_every_state_is_resumed_to_the_same_bits(make, tmp_path):
    x = SEQUENCES if make is stateful else X
    whole = train(make, tmp_path / "whole", 4, x)
    train(make, tmp_path / "parts", 2, x)
    assert train(make, tmp_path / "parts", 4, x, seed=9) == whole


def eager(build=True):
    model = two_parts(optimizer=None, run_eagerly=True)
    for optimizer, part in zip(model.optimizers.values(), (model.coder, model.decoder), strict=True):
        if build:
            optimizer.build(part.trainable_variables)
    return model


def test_eager_steps_are_resumed_if_their_optimizers_are_built(tmp_path):
    whole = train(eager, tmp_path / "whole", 2)
    train(eager, tmp_path / "parts", 1)
    assert train(eager, tmp_path / "parts", 2) == whole
    with pytest.raises(ValueError, match=r"made while training was running: .*optimizers\['coder'\]: .*build"):
        train(lambda: eager(build=False), tmp_path / "late", 1)


class Rows(keras.metrics.Metric):
    """Counts rows."""

    def __init__(self):
        super().__init__(name="rows")
        self.count = self.add_weight(initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(float(y_true.shape[0]))

    def result(self):
        return keras.ops.convert_to_tensor(self.count)


@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize("is_named", [False, True], ids=["list", "dictionary"])
def test_metric_objects_of_eager_models_begin_each_epoch_empty(kind, is_named, tmp_path):
    def run(place, epochs):
        entry = keras.Input((4,))
        model = keras.Model(entry, layers.Dense(1, name="last")(entry))
        metrics = [Rows(), keras.metrics.MeanAbsoluteError()]
        model.compile("sgd", "mse", run_eagerly=True, **{kind: {"last": metrics} if is_named else metrics})
        return model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[ResumableCheckpoint(tmp_path / place, verbose=0)])

    keras.utils.set_random_seed(0)
    whole = run("whole", 3).history
    keras.utils.set_random_seed(0)
    run("parts", 1)
    assert run("parts", 3).history == whole
    assert whole["rows"] == [float(len(X))] * 3


def test_eager_steps_draw_the_same_random_numbers(tmp_path):
    def make():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1), Drawing(lambda: tf.random.normal(()))])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    whole = train(make, tmp_path / "whole", 2)
    train(make, tmp_path / "parts", 1)
    assert train(make, tmp_path / "parts", 2, seed=9) == whole


class Counting(Steered):
    """Its eager steps, and a callback, change plain Python numbers in all places where people put them."""

    def __init__(self):
        super().__init__()
        self._count, self.mean, self.seen, self.drop = 0, 0.0, {"all": [np.zeros(2)]}, layers.Dropout(0.5)
        self.held[0].weights = np.ones(3)

    def call(self, x, training=False):
        return self.dense(self.drop(x, training=training))

    def train_step(self, data):
        x, y = data
        self._count += 1
        self.mean = 0.9 * self.mean + tf.reduce_mean(x)
        self.seen["all"].append(np.ones(1))
        self.held[0].weights[1] *= 0.5
        factor = self._count + self.mean + len(self.seen["all"]) + self.held[0].weights[1]
        return super().train_step((x * 0.1 * factor, y))


def test_plain_numbers_are_resumed(tmp_path):
    def run(folder, epochs, seed=0):
        keras.utils.set_random_seed(seed)
        OUTSIDE.assign(0.0)
        tf.random.set_global_generator(tf.random.Generator.from_seed(5))
        model = Counting()
        model(X[:1])
        model.compile(optimizers.SGD(0.01), run_eagerly=True)
        halve = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(model.drop, "rate", model.drop.rate / 2))
        callbacks = [ResumableCheckpoint(folder, verbose=0), halve]
        model.fit(X, Y, batch_size=8, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
        return [np.asarray(variable).tobytes() for variable in model.variables], model._count, model.drop.rate

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    assert run(tmp_path / "parts", 4, seed=9) == whole
    assert whole[1:] == (8, 0.5 / 16)


def test_tracing_first_costs_no_second_trace(tmp_path):
    traces = []

    class Counting(TwoParts):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    def make():
        model = Counting()
        model.compile(optimizer=None)
        return model

    train(make, tmp_path, 2)
    assert len(traces) == 2  # TensorFlow itself traces twice what makes variables


def several(momentum):
    sgd = optimizers.SGD(momentum=momentum)
    return optimizers.MultiOptimizer(lambda variable: sgd)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (lambda: several(0.8), lambda: several(0.7), "momentum was 0.8, is 0.7"),
        (lambda: optimizers.SGD(lambda: 0.1), lambda: optimizers.SGD(lambda: 0.2), "learning_rate was .* is "),
        (lambda: "sgd", lambda: optimizers.SGD(nesterov=True), "nesterov was False, is True"),
    ],
    ids=["several", "function", "plain"],
)
def test_other_arguments_of_optimizers_are_named(one, other, message, tmp_path):
    train(lambda: plain(one()), tmp_path, 1)
    with pytest.raises(ValueError, match=f"written with other arguments.*{message}"):
        train(lambda: plain(other()), tmp_path, 2)


@pytest.mark.parametrize("make", [optimizers.AdamW, LARS])
def test_other_exclusions_from_weight_decay_are_named(make, tmp_path):
    def excluding(name):
        optimizer = make(weight_decay=0.1)
        if name:
            optimizer.exclude_from_weight_decay(var_names=[name])
        model = plain(optimizer)
        model.optimizer.build(model.trainable_variables)  # else `fit` does, and traces its step twice
        return model

    train(lambda: excluding("kernel"), tmp_path, 1)
    for name in ("bias", None):
        with pytest.raises(ValueError, match=r"variables without weight decay was \[[0-9, ]+\], is \[[0-9, ]*\]"):
            train(lambda name=name: excluding(name), tmp_path, 2)
    train(lambda: excluding("kernel"), tmp_path, 2)


def test_other_arguments_of_a_parts_optimizer_are_named(tmp_path):
    def make(rate):
        model = two_parts(optimizer=None)
        model.optimizers["decoder"] = optimizers.SGD(rate)
        return model

    train(lambda: make(0.1), tmp_path, 1)
    with pytest.raises(ValueError, match=r"optimizers\['decoder'\]'s learning_rate was 0.1.*, is 0.2"):
        train(lambda: make(0.2), tmp_path, 2)


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    class Second(keras.callbacks.Callback):
        said = ""

        def on_epoch_end(self, epoch, logs=None):
            def again():
                try:
                    train(plain, tmp_path, 1)
                except ValueError as error:
                    self.said = str(error)

            thread = threading.Thread(target=again)
            thread.start()
            thread.join()

    second = Second()
    checkpoint = ResumableCheckpoint(tmp_path, stateless=[Second], verbose=0)
    plain().fit(X, Y, shuffle=False, verbose=0, callbacks=[checkpoint, second])
    assert "Another training writes its checkpoints" in second.said
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001.rank-0-of-1.npz"]
