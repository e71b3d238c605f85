#!/usr/bin/env bash
# TensorFlow 2.21.0: betainc(a, b, x), zeta(s, q) and polygamma(n, x) are differentiated by their last argument only.
# By the others the derivative is left out, without a word.
#
# It is not zero. Asked for alone it is None; where the parameter occurs in another term too (a prior, a regulariser),
# as in most likelihoods, the gradient is a number, that of the other term. tf.math.igamma has the derivative by its
# parameter.
#
# Seen: betainc(a, 3, 0.4) + a^2 at a = 2 has the gradient 4.0; finite differences say 3.7591. zeta(s, 3) + s^2 at
# s = 2 has 4.0 too; finite differences say 3.2357.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf

number = lambda value: tf.constant(value, tf.float64)
functions = {
    "betainc": lambda a: tf.math.betainc(a, number(3.0), number(0.4)) + a**2,
    "zeta": lambda a: tf.math.zeta(a, number(3.0)) + a**2,
    "igamma": lambda a: tf.math.igamma(a, number(3.0)) + a**2,
}
for name, function in functions.items():
    a = number(2.0)
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = function(a)
    found = float(tape.gradient(value, a))
    right = float(function(a + 1e-5) - function(a - 1e-5)) / 2e-5
    print(f"{name}: gradient {found:.4f}, finite differences {right:.4f}")
    assert abs(found - right) < 1e-6 if name == "igamma" else found == 4.0 and abs(found - right) > 0.1
PYTHON
