#!/usr/bin/env bash
# Keras 3.15.1: training=False, given to a layer in a functional model, does not hold in fit.
#
# A functional model hands its own `training` to every layer that takes it, also to layers that were called with another
# value. So a pretrained network called with training=False, as for transfer learning, moves its batch statistics in fit
# unless it is frozen by trainable=False. In the `call` of a subclassed model the value holds.
#
# Seen: rows of mean 5, BatchNormalization(momentum=0.5) called with training=False, one step of fit: the moving mean goes
# from 0 to about 2.5 in the functional model, and stays 0 in the subclassed one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

rows = np.random.default_rng(0).normal(5.0, 1.0, (32, 3)).astype("float32")


class Subclassed(keras.Model):
    def __init__(self, normalize):
        super().__init__()
        self.normalize, self.head = normalize, keras.layers.Dense(1)

    def call(self, x, training=None):
        return self.head(self.normalize(x, training=False))


def functional(normalize):
    x = keras.Input((3,))
    return keras.Model(x, keras.layers.Dense(1)(normalize(x, training=False)))


def moving_mean(build):
    normalize = keras.layers.BatchNormalization(momentum=0.5)
    model = build(normalize)
    model.compile("sgd", "mse")
    model.fit(rows, np.zeros((32, 1)), epochs=1, verbose=0)
    return float(np.mean(normalize.moving_mean))


found = {build.__name__: moving_mean(build) for build in (functional, Subclassed)}
print("moving mean after one step:", found)
assert 2.0 < found["functional"] < 3.0
assert found["Subclassed"] == 0.0
PYTHON
