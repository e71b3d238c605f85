"""LARS against momentum SGD as the batch grows, at the same number of epochs.

Both use a linear warm-up and a polynomial decay. Of six peak rates, the one that is best on a validation split counts,
and the table shows its test accuracy. The digits have limits: there are 1,010 training rows, so the largest batch is
all of them, far from the tens of thousands for which LARS was made. With one seed and 450 test images, differences
below two percent mean nothing. The figure shows how the accuracy of both falls when there are few steps.

Run `python examples/large_batch_lars.py`; it takes about five minutes on two cores.
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
from rich.progress import Progress

from tfopt import _plotting, datasets, models
from tfopt.optimizers import LARS
from tfopt.optimizers.schedules import PolynomialDecayWithWarmup

BATCH_SIZES = [1, 4, 16, 64, 256, 1024]  # The last one is cut to the 1,010 training rows.
FAMILIES = {
    "SGD with momentum": (lambda rate: keras.optimizers.SGD(rate, momentum=0.9), [0.001, 0.01, 0.1, 0.3, 1.0, 3.0]),
    "LARS": (LARS, [0.3, 1.0, 5.0, 20.0, 50.0, 100.0]),
}


def accuracies(name: str, rate: float, data: datasets.Dataset, batch_size: int, epochs: int) -> tuple[float, float]:
    """Train one network of `FAMILIES` with a peak rate; return its accuracies on the validation and test parts."""
    keras.utils.set_random_seed(0)
    num_steps = epochs * -(-len(data.y_train) // batch_size)
    warmup_steps = num_steps // 10
    schedule = PolynomialDecayWithWarmup(rate, decay_steps=num_steps - warmup_steps, warmup_steps=warmup_steps)
    model = models.mlp(data.input_shape, (64,), data.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(FAMILIES[name][0](schedule), loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=batch_size, epochs=epochs, verbose=0)
    parts = ((data.x_validation, data.y_validation), (data.x_test, data.y_test))
    validation, test = (model.evaluate(x, y, verbose=0, batch_size=512, return_dict=True)["accuracy"] for x, y in parts)
    return validation, test


def main(argv: list[str] | None = None) -> dict[str, list[tuple[float, float]]]:
    """Run the comparison; return the best peak rate and its test accuracy for each family and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/large_batch_lars"))
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="one epoch of the large batches, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    data = example_data.load(arguments, validation_fraction=0.25)
    epochs, sizes = (1, BATCH_SIZES[-2:]) if arguments.smoke else (arguments.epochs, BATCH_SIZES)
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in FAMILIES}
    with Progress() as progress:
        task = progress.add_task("training", total=sum(len(rates) for _, rates in FAMILIES.values()) * len(sizes))
        for name, (_, rates) in FAMILIES.items():
            for batch_size in sizes:
                tried = []
                for rate in rates:
                    tried.append((*accuracies(name, rate, data, batch_size, epochs), rate))
                    progress.advance(task)
                _, test, rate = max(tried, key=lambda result: result[0])  # Of equal results this is the lowest rate.
                results[name].append((rate, test))
    print("batch size " + "".join(f"{name + ' (peak rate)':>32s}" for name in results))
    for row, batch_size in enumerate(sizes):
        print(
            f"{batch_size:<11d}" + "".join(f"{found[row][1]:24.3f} ({found[row][0]:5g})" for found in results.values())
        )
    figure, [ax] = _plotting.make_panels()
    for (name, found), marker in zip(results.items(), "os", strict=True):
        ax.plot(sizes, [accuracy for _, accuracy in found], marker=marker, label=name)
    ax.set(xscale="log", xlabel="batch size", ylabel="test accuracy", title=f"{epochs} epochs, best of six peak rates")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    _plotting.move_legends_above(figure)
    arguments.output.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output / "accuracy.png", dpi=150)
    plt.close(figure)
    return results


if __name__ == "__main__":
    main()
