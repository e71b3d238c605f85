#!/usr/bin/env bash
# TensorFlow 2.21.0: derivatives of two special functions are wrong at exactly zero, and nowhere else.
#
# bessel_i1 has the derivative 1/2 at 0, and 1 comes. xlogy(x, y) has the derivative log y by x, and 0 comes where x
# is 0: a relative entropy or a focal weight of a class with probability 0 does not pull it away from there.
#
# Seen: 1.0 and 0.5 at 0 and 0.001; 0.0 and -0.693 at 0 and 0.001 for y = 1/2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf

points = tf.constant([0.0, 1e-3], tf.float64)
with tf.GradientTape(persistent=True) as tape:
    tape.watch(points)
    bessel = tf.math.special.bessel_i1(points)
    entropy = tf.math.xlogy(points, tf.constant(0.5, tf.float64))
by_bessel, by_entropy = (tape.gradient(values, points).numpy() for values in (bessel, entropy))
print("bessel_i1", by_bessel, "xlogy", by_entropy)
assert np.allclose(by_bessel, [1.0, 0.5], atol=1e-5)
assert np.allclose(by_entropy, [0.0, np.log(0.5)])
PYTHON
