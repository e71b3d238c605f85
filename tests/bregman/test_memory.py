"""The documented formula of what training holds, against the peak of a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "measure_memory.py"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
@pytest.mark.parametrize("num_rows", [150_000, 250_000])
def test_peak_memory_is_what_the_formula_says(num_rows):
    done = subprocess.run([sys.executable, SCRIPT, str(num_rows)], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEMORY")]
    for found in json.loads(line.removeprefix("MEMORY ")):
        assert found["measured"] == pytest.approx(found["expected"], rel=0.25), found
