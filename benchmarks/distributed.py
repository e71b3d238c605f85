"""The cost of averaging: a step of `DistributedOptimizer`, minus the wrapped optimizer's own, over a bare allreduce.

The bare operation is Horovod's `grouped_allreduce` of the same gradients in a `tf.function`. The three functions take
turns on every rank. Writes `benchmarks/results/distributed.json`.

Run with `make bench`, or `horovodrun -np 2 python benchmarks/distributed.py --rounds 31`.
"""

import os

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import statistics
import time
from collections.abc import Callable
from typing import Any

import environment
import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from tfopt import communicator
from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import Fromage

SHAPES = {"big": [(2048, 1024)] * 8, "small": [(32, 32)] * 100}
OPTIMIZERS = {"SGD": lambda: keras.optimizers.SGD(1e-3), "Fromage": lambda: Fromage(1e-3)}


def make_steps(name: str, shapes: list[tuple[int, int]], compression: str | None) -> dict[str, Callable[[], Any]]:
    """Return the three functions to time, without arguments, each with its own variables and gradients."""
    rng = np.random.default_rng(0)
    gradients = [tf.constant(rng.normal(size=shape).astype("float32")) for shape in shapes]
    steps = {}
    for label, wrap in (
        ("wrapped", lambda optimizer: DistributedOptimizer(optimizer, compression)),
        ("inner", lambda optimizer: optimizer),
    ):
        optimizer = wrap(OPTIMIZERS[name]())
        variables = [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in shapes]
        optimizer.build(variables)
        values = [variable.value for variable in variables]
        apply = tf.function(
            lambda *given, optimizer=optimizer, values=values: optimizer.apply(given, values), autograph=False
        )
        steps[label] = lambda apply=apply: apply(*gradients)
    dtype = tf.float16 if compression else tf.float32
    sent = [tf.cast(gradient, dtype) for gradient in gradients]
    bare = tf.function(lambda *given: hvd.grouped_allreduce(list(given), op=hvd.Average, name="bare"), autograph=False)
    steps["bare"] = lambda: bare(*sent)
    return steps


def measure(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return median milliseconds of each function, timed in turns, and the median overhead (wrapped - inner) / bare."""
    ranks = communicator.current()
    seconds: dict[str, list[float]] = {label: [] for label in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(rounds):
        for label, step in steps.items():
            ranks.barrier()
            start = time.perf_counter()
            result = step()
            if result is not None:
                result[-1].numpy()
            seconds[label].append(time.perf_counter() - start)
    ratios = [
        (wrapped - inner) / bare
        for wrapped, inner, bare in zip(seconds["wrapped"], seconds["inner"], seconds["bare"], strict=True)
    ]
    medians = {label: 1e3 * statistics.median(values) for label, values in seconds.items()}
    return {**medians, "overhead": statistics.median(ratios)}


def main(argv: list[str] | None = None) -> None:
    """Measure, and write the results of rank 0."""
    arguments = environment.make_parser(__doc__, "distributed", rounds=31).parse_args(argv)
    ranks = communicator.current()
    results = {}
    for size, shapes in SHAPES.items():
        for name in OPTIMIZERS:
            for compression in (None, "float16"):
                label = f"{size}/{name}/{compression or 'float32'}"
                results[label] = measure(make_steps(name, shapes, compression), arguments.rounds)
                if ranks.rank == 0:
                    print(label, {key: round(value, 2) for key, value in results[label].items()}, flush=True)
    if ranks.rank == 0:
        packages = ["tensorflow", "keras", "numpy", "horovod"]
        result = {
            "ranks": ranks.size,
            "rounds": arguments.rounds,
            "results": results,
        }
        environment.write(arguments.output, packages, result)


if __name__ == "__main__":
    main()
