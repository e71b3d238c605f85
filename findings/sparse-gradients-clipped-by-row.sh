#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: clipnorm and global_clipnorm take the norm of the listed rows of a sparse gradient,
# not of the gradient, where a row is listed several times (a token that occurs several times in a batch).
#
# An Embedding's gradient lists one row for each token. Rows of the same token are added up after clipping, so that the
# clipped gradient is longer than the limit.
#
# Seen: four gradients of 1 for one row, with clipnorm=1 (and global_clipnorm=1): SGD(1.0) moves the row by 2. Right: 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf


def moved(gradient, **clipping):
    variable = keras.Variable(np.zeros((2, 1)), dtype="float32")
    optimizer = keras.optimizers.SGD(1.0, **clipping)
    optimizer.build([variable])
    optimizer.apply([gradient], [variable])
    return -variable.numpy().ravel()


sparse = tf.IndexedSlices(tf.ones((4, 1)), tf.constant([0, 0, 0, 0]), tf.constant([2, 1]))
for clipping in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
    listed, dense = moved(sparse, **clipping), moved(tf.convert_to_tensor([[4.0], [0.0]]), **clipping)
    print(clipping, "sparse:", listed.tolist(), "the same gradient, dense:", dense.tolist())
    np.testing.assert_allclose(listed, [2.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(dense, [1.0, 0.0], rtol=1e-6)
PYTHON
