"""Fromage against Adam on digits: how much does each depend on its learning rate?

The script trains a network of eight hidden layers at learning rates from 0.0001 to 0.3, and draws the test accuracy
against the rate. The two rates have different meanings: Fromage's is the relative change of each layer, Adam's roughly
the change of each weight. Expect ranges of good rates of about equal width, around Fromage's default of 0.01 and around
0.001 for Adam. With one seed, differences of a percent mean nothing.

Run `python examples/fromage_vs_adam.py`; it takes less than a minute on two cores.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import example_data
import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.progress import track

from tfopt import _plotting, datasets, models
from tfopt.optimizers import Fromage

RATES = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]


def test_accuracy(optimizer: keras.Optimizer, data: datasets.Dataset, depth: int, epochs: int, seed: int) -> float:
    """Train one network with `depth` hidden layers, and return its accuracy on the test part."""
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, (64,) * depth, data.num_classes, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    return model.evaluate(data.x_test, data.y_test, verbose=0, batch_size=512, return_dict=True)["accuracy"]


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Run the comparison; return the test accuracy at each of `RATES`, by optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/fromage_vs_adam"))
    parser.add_argument("--depth", type=int, default=8, help="number of hidden layers")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    data, epochs = example_data.load(arguments), 1 if arguments.smoke else arguments.epochs
    makers = {"Adam": keras.optimizers.Adam, "Fromage": Fromage}
    cases = [(name, rate) for name in makers for rate in RATES]
    results: dict[str, list[float]] = {name: [] for name in makers}
    for name, rate in track(cases, "training"):
        results[name].append(test_accuracy(makers[name](rate), data, arguments.depth, epochs, arguments.seed))
    print("rate     " + "".join(f"{name:>10s}" for name in results))
    for row, rate in enumerate(RATES):
        print(f"{rate:<9g}" + "".join(f"{accuracies[row]:10.3f}" for accuracies in results.values()))
    figure, [ax] = _plotting.make_panels()
    for (name, accuracies), marker in zip(results.items(), "os", strict=True):
        ax.plot(RATES, accuracies, marker=marker, label=name)
    ax.set(xscale="log", xlabel="learning rate", ylabel="test accuracy", title=f"{arguments.depth} hidden layers")
    ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    _plotting.move_legends_above(figure)
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / "accuracy.png", dpi=150)
    plt.close(figure)
    return results


if __name__ == "__main__":
    main()
