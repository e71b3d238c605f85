#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: the metrics "hinge" and "squared_hinge" with targets of shape (n,) and outputs of
# shape (n, 1) compare each target with each output, without a word. The losses of the same names compare row by row.
#
# The metrics "mae" and "mse" give such targets the shape of the outputs first. The hinge metrics do not, so that they
# broadcast to n x n.
#
# Seen, on six rows, as loss and metric: hinge 0.6024 and 1.0928, squared_hinge 0.7003 and 1.9266, mse 0.8199 and 0.8199.
# With targets of shape (6, 1) each metric equals its loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= KERAS_BACKEND=tensorflow
cat > "$folder/compare.py" <<'PYTHON'
import keras
import numpy as np

x = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")
y = np.where(np.arange(6) % 2, 1.0, -1.0).astype("float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
model.set_weights([np.array([[1.0], [0.5]], "float32")])
for shape, targets in (("vector", y), ("column", y[:, None])):
    for name in ("hinge", "squared_hinge", "mse"):
        model.compile("sgd", name, metrics=[name], jit_compile=False)
        found = model.evaluate(x, targets, batch_size=6, verbose=0, return_dict=True)
        print(f"{shape} {name} {found['loss']:.4f} {found[name]:.4f}")
PYTHON
"$folder/venv/bin/python" "$folder/compare.py" > "$folder/found" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
cat "$folder/found"
for row in "vector hinge 0.6024 1.0928" "vector squared_hinge 0.7003 1.9266" "vector mse 0.8199 0.8199" \
    "column hinge 0.6024 0.6024" "column squared_hinge 0.7003 0.7003" "column mse 0.8199 0.8199"; do
    grep -qx "$row" "$folder/found"
done
