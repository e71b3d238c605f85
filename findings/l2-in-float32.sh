#!/usr/bin/env bash
# Keras 3.15.1: keras.regularizers.L2 multiplies by its coefficient rounded to float32, also for float64 weights.
#
# `l2` reads 0.1, the penalty is that of 0.10000000149011612. A float64 computation by the formula, of a bound or of a
# gradient, is off by 1.5e-8 relatively, eight digits more than float64 has. float64 as floatx changes nothing.
#
# Seen: L2(0.1) of one float64 weight of 1.0 is 0.10000000149011612.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

keras.config.set_floatx("float64")
regularizer = keras.regularizers.L2(0.1)
model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_regularizer=regularizer)])
model.set_weights([np.ones((1, 1))])
(penalty,) = map(float, model.losses)
print("weight in", model.weights[0].dtype, "l2", float(regularizer.l2), "penalty", penalty)
assert model.weights[0].dtype == "float64"
assert float(regularizer.l2) == 0.1
assert penalty == float(np.float32(0.1)) != 0.1
PYTHON
