#!/usr/bin/env bash
# TensorFlow 2.21.0, Keras 3.15.1: the second derivative of tf.nn.moments is wrong, without a word.
#
# The variance that tf.nn.moments returns is computed with the gradient stopped at the mean. The first derivative is
# right all the same, since the sum of the deviations is zero. The second derivative lacks the term of the mean.
# tf.math.reduce_variance of the same numbers is right. Keras normalises with tf.nn.moments, so Hessians of models with
# LayerNormalization, GroupNormalization, or BatchNormalization by batch statistics are wrong.
#
# Seen: the Hessian of the variance of (1, 2, 4) has 2/3 on its diagonal and zeros elsewhere. Right: 4/9 and -2/9.
# Seen: the Hessian of the summed cube of LayerNormalization of (1, 2, 4) is off by more than 0.2 in its first entry.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf

x = tf.constant([1.0, 2.0, 4.0], tf.float64)


def gradient(function, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)


def hessian(function):
    with tf.GradientTape() as tape:
        tape.watch(x)
        first = gradient(function, x)
    return tape.jacobian(first, x).numpy()


right = (2 / 3) * (np.eye(3) - 1 / 3)
np.testing.assert_allclose(hessian(tf.math.reduce_variance), right, atol=1e-12)
found = hessian(lambda x: tf.nn.moments(x, [0])[1])
print("Hessian of the variance by tf.nn.moments:", found.round(4).tolist(), "right:", right.round(4).tolist())
np.testing.assert_allclose(found, (2 / 3) * np.eye(3), atol=1e-12)

layer = keras.layers.LayerNormalization(dtype="float64")
layer.build((None, 3))
cube = lambda x: tf.reduce_sum(layer(x[None]) ** 3)
steps = 1e-4 * np.eye(3)
differences = np.stack([(gradient(cube, x + s) - gradient(cube, x - s)).numpy() / 2e-4 for s in steps], axis=1)
off = hessian(cube) - differences
print("LayerNormalization: entries of the Hessian minus those of finite differences:", off.round(4).tolist())
assert abs(off[0, 0]) > 0.2
PYTHON
