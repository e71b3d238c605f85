"""Trains with checkpoints, and kills itself with SIGKILL at a given epoch; a new start resumes the training."""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras

from tfopt import datasets, models
from tfopt.bregman import BregmanTrainer

DATA = datasets.load("digits", validation_fraction=0.25)


class Die(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder, preset, epochs=8, die_at=None, **options):
    trainer = BregmanTrainer(
        models.mlp((8, 8, 1), (16,), 10, seed=0),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        preset=preset,
        **options,
    )
    early = keras.callbacks.EarlyStopping(monitor="val_loss", patience=20, restore_best_weights=True)
    history = trainer.fit(
        DATA.x_train,
        DATA.y_train,
        epochs=epochs,
        verbose=0,
        validation_data=(DATA.x_validation, DATA.y_validation),
        callbacks=[early, Die(die_at)],
        checkpoint=folder,
    )
    kept = {k: v for k, v in history.history.items() if k != "seconds"}
    return [w.tobytes() for w in trainer.model.get_weights()], kept, history.best_epoch, early.best


if __name__ == "__main__":
    place, die_at = Path(sys.argv[1]), int(sys.argv[2])
    if die_at >= 0:
        train(place / "killed", "restarted", die_at=die_at)
    else:
        print("SAME", train(place / "killed", "restarted") == train(place / "whole", "restarted"))
