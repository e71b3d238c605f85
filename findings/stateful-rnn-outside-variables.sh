#!/usr/bin/env bash
# Keras 3.15.1: the states of a stateful RNN are in no list of the model's variables, and in no saved file.
#
# A training that is interrupted in the middle of a long sequence goes on from zero states after load_model or
# load_weights. Code that walks through model.variables to save, compare or average "everything" does not see them
# either.
#
# Seen: states of 0.76 before saving, 0.0 in the model that is loaded; no variable of the model is named rnn_state.
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

layer = keras.layers.SimpleRNN(1, stateful=True, kernel_initializer="ones", recurrent_initializer="zeros")
model = keras.Sequential([keras.Input((2, 1), batch_size=1), layer])
model.predict(np.ones((1, 2, 1)), verbose=0)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
(before,), (after,) = model.layers[0].states, loaded.layers[0].states
print("before", before.numpy(), "loaded", after.numpy(), "variables", [variable.path for variable in model.variables])
assert np.allclose(before.numpy(), np.tanh(1.0))
assert after.numpy() == 0.0
assert all(variable is not before for variable in model.variables)
PYTHON
