#!/usr/bin/env bash
# Keras 3.15.1: the first step of keras.optimizers.Ftrl throws the weights away that a model holds.
#
# FTRL computes weights from the sums of gradients alone. Keras starts these sums at zero and not at what the weights
# would come from, so a weight whose first gradient is zero becomes exactly 0, and pretrained weights are lost in one
# step, whatever the learning rate.
#
# Seen: weights of 1.0, a gradient of zero, learning rate 1e-6: 0.0 after one step; Adagrad leaves 1.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


def after_one_step(optimizer):
    variable = keras.Variable(np.ones(3, np.float32))
    optimizer.build([variable])
    optimizer.apply([np.zeros(3, np.float32)])
    return variable.numpy().tolist()


ftrl, adagrad = (after_one_step(kind(1e-6)) for kind in (keras.optimizers.Ftrl, keras.optimizers.Adagrad))
print("Ftrl", ftrl, "Adagrad", adagrad)
assert ftrl == [0.0, 0.0, 0.0]
assert adagrad == [1.0, 1.0, 1.0]
PYTHON
