"""Prints measured peak memory of training and the formula's prediction, by number of rows, in its own process."""

import ctypes
import gc
import json
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tfopt import models
from tfopt.bregman import BregmanTrainer


def status(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def give_back():
    """Return free memory to the system, so that it is not counted."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def train(num_rows, preset, **options):
    model = models.mlp(24, (100, 100), 4, seed=0)
    trainer = BregmanTrainer(model, "sparse_categorical_crossentropy", preset=preset, chunk_rows=2000, **options)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((num_rows, 24), dtype=np.float32), rng.integers(0, 4, num_rows)
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # this resets the peak
    trainer.fit(x, y, epochs=2, verbose=0)
    return trainer.expected_memory(num_rows), x.nbytes + y.nbytes


CASES = [("restarted", {"num_blocks": 1}), ("admm", {"state_dtype": "float16"})]  # the second case needs more memory


def main():
    for preset, options in CASES:
        train(4000, preset, **options)  # allocates the memory that compilation needs once
    give_back()
    base, found = status("VmRSS"), []
    for preset, options in CASES:
        for num_rows in map(int, sys.argv[1:]):
            expected, passed = train(num_rows, preset, **options)
            measured = status("VmHWM") - base - passed
            found.append({"num_rows": num_rows, "preset": preset, "measured": measured, "expected": expected})
    print("MEMORY", json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
