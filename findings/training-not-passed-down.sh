#!/usr/bin/env bash
# Keras 3.15.1: in a subclassed model whose `call` has no `training` argument, fit trains no batch normalisation, and
# Dropout never drops.
#
# fit passes training=True only to a `call` that takes it. The layers inside then get None and behave as in predict:
# batch normalisation uses its first moving averages, 0 and 1, and never moves them. No warning comes.
#
# Seen: inputs with mean 5; after 20 epochs the moving mean is 0.0 without the argument and above 4 with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")

    def call(self, x):
        return self.head(self.drop(self.norm(x)))


class NetWithArgument(Net):
    def call(self, x, training=False):
        return super().call(x)


def moving_mean(model):
    x = 5 + np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], epochs=20, verbose=0)
    return float(model.norm.moving_mean.numpy().mean())


without, with_argument = moving_mean(Net()), moving_mean(NetWithArgument())
print("moving mean without the argument", without, "with it", with_argument)
assert without == 0.0
assert with_argument > 4
PYTHON
