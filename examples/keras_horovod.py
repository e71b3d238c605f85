"""Train a Keras model on several ranks, and resume an interrupted training.

Start it with `horovodrun -np 2 python examples/keras_horovod.py`. It also works without `horovodrun`, and then prints
the same losses, because the ranks split each batch and do not enlarge it. Interrupt it and start it again: it ends with
the weights of an uninterrupted training.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import example_data
import keras

from tfopt import communicator, datasets, models
from tfopt.callbacks import AverageMetrics, BroadcastVariables, ResumableCheckpoint
from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import LARS, Fromage

OPTIMIZERS = {"adam": keras.optimizers.Adam, "fromage": Fromage, "lars": LARS, "sgd": keras.optimizers.SGD}


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Train, and print the results; return losses and accuracies after each epoch, averaged over the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="fromage")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="rows of all ranks, a multiple of their number")
    parser.add_argument("--checkpoints", type=Path, default=Path("runs/keras_horovod"), help="delete it to start again")
    parser.add_argument("--smoke", action="store_true", help="two epochs, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    ranks = communicator.current()
    is_first = ranks.rank == 0

    data = example_data.load(arguments, validation_fraction=0.1, seed=0)
    batches = datasets.EpochBatches(data.x_train, data.y_train, batch_size=arguments.batch_size, seed=0)
    model = models.mlp(data.input_shape, (64,), data.num_classes, seed=0)
    model.compile(
        optimizer=DistributedOptimizer(OPTIMIZERS[arguments.optimizer]()),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    history = model.fit(
        batches,
        shuffle=False,  # EpochBatches shuffles the rows.
        epochs=2 if arguments.smoke else arguments.epochs,
        validation_data=(data.x_validation, data.y_validation),
        verbose=2 if is_first else 0,
        callbacks=[BroadcastVariables(), AverageMetrics(), ResumableCheckpoint(arguments.checkpoints)],
    ).history
    if is_first:
        scores = model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)
        print(f"{ranks.size} rank(s): test accuracy {scores['accuracy']:.4f}, {ranks.bytes_reduced} bytes reduced")
    return history


if __name__ == "__main__":
    main()
