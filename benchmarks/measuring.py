"""Time what measuring costs: the first result of a model, and products with its Hessian.

The networks are those of `measuring_models.py`. Each build has processes of its own: TensorFlow alone, this build of
tfopt, and with `--baseline FOLDER` also the build in another checkout, by the Python in its `.venv`. The processes take
turns. First results come from a new process each round, products from processes that live through all rounds. Writes
`benchmarks/results/measuring.json`.

Run with `make bench`, or `python benchmarks/measuring.py --rounds 5 --networks MLP transformer --sections first`.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import environment
import workers

SCRIPT = str(Path(__file__).with_name("measuring_workers.py"))
NETWORKS = ("ResNet-20", "convnet", "MLP", "transformer")
Seconds = dict[str, list[float]]  # by "BUILD/CASE"


def time_first(builds: dict[str, str], network: str, rounds: int) -> Seconds:
    """Return the seconds until the first results: of TensorFlow's product, products of each build, and callbacks."""
    commands = {"bare": [builds["tfopt"], SCRIPT, "first", "bare", network]}
    for build, python in builds.items():
        for kind in ("product", "Convexity", "callbacks"):
            commands[f"{build}/{kind}"] = [python, SCRIPT, "first", kind, network]
    seconds: Seconds = {}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for case, value in json.loads(done.stdout).items():
                seconds.setdefault(f"{name}/{case}", []).append(value)
    return seconds


def time_products(builds: dict[str, str], network: str, rounds: int) -> Seconds:
    """Return the seconds of TensorFlow's gradient and product, and of each build's products."""
    commands = {"bare": [builds["tfopt"], SCRIPT, "products", "bare", network]}
    commands |= {build: [python, SCRIPT, "products", build, network] for build, python in builds.items()}
    return workers.alternate(commands, rounds)


SECTIONS: dict[str, Callable[[dict[str, str], str, int], Seconds]] = {"first": time_first, "products": time_products}


def find_builds(baseline: Path | None) -> dict[str, str]:
    """Return the Python interpreter of each build."""
    builds = {"tfopt": sys.executable}
    if baseline is not None:
        python = baseline.absolute() / ".venv" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"`--baseline` must be a checkout with an environment in .venv. Received: {baseline}")
        builds["baseline"] = str(python)
    return builds


def summarize(seconds: Seconds) -> dict[str, dict[str, float]]:
    """Return the median seconds by case and build."""
    found: dict[str, dict[str, float]] = {}
    for name, values in seconds.items():
        build, case = name.split("/", 1)
        found.setdefault(case, {})[build] = statistics.median(values)
    return found


def show(section: str, network: str, medians: dict[str, dict[str, float]]) -> None:
    """Print the medians of a network, one case a line, the builds side by side."""
    for case, row in medians.items():
        cells = "".join(f"{build:>12s} {value:9.4f} s" for build, value in row.items())
        print(f"{section:10s}{network:13s}{case:30s}{cells}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = environment.make_parser(__doc__, "measuring", rounds=5)
    parser.add_argument("--baseline", type=Path, default=None, help="another checkout, to compare with")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    arguments = parser.parse_args(argv)
    builds = find_builds(arguments.baseline)
    result: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for section in arguments.sections:
        for network in arguments.networks:
            medians = summarize(SECTIONS[section](builds, network, arguments.rounds))
            result.setdefault(section, {})[network] = medians
            show(section, network, medians)
    environment.write(arguments.output, ["tensorflow", "keras", "numpy"], {"rounds": arguments.rounds, **result})


if __name__ == "__main__":
    main()
