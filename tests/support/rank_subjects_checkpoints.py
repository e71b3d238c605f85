"""Interrupted training on ranks."""

import warnings

import keras
import numpy as np
from rank_subjects import make_data, subject

from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    GradientNoiseScale,
    ResumableCheckpoint,
)
from tfopt.datasets import EpochBatches
from tfopt.distributed import DistributedOptimizer


def checkpointed(ranks, folder, epochs, stop_after=None):
    """Train with dropout, a plateau and a shuffled order; with `stop_after`, interrupt in the middle of an epoch."""

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if stop_after is not None and self.model.optimizer.iterations >= 4 * stop_after + 2:
                raise KeyboardInterrupt

    keras.utils.set_random_seed(7 + ranks.rank)
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ])
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01, momentum=0.9)), "mse", jit_compile=False)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    batches = EpochBatches(*make_data(24, seed=1), batch_size=6, seed=4, communicator=ranks)
    callbacks = [
        BroadcastVariables(communicator=ranks),
        AverageMetrics(communicator=ranks),
        plateau,
        GradientNoiseScale(every_n_epochs=2, communicator=ranks),  # uses steps before and after the interruption
        ResumableCheckpoint(folder, stateless=[Interrupt], communicator=ranks),
        Interrupt(),
    ]
    try:
        model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        return None
    return {
        "variables": [np.asarray(v).tolist() for v in [*model.variables, *model.optimizer.variables]],
        "history": {name: str(v) for name, v in model.history.history.items() if not name.endswith("seconds")},
        "epochs": model.history.epoch,
        "wait": plateau.wait,
    }


@subject
def resumed(ranks, folder):
    whole = checkpointed(ranks, folder / "whole", 6)
    checkpointed(ranks, folder / "resumed", 6, stop_after=3)
    files = sorted(path.name for path in (folder / "resumed").glob(f"*.rank-{ranks.rank}-*"))
    again = checkpointed(ranks, folder / "resumed", 6)
    ranks.barrier()
    if ranks.rank == ranks.size - 1:
        newest = max((folder / "resumed").glob(f"*.rank-{ranks.rank}-*"))
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    ranks.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        truncated = checkpointed(ranks, folder / "resumed", 6)
    return {
        "same": again == whole,
        "same_after_truncation": truncated == whole,
        "warnings": [str(w.message) for w in caught if "damaged" in str(w.message)],
        "files": files,
        "epochs": again["epochs"],
    }
