"""The documented formula of what training holds, against the peak of a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "measure_memory.py"
# Without oneDNN, TensorFlow takes memory from the C library, as it does by itself on CPUs without AVX-512 VNNI.
# Mapped: the C library gives each block back when it is freed, so that the peak is what training has in use.
# Heap: its defaults, which keep up to 64 MB that are free at the end of a heap, and holes between blocks.
SETTINGS = {
    "mapped": ({"MALLOC_MMAP_THRESHOLD_": "65536"}, ["80000"], 1.15, 0.0),
    "heap": ({}, ["150000"], 1.3, 100e6),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("setting", ["mapped", pytest.param("heap", marks=pytest.mark.slow_by_nature)])
def test_peak_memory_is_what_the_formula_says(setting):
    changes, rows, most, kept = SETTINGS[setting]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": "0"} | changes
    command = [sys.executable, SCRIPT, *rows]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEMORY")]
    found = json.loads(line.removeprefix("MEMORY "))
    assert len(found) == 2 * len(rows)  # two presets
    for case in found:
        assert 0.75 * case["expected"] < case["measured"] < most * case["expected"] + kept, case
