"""Run every reproduction, as many in parallel as there are cores. Scripts that compare clocks run first, each alone.

The output of a script goes to `log.txt` in its folder, and its claims are counted here at its end. `page.py` copies the
results to the documents.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from reproduction import add_data_arguments
from rich.console import Console

FOLDER = Path(__file__).resolve().parent
WITH_CLOCKS = ("bregman_training", "nqm_figures")
# The longest scripts come first, so that no long one runs alone at the end.
OTHERS = (
    "nqm_real_model",
    "large_batches",
    "depth_against_rate",
    "bregman_stability",
    "convexity_along_paths",
    "breakdown_profiles",
    "bregman_digits",
    "milne_regression",
    "fromage_jitter",
    "norms_to_overflow",
)
WITHOUT_DATA = ("milne_regression", "nqm_figures")  # They make their own problem.


def run(name: str, size: str, output: Path, cores: int, data: list[str]) -> str:
    """Run one script; return its duration and verdicts, or raise RuntimeError with the end of its output."""
    folder, begin = output / name, time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), f"--{size}", "--output", str(folder)]
    command += [] if name in WITHOUT_DATA else data
    threads = {variable: str(cores) for variable in ("TF_NUM_INTRAOP_THREADS", "OPENBLAS_NUM_THREADS")}
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**threads, **os.environ}, check=False)
    if done.returncode:
        printed = (folder / "log.txt").read_text()
        raise RuntimeError(f"{name} ended with {done.returncode}; {folder / 'log.txt'} ends with:\n{printed[-2000:]}")
    claims = json.loads((folder / "results.json").read_text())["claims"]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(c["verdict"] for c in claims).items())
    return f"{name}: {(time.perf_counter() - begin) / 60:.1f} min; {verdicts}"


def run_together(names: list[str], jobs: int, *options: Any) -> int:
    """Run scripts with further arguments of `run`, print each result at its end, and return the number of failures."""
    # On Ctrl+C the running scripts are interrupted too, and no other one starts.
    console, failures = Console(), 0
    with ThreadPoolExecutor(jobs) as pool, console.status(f"{', '.join(names)}: {jobs} at a time"):
        running = [pool.submit(run, name, *options) for name in names]
        try:
            for done in as_completed(running):
                failures += done.exception() is not None
                console.print(str(done.exception() or done.result()), highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return failures


def main(argv: list[str] | None = None) -> None:
    """Run all scripts, or those that are named; raise SystemExit if one failed."""
    everything = (*WITH_CLOCKS, *OTHERS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(everything)}; none means all")
    parser.add_argument("--size", choices=("smoke", "quick", "full"), default="quick")
    parser.add_argument("--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many in parallel")
    add_data_arguments(parser, None)
    arguments = parser.parse_args(argv)
    names, cores = arguments.names or everything, os.cpu_count() or 1
    if unknown := set(names) - set(everything):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(everything)}")
    if arguments.jobs < 1:
        parser.error(f"--jobs must be at least 1. Received: {arguments.jobs}")
    chosen_data = {"--data": arguments.data, "--data-dir": arguments.data_dir, "--rows": arguments.num_rows}
    data = [part for name, value in chosen_data.items() if value is not None for part in (name, str(value))]
    failures = 0
    for is_alone in (True, False):
        chosen = [name for name in everything if name in names and (name in WITH_CLOCKS) == is_alone]
        jobs = 1 if is_alone else arguments.jobs
        failures += run_together(chosen, jobs, arguments.size, arguments.output, max(1, cores // jobs), data)
    if failures:
        raise SystemExit(f"{failures} of {len(names)} failed")


if __name__ == "__main__":
    main()
