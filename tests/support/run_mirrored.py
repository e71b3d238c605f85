"""Trains the table of optimizers on two logical CPUs under MirroredStrategy and on one device, and saves both.

It also saves the errors of the measuring callbacks on two devices. It needs its own process, because logical devices
must be configured before TensorFlow starts.
"""

import sys

import keras
import numpy as np
import tensorflow as tf
from optimizer_table import CLASSES, TABLE, WAYS_TO_STEP

from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale
from tfopt.optimizers import LARS, Fromage

# One row of each class tests what Keras does around a step, too.
CASES = list(zip(CLASSES, ("schedule", "ema", "schedule"), strict=True))
CASES += [(name, "plain") for name in WAYS_TO_STEP if name not in CLASSES]
MEASUREMENTS = (Convexity, GradientBreakdown, GradientNoiseScale)
NUM_ROWS, WIDTH = 32, 2100  # 8 x 2100 entries: large enough for the fused kernels on one device


def make_model(optimizer):
    model = keras.Sequential([
        keras.Input((4,), dtype="int32"),
        keras.layers.Embedding(20, 2, embeddings_initializer=keras.initializers.RandomNormal(seed=1)),
        keras.layers.Flatten(),
        keras.layers.Dense(WIDTH, activation="tanh", kernel_initializer=keras.initializers.HeNormal(2)),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(3)),
    ])
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def train(model):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (NUM_ROWS, 4))
    y = x.sum(axis=1, keepdims=True) / 10 - 0.8
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    # `fit` ends by copying the EMA into the weights.
    return [np.array(w) for w in model.get_weights()]


def exclude_in_each_replica(optimizer):
    """Exclude one of two variables in every replica, as Keras's own tests do; the second call follows `build`."""
    decayed, excluded = keras.Variable([2.0]), keras.Variable([3.0], name="excluded")

    def step():
        optimizer.exclude_from_weight_decay(var_names=["excluded"])
        gradients = [tf.zeros(1, decayed.dtype)] * 2
        optimizer.apply_gradients(zip(gradients, [decayed, excluded], strict=True))

    tf.distribute.get_strategy().run(step)
    return np.array([decayed.numpy(), excluded.numpy()])


def main(path):
    keras.config.set_floatx("float64")  # differences then are not due to rounding
    cpus = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
    results = {}
    for name, feature in CASES:
        row = TABLE[name]
        rate = min(0.1, row.learning_rate)
        arguments = {
            "plain": {"learning_rate": rate},
            "schedule": {"learning_rate": keras.optimizers.schedules.ExponentialDecay(rate, 3, 0.5)},
            "ema": {"learning_rate": rate, "use_ema": True},
        }[feature]
        model = make_model(row.make(**arguments))
        model.optimizer.build(model.trainable_variables)  # the first step of two devices builds theirs
        one = train(model)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
        with strategy.scope():
            model = make_model(row.make(**arguments))
        two = train(model)
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            results[f"{name}/{feature}/one/{index}"], results[f"{name}/{feature}/two/{index}"] = a, b
    # This avoids collective operations, because the strategies above have used their keys.
    sums = tf.distribute.ReductionToOneDevice()
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=sums).scope():
        # If the gradient is zero, LARS decays like plain gradient descent.
        results["excluded/lars"] = exclude_in_each_replica(LARS(0.1, momentum=0.0, weight_decay=0.5))
        results["excluded/sgd"] = exclude_in_each_replica(keras.optimizers.SGD(0.1, weight_decay=0.5))
        results["excluded/fromage"] = exclude_in_each_replica(Fromage(0.1, weight_decay=0.5)) * np.sqrt(1.01)
    probe = (np.zeros((4, 4), int), np.zeros((4, 1)))
    for kind in MEASUREMENTS:
        try:
            model.fit(*probe, verbose=0, callbacks=[kind(probe)])
        except ValueError as error:
            results[f"refused/{kind.__name__}"] = np.array(str(error))
    np.savez(path, **results)


if __name__ == "__main__":
    main(sys.argv[1])
