"""Quickstart: train one network on the digits data with SGD, Adam, LARS, Fromage, and without gradients, and compare.

The report also shows the curvature of the loss along training, and how far gradients can be trusted along the
optimizers' steps. It shows where the loss of a small regression is provably convex, how gradients break down with
depth, how many steps a noisy quadratic problem takes at every batch size, and how many steps this network will take.

The script writes tables, figures and a self-contained `report.html` into `runs/quickstart/`. It takes less than a
minute on two cores. Run it with `make demo`, or `python examples/quickstart.py`, or on two ranks with `horovodrun -np 2
python examples/quickstart.py`. The ranks share each batch, so the results are the same up to rounding.
"""

import argparse
import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import diagnostics
import example_data
import keras
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from report import Report
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tfopt import _plotting, communicator, datasets, models
from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import AverageMetrics, BroadcastVariables, Convexity, GradientBreakdown, WeightNorms
from tfopt.distributed import DistributedOptimizer, shard
from tfopt.optimizers import LARS, Fromage

BATCH_SIZE = 64
HIDDEN_UNITS = (64,)
ACCURACY_TICKS = (0.5, 0.8, 0.9, 0.95, 0.98)
NUM_PROBE_ROWS = 256  # Curvature and breakdown are measured on these rows.
OPTIMIZERS: dict[str, Callable[[], keras.Optimizer]] = {
    "SGD (0.1, momentum 0.9)": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "Adam (0.001)": keras.optimizers.Adam,
    "LARS (1.0, default)": LARS,
    "Fromage (0.01, default)": Fromage,
}


@dataclass
class Result:
    """The results of one way of training."""

    name: str
    train_accuracy: float
    test_accuracy: float
    seconds: float
    history: dict[str, list[float]]


@dataclass
class Run(Result):
    """The results of one optimizer, with the measurements during training."""

    norms: WeightNorms
    convexity: Convexity
    breakdown: GradientBreakdown


