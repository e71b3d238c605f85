"""Milne 2019 (arXiv 1810.12805), image classification: does BatchNorm bring training into the convex regime sooner?

Published: along gradient paths of networks that classify images, the loss becomes convex along the gradient after a
while, and with BatchNorm much sooner. Here a fully connected and a convolutional network are trained with plain SGD,
with and without BatchNorm. The curvature along the gradient, g'Hg / g'g on a fixed probe, is measured at every fourth
step, or at every 16th with `--full`. "Sooner" means the step after which the curvature stays positive. The table also
shows the fraction of the loss change during which the curvature was positive. The published text does not give the
initial weights, and the answer depends on them. So He's, Keras's default (Glorot's) and PyTorch's default weights are
tried.

`--full` trains on all rows, in batches of 128, and resumes after an interruption. The rule for the table: a line held
if the median step over the seeds is less than half with BatchNorm, and partly if it is less.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import itertools

import keras
import matplotlib.pyplot as plt
import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting, datasets, models
from tfopt.callbacks import Convexity


def entry_step(steps: list[int], curvatures: list[float]) -> int:
    """Return the first measured step after which the curvature stays positive; the last step if there is none."""
    negative = [index for index, value in enumerate(curvatures) if not value > 0]
    if not negative:
        return steps[0]
    return steps[min(negative[-1] + 1, len(steps) - 1)]


INITIALIZERS = {
    "He": keras.initializers.HeNormal,
    "Glorot": keras.initializers.GlorotUniform,
    "PyTorch": lambda: keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform"),
}


def train(
    data: datasets.Dataset, settings: dict[str, int], kind: str, initializer: str, normalized: bool, seed: int
) -> dict:
    """Train an "mlp" or a "convnet"; return measured steps, curvatures, and the convex fraction of the loss change."""
    keras.utils.set_random_seed(seed)
    options = {"batch_normalization": normalized, "kernel_initializer": INITIALIZERS[initializer](), "seed": seed}
    if kind == "mlp":
        model = models.mlp(data.input_shape, (64,) * 4, data.num_classes, **options)
    else:
        model = models.convnet(data.input_shape, (8, 16, 16), data.num_classes, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    probe = (data.x_train[: settings["probe_rows"]], data.y_train[: settings["probe_rows"]])
    convexity = Convexity(probe, every_n_steps=settings["every_n_steps"], eigenvalues=False)
    rows = {"batch_size": settings["batch_size"], "epochs": settings["epochs"], "verbose": 0}
    model.fit(data.x_train, data.y_train, callbacks=[convexity], **rows)
    history = convexity.history
    return {
        "steps": [int(step) for step in history["step"]],
        "curvatures": [float(value) for value in history["convexity/curvature_along_gradient"]],
        "share": float(history["convexity/fraction_along_gradient"][-1]),
    }


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Milne 2019: convexity along gradient paths, with and without BatchNorm"
    run = start("convexity_along_paths", title, argv, __doc__)
    data = run.load()
    kinds = run.choose(["mlp"], ["mlp", "convnet"], ["mlp", "convnet"])
    initializers = run.choose(["Glorot"], list(INITIALIZERS), list(INITIALIZERS))
    settings = {
        "epochs": run.choose(1, 6, 5),
        "batch_size": run.choose(32, 32, 128),
        "every_n_steps": run.choose(4, 4, 16),
        "probe_rows": run.choose(256, 256, 512),
    }
    cells, train_cell = run.finished_cells(**settings), functools.partial(train, data, settings)
    found: dict[str, dict[bool, list[dict]]] = {}
    for seed in range(run.seed, run.seed + run.choose(1, 3, 3)):
        for kind, initializer, normalized in itertools.product(kinds, initializers, (False, True)):
            key = {"kind": kind, "initializer": initializer, "normalized": normalized, "seed": seed}
            if cell := cells.get(train_cell, **key):
                found.setdefault(f"{kind}, {initializer}", {False: [], True: []})[normalized].append(cell)
    found = {name: cells_of for name, cells_of in found.items() if all(cells_of.values())}
    for name, by_flag in found.items():
        compare(run, name, by_flag)
    return run.finish(draw(found, len(kinds)))


def compare(run: Reproduction, name: str, by_flag: dict[bool, list[dict]]) -> None:
    """Compare the trainings of one network and initializer, without and with BatchNorm."""
    entries = {flag: [entry_step(cell["steps"], cell["curvatures"]) for cell in by_flag[flag]] for flag in by_flag}
    shares = {flag: [cell["share"] for cell in by_flag[flag]] for flag in by_flag}
    plain, normed = (float(np.median(entries[flag])) for flag in (False, True))
    share, normed_share = (float(np.mean(shares[flag])) for flag in (False, True))
    run.compare(
        f"{name}'s initial weights: step from which on the loss is convex along the gradient",
        "much sooner with BatchNorm",
        f"{plain:.0f} without, {normed:.0f} with; share of the loss change {share:.0%} without, "
        f"{normed_share:.0%} with",
        held=normed < plain / 2,
        partly=normed < plain,
    )
    run.results[name] = {
        "entry_steps": {"without": entries[False], "with": entries[True]},
        "shares": {"without": shares[False], "with": shares[True]},
    }


def draw(found: dict[str, dict[bool, list[dict]]], columns: int) -> plt.Figure:
    """Return a figure of curvatures against steps, one panel per network and initializer."""
    rows = -(-len(found) // columns)
    figure, panels = _plotting.make_panels(rows, columns, height=7.5, sharex=True, sharey=True)
    order = sorted(found, key=lambda name: [*INITIALIZERS].index(name.split(", ")[1]))
    for ax, name in zip(panels, order, strict=False):
        for normalized, trainings in found[name].items():
            for seed, cell in enumerate(trainings):
                label = None if seed else "with BatchNorm" if normalized else "without BatchNorm"
                color = _plotting.COLORS[normalized]
                ax.plot(cell["steps"], cell["curvatures"], color=color, linestyle="-", alpha=0.7, label=label)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=f"{name}'s weights", xlabel="step", ylabel="g'Hg / g'g")
        ax.label_outer()
        ax.set_yscale("symlog", linthresh=0.1)
    _plotting.move_legends_above(figure)
    return figure


if __name__ == "__main__":
    main()
