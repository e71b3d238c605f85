"""The effect of more ranks: steps of Keras and sweeps without gradients with the rows split, and the cost of a message.

Run with one thread each, once for each number of ranks: `python benchmarks/scaling.py` and `horovodrun -np 2 python
benchmarks/scaling.py`. Each writes `benchmarks/results/scaling_<N>_ranks.json`. Horovod looks for messages once per
millisecond. `HOROVOD_CYCLE_TIME=0.1 horovodrun -np 2 python benchmarks/scaling.py --messages` measures messages with a
shorter wait. `benchmarks/tables.py` fits wait, latency and bandwidth, and predicts larger jobs.
"""

import os

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import environment
import keras
import numpy as np
import tensorflow as tf
from bregman import make

from tfopt import communicator, models
from tfopt.distributed import DistributedOptimizer

NUMBERS = (1, 100, 1000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)  # Float64 numbers in a message.
BATCH_SIZE = 1024  # Rows of all ranks together.
SWEEPS = 7
# Maps a name to rows, widths and options of the trainer.
SWEPT = {
    f"{shape}, {preset}, {num_rows:,} rows": (num_rows, widths, options)
    for shape, widths, counts in (
        ("28-300-1", (28, 300, 1), (100_000, 200_000)),
        ("648-100-50-1", (648, 100, 50, 1), (30_000, 60_000)),
    )
    for preset, options in (
        ("penalty", {"preset": "penalty"}),
        ("restarted in one block", {"num_blocks": 1}),
        ("restarted", {}),
    )
    for num_rows in counts
}


def median_seconds(function: Callable[[], Any], repetitions: int) -> float:
    """Return the median seconds of a function, run on all ranks at once, after three calls that do not count."""
    ranks = communicator.current()
    # The function must wait for its own result.
    seconds = []
    for repetition in range(repetitions + 3):
        ranks.barrier()
        begin = time.perf_counter()
        function()
        if repetition >= 3:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def time_messages() -> dict[str, float]:
    """Return the median seconds of a sum over ranks by the bytes of a message."""
    ranks, found = communicator.current(), {}
    for number in (1, *NUMBERS):  # The first messages of a process are slow and are replaced.
        vector = tf.ones(number, tf.float64)
        found[str(8 * number)] = median_seconds(
            lambda vector=vector: ranks.allreduce_sum([vector])[0].numpy(), 1001 if number < 1_000_000 else 31
        )
    return found


def time_keras_step() -> dict[str, float]:
    """Return the median seconds of a training step whose batch is split over the ranks, and the bytes sent per rank."""
    ranks = communicator.current()
    model = models.mlp((784,), (256, 256), 10, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9)), loss, jit_compile=False)
    rng = np.random.default_rng(ranks.rank)
    mine = np.array_split(np.arange(BATCH_SIZE), ranks.size)[ranks.rank]
    x = rng.standard_normal((len(mine), 784), dtype=np.float32)
    y = rng.integers(0, 10, len(x))
    seconds = median_seconds(lambda: model.train_on_batch(x, y), 51)
    before = ranks.bytes_reduced
    model.train_on_batch(x, y)
    return {"seconds": seconds, "bytes_reduced": ranks.bytes_reduced - before}


def time_sweeps() -> dict[str, dict[str, float]]:
    """Return the median seconds of sweeps with the rows split over the ranks, and the bytes sent per rank, by case."""
    ranks, found = communicator.current(), {}
    for name, (num_rows, widths, options) in SWEPT.items():
        trainer, x, y = make(num_rows, widths, **options)
        mine = np.array_split(np.arange(num_rows), ranks.size)[ranks.rank]
        history = trainer.fit(x[mine], y[mine], epochs=SWEEPS + 3, verbose=0).history
        found[name] = {
            "seconds": statistics.median(history["seconds"][2:-1]),  # First sweeps compile, the last measures.
            "bytes_reduced": history["bytes_reduced"][2],
        }
    return found


def main() -> None:
    """Measure on the ranks of this job; rank 0 writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", action="store_true", help="measure messages only")
    arguments = parser.parse_args()
    ranks = communicator.current()
    content: dict[str, Any] = {"cycle_milliseconds": float(os.environ.get("HOROVOD_CYCLE_TIME", "1"))}
    if ranks.size > 1:
        content["messages"] = time_messages()
    if not arguments.messages:
        content |= {"keras": time_keras_step(), "sweeps": time_sweeps()}
    if ranks.rank == 0:
        print(json.dumps(content, indent=1))
        name = "messages" if arguments.messages else f"scaling_{ranks.size}_ranks"
        packages = ["tensorflow", "keras", "numpy", "horovod"]
        environment.write(environment.RESULTS / f"{name}.json", packages, content)


if __name__ == "__main__":
    main()
