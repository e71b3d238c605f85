#!/usr/bin/env bash
# Keras 3.15.1: a model that was compiled with Huber(delta=5.0), saved and loaded, trains with delta=1.0.
#
# get_config leaves delta out, and so does the file. No warning comes; the loss that is reported changes without a
# change of the weights. CosineSimilarity(axis=...) is lost in the same way.
#
# Seen: residuals of 10: a loss of 37.5 before saving, 9.5 in the model that was loaded.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import tempfile
from pathlib import Path

import keras
import numpy as np

model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
model.compile("sgd", keras.losses.Huber(delta=5.0))
x, y = np.ones((2, 1)), np.full((2, 1), 10.0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
before, after = model.evaluate(x, y, verbose=0), loaded.evaluate(x, y, verbose=0)
print("before", before, "loaded", after, "config", keras.losses.Huber(delta=5.0).get_config())
assert np.isclose(before, 5.0 * (10.0 - 2.5))
assert np.isclose(after, 1.0 * (10.0 - 0.5))
assert "axis" not in keras.losses.CosineSimilarity(axis=0).get_config()
PYTHON
