#!/usr/bin/env bash
# Keras 3.15.1: with use_ema=True, the val_loss of fit's history is not that of the weights which fit leaves in the
# model.
#
# Validation runs on the raw weights, and the averages replace them when training ends. evaluate after fit disagrees
# with the last line of the history, and EarlyStopping and ModelCheckpoint choose by weights that are then thrown
# away.
#
# Seen: one epoch of 8 steps on a mean squared error from weight 1: val_loss 0.028 in the history, 0.31 by evaluate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

x, y = np.ones((8, 1)), np.zeros((8, 1))
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), "mse")
history = model.fit(x, y, batch_size=1, verbose=0, validation_data=(x, y)).history
in_history, after = history["val_loss"][-1], model.evaluate(x, y, verbose=0)
print("val_loss in the history", in_history, "of the model that fit leaves", after)
assert np.isclose(in_history, 0.8**16)
assert after > 10 * in_history
PYTHON
