"""Time the overhead of the measuring callbacks in a training, at their default cadence.

The same `fit` runs with each callback and without, in turns, in one process. Besides the wall-clock time, each callback
reports the seconds it measured. The first measurement compiles everything and is reported separately. Writes
`benchmarks/results/callbacks.json`.

Run with `make bench`, or `python benchmarks/callbacks.py --epochs 30 --rounds 3`.
"""

import statistics
import time
from typing import Any

import environment
import keras
import numpy as np

from tfopt import models
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale

NUM_ROWS, WIDTH, CLASSES, PROBE_ROWS = 60_000, 784, 10, 512
CALLBACKS = {
    "none": None,
    "Convexity": Convexity,
    "GradientBreakdown": GradientBreakdown,
    "GradientNoiseScale": GradientNoiseScale,
}


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels of MNIST's size that a network can learn."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((NUM_ROWS, WIDTH), dtype=np.float32)
    return x, np.argmax(x @ rng.standard_normal((WIDTH, CLASSES), dtype=np.float32), axis=1)


def run(name: str, data: tuple[np.ndarray, np.ndarray], epochs: int) -> dict[str, float]:
    """Train once with a callback; return the seconds of `fit`, and of the first and all other measurements."""
    keras.utils.set_random_seed(0)
    model = models.mlp((WIDTH,), (256, 256), CLASSES, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=False)
    make = CALLBACKS[name]
    callbacks: list[Any] = [make(tuple(part[:PROBE_ROWS] for part in data))] if make else []
    start = time.perf_counter()
    model.fit(*data, batch_size=128, epochs=epochs, verbose=0, callbacks=callbacks)
    seconds = time.perf_counter() - start
    measured = callbacks[0].history["seconds"] if callbacks else [0.0]
    return {"fit": seconds, "first measurement": measured[0], "other measurements": sum(measured[1:])}


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results."""
    arguments = environment.make_parser(__doc__, "callbacks", epochs=30, rounds=3).parse_args(argv)
    data = make_data()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CALLBACKS}
    for _ in range(arguments.rounds):
        for name in CALLBACKS:
            found[name].append(run(name, data, arguments.epochs))
            print(name, found[name][-1], flush=True)
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()
    }
    result = {
        "rounds": arguments.rounds,
        "epochs": arguments.epochs,
        "seconds": medians,
    }
    environment.write(arguments.output, ["tensorflow", "keras", "numpy"], result)


if __name__ == "__main__":
    main()
