#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: after keras.utils.set_random_seed, fit(x, y) with its default shuffle=True serves the
# rows in the same order in every epoch.
#
# The order is drawn by tf.random.shuffle with the global seed, in a graph that is traced anew for each epoch. So
# a seeded training, which is what one compares experiments with, is never shuffled again after its first epoch.
#
# Seen: three epochs of eight rows, three times the same permutation; without a seed, different ones.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


class Watched(keras.Sequential):
    def train_step(self, data):
        orders.append(data[0].numpy().ravel().astype(int).tolist())
        return super().train_step(data)


def train():
    model = Watched([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    rows = np.arange(64.0).reshape(64, 1)
    model.fit(rows, rows, batch_size=64, epochs=3, verbose=0)


orders = []
train()
assert len({tuple(order) for order in orders}) == 3, "without a seed, every epoch has its own order"
orders = []
keras.utils.set_random_seed(0)
train()
print("the first eight rows of each epoch, seeded:", [order[:8] for order in orders])
assert orders[0] != sorted(orders[0])
assert orders[0] == orders[1] == orders[2]
PYTHON