class ProgressBar(keras.callbacks.Callback):
    """A callback that advances one bar of a group by one with each epoch."""

    def __init__(self, progress: Progress, task: int) -> None:
        super().__init__()
        self.progress, self.task = progress, task

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Advance the bar, and show the test accuracy beside it."""
        self.progress.update(self.task, advance=1, accuracy=f"test accuracy {(logs or {})['val_accuracy']:.3f}")


def prepare(name: str, data: datasets.Dataset, seed: int) -> tuple[keras.Model, datasets.EpochBatches]:
    """Return the network compiled with one of `OPTIMIZERS`, and its batches; all get the same weights and batches."""
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, HIDDEN_UNITS, data.num_classes, seed=seed)
    model.compile(
        optimizer=DistributedOptimizer(OPTIMIZERS[name]()),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    return model, datasets.EpochBatches(data.x_train, data.y_train, batch_size=BATCH_SIZE, seed=seed)


def train(name: str, data: datasets.Dataset, epochs: int, seed: int, progress: Progress) -> Run:
    """Train the network with one of `OPTIMIZERS`, with measurements during training."""
    model, batches = prepare(name, data, seed)
    probe = shard((data.x_train[:NUM_PROBE_ROWS], data.y_train[:NUM_PROBE_ROWS]))
    norms, convexity, breakdown = WeightNorms(), Convexity(probe), GradientBreakdown(probe)
    bar = ProgressBar(progress, progress.add_task(name, total=epochs, accuracy=""))
    start = time.perf_counter()
    history = model.fit(
        batches,
        shuffle=False,
        validation_data=(data.x_test, data.y_test),
        epochs=epochs,
        verbose=0,
        callbacks=[BroadcastVariables(), AverageMetrics(), norms, convexity, breakdown, bar],
    )
    seconds = time.perf_counter() - start
    train_accuracy, test_accuracy = (
        model.evaluate(x, y, verbose=0, batch_size=512, return_dict=True)["accuracy"]
        for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test))
    )
    return Run(name, train_accuracy, test_accuracy, seconds, history.history, norms, convexity, breakdown)


def train_without_gradients(data: datasets.Dataset, epochs: int, seed: int, progress: Progress) -> Result:
    """Train the network by exact block minimisation at its defaults; one sweep through the variables is an epoch."""
    name = "Without gradients (default)"
    model = models.mlp(data.input_shape, HIDDEN_UNITS, data.num_classes, seed=seed)
    trainer = BregmanTrainer(model, "sparse_categorical_crossentropy", metrics=["accuracy"])
    ranks = communicator.current()

    def mine(*arrays: np.ndarray) -> list[np.ndarray]:
        return [np.array_split(array, ranks.size)[ranks.rank] for array in arrays]

    bar = ProgressBar(progress, progress.add_task(name, total=epochs, accuracy=""))
    start = time.perf_counter()
    history = trainer.fit(
        *mine(data.x_train, data.y_train),
        validation_data=mine(data.x_test, data.y_test),
        epochs=epochs,
        verbose=0,
        callbacks=[bar],
    )
    seconds = time.perf_counter() - start
    accuracies = (history.history[key][-1] for key in ("accuracy", "val_accuracy"))
    return Result(name, *accuracies, seconds, history.history)


def draw_learning_curves(runs: list[Result], path: Path) -> None:
    """Draw training loss and test accuracy against epochs into a PNG file."""
    figure, (left, right) = _plotting.make_panels(1, 2)
    for run in runs:
        epochs = range(1, len(run.history["loss"]) + 1)
        left.plot(epochs, run.history["loss"], label=run.name)
        right.plot(epochs, run.history["val_accuracy"], label=run.name)
    left.set(xlabel="epoch", ylabel="training loss", yscale="log")
    right.set(xlabel="epoch", ylabel="test accuracy", yscale="logit")  # This scale shows 0.98 and 0.5 equally well.
    right.set_yticks(ACCURACY_TICKS, [f"{tick:g}" for tick in ACCURACY_TICKS])
    right.minorticks_off()
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_weight_norms(runs: list[Run], path: Path) -> None:
    """Draw the norm of each variable against epochs into a PNG file, one panel per optimizer."""
    figure, panels = _plotting.make_panels(-(-len(runs) // 2), 2, height=5.0, sharex=True, sharey=True)
    for run, panel in zip(runs, panels, strict=True):
        run.norms.plot(ax=panel)
        panel.set(title=run.name)
        panel.label_outer()
    _plotting.move_legends_above(figure)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_report(
    runs: list[Run],
    others: list[Result],
    data: datasets.Dataset,
    findings: diagnostics.Findings,
    folder: Path,
) -> None:
    """Write the table as CSV and the HTML page; `others` are results without an optimizer."""
    header = ["trained by", "train accuracy", "test accuracy", "seconds"]
    rows = [[r.name, f"{r.train_accuracy:.4f}", f"{r.test_accuracy:.4f}", f"{r.seconds:.1f}"] for r in [*runs, *others]]
    with (folder / "results.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    report = Report("tfopt quickstart: one network, five ways to train it")
    report.add_text(
        f"{data!r}. The network is tfopt.models.mlp with hidden layers {HIDDEN_UNITS}, trained for "
        f"{len(runs[0].history['loss'])} epochs in batches of {BATCH_SIZE}. Every optimizer starts from the same "
        "weights and gets the same batches. LARS and Fromage run at their defaults; no rate was tuned. The last row is "
        "tfopt.bregman: exact minimisation over blocks of variables, from the same weights, with one sweep per epoch."
    )
    report.add_table(header, rows)
    report.add_text(
        "Loss on the training batches, and accuracy on the test part, after each epoch. At a fixed rate Fromage and "
        "LARS change every layer by about 1% in each step. Near a minimum their losses therefore jitter instead of "
        "falling. A decaying rate removes the jitter.",
        heading="Learning curves",
    )
    report.add_figure(folder / "learning_curves.png", "Training loss (left) and test accuracy (right)")
    report.add_text(
        "LARS and Fromage scale each step with the norm of the variable that it moves. Kernels grow steadily, because "
        "larger logits lower the loss. Biases keep the size of their first step. They start from zero, so that this "
        "step is a plain one, of length learning rate times gradient. With SGD and Adam the size of a step does not "
        "depend on the size of the layer.",
        heading="Weight norms",
    )
    report.add_figure(folder / "weight_norms.png", "Frobenius norm of each variable along training")
    diagnostics.add_to_report(report, runs, findings, folder)
    report.write(folder / "report.html")


def main(argv: list[str] | None = None) -> list[Result]:
    """Run the comparison; return the results, one for each optimizer and one for training without gradients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="folder for figures and report")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two epochs, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    matplotlib.use("Agg")
    is_first = communicator.current().rank == 0  # Without `horovodrun` there is only rank 0.
    console = Console(quiet=not is_first)
    arguments.output.mkdir(parents=True, exist_ok=True)
    data = example_data.load(arguments)
    console.print(f"{data!r}")
    columns = (
        TextColumn("{task.description:26s}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[accuracy]}"),
    )
    with Progress(*columns, console=console) as progress:
        epochs = 2 if arguments.smoke else arguments.epochs
        runs = [train(name, data, epochs, arguments.seed, progress) for name in OPTIMIZERS]
        others = [train_without_gradients(data, epochs, arguments.seed, progress)]
    if not is_first:
        return [*runs, *others]
    table = Table("trained by", "train accuracy", "test accuracy", "seconds")
    for run in [*runs, *others]:
        table.add_row(run.name, f"{run.train_accuracy:.4f}", f"{run.test_accuracy:.4f}", f"{run.seconds:.1f}")
    console.print(table)
    console.print(diagnostics.curvature_table(runs))
    draw_learning_curves([*runs, *others], arguments.output / "learning_curves.png")
    draw_weight_norms(runs, arguments.output / "weight_norms.png")
    findings = diagnostics.find(runs, data, arguments.output, arguments.seed, arguments.smoke)
    for part in findings.printed:
        console.print(part)
    write_report(runs, others, data, findings, arguments.output)
    console.print(f"Report: {arguments.output / 'report.html'}")
    return [*runs, *others]


if __name__ == "__main__":
    main()
