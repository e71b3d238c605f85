#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: with reduction=None, `fit` trains along the gradient of the sum over rows and logs the
# mean. The step is as many times larger than the log suggests as a batch has rows.
#
# Only None is left to the tape, which differentiates the sum of a vector. Its log, an average over rows, looks like
# that of the default reduction.
#
# Seen, after one batch of 4 rows from the weight 0 at the rate 0.01: sum_over_batch_size logs 7.50 and moves to 0.050;
# sum logs 30.00 and moves to 0.200; None logs 7.50 and moves to 0.200.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= KERAS_BACKEND=tensorflow
cat > "$folder/train.py" <<'PYTHON'
import keras
import numpy as np

x = np.ones((4, 1), "float32")
y = np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
for reduction in ("sum_over_batch_size", "sum", None):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError(reduction=reduction))
    history = model.fit(x, y, batch_size=4, verbose=0)
    print(f"{reduction} {history.history['loss'][0]:.2f} {model.get_weights()[0][0, 0]:.3f}")
PYTHON
"$folder/venv/bin/python" "$folder/train.py" > "$folder/found" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
cat "$folder/found"
[ "$(tr '\n' ' ' < "$folder/found")" = "sum_over_batch_size 7.50 0.050 sum 30.00 0.200 None 7.50 0.200 " ]
