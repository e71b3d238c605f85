"""State of a model or a loss that a measurement would change: held still, or refused before anything is computed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale
from tfopt.curvature import GaussNewtonOperator, HessianOperator, gradient_noise

X, Y = (np.random.default_rng(k).normal(size=(8, k)).astype("float32") for k in (3, 1))


class Stateful(keras.layers.Layer):
    """Keeps something at each call, in one of many ways."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.count = tf.Variable(0.0, trainable=False)
        self.generator = tf.random.Generator.from_seed(1)
        self.table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, 0)
        self.words = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1], [2]), 0)
        self.queue = tf.queue.FIFOQueue(100, [tf.float32], [()])
        self.held = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.metric = keras.metrics.Mean()

    def call(self, inputs):
        one = tf.ones((), tf.int64)
        return (
            inputs
            + 0.0
            * {
                "variable": lambda: self.count.assign_add(1.0),
                "branch": lambda: tf.cond(inputs[0, 0] > -1e9, self.once_more, lambda: self.count + 0.0),
                "loop": lambda: tf.map_fn(lambda row: self.once_more() + row[0], inputs)[0],
                "function": lambda: tf.function(self.once_more)(),
                "generator": lambda: self.generator.normal(()),
                "table": lambda: (self.table.insert([one], [one]), 0.0)[1],
                "queue": lambda: (self.queue.enqueue(inputs[0, 0]), 0.0)[1],
                "keras variable": lambda: (self.held.assign(self.held + 1.0), 0.0)[1],
                "metric": lambda: (self.metric.update_state(inputs), 0.0)[1],
                "words": lambda: tf.cast(self.words.lookup(tf.constant(1)), tf.float32),
            }[self.kind]()
        )

    def once_more(self):
        return tf.identity(self.count.assign_add(1.0))

    def state(self):
        table, queue = int(self.table.size()), int(self.queue.size())
        numbers = [self.count, self.held.value, self.metric.result()]
        return [*map(float, numbers), table, queue, self.generator.state.numpy().tolist()]


def make(kind):
    keras.utils.set_random_seed(0)
    layer = Stateful(kind)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model, layer


REFUSED = ("variable", "branch", "loop", "function", "generator", "table", "queue")
MESSAGE = "must not change a tf.Variable, a table or a queue while they predict"


@pytest.mark.parametrize("kind", REFUSED)
def test_state_of_tensorflow_is_refused_before_it_changes(kind):
    model, layer = make(kind)
    before = layer.state()
    for measure in (
        lambda: HessianOperator(model, "mse", X, Y),
        lambda: GaussNewtonOperator(model, "mse", X, Y),
        lambda: gradient_noise(model, "mse", X, Y),
        *(
            lambda make=make: model.fit(X, Y, verbose=0, callbacks=[make((X, Y))])
            for make in (Convexity, GradientBreakdown, GradientNoiseScale)
        ),
    ):
        weights = model.get_weights()
        with pytest.raises(ValueError, match=MESSAGE):
            measure()
        assert layer.state() == before
        assert all(map(np.array_equal, weights, model.get_weights()))


@pytest.mark.parametrize("kind", ["keras variable", "metric", "words"])
def test_state_that_is_held_still_trains_as_without_callbacks(kind):
    ends = []
    for callbacks in ([], [Convexity((X, Y), eigenvalues=False), GradientBreakdown((X, Y))]):
        model, layer = make(kind)
        model.fit(X, Y, epochs=2, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
        ends.append([weight.tobytes() for weight in model.get_weights()] + layer.state())
    assert ends[0] == ends[1]


def test_state_of_a_loss_is_refused_before_it_changes():
    model, _ = make("words")
    mean = tf.Variable(0.0)

    def loss(y, p):
        mean.assign(0.9 * mean + 0.1 * tf.reduce_mean(p))
        return tf.reduce_mean((y - p) ** 2, -1)

    with pytest.raises(ValueError, match=MESSAGE):
        HessianOperator(model, loss, X, Y)
    assert float(mean) == 0.0
