"""Time the noisy quadratic model's searches against a straightforward NumPy implementation, cold and warm.

The NumPy implementation computes powers by eigen-decomposition, finds the step by bisection, and searches a grid of
rates and momenta for one batch size after the other. It runs on a sample of its grid, and its time is scaled to the
whole grid. Its steps are grid optima, and bisection is used even if a loss is not monotone.

Each cold run of tfopt is a process of its own; imports are not counted. Writes `benchmarks/results/nqm.json`. Run with
`make bench`, or `python benchmarks/nqm.py --rounds 7`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import environment
import numpy as np

SIZES = 4.0 ** np.arange(10)
TARGET = 0.01
POWERS = (0.0, 0.25, 0.5, 0.75)
RATES, MOMENTA = np.geomspace(1e-3, 3.9, 100), 1.0 - np.geomspace(1.0, 1e-3, 20)


def numpy_loss(curvature: np.ndarray, count: np.ndarray, rate: float, momentum: float, power: float) -> Any:
    """Return the loss of heavy ball as a function of t and B, from eigen-decompositions of 3 x 3 matrices."""
    # Symbols: h `curvature`, which is also the noise variance; a `rate`; beta `momentum`; p `power`; `count` are
    # multiplicities.
    step = rate * curvature**-power
    x = step * curvature
    # The matrix maps E theta^2, E theta u and E u^2 to the next step, by theta' = (1 - x) theta - beta u and u' = x
    # theta + beta u.
    matrix = np.empty((len(x), 3, 3))
    one = 1 - x
    matrix[:, 0] = np.stack([one**2, -2 * momentum * one, np.full_like(x, momentum**2)], axis=1)
    matrix[:, 1] = np.stack([x * one, momentum * (one - x), np.full_like(x, -(momentum**2))], axis=1)
    matrix[:, 2] = np.stack([x**2, 2 * momentum * x, np.full_like(x, momentum**2)], axis=1)
    noise = (step**2 * curvature)[:, None] * np.array([1.0, -1.0, 1.0])
    values, vectors = np.linalg.eig(matrix)
    inverse = np.linalg.inv(vectors)
    start, added = inverse[:, :, 0], np.einsum("nij,nj->ni", inverse, noise)
    weights = 0.5 * count * curvature

    def loss(steps: int, size: float) -> float:
        powers = values**steps
        sums = (1 - powers) / (1 - values)
        moments = np.einsum("ni,ni->n", vectors[:, 0], powers * start + sums * added / size)
        return float(weights @ moments.real)

    return loss


def numpy_search(curvature: np.ndarray, count: np.ndarray, settings: list[tuple[float, float]], power: float) -> Any:
    """Return the fewest steps, shape (batch sizes,), among `settings` (rate, momentum), by bisection."""
    fewest = np.full(len(SIZES), np.inf)
    with np.errstate(all="ignore"):
        for rate, momentum in settings:
            loss = numpy_loss(curvature, count, rate, momentum, power)
            for index, size in enumerate(SIZES):
                low, high = 0, 2**24
                if not loss(high, size) <= TARGET:
                    continue
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (low, middle) if loss(middle, size) <= TARGET else (middle, high)
                fewest[index] = min(fewest[index], high)
    return fewest


def tfopt_run(num_bins: int | None) -> dict[str, Any]:
    """Run twice on `num_bins` bins, or the exact spectrum if None; return cold and warm seconds, and steps."""
    from tfopt import nqm

    problem = nqm.NoisyQuadratic.power_law(num_bins=num_bins)
    parts = {
        "momentum, 4 powers": lambda: [
            nqm.optimize(problem, "momentum", SIZES, TARGET, preconditioner_power=power).steps.tolist()
            for power in POWERS
        ],
        "SGD": lambda: [nqm.optimize(problem, "sgd", SIZES, TARGET).steps.tolist()],
        "averaged SGD": lambda: [nqm.optimize(problem, "ema", SIZES, TARGET).steps.tolist()],
        "schedules": lambda: [[nqm.optimal_schedule(problem, size, TARGET).num_steps for size in SIZES]],
    }
    found: dict[str, Any] = {"cold": {}, "warm": {}, "steps": {}}
    for run in ("cold", "warm"):
        for name, compute in parts.items():
            begin = time.perf_counter()
            found["steps"][name] = compute()
            found[run][name] = time.perf_counter() - begin
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    parser = environment.make_parser(__doc__, "nqm", rounds=7)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        print(json.dumps(tfopt_run(None if arguments.worker == "exact" else int(arguments.worker))))
        return
    rng = np.random.default_rng(0)
    grid = [(rate, momentum) for rate in RATES for momentum in MOMENTA]
    sample = [grid[index] for index in rng.choice(len(grid), 20, replace=False)]
    from tfopt.nqm import NoisyQuadratic

    binned = NoisyQuadratic.power_law(num_bins=100)
    results: dict[str, Any] = {}
    plain = []
    for count in range(arguments.rounds):
        begin = time.perf_counter()
        numpy_search(binned.curvature, binned.multiplicity, sample, 0.0)
        plain.append((time.perf_counter() - begin) * len(grid) / len(sample) * len(POWERS))
        for bins in ("100", "exact"):
            if bins == "exact" and count >= 3:
                continue
            command = [sys.executable, __file__, "--worker", bins]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            results.setdefault(bins, []).append(json.loads(lines[-1]))
    medians = {
        bins: {
            run: {name: statistics.median(one[run][name] for one in runs) for name in runs[0][run]}
            for run in ("cold", "warm")
        }
        for bins, runs in results.items()
    }
    best = numpy_search(binned.curvature, binned.multiplicity, [s for s in grid if s[1] >= 0.9][::4], 0.0)
    content = {
        "rounds": arguments.rounds,
        "numpy_momentum_seconds": statistics.median(plain),
        "numpy_grid_steps": best.tolist(),
        "seconds": medians,
        "steps": {bins: runs[0]["steps"] for bins, runs in results.items()},
    }
    environment.write(arguments.output, ["tensorflow", "numpy", "scipy"], content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
