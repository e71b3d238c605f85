#!/usr/bin/env bash
# TensorFlow 2.21.0: tensor_scatter_nd_update with an index twice keeps one of the updates, and gives a gradient to
# both.
#
# The value that is overwritten has no influence on the result, and is trained as if it had. The same happens with
# tf.dynamic_stitch. Token buffers, memories and caches that are written by index meet it.
#
# Seen: updates 1 and 2 on the same place leave 2; the gradient by the updates is (1, 1) where (0, 1) is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import tensorflow as tf

updates = tf.constant([1.0, 2.0])
with tf.GradientTape(persistent=True) as tape:
    tape.watch(updates)
    scattered = tf.tensor_scatter_nd_update(tf.zeros(3), [[0], [0]], updates)
    stitched = tf.dynamic_stitch([[0], [0]], [updates[:1], updates[1:]])
found = {name: tape.gradient(values, updates).numpy().tolist() for name, values in (
    ("scattered", scattered),
    ("stitched", stitched),
)}
print(scattered.numpy(), stitched.numpy(), found)
assert scattered.numpy().tolist() == [2.0, 0.0, 0.0]
assert stitched.numpy().tolist() == [2.0]
assert found == {"scattered": [1.0, 1.0], "stitched": [1.0, 1.0]}
PYTHON
