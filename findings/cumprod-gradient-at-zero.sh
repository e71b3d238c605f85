#!/usr/bin/env bash
# TensorFlow 2.21.0: the first derivative of tf.math.cumprod is zero at every entry that is zero, without a word.
#
# The derivative is computed by dividing by the entry; where the entry is zero the quotient is taken for zero.
# tf.math.reduce_prod has the right first derivative at a zero. Its Hessian there is not symmetric: see
# prod-hessian-at-zero.sh.
#
# Seen: the gradient of the sum of cumprod(2, 0, 3) has 0 as its second entry. Right: 2 + 2 * 3 = 8.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf

x = tf.constant([2.0, 0.0, 3.0], tf.float64)
total = lambda x: tf.reduce_sum(tf.math.cumprod(x))
with tf.GradientTape() as tape:
    tape.watch(x)
    value = total(x)
found = tape.gradient(value, x).numpy()
steps = 1e-6 * np.eye(3)
right = np.array([(total(x + s) - total(x - s)).numpy() / 2e-6 for s in steps])
print("gradient:", found.tolist(), "finite differences:", right.round(6).tolist())
np.testing.assert_allclose(right, [1.0, 8.0, 0.0], atol=1e-6)
np.testing.assert_allclose(found, [1.0, 0.0, 0.0], atol=1e-12)
PYTHON
