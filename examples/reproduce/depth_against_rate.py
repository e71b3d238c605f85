"""Bernstein et al. 2020 (arXiv 2002.03432), third figure on the left: which depths can be trained?

Networks of 2 to 25 hidden layers are trained with SGD, SGD with momentum, Adam, Fromage and LARS, at three learning
rates each, which fall by 5% after each epoch. Published (MNIST, 784 wide, batches of 250, best rate, after 10 epochs):
SGD trains 8 hidden layers, SGD with momentum 11 (accuracy .970), Adam 20 (.945); Fromage reaches .986 with 15, .861
with 20 and .586 with 25. LARS was not tried. The authors' figure shows the same after 100 epochs.

`--full` trains as published, and resumes after an interruption. The cells that decide the order come first. A training
that is at chance after 3 epochs stops. An accuracy is that of the batches of the last epoch, as published.

The rules for the table. A depth is trained if one of the three rates is above chance (0.15), and not if all three are
at chance; other depths are not known. The most hidden layers that an optimizer trains held if they are the published
ones, and partly if they are the depth before or after it in the list. The order held if SGD < momentum < Adam <
Fromage, and partly if no pair is reversed and Fromage trains more than SGD. Fromage's accuracy at its best rate, as a
share of that with 2 hidden layers (other data are more or less difficult), held within 0.1 of the published accuracy,
and partly within 0.3.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import itertools

import keras
import numpy as np
from published_networks import BATCH_SIZE, CHANCE, published_network
from reproduction import Reproduction, start

from tfopt import _plotting, datasets
from tfopt.optimizers import LARS, Fromage

# The rate that is most likely to train comes first.
OPTIMIZERS = {
    "SGD": (keras.optimizers.SGD, (0.1, 1.0, 0.01)),
    "SGD, momentum 0.9": (functools.partial(keras.optimizers.SGD, momentum=0.9), (0.1, 1.0, 0.01)),
    "Adam": (keras.optimizers.Adam, (0.001, 0.0001, 0.01)),
    "Fromage": (Fromage, (0.01, 0.001, 0.1)),
    "LARS": (LARS, (1.0, 0.3, 3.0)),
}
PUBLISHED_DEPTHS = {"SGD": 8, "SGD, momentum 0.9": 11, "Adam": 20, "Fromage": 25}
PUBLISHED_ACCURACIES = {15: 0.986, 20: 0.861, 25: 0.586}
DEPTHS = (2, 5, 8, 11, 15, 20, 25)  # Hidden layers.
# What decides the order: the published depth of each optimizer, and the next one.
DECIDING = (
    ("SGD, momentum 0.9", 11),
    ("Fromage", 15),
    ("Adam", 20),
    ("SGD", 8),
    ("Fromage", 20),
    ("SGD, momentum 0.9", 15),
    ("SGD", 11),
    ("Fromage", 2),
    ("Fromage", 25),
    ("Adam", 25),
    ("LARS", 20),
    ("LARS", 25),
)
PATIENCE = 3  # Epochs after which a training at chance may stop.


class StopAtChance(keras.callbacks.Callback):
    """Stops a training whose accuracy is that of a constant answer after `PATIENCE` epochs."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Look at the accuracy."""
        if epoch + 1 >= PATIENCE and (logs or {})["accuracy"] <= CHANCE:
            self.model.stop_training = True


class Trainings:
    """Trainings from the same weights and with the same batches, for each optimizer, depth and rate."""

    def __init__(
        self, data: datasets.Dataset, width: int, batch_size: int, epochs: int, stops: bool, seed: int
    ) -> None:
        self._data, self._width, self._batch_size, self._epochs = data, width, batch_size, epochs
        self._stops, self._seed = stops, seed
        self._compiled = functools.lru_cache(maxsize=1)(self._compile)  # All rates share one trace.

    def _compile(self, optimizer: str, hidden_layers: int) -> tuple[keras.Model, list[np.ndarray]]:
        keras.backend.clear_session()
        model = published_network(self._data, self._width, hidden_layers, seed=self._seed)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(OPTIMIZERS[optimizer][0](), loss, metrics=["accuracy"], jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model, [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]

    def train(self, optimizer: str, hidden_layers: int, rate: float) -> dict[str, list[float]]:
        """Train once; return loss and accuracy on the batches of each epoch."""
        model, initial = self._compiled(optimizer, hidden_layers)
        for variable, value in zip((*model.variables, *model.optimizer.variables), initial, strict=True):
            variable.assign(value)
        keras.utils.set_random_seed(self._seed)
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch: rate * 0.95**epoch)
        callbacks = [schedule, StopAtChance()] if self._stops else [schedule]
        options = {"batch_size": self._batch_size, "epochs": self._epochs, "verbose": 0, "callbacks": callbacks}
        history = model.fit(self._data.x_train, self._data.y_train, **options).history
        return {name: history[name] for name in ("loss", "accuracy")}


def deepest_trained(best: dict[int, float]) -> int:
    """Return the largest depth up to which all best accuracies are above chance; 0 if the first is not."""
    deepest = 0
    for depth, accuracy in sorted(best.items()):
        if accuracy <= CHANCE:
            break
        deepest = depth
    return deepest


def best_of(by_rate: dict[float, dict[int, float]], needs_all_rates: bool = False) -> dict[int, float]:
    """Return the best accuracy of each depth that is known to be trained or not, or whose rates are all finished."""
    best = {}
    for depth in DEPTHS:
        values = [by_depth[depth] for by_depth in by_rate.values() if depth in by_depth]
        if len(values) == len(by_rate) or (values and max(values) > CHANCE and not needs_all_rates):
            best[depth] = max(values)
    return best


