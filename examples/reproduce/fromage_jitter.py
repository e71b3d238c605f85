"""Bernstein et al. 2020 (arXiv 2002.03432): at a fixed rate Fromage jitters around a minimum; decay makes it converge.

Each step changes every layer by the relative amount eta, however close the minimum is. So at a fixed rate the loss
stops falling at a level that depends on eta, and goes up and down there. It converges if the rate is halved whenever
the loss stops falling (Keras's ReduceLROnPlateau). Every step uses all rows, so that there is no other noise. Weight
decay ensures a minimum; softmax regression has only one. A network also moves slowly along a valley while it jitters
across it. So its loss keeps falling, and plateaus are short.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting, datasets, models
from tfopt.callbacks import GradientBreakdown
from tfopt.optimizers import Fromage

RATE = 0.01
MODELS = {"softmax regression": (), "one hidden layer": (64,)}


def train(
    units: tuple[int, ...], data: datasets.Dataset, epochs: int, seed: int, decays: bool
) -> tuple[np.ndarray, float]:
    """Train one model, one step per epoch; return its losses and the median relative step size near the end."""
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, units, data.num_classes, use_bias=False, weight_decay=0.01, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(Fromage(RATE), loss, jit_compile=False)
    breakdown = GradientBreakdown((data.x_train[:256], data.y_train[:256]), num_points=1, every_n_epochs=10)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=20, min_delta=1e-4, min_lr=1e-7)
    callbacks = [breakdown, *[plateau] * decays]
    rows = {"batch_size": len(data.x_train), "epochs": epochs, "verbose": 0}
    losses = model.fit(data.x_train, data.y_train, callbacks=callbacks, **rows).history["loss"]
    return np.array(losses), float(np.median(breakdown.history["breakdown/relative_perturbation"][-5:]))


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Bernstein et al. 2020: Fromage's jitter, and convergence under decay"
    run = start("fromage_jitter", title, argv, __doc__)
    data = run.load()
    epochs = run.choose(40, 800, 3000)
    tail = epochs // 4
    figure, panels = _plotting.make_panels(1, len(MODELS))
    for ax, (name, units) in zip(panels, MODELS.items(), strict=True):
        fixed, size = train(units, data, epochs, run.seed, decays=False)
        decayed, _ = train(units, data, epochs, run.seed, decays=True)
        lowest = min(fixed.min(), decayed.min())
        ax.plot(fixed - lowest, label=f"fixed rate {RATE}")
        ax.plot(decayed - lowest, label="halved on a plateau")
        ax.set(title=name, xlabel="step", ylabel="loss above the lowest seen")
        ax.set_yscale("log", nonpositive="mask")  # The lowest loss itself has no place on a logarithmic scale.
        run.results[name] = {"fixed": fixed.tolist(), "decayed": decayed.tolist()}
        rises = float(np.mean(np.diff(fixed[-tail:]) > 0))
        run.compare(
            f"{name}: at a fixed rate the loss jitters, with steps of relative size eta at the minimum",
            "up and down; eta",
            f"rises in {rises:.0%} of the last steps; {size:.4f} at eta = {RATE}",
            held=rises > 0.25 and abs(size / RATE - 1) < 0.1,
            partly=rises > 0,
        )
        above = [float(np.median(losses[-tail:]) - lowest) for losses in (fixed, decayed)]
        run.compare(
            f"{name}: with decay on a plateau it converges (loss above the lowest seen, last steps)",
            "to a lower loss",
            f"{above[1]:.1e}, at the fixed rate {above[0]:.1e}",
            held=above[1] < above[0] / 10,
            partly=above[1] < above[0],
        )
    _plotting.move_legends_above(figure)
    return run.finish(figure)


if __name__ == "__main__":
    main()
