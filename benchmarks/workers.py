"""Processes that take turns, one for each framework: a slow phase of the machine then slows all of them.

They use JSON lines. A worker prints the names of its cases. For each line that it reads, it runs every case once and
prints the seconds.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

Cases = Iterable[tuple[str, Callable[[], object]]]


def take_turns(script: str, frameworks: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Run one worker per framework in turns, and return the seconds of each round by the name of the case."""
    folder = Path(__file__).parent
    return alternate({name: [sys.executable, str(folder / script), name] for name in frameworks}, rounds)


def alternate(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, list[float]]:
    """Run the workers with these command lines in turns; they return what `take_turns` does."""
    workers = []
    for name, command in commands.items():
        workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        if not workers[-1].stdout.readline():
            raise SystemExit(f"The worker for {name} failed. Install the extra `bench`: pip install -e .[bench]")
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
    serve_cases(cases_of[sys.argv[1]])


def serve_cases(make: Callable[[], Cases]) -> None:
    """Be a worker: time the cases for each line of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # All output of the framework goes to standard error.
    cases = dict(make())
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
