#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: stateless_call ignores the weights that it is given, where a layer's `call` is
# decorated with @tf.function.
#
# stateless_call hands the weights over in a scope of the thread. The function was traced when the model was built,
# and its trace reads the layer's variables themselves. So a derivative, a line search or an average of weights that
# is computed with stateless_call is that of the weights which the model happens to hold.
#
# Seen: a layer that multiplies by its weight (1.0) returns 1.0 for 5.0 and for 7.0; without the decorator, 5.0 and
# 7.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import tensorflow as tf


class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(1,), initializer="ones")

    def call(self, x):
        return x * self.scale


class CompiledScale(Scale):
    @tf.function(autograph=False)
    def call(self, x):
        return x * self.scale


def outputs(layer):
    model = keras.Sequential([keras.Input((1,)), layer])
    results = [model.stateless_call([tf.constant([scale])], [], tf.ones((1, 1))) for scale in (5.0, 7.0)]
    return [float(y[0, 0]) for y, _ in results]


plain, compiled = outputs(Scale()), outputs(CompiledScale())
print("plain", plain, "with tf.function", compiled)
assert plain == [5.0, 7.0]
assert compiled == [1.0, 1.0]
PYTHON
