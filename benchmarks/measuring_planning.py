"""Time how planning keeps its budget: seconds over the budget, compilation included, each in a process of its own.

The networks are the zoo's convnet on 28 x 28, an MLP 784-784-784-10, and ResNet-8 on 32 x 32 x 3, with 60,000 rows.
Where a budget is refused, the seconds are those until the error, and the budget that it names is shown. Writes
`benchmarks/results/measuring_planning.json`.

Run with `python benchmarks/measuring_planning.py --rounds 3 --budgets 30 120 --tasks fit plan`.
"""

import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import environment
import keras
import numpy as np

from tfopt import models

CLASSES = 10
NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "convnet": (lambda: models.convnet((28, 28, 1), num_outputs=CLASSES, seed=0), (28, 28, 1)),
    "MLP": (lambda: models.mlp((784,), (784, 784), CLASSES, seed=0), (784,)),
    "ResNet-8": (lambda: models.resnet((32, 32, 3), 8, CLASSES, seed=0), (32, 32, 3)),
}


def work(task: str, name: str, budget: float, num_rows: int) -> dict[str, Any]:
    """Fit or plan once in this process, after a short pilot; return the seconds and the size of the fit."""
    from tfopt.curvature import Objective
    from tfopt.planning import fit_noisy_quadratic, plan_batch_size

    make, shape = NETWORKS[name]
    model, rng = make(), np.random.default_rng(0)
    x = rng.standard_normal((num_rows, *shape), dtype=np.float32)
    flat = x.reshape(num_rows, -1)
    y = np.argmax(flat @ rng.standard_normal((flat.shape[1], CLASSES), dtype=np.float32), axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    initial_weights = model.get_weights()
    model.compile(keras.optimizers.SGD(0.01), loss, jit_compile=False)
    model.fit(x[:8192], y[:8192], batch_size=64, verbose=0)
    objective = Objective(model, loss, (x, y), batch_norm="moving")
    function: Callable[..., Any] = fit_noisy_quadratic if task == "fit" else plan_batch_size
    start, processor = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {"refused": None}
    try:
        made = function(objective, budget_seconds=budget, initial_weights=initial_weights)
        fit = made if task == "fit" else made.fit
        found |= {"runs": fit.num_runs, "rows": fit.num_rows_per_run}
    except ValueError as error:
        enough = re.search(r"Pass budget_seconds=([\d.]+)", str(error))
        found["refused"] = float(enough[1]) if enough else str(error)
    return found | {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = environment.make_parser(__doc__, "measuring_planning", rounds=3, rows=60_000)
    parser.add_argument("--budgets", nargs="+", type=float, default=[30.0, 120.0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--tasks", nargs="+", default=["fit", "plan"], choices=["fit", "plan"])
    parser.add_argument("--work", nargs=3, default=None, help="task, network and budget of one process")
    arguments = parser.parse_args(argv)
    if arguments.work is not None:
        task, name, budget = arguments.work
        print(json.dumps(work(task, name, float(budget), arguments.rows)))
        return
    result: dict[str, Any] = {}
    for task in arguments.tasks:
        for name in arguments.networks:
            for budget in arguments.budgets:
                command = [sys.executable, __file__, "--work", task, name, str(budget), "--rows", str(arguments.rows)]
                rounds = []
                for _ in range(arguments.rounds):
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    rounds.append(json.loads(done.stdout.splitlines()[-1]))
                over = statistics.median(each["seconds"] for each in rounds) / budget
                result[f"{task}/{name}/{budget:g}"] = {"over budget": over, "rounds": rounds}
                print(f"{task:5s}{name:10s}{budget:6g} s: {over:.2f} of the budget; {rounds[-1]}", flush=True)
    environment.write(arguments.output, ["tensorflow", "keras", "numpy"], {"rows": arguments.rows, "cases": result})


if __name__ == "__main__":
    main()
