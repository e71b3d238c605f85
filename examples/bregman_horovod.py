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

import example_data
import keras
import numpy as np

from tfopt import communicator, models
from tfopt.bregman import BregmanTrainer


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Train, and print the results; return the history."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=15, help="sweeps through all rows")
    parser.add_argument("--hidden-units", type=int, default=300)
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("runs/bregman_horovod"), help="delete it to start again"
    )
    parser.add_argument("--smoke", action="store_true", help="few rows and two sweeps, as a test")
    example_data.add_arguments(parser, default="higgs_like")
    arguments = parser.parse_args(argv)
    ranks = communicator.current()
    if arguments.smoke and arguments.data == "higgs_like" and arguments.rows is None:
        arguments.rows = 4000
    data = example_data.load(arguments)
    # A real job would read its own part of a file here.
    mine = np.array_split(np.arange(len(data.x_train)), ranks.size)[ranks.rank]
    mine_to_test = np.array_split(np.arange(len(data.x_test)), ranks.size)[ranks.rank]

    is_binary = data.num_classes == 2
    outputs = 1 if is_binary else data.num_classes
    model = models.mlp(data.input_shape, (arguments.hidden_units,), outputs, seed=0)
    loss = "binary_crossentropy" if is_binary else "sparse_categorical_crossentropy"
    # The single output of two classes is a logit.
    accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0) if is_binary else "accuracy"
    trainer = BregmanTrainer(model, loss, metrics=[accuracy])
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
