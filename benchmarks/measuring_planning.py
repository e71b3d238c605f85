"""One process of `measuring.py`: one fit or plan with a budget of seconds, compilation included.

The networks are the zoo's convnet on 28 x 28, an MLP 784-784-784-10, and ResNet-8 on 32 x 32 x 3. Where a budget is
refused, the seconds are those until the error, and the budget that it names is in the answer.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfopt import models

CLASSES = 10
NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "convnet": (lambda: models.convnet((28, 28, 1), num_outputs=CLASSES, seed=0), (28, 28, 1)),
    "MLP": (lambda: models.mlp((784,), (784, 784), CLASSES, seed=0), (784,)),
    "ResNet-8": (lambda: models.resnet((32, 32, 3), 8, CLASSES, seed=0), (32, 32, 3)),
}


def work(task: str, name: str, budget: float, num_rows: int) -> dict[str, float]:
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
    found: dict[str, float] = {}
    try:
        made = function(objective, budget_seconds=budget, initial_weights=initial_weights)
        fit = made if task == "fit" else made.fit
        found |= {"runs": fit.num_runs, "rows": fit.num_rows_per_run}
    except ValueError as error:
        enough = re.search(r"Pass budget_seconds=([\d.]+)", str(error))
        if enough is None:
            raise
        found["enough"] = float(enough[1])
    seconds = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
    return seconds | found


def main() -> None:
    """Answer the command line: `TASK NETWORK BUDGET ROWS`, with TASK "fit" or "plan"."""
    task, name, budget, num_rows = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # All output of the framework goes to standard error.
    print(json.dumps(work(task, name, float(budget), int(num_rows))), file=answers, flush=True)


if __name__ == "__main__":
    main()
