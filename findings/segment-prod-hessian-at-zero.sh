#!/usr/bin/env bash
# TensorFlow 2.21.0: where an entry is exactly zero, second derivatives of tf.math.unsorted_segment_prod are NaN.
#
# The gradient is right: it has a branch for zeros. The branch not taken divides by the zero, and its derivative is NaN,
# also in the rows of entries that are not zero. A single zero makes a whole Hessian NaN. tf.math.reduce_prod is not
# NaN there, but wrong: see prod-hessian-at-zero.sh.
#
# Seen: of the product of (2, 0, 3) the gradient is (0, 6, 0), and all nine second derivatives are NaN. Right: 3 and 2
# beside the diagonal in the row and column of the zero, zeros elsewhere, as it says at (2, 1e-3, 3).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf


def derivatives(x):
    x = tf.constant(x, tf.float64)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = tf.reduce_sum(tf.math.unsorted_segment_prod(x, tf.constant([0, 0, 0]), 1))
        gradient = inner.gradient(value, x)
    return gradient.numpy(), outer.jacobian(gradient, x).numpy()


gradient, hessian = derivatives([2.0, 0.0, 3.0])
print("gradient", gradient.tolist(), "Hessian", hessian.tolist())
np.testing.assert_allclose(gradient, [0.0, 6.0, 0.0])
assert np.isnan(hessian).all()
beside = derivatives([2.0, 1e-3, 3.0])[1]
np.testing.assert_allclose(beside, [[0, 3, 1e-3], [3, 0, 2], [1e-3, 2, 0]], atol=1e-9)
PYTHON
