#!/usr/bin/env bash
# Keras 3.15.1: with gradient_accumulation_steps=n, a learning rate schedule runs n times as fast as
# optimizer.iterations.
#
# `iterations` counts updates, the schedule is read at the number of batches. A schedule that was made for the number
# of updates, which is what one plots against, has ended after a fraction 1/n of them.
#
# Seen: 0.1 for the first two updates, 0 after them, 4 updates on w^2 from 1: with plain batches 0.8 ** 3 (step 2
# still counts to the first piece), with two batches an update only the first update moves.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np


def train(batches, **arguments):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.1, 0.0])
    variable, optimizer = keras.Variable(np.ones(1, np.float32)), keras.optimizers.SGD(schedule, **arguments)
    optimizer.build([variable])
    for _ in range(batches):
        optimizer.apply([2 * variable.numpy()])
    return float(variable.numpy()[0]), int(optimizer.iterations)


(plain, plain_updates), (accumulated, updates) = train(4), train(8, gradient_accumulation_steps=2)
print("plain", plain, "after", plain_updates, "updates; accumulated", accumulated, "after", updates, "updates")
assert plain_updates == updates == 4
assert np.isclose(plain, 0.8**3)
assert np.isclose(accumulated, 0.8)
PYTHON
