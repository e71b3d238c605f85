"""Train a network without gradients, on one process or several ranks.

Start it with `horovodrun -np 2 python examples/bregman_horovod.py`. Each rank holds a shard of the rows. The ranks
exchange only sums of the size of the layers, for any number of rows. Without `horovodrun` the same script is one
process, and prints the same accuracies. Interrupt it and start it again: it ends with the weights of an uninterrupted
training.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfopt import communicator, datasets, models
from tfopt.bregman import BregmanTrainer


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Train, and print the results; return the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of higgs_like, of all ranks together")
    parser.add_argument("--epochs", type=int, default=15, help="sweeps through all rows")
    parser.add_argument("--hidden-units", type=int, default=300)
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("runs/bregman_horovod"), help="delete it to start again"
    )
    parser.add_argument("--smoke", action="store_true", help="few rows and two sweeps, as a test")
    arguments = parser.parse_args(argv)
    ranks = communicator.current()
    num_rows = 4000 if arguments.smoke else arguments.rows
    data = datasets.load("higgs_like", num_rows=num_rows)
    # A real job would read its own part of a file here.
    mine = np.array_split(np.arange(len(data.x_train)), ranks.size)[ranks.rank]
    mine_to_test = np.array_split(np.arange(len(data.x_test)), ranks.size)[ranks.rank]

    model = models.mlp(data.input_shape, (arguments.hidden_units,), 1, seed=0)
    accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)  # The output is a logit.
    trainer = BregmanTrainer(model, "binary_crossentropy", metrics=[accuracy])
    history = trainer.fit(
        data.x_train[mine],
        data.y_train[mine],
        epochs=2 if arguments.smoke else arguments.epochs,
        validation_data=(data.x_test[mine_to_test], data.y_test[mine_to_test]),
        verbose=2 if ranks.rank == 0 else 0,
        checkpoint=arguments.checkpoints,
    ).history
    if ranks.rank == 0:
        seconds = sum(history["seconds"][1:]) / max(len(history["seconds"]) - 1, 1)
        print(
            f"{ranks.size} rank(s): test accuracy {history['val_accuracy'][-1]:.4f}, {seconds:.2f} s and "
            f"{history['bytes_reduced'][-1]:,.0f} bytes reduced a sweep"
        )
    return history


if __name__ == "__main__":
    main()
