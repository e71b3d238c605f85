#!/usr/bin/env bash
# Keras 3.15.1: exclude_from_weight_decay(var_names="bias") excludes every variable with a b, an i, an a or an s in
# its name.
#
# The argument is a list of names. A single string is taken too, and read as a list of its letters. No error comes,
# and weight decay acts on next to nothing.
#
# Seen: of kernel, bias, gamma and embeddings only kernel is decayed; with ["bias"], all but bias.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


def decayed(var_names):
    variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias", "gamma", "embeddings")]
    optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=var_names)
    optimizer.build(variables)
    optimizer.apply([np.zeros(2)] * len(variables))
    return [variable.name for variable in variables if variable.numpy()[0] != 1.0]


print('decayed with "bias":', decayed("bias"), 'with ["bias"]:', decayed(["bias"]))
assert decayed("bias") == ["kernel"]
assert decayed(["bias"]) == ["kernel", "gamma", "embeddings"]
PYTHON
