#!/usr/bin/env bash
# Keras 3.15.1: CSVLogger leaves out, without a word, every value that is not in the logs of the first epoch.
#
# It writes the columns of the first epoch to the end, and adds columns with val_ that nothing fills where there is no
# validation. Values that begin later (of layers unfrozen in the third epoch, of a callback that measures every tenth
# epoch) are in `history` and not in the file.
#
# Seen: "late", logged from the second epoch on, is in the history of three epochs, and the file has epoch, loss,
# val_loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import csv
import tempfile
from pathlib import Path

import keras
import numpy as np


class Late(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch >= 1:
            logs["late"] = 7.0


model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "log.csv"
    callbacks = [Late(), keras.callbacks.CSVLogger(path)]
    history = model.fit(np.ones((4, 1)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=callbacks).history
    rows = list(csv.DictReader(path.open()))
print("history:", sorted(history), "file:", list(rows[0]), "third row:", rows[2])
assert history["late"] == [7.0, 7.0]
assert len(rows) == 3 and all(list(row) == ["epoch", "loss", "val_loss"] and row["val_loss"] == "NA" for row in rows)
PYTHON
