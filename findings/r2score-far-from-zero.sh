#!/usr/bin/env bash
# Keras 3.15.1: keras.metrics.R2Score cancels in float32 where the targets lie far from zero. It can be above 1.
#
# It sums the squares of the targets and takes off the square of their sum. With a standard deviation of 1, an origin
# of 1e4 (years, Kelvin, altitudes, prices) is enough.
#
# Seen: 1,000 targets, the same residuals: 0.989 at the origin 0, 1.001 at 1e4, 1.000 at 1e5; right is 0.989 in each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import keras
import numpy as np

random = np.random.default_rng(1)
noise, residuals = random.standard_normal((2, 1000, 1))
for origin in (0.0, 1e4, 1e5):
    y_true = (origin + noise).astype(np.float32)
    y_pred = (y_true + 0.1 * residuals).astype(np.float32)
    metric = keras.metrics.R2Score()
    metric.update_state(y_true, y_pred)
    wide, found = y_true.astype(np.float64), float(metric.result())
    right = 1 - np.sum((wide - y_pred) ** 2) / np.sum((wide - wide.mean()) ** 2)
    print(f"origin {origin:g}: R2Score {found:.4f}, in float64 {right:.4f}")
    assert 0.98 < right < 1
    assert abs(found - right) < 1e-3 if origin == 0 else abs(found - right) > 5e-3
PYTHON
