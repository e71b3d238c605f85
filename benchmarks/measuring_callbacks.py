"""Time what the measuring callbacks cost by the clock, at their default intervals: paired fits that take turns.

Each pair is a `fit` without callbacks and one with them, in one process, in alternating order; the first pair compiles,
and is left out. The long fits train a network on 60,000 rows for about `--seconds`, with one callback at a time. The
short job trains the convolutional network on 6,000 rows for five epochs, with all three callbacks together, and is
compared by processor seconds too. Reported are medians of the ratios. Writes
`benchmarks/results/measuring_callbacks.json`.

Run with `python benchmarks/measuring_callbacks.py --pairs 8 --seconds 60`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import environment
import keras
import numpy as np

from tfopt import models
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale

CLASSES, PROBE_ROWS, BATCH, SMALL_BATCH = 10, 512, 128, 32
CALLBACKS = (Convexity, GradientBreakdown, GradientNoiseScale)
# Network -> how to make it, and the shape of its inputs.
NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "MLP": (lambda: models.mlp((784,), (784, 784), CLASSES, seed=0), (784,)),
    "convnet": (lambda: models.convnet((28, 28, 1), num_outputs=CLASSES, seed=0), (28, 28, 1)),
}
Data = tuple[np.ndarray, np.ndarray]


def make_data(shape: tuple[int, ...], num_rows: int) -> Data:
    """Return inputs and labels that a network can learn."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, *shape), dtype=np.float32)
    flat = x.reshape(num_rows, -1)
    return x, np.argmax(flat @ rng.standard_normal((flat.shape[1], CLASSES), dtype=np.float32), axis=1)


def run(
    make: Callable[[], keras.Model], data: Data, epochs: int, kinds: Sequence[Any], batch: int = BATCH
) -> dict[str, float]:
    """Train once; return the seconds by the clock and of the processor, and what the callbacks report."""
    keras.utils.set_random_seed(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=False)
    callbacks: list[Any] = [kind(tuple(part[:PROBE_ROWS] for part in data)) for kind in kinds]
    start, processor = time.perf_counter(), time.process_time()
    model.fit(*data, batch_size=batch, epochs=epochs, verbose=0, callbacks=callbacks)
    seconds = {"clock": time.perf_counter() - start, "processor": time.process_time() - processor}
    histories = [callback.history for callback in callbacks]
    return seconds | {
        "measurements": sum(len(history["step"]) for history in histories),
        "put off": sum(history.get("put_off", [0])[-1] for history in histories),
        "setup": sum(history.get("setup_seconds", [0.0])[-1] for history in histories),
        "measuring": sum(sum(history["seconds"]) for history in histories),
    }


def pair_up(
    make: Callable[[], keras.Model], data: Data, epochs: int, kinds: Sequence[Any], batch: int, pairs: int
) -> dict[str, float]:
    """Return the median ratios of fits with callbacks to fits without, and medians of what the callbacks report."""
    rows = []
    for index in range(pairs + 1):
        found = {}
        for is_bare in (index % 2 == 0, index % 2 == 1):
            found[is_bare] = run(make, data, epochs, () if is_bare else kinds, batch)
        ratios = {name: found[False][name] / found[True][name] for name in ("clock", "processor")}
        rows.append({
            **{f"{name} ratio": ratio for name, ratio in ratios.items()},
            **{f"{name} seconds bare": found[True][name] for name in ("clock", "processor")},
            **{name: found[False][name] for name in ("measurements", "put off", "setup", "measuring")},
        })
    return {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}


def epochs_of(make: Callable[[], keras.Model], data: Data, seconds: int) -> int:
    """Return the number of epochs of a fit of about some seconds, after a first fit that compiles."""
    run(make, data, 1, ())
    return max(round(seconds / run(make, data, 1, ())["clock"]), 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write the results."""
    parser = environment.make_parser(__doc__, "measuring_callbacks", pairs=8, seconds=60, rows=60_000)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=NETWORKS)
    arguments = parser.parse_args(argv)
    result: dict[str, dict[str, float]] = {}

    def measure(case: str, *work: Any) -> None:
        result[case] = pair_up(*work, arguments.pairs)
        cells = ", ".join(f"{name} {value:.3f}" for name, value in result[case].items())
        print(f"{case}: {cells}", flush=True)

    for name in arguments.networks:
        make, shape = NETWORKS[name]
        data = make_data(shape, arguments.rows)
        epochs = epochs_of(make, data, arguments.seconds)
        for kind in CALLBACKS:
            measure(f"{name}, {epochs} epochs/{kind.__name__}", make, data, epochs, (kind,), BATCH)
    make, shape = NETWORKS["convnet"]
    measure("five epochs of 6,000 rows/all three", make, make_data(shape, 6000), 5, CALLBACKS, SMALL_BATCH)
    content = {"pairs": arguments.pairs, "seconds": arguments.seconds, "rows": arguments.rows, "cases": result}
    environment.write(arguments.output, ["tensorflow", "keras", "numpy"], content)


if __name__ == "__main__":
    main()
