"""Trains with Keras, then without gradients; the last rank may die in one of the two. A new start resumes both.

Arguments: a folder, and what dies: "keras", "bregman", "raises" (bad data on the last rank), or "nobody", which
compares the result with uninterrupted training.
"""

import os
import signal
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfopt import communicator, models
from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import AverageMetrics, BroadcastVariables, ResumableCheckpoint
from tfopt.datasets import EpochBatches
from tfopt.distributed import DistributedOptimizer

RANKS = communicator.current()
IS_LAST = RANKS.rank == RANKS.size - 1
RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 5)).astype("float32")
Y = (X @ RNG.normal(size=(5, 3))).argmax(1)
EPOCHS = 5


class Die(keras.callbacks.Callback):
    """Ends the process in the middle of the fourth epoch, and writes the time of the clock that processes share."""

    def __init__(self, note):
        super().__init__()
        self.note = note

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        if optimizer is not None and optimizer.iterations >= 3 * 8 + 5:
            self.die()

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3 and self.model.optimizer is None:
            self.die()

    def die(self):
        if IS_LAST:
            print("dying", flush=True)
            self.note.write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)


class BadRows(EpochBatches):
    """Batches that one rank cannot read completely."""

    def __getitem__(self, index):
        if IS_LAST and index == 3:
            raise OSError("row 36 of the last shard cannot be read")
        return super().__getitem__(index)


def train_with_keras(folder, dies, batches=EpochBatches):
    keras.utils.set_random_seed(RANKS.rank)
    model = keras.Sequential([
        keras.Input((5,)),
        keras.layers.Dense(8, "tanh"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(3),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(DistributedOptimizer(keras.optimizers.Adam(0.01)), loss, jit_compile=False)
    checkpoint = ResumableCheckpoint(folder / "keras", stateless=[Die])
    callbacks = [BroadcastVariables(), AverageMetrics(), checkpoint, *[Die(folder / "keras-died")] * dies]
    history = model.fit(
        batches(X, Y, batch_size=12, seed=1), shuffle=False, epochs=EPOCHS, verbose=0, callbacks=callbacks
    ).history
    return [w.tobytes() for w in model.get_weights()], history


def train_without_gradients(folder, dies):
    trainer = BregmanTrainer(models.mlp(5, (8,), 3, seed=0), "sparse_categorical_crossentropy")
    mine = np.array_split(np.arange(len(X)), RANKS.size)[RANKS.rank]
    history = trainer.fit(
        X[mine],
        Y[mine],
        epochs=EPOCHS,
        verbose=0,
        callbacks=[Die(folder / "bregman-died")] * dies,
        checkpoint=folder / "bregman",
    )
    kept = {name: series for name, series in history.history.items() if name != "seconds"}
    return [w.tobytes() for w in trainer.model.get_weights()], kept


def main(folder, who):
    if who == "raises":
        train_with_keras(folder / "raises", False, BadRows)
    found = train_with_keras(folder, who == "keras"), train_without_gradients(folder, who == "bregman")
    whole = train_with_keras(folder / "whole", False), train_without_gradients(folder / "whole", False)
    same = RANKS.allgather_object([a == b for a, b in zip(found, whole, strict=True)])
    if RANKS.rank == 0:
        print("SAME", same, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
