"""You et al. 2017 (arXiv 1708.03888): does LARS hold the accuracy of small batches where momentum SGD loses it?

Published on ImageNet: with the number of epochs fixed, warm-up and a polynomial decay of power 2, LARS trains AlexNet
and ResNet-50 with batches of 8,192 to 32,768 without a loss of accuracy. Momentum SGD with the linear rule (a rate
proportional to the batch) loses accuracy. Here the zoo's convnet is trained with LARS, momentum SGD with the
linear rule, and Fromage. Of five peak rates, the one that is best on validation rows in the first seed counts, and the
table shows the test accuracy of all seeds at this rate.

`--full` trains on Fashion-MNIST (54,000 rows) or another set of this size, batches of 128 to 16,384, 10 epochs, three
seeds, and resumes after an interruption. The smallest and the largest batch come first.

The rules for the table. A batch size holds the accuracy if its mean is at most 0.01 below that of the smallest batch.
"LARS holds the accuracy up to larger batches" held if its largest such batch is larger than that of momentum, and
partly if they are equal and LARS has the higher mean at the largest batch. "LARS is above momentum" at a batch size
held if the difference of the means is more than two standard errors, and partly if it is positive.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import itertools
import math

import keras
import matplotlib.pyplot as plt
import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting, datasets, models
from tfopt.optimizers import LARS, Fromage
from tfopt.optimizers.schedules import PolynomialDecayWithWarmup

LINEAR_RULE_BATCH = 128  # The rates of momentum SGD are those of this batch size.
OPTIMIZERS = {
    "momentum": (functools.partial(keras.optimizers.SGD, momentum=0.9), (0.0005, 0.002, 0.008, 0.03, 0.12)),
    "LARS": (LARS, (0.5, 2.0, 8.0, 30.0, 120.0)),
    "Fromage": (Fromage, (0.001, 0.004, 0.016, 0.06, 0.25)),
}
LOSS_ALLOWED = 0.01


def train(data: datasets.Dataset, epochs: int, optimizer: str, batch_size: int, rate: float, seed: int) -> dict:
    """Train one network with a peak rate; return its accuracies on validation and test rows."""
    keras.utils.set_random_seed(seed)
    num_steps = epochs * -(-len(data.y_train) // batch_size)
    warmup_steps = num_steps // 10
    peak = rate * batch_size / LINEAR_RULE_BATCH if optimizer == "momentum" else rate
    schedule = PolynomialDecayWithWarmup(peak, decay_steps=num_steps - warmup_steps, warmup_steps=warmup_steps)
    model = models.convnet(data.input_shape, num_outputs=data.num_classes, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(OPTIMIZERS[optimizer][0](schedule), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(data.x_train, data.y_train, batch_size=batch_size, epochs=epochs, verbose=0)
    parts = {"validation": (data.x_validation, data.y_validation), "test": (data.x_test, data.y_test)}
    return {
        name: model.evaluate(x, y, verbose=0, batch_size=512, return_dict=True)["accuracy"]
        for name, (x, y) in parts.items()
    }


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean of some accuracies and its standard error, which is 0 for a single one."""
    error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return float(np.mean(values)), float(error)


def show(name: str, mean: float, error: float, rate: float) -> str:
    """Return a mean accuracy as text, with a note if the best rate is the lowest or the highest of the five."""
    rates = OPTIMIZERS[name][1]
    edge = {rates[0]: ", at its lowest rate", rates[-1]: ", at its highest rate"}.get(rate, "")
    return f"{name} {mean:.4f} +- {error:.4f}{edge}"


def compare(run: Reproduction, tests: dict[str, dict[int, list[float]]], rates: dict[str, dict[int, float]]) -> None:
    """Compare LARS with momentum at each batch size, and the largest batches that hold the accuracy."""
    means = {name: {size: mean_and_error(values) for size, values in found.items()} for name, found in tests.items()}
    sizes = sorted(set.intersection(*(set(found) for found in means.values())))
    for size in sizes[1:]:
        (ours, our_error), (theirs, their_error) = means["LARS"][size], means["momentum"][size]
        run.compare(
            f"batches of {size:,}: LARS is above momentum",
            "yes, at the largest batches",
            "; ".join(show(name, *found[size], rates[name][size]) for name, found in means.items()),
            held=ours - theirs > 2 * math.hypot(our_error, their_error),
            partly=ours > theirs,
        )
    if len(sizes) < 2:
        return
    largest = {
        name: max(size for size in sizes if found[size][0] >= found[sizes[0]][0] - LOSS_ALLOWED)
        for name, found in means.items()
    }
    is_higher = means["LARS"][sizes[-1]][0] > means["momentum"][sizes[-1]][0]
    run.compare(
        "LARS holds the accuracy up to larger batches than momentum",
        "8,192 to 32,768 (ImageNet)",
        ", ".join(f"{name} {size:,} ({means[name][sizes[0]][0]:.4f} at {sizes[0]})" for name, size in largest.items()),
        held=largest["LARS"] > largest["momentum"],
        partly=largest["LARS"] == largest["momentum"] and is_higher,
    )


def draw(tests: dict[str, dict[int, list[float]]]) -> plt.Figure:
    """Return a figure of test accuracy against batch size."""
    figure, [ax] = _plotting.make_panels()
    for (name, found), marker in zip(tests.items(), "os^", strict=True):
        sizes = sorted(found)
        middle, error = np.array([mean_and_error(found[size]) for size in sizes]).reshape(-1, 2).T
        ax.errorbar(sizes, middle, error, marker=marker, label=name)
    ticks = sorted({size for found in tests.values() for size in found})
    ax.set(xscale="log", xlabel="batch size", ylabel="test accuracy")
    ax.set_xticks(ticks, [f"{size:,}" for size in ticks])
    ax.minorticks_off()
    _plotting.move_legends_above(figure, columns=3)
    return figure


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("large_batches", "You et al. 2017: LARS for large batches", argv, __doc__)
    data = run.load(validation_fraction=run.choose(0.25, 0.25, 0.1))
    epochs, num_rates = run.choose(1, 10, 10), run.choose(1, 5, 5)
    sizes = run.choose((64, 512), (16, 1024, 128), (128, 16384, 8192, 2048, 512))
    seeds = range(run.seed, run.seed + run.choose(1, 3, 3))
    cells, train_cell = run.finished_cells(epochs=epochs), functools.partial(train, data, epochs)
    tests: dict[str, dict[int, list[float]]] = {name: {} for name in OPTIMIZERS}
    best_rates: dict[str, dict[int, float]] = {name: {} for name in OPTIMIZERS}
    run.results = {"best rates": best_rates, "test accuracies": tests}
    for size, name in itertools.product(sizes, OPTIMIZERS):
        key = {"optimizer": name, "batch_size": size}
        rates = OPTIMIZERS[name][1][-num_rates:]
        tuned = {rate: cells.get(train_cell, **key, rate=rate, seed=seeds[0]) for rate in rates}
        if not all(tuned.values()):
            continue
        best = max(rates, key=lambda rate, tuned=tuned: tuned[rate]["validation"])
        finished = [cells.get(train_cell, **key, rate=best, seed=seed) for seed in seeds]
        if all(finished):
            best_rates[name][size] = best
            tests[name][size] = [cell["test"] for cell in finished]
    compare(run, tests, best_rates)
    return run.finish(draw(tests))


if __name__ == "__main__":
    main()
