"""Training without gradients at its defaults against gradient methods: digits, one hidden layer of 64, test accuracy.

There are five stratified splits (25% test rows) with seeds 0 to 4. No default was chosen on them: `bregman_defaults.py`
used other seeds and validation rows. Training takes 100 sweeps, 100 epochs of Adam (0.001) and of SGD (0.1, momentum
0.9) in batches of 32, or 200 iterations of scikit-learn's L-BFGS.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import warnings

import keras
import numpy as np
from reproduction import Reproduction, start
from rich.progress import track
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from tfopt import _plotting, datasets, models
from tfopt.bregman import BregmanTrainer

CROSSENTROPY = "sparse_categorical_crossentropy"
METHODS = ("without gradients", "Adam", "SGD, momentum 0.9", "L-BFGS")


def accuracy_by(method: str, data: datasets.Dataset, seed: int, epochs: int) -> float:
    """Train the network once with one of `METHODS`, for `epochs` sweeps or epochs; return its final test accuracy."""
    if method == "L-BFGS":
        network = MLPClassifier((64,), solver="lbfgs", max_iter=2 * epochs, random_state=seed, alpha=0.0)
        flat = data.flattened()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return float(network.fit(flat.x_train, flat.y_train).score(flat.x_test, flat.y_test))
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, (64,), data.num_classes, seed=seed)
    if method == "without gradients":
        trainer = BregmanTrainer(model, CROSSENTROPY, metrics=["accuracy"])
        trainer.fit(data.x_train, data.y_train, epochs=epochs, verbose=0)
        return trainer.evaluate(data.x_test, data.y_test)["accuracy"]
    optimizer = keras.optimizers.Adam() if method == "Adam" else keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=32, epochs=epochs, verbose=0)
    return float(model.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)["accuracy"])


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the comparison."""
    title = "Training without gradients: digits, test accuracy"
    run = start("bregman_digits", title, argv, __doc__, data="digits")
    seeds, epochs = run.choose(1, 5, 5), run.choose(2, 100, 100)
    seeds = range(run.seed, run.seed + seeds)
    cells = [(method, seed) for method in METHODS for seed in seeds]
    for method, seed in track(cells, "training"):
        run.results.setdefault(method, []).append(accuracy_by(method, run.load(seed=seed), seed, epochs))
    means = {method: float(np.mean(values)) for method, values in run.results.items()}
    count = len(seeds)
    errors = {m: float(np.std(v, ddof=1) / count**0.5) if count > 1 else 0.0 for m, v in run.results.items()}
    ours, adam = METHODS[:2]
    run.compare(
        "not below Adam by more than a standard error",
        "the method trains",
        ", ".join(f"{method} {100 * means[method]:.2f} +- {100 * errors[method]:.2f}%" for method in METHODS),
        held=means[ours] >= means[adam] - errors[adam],
        partly=means[ours] >= means[adam] - 2 * errors[adam],
    )
    figure, [ax] = _plotting.make_panels()
    for k, method in enumerate(METHODS):
        ax.plot([k] * count, run.results[method], "o", color=_plotting.COLORS[k], alpha=0.5)
        ax.errorbar(k, means[method], errors[method], fmt="_", color="black", markersize=25)
    ax.set(xticks=range(len(METHODS)), xticklabels=METHODS, xlim=(-0.5, len(METHODS) - 0.5), ylabel="test accuracy")
    return run.finish(figure)


if __name__ == "__main__":
    main()
