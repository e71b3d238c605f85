"""The documented formula of what training holds, against the peak of a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "measure_memory.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_peak_memory_is_what_the_formula_says():
    done = subprocess.run([sys.executable, SCRIPT, "150000", "250000"], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEMORY")]
    found = json.loads(line.removeprefix("MEMORY "))
    assert len(found) == 4  # two numbers of rows, two presets
    for case in found:
        assert case["measured"] == pytest.approx(case["expected"], rel=0.25), case
