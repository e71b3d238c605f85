#!/usr/bin/env bash
# Keras 3.15.1: a model inside of a model casts what it is given to the dtype of its Input, without a word.
#
# With Input(dtype="int32") hidden features are truncated to whole numbers, and have no gradient; with "uint8"
# negative ones wrap around. The outer model trains on, with layers before the inner one that can learn nothing.
#
# Seen: 0.9 and -2.7 come out of an inner model that multiplies by 1.0 as 0 and -2 (int32), 0 and 254 (uint8).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

found = {}
for dtype in ("float32", "int32", "uint8"):
    inner = keras.Sequential([keras.Input((1,), dtype=dtype), keras.layers.Rescaling(1.0)])
    outer = keras.Sequential([keras.Input((1,)), inner])
    found[dtype] = outer.predict(np.array([[0.9], [-2.7]], np.float32), verbose=0).ravel().tolist()
print(found)
assert np.allclose(found["float32"], [0.9, -2.7])
assert found["int32"] == [0.0, -2.0]
assert found["uint8"] == [0.0, 254.0]
PYTHON
