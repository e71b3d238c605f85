"""Bernstein et al. 2020 (arXiv 2002.03432), first figure: how soon do gradients break down along a step?

The networks have 2 layers, 16 layers, or 16 with skip connections. At several checkpoints along training, loss and
relative gradient breakdown of the first weight are measured at W - eta |W_l| g_l / |g_l|. Published at initialisation
on MNIST (784 wide), for eta = 0.001, 0.010 and 0.099: .02, .20, 1.05 with 2 layers; .36, 1.4, 4.2e3 with 16; 1.15,
1.25, 31.5 with skips. The growth is quasi-exponential in eta for the deep network, and milder with skips.

The networks are 784 wide on any data, without biases. Initial weights are uniform with variance 1 / (3 fan_in), as in
PyTorch. On the digits 64 wide networks with skips break down far less: about 1 at eta = 0.099.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from reproduction import Reproduction, start
from rich.progress import track

from tfopt import _plotting, datasets, models
from tfopt.curvature import Objective
from tfopt.optimizers import Fromage
from tfopt.relative_trust import breakdown_profile

PUBLISHED = {
    "2 layers": (0.02, 0.20, 1.05),
    "16 layers": (0.36, 1.4, 4.2e3),
    "16 layers, residual": (1.15, 1.25, 31.5),
}
PUBLISHED_STEPS = (0.001, 0.010, 0.099)
DEPTHS = {"2 layers": (2, False), "16 layers": (16, False), "16 layers, residual": (16, True)}


def compare(run: Reproduction, at_start: dict[str, list[float]]) -> None:
    """Compare the breakdown of the first weight of untrained networks, at `PUBLISHED_STEPS`, with the published one."""
    show = lambda values: ", ".join(f"{value:.2g}" for value in values)  # noqa: E731
    for name, values in at_start.items():
        factors = [max(a / b, b / a) for a, b in zip(values, PUBLISHED[name], strict=True)]
        run.compare(
            f"{name}: at initialisation, eta = .001, .010, .099",
            show(PUBLISHED[name]),
            show(values),
            held=max(factors) < 2,
            partly=sorted(factors)[1] < 3,
        )
    shallow, deep, skips = (at_start[name] for name in PUBLISHED)
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


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Bernstein et al. 2020: relative gradient breakdown by depth"
    run = start("breakdown_profiles", title, argv, __doc__)
    data = datasets.load(run.data).flattened()
    width, epochs, num_steps, num_rows = run.choose((32, 1, 3, 128), (784, 5, 11, 256), (784, 50, 34, 2048))
    checkpoints = run.choose((0, 1), (0, 1, 5), (0, 1, 5, 20, 50))
    relative_steps = np.unique(np.concatenate([np.linspace(0, 0.1, num_steps), PUBLISHED_STEPS]))
    x, y = data.x_train[:num_rows], data.y_train[:num_rows]
    figure, panels = _plotting.make_panels(len(DEPTHS), 2, height=7.0, sharex=True, sharey="col")
    at_start: dict[str, list[float]] = {}
    keras.utils.set_random_seed(run.seed)  # This fixes the order of the batches.
    for row, (name, (depth, residual)) in enumerate(track(DEPTHS.items(), "networks")):
        initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        options = {"residual": residual, "kernel_initializer": initializer, "use_bias": False, "seed": run.seed}
        model = models.mlp(data.input_shape, (width,) * (depth - 1), data.num_classes, **options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(Fromage(0.01), loss, jit_compile=False)
        breakdowns, losses = panels[2 * row : 2 * row + 2]
        for epoch in range(epochs + 1):
            if epoch in checkpoints:
                profile = breakdown_profile(Objective(model, data=(x, y)), relative_steps)
                first = profile.relative_gradient_breakdown[:, 0]
                breakdowns.plot(relative_steps, np.where(first > 0, first, np.nan), label=f"epoch {epoch}")
                losses.plot(relative_steps, profile.loss, label=f"epoch {epoch}")
                run.results.setdefault(name, {})[f"epoch {epoch}"] = {
                    "first_weight": first.tolist(),
                    "largest": profile.largest_breakdown.tolist(),
                    "deep_relative_trust": profile.deep_relative_trust.tolist(),
                    "loss": profile.loss.tolist(),
                }
                at_start.setdefault(
                    name, [float(first[np.searchsorted(relative_steps, eta)]) for eta in PUBLISHED_STEPS]
                )
            if epoch < epochs:
                model.fit(data.x_train, data.y_train, batch_size=64, epochs=1, verbose=0)
        breakdowns.set(title=name, ylabel="breakdown", yscale="log")
        losses.set(title=name, ylabel="loss", yscale="log")
    for panel in panels[-2:]:
        panel.set_xlabel("relative step")
    _plotting.move_legends_above(figure, columns=3)
    run.results["relative_steps"] = relative_steps.tolist()
    compare(run, at_start)
    return run.finish(figure)


if __name__ == "__main__":
    main()
