"""Milne 2019 (arXiv 1810.12805), image classification: does BatchNorm bring training into the convex regime sooner?

Published: along gradient paths of networks that classify images, the loss becomes convex along the gradient after a
while, and with BatchNorm much sooner. Here a fully connected and a convolutional network are trained with plain SGD,
with and without BatchNorm. The curvature along the gradient, g'Hg / g'g on a fixed probe, is measured at every fourth
step. "Sooner" means the step after which the curvature stays positive. The table also shows the fraction of the loss
change during which the curvature was positive. The published text does not give the initial weights, and the answer
depends on them. So He's, Keras's default (Glorot's) and PyTorch's default weights are tried.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from reproduction import Reproduction, start
from rich.progress import track

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
    kind: str, initializer: str, normalized: bool, data: datasets.Dataset, epochs: int, seed: int
) -> tuple[list[int], list[float], float]:
    """Train an "mlp" or a "convnet"; return measured steps, curvatures, and the convex fraction of the loss change."""
    keras.utils.set_random_seed(seed)
    options = {"batch_normalization": normalized, "kernel_initializer": INITIALIZERS[initializer](), "seed": seed}
    if kind == "mlp":
        model = models.mlp(data.input_shape, (64,) * 4, data.num_classes, **options)
    else:
        model = models.convnet(data.input_shape, (8, 16, 16), data.num_classes, **options)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss, jit_compile=False)
    convexity = Convexity((data.x_train[:256], data.y_train[:256]), every_n_steps=4, eigenvalues=False)
    model.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=0, callbacks=[convexity])
    history = convexity.history
    share = history["convexity/fraction_along_gradient"][-1]
    return history["step"], history["convexity/curvature_along_gradient"], share


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Milne 2019: convexity along gradient paths, with and without BatchNorm"
    run = start("convexity_along_paths", title, argv, __doc__)
    data = run.load()
    kinds = run.choose(["mlp"], ["mlp", "convnet"], ["mlp", "convnet"])
    initializers = run.choose(["Glorot"], list(INITIALIZERS), list(INITIALIZERS))
    seeds = range(run.seed, run.seed + run.choose(1, 3, 10))
    epochs = run.choose(1, 6, 20)
    figure, panels = _plotting.make_panels(len(initializers), len(kinds), height=7.5, sharex=True, sharey=True)
    rows = [(kind, initializer) for initializer in initializers for kind in kinds]
    for ax, (kind, initializer) in zip(panels, track(rows, "training"), strict=True):
        entries: dict[bool, list[int]] = {False: [], True: []}
        shares: dict[bool, list[float]] = {False: [], True: []}
        for normalized in (False, True):
            for seed in seeds:
                steps, curvature, share = train(kind, initializer, normalized, data, epochs, seed)
                entries[normalized].append(entry_step(steps, curvature))
                shares[normalized].append(share)
                label = ("with BatchNorm" if normalized else "without BatchNorm") if seed == seeds[0] else None
                ax.plot(steps, curvature, color=_plotting.COLORS[normalized], linestyle="-", alpha=0.7, label=label)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set(title=f"{kind}, {initializer}'s weights", xlabel="step", ylabel="g'Hg / g'g")
        ax.label_outer()
        ax.set_yscale("symlog", linthresh=0.1)
        plain, normed = (float(np.median(entries[flag])) for flag in (False, True))
        share, normed_share = (float(np.mean(shares[flag])) for flag in (False, True))
        run.compare(
            f"{kind}, {initializer}'s initial weights: step from which on the loss is convex along the gradient",
            "much sooner with BatchNorm",
            f"{plain:.0f} without, {normed:.0f} with; share of the loss change {share:.0%} without, "
            f"{normed_share:.0%} with",
            held=normed < plain / 2,
            partly=normed < plain,
        )
        run.results[f"{kind}, {initializer}"] = {
            "entry_steps": {"without": entries[False], "with": entries[True]},
            "shares": {"without": shares[False], "with": shares[True]},
        }
    _plotting.move_legends_above(figure)
    return run.finish(figure)


if __name__ == "__main__":
    main()
