"""Subjects of ranks: functions of the communicator and a folder, whose results are saved by rank."""

import keras
import numpy as np
import tensorflow as tf

from tfopt.distributed import DistributedOptimizer

SUBJECTS = {}


def subject(function):
    SUBJECTS[function.__name__] = function
    return function


def misuse(function):
    """A subject that must end in an error on every rank; the class and the message of the error are saved."""

    def catch(ranks, folder):
        try:
            function(ranks, folder)
        except Exception as error:
            return {"error": type(error).__name__, "message": str(error)}
        return {"error": None, "message": "nothing was raised"}

    SUBJECTS[function.__name__] = catch
    return function


def make_model(seed=0, **options):
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, kernel_initializer=keras.initializers.HeNormal(seed)),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(seed + 1)),
    ])
    options = {"optimizer": DistributedOptimizer(keras.optimizers.Adam(0.01)), "jit_compile": False, **options}
    model.compile(loss="mse", **options)
    return model


class TwoOptimizers(keras.Model):
    """Its own optimizer trains the kernel, and another of its own, or the one of `compile`, the bias."""

    def __init__(self, own, for_bias=None):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.own = {"kernel": own} | ({} if for_bias is None else {"bias": for_bias})

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        pairs = [(self.own["kernel"], self.dense.kernel), (self.own.get("bias", self.optimizer), self.dense.bias)]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(*data, self(data[0]))
        gradients = tape.gradient(loss, [variable for _, variable in pairs])
        for (optimizer, variable), gradient in zip(pairs, gradients, strict=True):
            optimizer.apply([gradient], [variable])
        return {"loss": loss}


def make_data(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def fit(model, data, **options):
    return model.fit(*data, **{"batch_size": 4, "verbose": 0, "shuffle": False, **options})


def weights_of(model):
    return [np.asarray(weight).tolist() for weight in model.get_weights()]
