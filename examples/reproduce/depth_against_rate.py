"""Bernstein et al. 2020 (arXiv 2002.03432), depth against learning rate: which optimizer trains deep networks untuned?

Fully connected ReLU networks of growing depth are trained for a fixed number of epochs at a few learning rates.
Published final training accuracies (MNIST, 100 epochs, best rate): SGD with momentum trains to depth 10 and is at
chance from 11 on. Adam trains to depth 22 and is at chance from 23 on. Fromage reaches .995 at depth 27, .935 at 35 and
.654 at 50.

Initial weights are uniform with variance 1 / (3 fan_in), as in PyTorch. With them the signal shrinks from layer to
layer, which makes deep networks hard to train. On the digits, with fewer epochs, training fails at other depths.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator, Sequence

import keras
import numpy as np
from reproduction import Reproduction, start
from rich.progress import track

from tfopt import _plotting, datasets, models
from tfopt.optimizers import LARS, Fromage

# Depths of the deepest networks that SGD with momentum, Adam and Fromage train.
PUBLISHED = (10, 22, 50)
# A network of ten classes with at most this accuracy has learned nothing: a constant answer reaches 0.1.
CHANCE = 0.15
OPTIMIZERS = {
    "SGD, momentum 0.9": (lambda: keras.optimizers.SGD(momentum=0.9), (0.001, 0.01, 0.1)),
    "Adam": (keras.optimizers.Adam, (0.0001, 0.001, 0.01)),
    "LARS": (LARS, (0.3, 1.0, 3.0)),
    "Fromage": (Fromage, (0.001, 0.01, 0.1)),
}


def final_accuracies(
    optimizer: keras.Optimizer, rates: Sequence[float], depth: int, data: datasets.Dataset, epochs: int, seed: int
) -> Iterator[float]:
    """Train one network from the same weights at each rate; yield its final accuracies on the training part."""
    # All rates share one optimizer and one trace of its step.
    keras.utils.set_random_seed(seed)
    initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
    units = (64,) * (depth - 1)
    model = models.mlp(data.input_shape, units, data.num_classes, kernel_initializer=initializer, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=False)
    optimizer.build(model.trainable_variables)
    variables = [*model.variables, *optimizer.variables]
    initial = [variable.numpy() for variable in variables]
    for rate in rates:
        for variable, value in zip(variables, initial, strict=True):
            variable.assign(value)
        optimizer.learning_rate = rate
        keras.utils.set_random_seed(seed)
        model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
        yield model.evaluate(data.x_train, data.y_train, batch_size=512, verbose=0, return_dict=True)["accuracy"]


def deepest_trained(depths: list[int], best: list[float]) -> int:
    """Return the largest depth up to which all best accuracies are above chance; 0 if the first is not."""
    deepest = 0
    for depth, accuracy in zip(depths, best, strict=True):
        if accuracy <= CHANCE:
            break
        deepest = depth
    return deepest


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("depth_against_rate", "Bernstein et al. 2020: depth against learning rate", argv, __doc__)
    data = datasets.load(run.data)
    depths = run.choose([1, 4], [2, 6, 10, 16, 22, 27, 35, 50], [1, 2, 4, 6, 8, 10, 11, 14, 18, 22, 23, 27, 35, 42, 50])
    epochs = run.choose(1, 20, 100)
    rates = run.choose(slice(1, 2), slice(None), slice(None))  # A smoke run takes the middle rate.
    found: dict[str, dict[float, list[float]]] = {
        name: {rate: [] for rate in row[1][rates]} for name, row in OPTIMIZERS.items()
    }
    for name, depth in track([(name, depth) for name in OPTIMIZERS for depth in depths], "training"):
        accuracies = final_accuracies(OPTIMIZERS[name][0](), list(found[name]), depth, data, epochs, run.seed)
        for rate, accuracy in zip(found[name], accuracies, strict=True):
            found[name][rate].append(accuracy)
    figure, panels = _plotting.make_panels(-(-len(found) // 2), 2, height=6.0, sharex=True, sharey=True)
    best, deepest = {}, {}
    for ax, (name, by_rate) in zip(panels, found.items(), strict=True):
        for label, accuracies in zip(("lowest rate", "middle rate", "highest rate"), by_rate.values(), strict=False):
            ax.plot(depths, accuracies, marker=".", label=label)
        rates_tried = ", ".join(f"{rate:g}" for rate in by_rate)
        ax.set(title=f"{name}:\n{rates_tried}", xlabel="depth", ylabel="training accuracy", ylim=(0, 1.05))
        ax.set_xticks(depths[::2])
        ax.set_xticks(depths, minor=True)
        ax.label_outer()
        best[name] = np.max(list(by_rate.values()), axis=0).tolist()
        deepest[name] = deepest_trained(depths, best[name])
        run.results[name] = {f"{rate:g}": accuracies for rate, accuracies in by_rate.items()}
    _plotting.move_legends_above(figure, columns=3)
    run.results["depths"] = depths
    found_here = sgd, adam, fromage = tuple(deepest[name] for name in ("SGD, momentum 0.9", "Adam", "Fromage"))
    run.compare(
        "deepest network above chance: SGD with momentum, Adam, Fromage",
        "10, 22, 50",
        f"{sgd}, {adam}, {fromage} (LARS: {deepest['LARS']})",
        held=sgd < adam < fromage and all(ours >= theirs for ours, theirs in zip(found_here, PUBLISHED, strict=True)),
        partly=sgd < adam < fromage,
    )
    for depth, published in ((27, 0.995), (35, 0.935), (50, 0.654)):
        if depth in depths:
            others = ", ".join(f"{name} {best[name][depths.index(depth)]:.3f}" for name in best if name != "Fromage")
            ours = best["Fromage"][depths.index(depth)]
            run.compare(
                f"Fromage's accuracy at depth {depth}",
                f"{published:.3f}",
                f"{ours:.3f} ({others})",
                held=abs(ours - published) < 0.1,
                partly=ours > 0.5 * published,
            )
    return run.finish(figure)


if __name__ == "__main__":
    main()
