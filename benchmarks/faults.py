"""Kill a random rank at a random time, repeatedly, restart the job, and compare the bits of its final state.

The jobs are `examples/keras_horovod.py` and `examples/bregman_horovod.py` on two ranks. The time is drawn from the
duration of an undisturbed run, including the start of Horovod and the writing of checkpoints. After each kill the job
must end by itself, with an exit code other than 0 and the name of the rank. The restarted job must end with the state
of the undisturbed run, on each rank, bit for bit. Writes `benchmarks/results/faults.json`.

Run with `python benchmarks/faults.py --kills 24`.
"""

import hashlib
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import environment
import numpy as np
import psutil

from tfopt._checkpoints import state_file

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RANKS = 2
JOBS = {
    "keras_horovod": ["--epochs", "12"],
    "bregman_horovod": ["--rows", "20000", "--hidden-units", "64", "--epochs", "12"],
}
LIMIT = 60.0  # Seconds in which a job must end after a kill.


def start(job: str, checkpoints: Path) -> subprocess.Popen[str]:
    """Start a job, a key of `JOBS`, and return the process of `horovodrun`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    threads = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(EXAMPLES / f"{job}.py"), *JOBS[job], "--checkpoints", str(checkpoints)]
    return subprocess.Popen(
        ["horovodrun", "-np", str(RANKS), *script],
        env={**os.environ, **threads, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def find_rank(job: subprocess.Popen[str], rank: int) -> psutil.Process:
    """Wait for a rank of a job that was just started, and return its process; raise `RuntimeError` if the job ended."""
    while job.poll() is None:
        for process in psutil.Process(job.pid).children(recursive=True):
            try:
                if process.environ().get("HOROVOD_RANK") == str(rank) and process.name().startswith("python"):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise RuntimeError(f"The job ended before rank {rank} had started")


def state_of(checkpoints: Path) -> str:
    """Return a digest of the newest checkpoint of each rank."""
    # Leave out durations, and the states of Python's and NumPy's global generators, which the examples neither seed nor
    # use.
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if "seconds" in name:
            return
        if isinstance(value, dict):
            for key in sorted(value):
                add(f"{name}/{key}", value[key])
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                add(f"{name}/{index}", item)
        else:
            digest.update(f"{name}={value!r}".encode() if not isinstance(value, np.ndarray) else value.tobytes())

    for rank in range(RANKS):
        state = state_file.read(max(checkpoints.glob(f"epoch-*.rank-{rank}-of-{RANKS}.npz")))["state"]
        add(f"rank {rank}", {name: value for name, value in state.items() if name != "random"})
    return digest.hexdigest()


def run_to_the_end(job: str, checkpoints: Path) -> float:
    """Run a job undisturbed, and return its seconds since its ranks exist; raise `RuntimeError` if it fails."""
    process = start(job, checkpoints)
    find_rank(process, RANKS - 1)
    begin = time.perf_counter()
    output, _ = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(output[-3000:])
    return time.perf_counter() - begin


def kill_once(job: str, checkpoints: Path, rank: int, moment: float) -> dict[str, Any] | None:
    """Kill a rank `moment` seconds after the ranks exist, and return what happened; None if the job had ended."""
    process = start(job, checkpoints)
    victim = find_rank(process, rank)
    time.sleep(moment)
    try:
        victim.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        process.communicate()
        return None
    begin = time.perf_counter()
    try:
        output, _ = process.communicate(timeout=5 * LIMIT)
    except subprocess.TimeoutExpired:
        for started in psutil.Process(process.pid).children(recursive=True):
            started.kill()  # The ranks hold the pipe open.
        process.kill()
        output, _ = process.communicate()
    seconds = time.perf_counter() - begin
    if process.returncode == 0:
        return None  # The rank had already finished its communication.
    epochs = [int(path.name[6:12]) for path in checkpoints.glob(f"epoch-*.rank-{rank}-*.npz")]
    return {
        "job": job,
        "rank": rank,
        "moment": moment,
        "epochs_done": max(epochs, default=0),
        "seconds_to_the_end": seconds,
        "names_the_rank": re.search(rf"Process name: {rank}\b", output) is not None,
    }


def main(argv: list[str] | None = None) -> None:
    """Kill, restart, compare, write the results; exit with 1 on a late job, an unnamed rank or another state."""
    arguments = environment.make_parser(__doc__, "faults", kills=24, seed=0).parse_args(argv)
    rng = random.Random(arguments.seed)
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        whole = {job: run_to_the_end(job, Path(folder) / f"{job}-whole") for job in JOBS}
        states = {job: state_of(Path(folder) / f"{job}-whole") for job in JOBS}
        while len(kills) < arguments.kills:
            job = list(JOBS)[len(kills) % len(JOBS)]
            checkpoints = Path(tempfile.mkdtemp(dir=folder))
            found = kill_once(job, checkpoints, rng.randrange(RANKS), rng.uniform(0, whole[job]))
            if found is None:
                continue
            run_to_the_end(job, checkpoints)
            kills.append({**found, "same_bits": state_of(checkpoints) == states[job]})
            print(kills[-1], flush=True)
    slowest = max(kill["seconds_to_the_end"] for kill in kills)
    result = {
        "ranks": RANKS,
        "seconds_undisturbed": whole,
        "median_seconds_to_the_end": statistics.median(kill["seconds_to_the_end"] for kill in kills),
        "slowest_seconds_to_the_end": slowest,
        "kills": kills,
    }
    environment.write(arguments.output, ["tensorflow", "keras", "numpy", "horovod"], result)
    good = [kill["same_bits"] and kill["names_the_rank"] for kill in kills]
    print(f"{sum(good)} of {len(kills)} kills passed; the slowest job ended after {slowest:.1f} s")
    if not all(good) or slowest > LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
