"""Bernstein et al. 2020 (arXiv 2002.03432), first figure: how soon do gradients break down along a step?

The networks have 2 layers, 16 layers, or 16 with skip connections, and are 784 wide. At checkpoints along training with
Fromage, loss and relative gradient breakdown of the first weight are measured at W - eta |W_l| g_l / |g_l|. Published
on MNIST at initialisation, for eta = 0.001, 0.010 and 0.099: .02, .20, 1.05 with 2 layers; .36, 1.4, 4.2e3 with 16;
1.15, 1.25, 31.5 with skips. At the start of epoch 9, for eta = 0.001, 0.005, 0.010, 0.050 and 0.099: .358, 1.76, 3.90,
127, 326; .621, 1.76, 10.4, 170, 469; .691, 1.14, 6.20, 1.1e3, 7.7e3.

`--full` trains as published: 10 epochs, batches of 250, learning rate 0.01 x 0.9^epoch. At the start of each epoch it
measures 100 values of eta on 2,500 rows. The numbers in the table are gradients of all rows. It resumes after an
interruption; the cells that the table needs come first.

The rule for the table: a line held if each number is within a factor of 2 of the published one, and partly if the
median factor is below 3.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
from pathlib import Path

import keras
import numpy as np
from published_networks import BATCH_SIZE, published_network
from reproduction import Reproduction, start

from tfopt import _plotting, datasets
from tfopt.curvature import Objective
from tfopt.optimizers import Fromage
from tfopt.relative_trust import breakdown_profile

NETWORKS = {"2 layers": (1, False), "16 layers": (15, False), "16 layers, residual": (15, True)}
STEPS = {0: (0.001, 0.010, 0.099), 9: (0.001, 0.005, 0.010, 0.050, 0.099)}  # By epoch.
PUBLISHED = {
    0: {
        "2 layers": (0.02, 0.20, 1.05),
        "16 layers": (0.36, 1.4, 4.2e3),
        "16 layers, residual": (1.15, 1.25, 31.5),
    },
    9: {
        "2 layers": (0.358, 1.76, 3.90, 127, 326),
        "16 layers": (0.621, 1.76, 10.4, 170, 469),
        "16 layers, residual": (0.691, 1.14, 6.20, 1.1e3, 7.7e3),
    },
}
DRAWN = (0, 1, 3, 5, 7, 9)  # Epochs in the figure.


class Checkpoints:
    """Trains the networks as published, and keeps their weights at the start of each epoch in files."""

    def __init__(self, data: datasets.Dataset, width: int, seed: int, folder: Path) -> None:
        self._data, self._width, self._seed, self._folder = data, width, seed, folder

    def network(self, name: str, epoch: int) -> keras.Model:
        """Return a network of `NETWORKS` at the start of an epoch, trained from the last checkpoint before it."""
        num_hidden, residual = NETWORKS[name]
        model = published_network(self._data, self._width, num_hidden, residual, self._seed)
        done = max((e for e in range(1, epoch + 1) if self._path(name, e).exists()), default=0)
        if done:
            model.load_weights(self._path(name, done))
        model.compile(Fromage(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
        for current in range(done, epoch):
            keras.utils.set_random_seed(1000 * self._seed + current)  # This fixes the order of the batches.
            model.optimizer.learning_rate = 0.01 * 0.9**current
            model.fit(self._data.x_train, self._data.y_train, batch_size=BATCH_SIZE, verbose=0)
            self._save(model, self._path(name, current + 1))
        return model

    def _path(self, name: str, epoch: int) -> Path:
        return self._folder / f"{name.replace(', ', ' ').replace(' ', '_')}_{epoch}.weights.h5"

    def _save(self, model: keras.Model, path: Path) -> None:
        # A run that is killed while it writes leaves no file of this name.
        new = path.with_name(f"new_{path.name}")
        model.save_weights(new, overwrite=True)
        new.replace(path)


def measure(model: keras.Model, data: datasets.Dataset, num_rows: int, relative_steps: list[float]) -> dict:
    """Return the breakdown of the first weight and the loss on the first rows."""
    objective = Objective(model, data=(data.x_train[:num_rows], data.y_train[:num_rows]))
    profile = breakdown_profile(objective, relative_steps)
    return {
        "rows": num_rows,
        "relative_steps": list(relative_steps),
        "first_weight": profile.relative_gradient_breakdown[:, 0].tolist(),
        "loss": profile.loss.tolist(),
    }


def show(values: list[float]) -> str:
    """Return numbers as text with two digits."""
    return ", ".join(f"{value:.2g}" for value in values)


def compare(run: Reproduction, epoch: int, found: dict[str, list[float]]) -> None:
    """Compare the breakdown of the first weight at the start of an epoch with the published one."""
    when = "at initialisation" if epoch == 0 else f"at the start of epoch {epoch}"
    steps = ", ".join(f"{eta:.3f}".lstrip("0") for eta in STEPS[epoch])
    for name, values in found.items():
        published = PUBLISHED[epoch][name]
        factors = [max(a / b, b / a) for a, b in zip(values, published, strict=True)]
        run.compare(
            f"{name}: {when}, eta = {steps}",
            show(published),
            show(values),
            held=max(factors) < 2,
            partly=float(np.median(factors)) < 3,
        )
    if epoch == 0 and len(found) == len(NETWORKS):
        compare_growth(run, found)


def compare_growth(run: Reproduction, at_start: dict[str, list[float]]) -> None:
    """Compare the order of the untrained networks, and their growth with eta, with the published ones."""
    shallow, deep, skips = (at_start[name] for name in NETWORKS)
    run.compare(
        "order at eta = .099",
        "16 layers > residual > 2 layers",
        show([deep[2], skips[2], shallow[2]]),
        held=deep[2] > skips[2] > shallow[2],
        partly=deep[2] > shallow[2],
    )
    growth = [values[2] / values[1] for values in (shallow, deep, skips)]
    run.compare(
        "growth from eta = .010 to .099 (9.9 if linear): 2, 16, residual",
        "5.3, 3000, 25: quasi-exponential when deep",
        show(growth),
        held=growth[0] < 9.9 * 1.5 and growth[1] > 5 * growth[0] and growth[0] < growth[2] < growth[1],
        partly=growth[1] > 2 * growth[0],
    )


def draw(slices: dict[str, dict[int, dict]]) -> object:
    """Return a figure of breakdown and loss against the relative step, one row per network."""
    figure, panels = _plotting.make_panels(len(NETWORKS), 2, height=7.0, sharex=True, sharey="col")
    for row, (name, by_epoch) in enumerate(slices.items()):
        breakdowns, losses = panels[2 * row : 2 * row + 2]
        for epoch, found in sorted((epoch, found) for epoch, found in by_epoch.items() if epoch in DRAWN):
            for panel, key in ((breakdowns, "first_weight"), (losses, "loss")):
                values = np.array(found[key], float)
                panel.plot(found["relative_steps"], np.where(values > 0, values, np.nan), label=f"epoch {epoch}")
        breakdowns.set(title=name, ylabel="breakdown", yscale="log")
        losses.set(title=name, ylabel="loss", yscale="log")
    for panel in panels[-2:]:
        panel.set_xlabel("relative step")
    _plotting.move_legends_above(figure, columns=3)
    return figure


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("breakdown_profiles", "Bernstein et al. 2020: relative gradient breakdown by depth", argv, __doc__)
    data = run.load().flattened()
    width, num_steps, num_rows = run.choose((32, 3, 128), (784, 11, 256), (784, 100, 2500))
    epochs = run.choose((0, 1), (0, 1, 5), (0, 9, 1, 5, 3, 7, 2, 4, 6, 8))
    num_compared_rows = run.choose(128, len(data.x_train), len(data.x_train))
    cells = run.finished_cells(width=width, num_steps=num_steps, num_rows_of_slices=num_rows)
    checkpoints = Checkpoints(data, width, run.seed, cells.files)
    compared: dict[int, dict[str, list[float]]] = {epoch: {} for epoch in STEPS}
    slices: dict[str, dict[int, dict]] = {name: {} for name in NETWORKS}

    def profile(network: str, epoch: int, part: str) -> dict:
        model = checkpoints.network(network, epoch)
        if part == "compared":
            return measure(model, data, num_compared_rows, list(STEPS[epoch]))
        return measure(model, data, num_rows, np.linspace(0, 0.099, num_steps).round(5).tolist())

    for epoch, name in itertools.product([epoch for epoch in epochs if epoch in STEPS], NETWORKS):
        if found := cells.get(profile, network=name, epoch=epoch, part="compared"):
            compared[epoch][name] = found["first_weight"]
    for epoch, name in itertools.product(epochs, NETWORKS):
        if found := cells.get(profile, network=name, epoch=epoch, part="slice"):
            slices[name][epoch] = found
    for epoch, found in compared.items():
        compare(run, epoch, found)
    run.results = {"compared": compared, "slices": slices}
    return run.finish(draw(slices))


if __name__ == "__main__":
    main()
