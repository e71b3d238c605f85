#!/usr/bin/env bash
# Keras 3.15.1: whether exclude_from_weight_decay(var_names=["(?i)norm", "bias"]) works depends on the hash seed of the
# process.
#
# Each name is a regular expression. Keras puts them into a set and joins them by "|" in the order of the set, which
# differs between processes. A flag at the head of one name is allowed only where that name comes first, and then holds
# for all the others too. The same script trains today and ends in an error tomorrow, or on one of several workers.
#
# Seen: with PYTHONHASHSEED from 0 to 7 both ends occur: accepted, or "global flags not at the start of the expression".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=
cat > "$folder/exclude.py" <<'PYTHON'
import re

import keras
import numpy as np

variables = [keras.Variable(np.ones(2), name=name) for name in ("kernel", "bias", "LayerNorm_scale")]
optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
try:
    optimizer.exclude_from_weight_decay(var_names=["(?i)norm", "bias"])
    optimizer.build(variables)
    optimizer.apply([np.zeros(2)] * len(variables))
except re.error as error:
    print("refused:", str(error).split(" at position")[0])
else:
    print("accepted, decayed:", [variable.name for variable in variables if variable.numpy()[0] != 1.0])
PYTHON
for seed in 0 1 2 3 4 5 6 7; do
    PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/exclude.py" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
done | sort | uniq -c | tee "$folder/ends"
grep -q "refused: global flags not at the start of the expression" "$folder/ends"
grep -q "accepted, decayed: \['kernel'\]" "$folder/ends"