def compare_depths(run: Reproduction, best: dict[str, dict[int, float]]) -> None:
    """Compare the depths that were trained with the published ones."""
    deepest = {name: deepest_trained(by_depth) for name, by_depth in best.items() if by_depth}
    for name, published in PUBLISHED_DEPTHS.items():
        if name not in deepest:
            continue
        places = [DEPTHS.index(depth) if depth in DEPTHS else -1 for depth in (deepest[name], published)]
        run.compare(
            f"{name}: most hidden layers that train",
            f"{published}",
            f"{deepest[name]} ({', '.join(f'{depth}: {best[name][depth]:.3f}' for depth in sorted(best[name]))})",
            held=places[0] == places[1],
            partly=abs(places[0] - places[1]) == 1,
        )
    depths = [deepest[name] for name in PUBLISHED_DEPTHS if name in deepest]
    if len(depths) == len(PUBLISHED_DEPTHS):
        run.compare(
            "order of the most hidden layers: SGD, momentum, Adam, Fromage",
            "8 < 11 < 20 < 25",
            f"{', '.join(map(str, depths))} (LARS: {deepest.get('LARS', 'not finished')})",
            held=all(a < b for a, b in itertools.pairwise(depths)),
            partly=depths == sorted(depths) and depths[0] < depths[-1],
        )


def compare_accuracies(run: Reproduction, best: dict[str, dict[int, float]], complete: dict[int, float]) -> None:
    """Compare Fromage's accuracies, at the best of all rates, with the published ones."""
    for depth, published in PUBLISHED_ACCURACIES.items():
        if {2, depth} <= set(complete):
            share = complete[depth] / complete[2]
            others = ", ".join(f"{name} {best[name][depth]:.3f}" for name in best if depth in best[name])
            run.compare(
                f"Fromage's accuracy with {depth} hidden layers, as a share of that with 2",
                f"{published:.3f}",
                f"{share:.3f} (accuracies: {others})",
                held=abs(share - published) < 0.1,
                partly=abs(share - published) < 0.3,
            )


def draw(found: dict[str, dict[float, dict[int, float]]]) -> object:
    """Return a figure of accuracy against depth, one panel per optimizer and one line per rate."""
    figure, panels = _plotting.make_panels(-(-len(found) // 2), 2, height=8.0, sharex=True, sharey=True)
    for ax, (name, by_rate) in zip(panels, found.items(), strict=False):
        for label, (_, by_depth) in zip(
            ("lowest rate", "middle rate", "highest rate"), sorted(by_rate.items()), strict=False
        ):
            depths = sorted(by_depth)
            ax.plot(depths, [by_depth[depth] for depth in depths], marker=".", label=label)
        rates_tried = ", ".join(f"{rate:g}" for rate in sorted(by_rate))
        ax.set(title=f"{name}:\n{rates_tried}", xlabel="hidden layers", ylabel="training accuracy", ylim=(0, 1.05))
        ax.set_xticks(DEPTHS)
        ax.label_outer()
    for ax in panels[len(found) - 2 : len(found)]:  # The lowest panels, one of which has an empty place below it.
        ax.set_xlabel("hidden layers")
        ax.tick_params(labelbottom=True)
    for ax in panels[len(found) :]:
        ax.remove()
    _plotting.move_legends_above(figure, columns=3)
    return figure


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("depth_against_rate", "Bernstein et al. 2020: depth against learning rate", argv, __doc__)
    depths = run.choose((2, 5), DEPTHS, DEPTHS)
    settings = {
        "width": run.choose(16, 64, 784),
        "batch_size": run.choose(64, 64, BATCH_SIZE),
        "epochs": run.choose(1, 20, 10),
        "stops": run.size == "full",
    }
    trainings = Trainings(run.load().flattened(), **settings, seed=run.seed)
    cells = run.finished_cells(**settings)
    rates = {name: by_name[1][: run.choose(1, 3, 3)] for name, by_name in OPTIMIZERS.items()}

    def accuracy(name: str, depth: int, rate: float) -> float | None:
        cell = cells.get(trainings.train, optimizer=name, hidden_layers=depth, rate=rate)
        return cell and cell["accuracy"][-1]

    for name, depth in (pair for pair in DECIDING if pair[1] in depths):
        for rate in rates[name]:
            if (accuracy(name, depth, rate) or 0) > CHANCE:
                break  # The depth is trained, whatever other rates do.
    found: dict[str, dict[float, dict[int, float]]] = {name: {rate: {} for rate in rates[name]} for name in OPTIMIZERS}
    for depth, name in itertools.product(depths, OPTIMIZERS):
        for rate in rates[name]:
            if (value := accuracy(name, depth, rate)) is not None:
                found[name][rate][depth] = value
    finished = sum(len(by_depth) for by_rate in found.values() for by_depth in by_rate.values())
    print(f"{finished} of {sum(map(len, rates.values())) * len(depths)} cells are finished")
    run.results = {name: {f"{rate:g}": found[name][rate] for rate in found[name]} for name in found}
    best = {name: best_of(by_rate) for name, by_rate in found.items()}
    compare_depths(run, best)
    compare_accuracies(run, best, complete=best_of(found["Fromage"], needs_all_rates=True))
    return run.finish(draw(found))


if __name__ == "__main__":
    main()
