"""Prints the measured peak memory of products with a Hessian, by `max_memory`, in its own process."""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from measure_memory import give_back, status

from tfopt.curvature import HessianOperator, extremal_eigenvalues


def measure(model, x, y, max_memory):
    HessianOperator(model, "mse", x[:2], y[:2]) @ np.ones(model.count_params(), "float32")
    give_back()
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # this resets the peak
    matrix = HessianOperator(model, "mse", x, y, max_memory=max_memory)
    ends = extremal_eigenvalues(matrix, 4)
    return {"peak": status("VmHWM") - base, "batches": len(matrix.objective.probe.batches), "end": ends.lambda_max}


def main():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((32, 32, 3)),
        *(keras.layers.Conv2D(32, 3, padding="same", activation="tanh") for _ in range(3)),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(1),
    ])
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((256, 32, 32, 3), "float32"), rng.standard_normal((256, 1), "float32")
    print("MEMORY", json.dumps(measure(model, x, y, json.loads(sys.argv[1]))))


if __name__ == "__main__":
    sys.exit(main())
