"""Taylor et al. 2016 (arXiv 1605.02026), section 5: one Bregman multiplier against the classical method of multipliers.

Published: with a multiplier for each constraint the method is unstable on nonlinear networks. With one multiplier of
the outputs, or none, it is stable. Here all three train on the digits, from several seeds, at several depths and
penalties. A run is unstable if its loss rises to ten times its first value, or is not finite.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import warnings

import numpy as np
from reproduction import Reproduction, start
from rich.progress import track

from tfopt import _plotting, datasets, models
from tfopt.bregman import BregmanTrainer

METHODS = {
    "Bregman": {"preset": "paper", "multiplier_step": 2, "ridge": 1e-6},
    "no multiplier": {"preset": "paper", "multiplier": "none", "ridge": 1e-6},
    "ADMM": {"preset": "admm"},
}
PENALTIES = ((0.1, 0.1), (1.0, 1.0), (1.0, 10.0), (0.1, 10.0))


def train(
    data: datasets.Dataset, depth: int, method: str, penalties: tuple[float, float], seed: int, epochs: int
) -> list:
    """Train one network with `depth` hidden layers of 32 units; return the training loss after each sweep."""
    linear, activation = penalties
    trainer = BregmanTrainer(
        models.mlp(data.input_shape, (32,) * depth, data.num_classes, seed=seed),
        "sparse_categorical_crossentropy",
        linear_penalty=linear,
        activation_penalty=activation,
        initialization="gaussian",
        seed=seed,
        **METHODS[method],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The losses show divergence.
        return trainer.fit(data.x_train, data.y_train, epochs=epochs, verbose=0).history["loss"]


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("bregman_stability", "Taylor et al. 2016: stability of the multipliers", argv, __doc__, data="digits")
    data = run.load()
    depths, seeds = run.choose([3], [1, 2, 3], [1, 2, 3, 4, 6]), range(run.seed, run.seed + run.choose(1, 3, 10))
    epochs, penalties = run.choose(30, 100, 300), run.choose(PENALTIES[-1:], PENALTIES, PENALTIES)
    cells = [(d, m, p, s) for d in depths for m in METHODS for p in penalties for s in seeds]
    worst: dict[str, list[float]] = {}
    curves: dict[str, list[float]] = {}
    for depth, method, pair, seed in track(cells, "training"):
        losses = train(data, depth, method, pair, seed, epochs)
        largest = np.max(losses) / losses[0]  # This is NaN if a loss is.
        worst.setdefault(f"{method}, {depth} hidden", []).append(float(largest) if np.isfinite(largest) else 1e30)
        if depth == depths[-1] and pair == penalties[-1] and seed == seeds[0]:
            curves[method] = losses
    unstable = {name: sum(ratio > 10 for ratio in ratios) for name, ratios in worst.items()}
    run.results = {"largest loss over the first": worst, "unstable runs": unstable, "curves": curves}
    each = len(penalties) * len(seeds)
    for depth in depths:
        counts = {method: unstable[f"{method}, {depth} hidden"] for method in METHODS}
        run.compare(
            f"unstable runs of {each}, {depth} hidden layer(s)",
            "ADMM unstable, the others stable",
            ", ".join(f"{method} {count}" for method, count in counts.items()),
            held=counts["ADMM"] > 0 == counts["Bregman"] + counts["no multiplier"],
            partly=counts["ADMM"] > counts["Bregman"],
        )
    figure, [ax] = _plotting.make_panels()
    for method, losses in curves.items():
        ax.plot(range(1, len(losses) + 1), losses, label=method)
    ax.set(
        xlabel="sweeps",
        ylabel="training loss",
        yscale="log",
        title=f"{depths[-1]} hidden layers, beta, gamma = {penalties[-1]}",
    )
    _plotting.move_legends_above(figure, columns=3)
    return run.finish(figure)


if __name__ == "__main__":
    main()
