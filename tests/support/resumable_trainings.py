"""Small models, data and trainings for the tests of `ResumableCheckpoint`."""

import keras
import numpy as np
from keras import layers

from tfopt.callbacks import ResumableCheckpoint
from tfopt.datasets import EpochBatches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


def plain(optimizer="sgd", loss="mse"):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, "tanh"), layers.Dense(1)])
    model.compile(optimizer, loss, jit_compile=False)
    return model


def train(make, folder, epochs, x=X, seed=0, **options):
    keras.utils.set_random_seed(seed)
    model = make()
    checkpoint = ResumableCheckpoint(folder, verbose=0)
    batches = EpochBatches(x, Y, batch_size=8)
    model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint], **options)
    return [np.asarray(variable).tobytes() for variable in model.variables]


class Drawing(layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def call(self, x):
        return x + self.draw()
