"""One process of `measuring.py`: what the measuring callbacks add to a `fit`, at their default intervals.

Each line of standard input asks for a pair: a `fit` without callbacks and one with them, in this process, in
alternating order. The process answers with the ratios of their seconds, by the clock and of the processor, and with
what the callbacks report. The models are new in each pair, as in a loop over seeds. The first pair also traces and
compiles for the callbacks, as every pair did before fits shared what is compiled. Its ratios are reported beside.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfopt import models
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale

CLASSES, PROBE_ROWS, BATCH = 10, 512, 128
JOB_ROWS, JOB_EPOCHS, JOB_BATCH = 6000, 5, 32
CALLBACKS = (Convexity, GradientBreakdown, GradientNoiseScale)
# Network -> how to make it, and the shape of its inputs.
NETWORKS: dict[str, tuple[Callable[[], keras.Model], tuple[int, ...]]] = {
    "MLP": (lambda: models.mlp((784,), (784, 784), CLASSES, seed=0), (784,)),
    "convnet": (lambda: models.convnet((28, 28, 1), num_outputs=CLASSES, seed=0), (28, 28, 1)),
}
Data = tuple[np.ndarray, np.ndarray]
CLOCKS = ("clock", "processor")
REPORTS = ("measurements", "put off", "setup seconds", "measuring seconds")


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
    reports = (
        sum(len(history["step"]) for history in histories),
        sum(history.get("put_off", [0])[-1] for history in histories),
        sum(history.get("setup_seconds", [0.0])[-1] for history in histories),
        sum(sum(history["seconds"]) for history in histories),
    )
    return seconds | dict(zip(REPORTS, reports, strict=True))


def epochs_of(make: Callable[[], keras.Model], data: Data, seconds: float) -> int:
    """Return the number of epochs of a fit of about some seconds, after a first fit that compiles."""
    run(make, data, 1, ())
    return max(round(seconds / run(make, data, 1, ())["clock"]), 1)


def pair(fit: Callable[[Sequence[Any]], dict[str, float]], kinds: Sequence[Any], bare_first: bool) -> dict[str, float]:
    """Return the ratios of a fit with callbacks to one without, the seconds of the latter, and the reports."""
    found = {is_bare: fit(() if is_bare else kinds) for is_bare in (bare_first, not bare_first)}
    with_callbacks, bare = found[False], found[True]
    ratios = {f"{name} ratio": with_callbacks[name] / bare[name] for name in CLOCKS}
    return ratios | {f"{name} bare": bare[name] for name in CLOCKS} | {name: with_callbacks[name] for name in REPORTS}


def long_fits(name: str, rows: int, seconds: float) -> dict[str, Callable[[bool], dict[str, float]]]:
    """Return the pairs of a long fit of a network, one callback at a time."""
    make, shape = NETWORKS[name]
    data = make_data(shape, rows)
    epochs = epochs_of(make, data, seconds)
    fit = lambda kinds: run(make, data, epochs, kinds)  # noqa: E731
    return {kind.__name__: lambda first, kind=kind: pair(fit, (kind,), first) for kind in CALLBACKS}


def job(name: str) -> dict[str, Callable[[bool], dict[str, float]]]:
    """Return the pairs of a short job of five epochs with all three callbacks."""
    make, shape = NETWORKS[name]
    data = make_data(shape, JOB_ROWS)
    run(make, data, 1, (), JOB_BATCH)  # Starts TensorFlow.
    fit = lambda kinds: run(make, data, JOB_EPOCHS, kinds, JOB_BATCH)  # noqa: E731
    return {"all three": lambda first: pair(fit, CALLBACKS, first)}


def main() -> None:
    """Answer the command line: `long BUILD NETWORK ROWS SECONDS` or `job BUILD NETWORK`, one pair for each line."""
    section, build, name, *numbers = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # All output of the framework goes to standard error.
    cases = job(name) if section == "job" else long_fits(name, int(numbers[0]), float(numbers[1]))
    alone = {f"{name}, first pair": case(True) for name, case in cases.items()}
    print(json.dumps(list(cases)), file=answers)
    for _, is_bare_first in zip(sys.stdin, itertools.cycle((True, False)), strict=False):
        found = {name: case(is_bare_first) for name, case in cases.items()} | alone
        named = {f"{build}/{name}/{value}": number for name, row in found.items() for value, number in row.items()}
        print(json.dumps(named), file=answers)


if __name__ == "__main__":
    main()
