"""Time one step of the optimizers against their peers in other libraries.

One process per framework, all alive at once, taking turns: each round times every optimizer of every framework once, so
that what slows the machine for a while slows all of them. Writes `benchmarks/results/optimizers.json`; the table in
`docs/benchmarks.md` is made from it.

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
    """Run the workers in turns.

    Args:
        rounds: How often each case is timed.
        frameworks: Which workers to start.

    Returns:
        The seconds of each round, by "size/mode/name".

    Raises:
        SystemExit: A worker could not start.
    """
    workers = {}
    for framework in frameworks:
        command = [sys.executable, str(HERE / "optimizer_workers.py"), framework]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        names = worker.stdout.readline()
        if not names:
            raise SystemExit(f"the worker for {framework} failed; is the extra `bench` installed?")
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
    """Measure and write the results.

    Args:
        argv: Command-line arguments.

    Returns:
        What was written.
    """
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
