#!/usr/bin/env bash
# TensorFlow 2.21.0: where an entry is exactly zero, the Hessian of tf.math.reduce_prod is not symmetric.
#
# Reverse mode over reverse mode, in float64; keras.ops.prod is the same operation. The gradient is right.
#
# Seen: of x0 x1 x2 at (0, 2, 3) the first row is (0, 3, 2) and all other entries are zero.
# Right: the first column is (0, 3, 2) too, as is what it says at (1e-9, 2, 3).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf


def hessian(x):
    x = tf.constant(x, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = tf.math.reduce_prod(x)
        gradient = inner.gradient(value, x)
    return outer.jacobian(gradient, x).numpy()


right = [[0, 3, 2], [3, 0, 0], [2, 0, 0]]
found = hessian([0.0, 2.0, 3.0])
print("Hessian at (0, 2, 3):", found.tolist(), "right:", right)
np.testing.assert_allclose(found, [[0, 3, 2], [0, 0, 0], [0, 0, 0]], atol=1e-12)
np.testing.assert_allclose(hessian([1e-9, 2.0, 3.0]), right, atol=1e-6)
PYTHON
