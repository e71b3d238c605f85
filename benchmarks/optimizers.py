"""Time one step of the optimizers against their peers in other libraries.

There is one process per framework. All run at the same time and take turns: each round times every optimizer of every
framework once, so that a slow phase of the machine slows all of them. Writes `benchmarks/results/optimizers.json`, from
which the table in `docs/benchmarks.md` is made.

Run with `make bench`, or `python benchmarks/optimizers.py --rounds 15`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import environment

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("keras", "optax", "torch")


def measure(rounds: int, frameworks: list[str]) -> dict[str, list[float]]:
    """Run the workers in turns, and return the seconds of each round by "size/mode/name"."""
    workers = {}
    for framework in frameworks:
        command = [sys.executable, str(HERE / "optimizer_workers.py"), framework]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        names = worker.stdout.readline()
        if not names:
            raise SystemExit(f"The worker for {framework} failed. Install the extra `bench`: pip install -e .[bench]")
        workers[framework] = worker
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds):
        for worker in workers.values():
            print(file=worker.stdin, flush=True)
            for name, value in json.loads(worker.stdout.readline()).items():
                seconds.setdefault(name, []).append(value)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return seconds


def main(argv: list[str] | None = None) -> dict:
    """Measure, write and return the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--frameworks", nargs="+", default=list(FRAMEWORKS), choices=FRAMEWORKS)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "optimizers.json")
    arguments = parser.parse_args(argv)
    seconds = measure(arguments.rounds, arguments.frameworks)
    packages = ["tensorflow", "keras", "numpy", "jax", "optax", "torch", "pytorch-optimizer"]
    result = {
        "environment": environment.describe(packages),
        "rounds": arguments.rounds,
        "milliseconds": {
            name: {"median": 1e3 * statistics.median(values), "minimum": 1e3 * min(values)}
            for name, values in seconds.items()
        },
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result["milliseconds"].items():
        print(f"{name:40s} {value['median']:8.2f} ms (minimum {value['minimum']:.2f})")
    return result


if __name__ == "__main__":
    main()
