#!/usr/bin/env bash
# Keras 3.15.1: the gradient of categorical_crossentropy(from_logits=True) depends on the backend where the targets of a
# row do not sum to 1 (two labels set, or a row of zeros); the loss itself does not.
#
# On the TensorFlow backend (2.21.0) the gradient is softmax - target, whatever the targets sum to. The loss is
# -sum target log softmax, whose gradient is sum(target) softmax - target. On the JAX backend (0.10.2) it is that.
#
# Seen, at logits (1, 2, 3) with targets (1, 1, 0): loss 3.8152 on both; the third entry of the gradient is 0.6652 on
# TensorFlow, 1.3305 on JAX.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 jax==0.10.2 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= JAX_PLATFORMS=cpu
cat > "$folder/loss.py" <<'PYTHON'
import keras

logits, targets = [[1.0, 2.0, 3.0]], [[1.0, 1.0, 0.0]]
loss = lambda z: keras.ops.sum(keras.losses.categorical_crossentropy(keras.ops.array(targets), z, from_logits=True))
z = keras.ops.array(logits)
if keras.backend.backend() == "jax":
    import jax

    value, gradient = jax.value_and_grad(loss)(z)
else:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(z)
        value = loss(z)
    gradient = tape.gradient(value, z)
print(f"{float(value):.4f}", *(f"{float(entry):.4f}" for entry in gradient[0]))
PYTHON
for backend in tensorflow jax; do
    KERAS_BACKEND=$backend "$folder/venv/bin/python" "$folder/loss.py" > "$folder/$backend" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
    echo "$backend: loss and gradient $(cat "$folder/$backend")"
done
[ "$(cat "$folder/tensorflow")" = "3.8152 -0.9100 -0.7553 0.6652" ]
[ "$(cat "$folder/jax")" = "3.8152 -0.8199 -0.5105 1.3305" ]
