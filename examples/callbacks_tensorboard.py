"""Watch convexity, gradient breakdown and gradient noise of a training in TensorBoard.

Run `python examples/callbacks_tensorboard.py`, then `tensorboard --logdir runs/callbacks_tensorboard` (it needs `pip
install 'tfopt[tensorboard]'`). Scalars by epoch are under `fit/train`. Scalars at their exact steps, and values of
single variables, are under `measurements`.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import example_data
import keras

from tfopt import models
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale, WeightNorms
from tfopt.optimizers import Fromage


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Train a network with all measurements; return the history of `fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/callbacks_tensorboard"))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="two epochs, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    data = example_data.load(arguments)
    model = models.mlp(data.input_shape, (64, 64), data.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(Fromage(0.01), loss, metrics=["accuracy"], jit_compile=False)
    probe, log_dir = (data.x_train[:256], data.y_train[:256]), arguments.output / "measurements"
    callbacks = [
        Convexity(probe, log_dir=log_dir),
        GradientBreakdown(probe, log_dir=log_dir),
        GradientNoiseScale(probe, log_dir=log_dir),
        WeightNorms(),
        keras.callbacks.TensorBoard(arguments.output / "fit", write_graph=False),
        keras.callbacks.CSVLogger(arguments.output / "log.csv"),
    ]
    arguments.output.mkdir(parents=True, exist_ok=True)
    epochs = 2 if arguments.smoke else arguments.epochs
    rows = {"validation_data": (data.x_test, data.y_test), "batch_size": 64, "epochs": epochs, "verbose": 0}
    history = model.fit(data.x_train, data.y_train, callbacks=callbacks, **rows).history
    for name in sorted(history):
        print(f"{name:45s}{history[name][0]:12.4g} -> {history[name][-1]:10.4g}")
    return history


if __name__ == "__main__":
    main()
