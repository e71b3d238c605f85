"""Time what measuring costs: first results, products with the Hessian, callbacks in `fit`, and budgets of planning.

Each build has processes of its own: TensorFlow alone, this build of tfopt, and with `--baseline FOLDER` also the build
in another checkout, by the Python in its `.venv`. The processes take turns. The sections:

- first: seconds until the first results, from a new process each round (networks of `measuring_models.py`).
- products: products, from processes that live through all rounds.
- callbacks: paired fits of about `--seconds` on `--rows` rows, with one callback at a time (`measuring_callbacks.py`).
- job: the convolutional network on 6,000 rows for five epochs, with all three callbacks together, in pairs.
- planning: fits and plans with budgets, each in a new process (`measuring_planning.py`).

Writes medians to `benchmarks/results/measuring.json`. Sections and networks that were not measured stay there as they
were, if the machine and the packages are the same.

Run with `make bench` (callbacks and planning: `make bench-fits`), or
`python benchmarks/measuring.py --rounds 5 --networks MLP transformer --sections first`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import environment
import workers

FOLDER = Path(__file__).parent
SCRIPT = str(FOLDER / "measuring_workers.py")
CALLBACKS, PLANNING = str(FOLDER / "measuring_callbacks.py"), str(FOLDER / "measuring_planning.py")
PACKAGES = ["tensorflow", "keras", "numpy"]
Builds = dict[str, str]  # the Python interpreter of each build
Values = dict[str, list[float]]  # by "BUILD/CASE"


def time_first(builds: Builds, network: str, arguments: argparse.Namespace) -> Values:
    """Return the seconds until the first results: of TensorFlow's product, products of each build, and callbacks."""
    commands = {"bare": [builds["tfopt"], SCRIPT, "first", "bare", network]}
    for build, python in builds.items():
        for kind in ("product", "Convexity", "no eigenvalues", "callbacks"):
            commands[f"{build}/{kind}"] = [python, SCRIPT, "first", kind, network]
    return ask(commands, arguments.rounds)


def time_products(builds: Builds, network: str, arguments: argparse.Namespace) -> Values:
    """Return the seconds of TensorFlow's gradient and product, and of each build's products."""
    commands = {"bare": [builds["tfopt"], SCRIPT, "products", "bare", network]}
    commands |= {build: [python, SCRIPT, "products", build, network] for build, python in builds.items()}
    return workers.alternate(commands, arguments.rounds)


def time_callbacks(builds: Builds, network: str, arguments: argparse.Namespace) -> Values:
    """Return what each callback adds to a long fit: ratios to the fit without it."""
    numbers = [str(arguments.rows), str(arguments.seconds)]
    commands = {build: [python, CALLBACKS, "long", build, network, *numbers] for build, python in builds.items()}
    return workers.alternate(commands, arguments.pairs)


def time_job(builds: Builds, network: str, arguments: argparse.Namespace) -> Values:
    """Return what three callbacks add to a short job: ratios to the job without them."""
    commands = {build: [python, CALLBACKS, "job", build, network] for build, python in builds.items()}
    return workers.alternate(commands, arguments.pairs)


def time_planning(builds: Builds, network: str, arguments: argparse.Namespace) -> Values:
    """Return the seconds of fits and plans with a budget, and their sizes."""
    commands = {}
    for task in ("fit", "plan"):
        for budget in map(str, arguments.budgets):
            for build, python in builds.items():
                command = [python, PLANNING, task, network, budget, str(arguments.rows)]
                commands[f"{build}/{task} in {budget} s"] = command
    return ask(commands, arguments.rounds)


def ask(commands: dict[str, list[str]], rounds: int) -> Values:
    """Run processes in turns, each anew in each round; return the values that they print, by their names."""
    values: Values = {}
    for _ in range(rounds):
        for name, command in commands.items():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for case, value in json.loads(done.stdout).items():
                values.setdefault(f"{name}/{case}", []).append(value)
    return values


# Of each section, what measures a network, and its networks.
SECTIONS: dict[str, tuple[Callable[[Builds, str, argparse.Namespace], Values], tuple[str, ...]]] = {
    "first": (time_first, ("ResNet-20", "convnet", "MLP", "transformer")),
    "products": (time_products, ("ResNet-20", "convnet", "MLP", "transformer")),
    "callbacks": (time_callbacks, ("MLP", "convnet")),
    "job": (time_job, ("convnet",)),
    "planning": (time_planning, ("convnet", "MLP", "ResNet-8")),
}


def find_builds(baseline: Path | None) -> Builds:
    """Return the Python interpreter of each build."""
    builds = {"tfopt": sys.executable}
    if baseline is not None:
        python = baseline.absolute() / ".venv" / "bin" / "python"
        if not python.exists():
            raise SystemExit(f"`--baseline` must be a checkout with an environment in .venv. Received: {baseline}")
        builds["baseline"] = str(python)
    return builds


def summarize(values: Values) -> dict[str, dict[str, float]]:
    """Return the medians by case and build."""
    found: dict[str, dict[str, float]] = {}
    for name, series in values.items():
        build, case = name.split("/", 1)
        found.setdefault(case, {})[build] = statistics.median(series)
    return found


def show(section: str, network: str, medians: dict[str, dict[str, float]]) -> None:
    """Print the medians of a network, one case a line, the builds side by side."""
    for case, row in medians.items():
        cells = "".join(f"{build:>12s} {value:9.4f}" for build, value in row.items())
        print(f"{section:10s}{network:13s}{case:42s}{cells}", flush=True)


def add(path: Path, section: str, network: str, found: dict[str, Any]) -> None:
    """Write what was found for a network into the results, beside the others of the same machine and packages."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept.pop("environment", None) != environment.describe(PACKAGES):
        kept = {}
    kept.setdefault(section, {})[network] = found
    environment.write(path, PACKAGES, kept)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = environment.make_parser(__doc__, "measuring", rounds=5, pairs=8, seconds=60, rows=60_000)
    parser.add_argument("--baseline", type=Path, default=None, help="another checkout, to compare with")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    every = dict.fromkeys(name for _, networks in SECTIONS.values() for name in networks)
    parser.add_argument("--networks", nargs="+", default=list(every), choices=every)
    parser.add_argument("--budgets", nargs="+", type=int, default=[30, 120])
    arguments = parser.parse_args(argv)
    builds = find_builds(arguments.baseline)
    for section in arguments.sections:
        measure, networks = SECTIONS[section]
        for network in networks:
            if network in arguments.networks:
                medians = summarize(measure(builds, network, arguments))
                show(section, network, medians)
                counts = {name: vars(arguments)[name] for name in COUNTS[section]}
                add(arguments.output, section, network, {**counts, "cases": medians})


# The arguments that a section depends on, which its results name.
COUNTS = {
    "first": ("rounds",),
    "products": ("rounds",),
    "callbacks": ("pairs", "seconds", "rows"),
    "job": ("pairs",),
    "planning": ("rounds", "rows"),
}

if __name__ == "__main__":
    main()
