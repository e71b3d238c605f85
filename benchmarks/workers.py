"""Processes that take turns, one for each framework: a slow phase of the machine then slows all of them.

They use JSON lines. A worker prints the names of its cases. For each line that it reads, it runs every case once and
prints the seconds.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Cases = Iterable[tuple[str, Callable[[], object]]]


def take_turns(script: str, frameworks: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Run one worker per framework in turns, and return the seconds of each round by the name of the case."""
    workers = []
    for framework in frameworks:
        command = [sys.executable, str(Path(__file__).with_name(script)), framework]
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        if not workers[-1].stdout.readline():
            raise SystemExit(f"The worker for {framework} failed. Install the extra `bench`: pip install -e .[bench]")
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for worker in workers:
            print(file=worker.stdin, flush=True)
            for name, value in json.loads(worker.stdout.readline()).items():
                seconds.setdefault(name, []).append(value)
    for worker in workers:
        worker.communicate()  # Closes its input, which ends it.
    return seconds


def serve(cases_of: dict[str, Callable[[], Cases]]) -> None:
    """Be the worker of the framework that the command line names: time its cases for each line of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # All output of the framework goes to standard error.
    cases = dict(cases_of[sys.argv[1]]())
    for run in cases.values():
        for _ in range(3):
            run()
    print(json.dumps(list(cases)), file=answers)
    for _ in sys.stdin:
        seconds = {}
        for name, run in cases.items():
            run()  # Loads its data into the CPU caches, which another process has used.
            start = time.perf_counter()
            run()
            seconds[name] = time.perf_counter() - start
        print(json.dumps(seconds), file=answers)
