"""Which settings make training without gradients work: the study behind the defaults of `BregmanTrainer`.

Four networks - digits 64-64-10, digits 64-128-64-32-10, breast_cancer 30-32-1 and higgs_like 28-300-1 - are trained
from several seeds. The settings are the printed algorithm (Taylor et al. 2016, arXiv 1605.02026) and related ones, and
the default and variants that differ from it in one setting. Accuracies are those of validation parts; test parts are
not used.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
from reproduction import Reproduction, start
from rich.progress import track

from tfopt import _plotting, datasets, models
from tfopt.bregman import BregmanTrainer

NETWORKS = {
    "digits": ("digits", (64,)),
    "digits, deep": ("digits", (128, 64, 32)),
    "breast_cancer": ("breast_cancer", (32,)),
    "higgs_like": ("higgs_like", (300,)),
}
FORWARD = {"initialization": "forward"}
STALLS = {"preset": "paper", **FORWARD, "multiplier_step": 2}
VARIANTS = {
    "as printed": {"preset": "paper"},
    "printed, forward start": {"preset": "paper", **FORWARD},
    "printed, 100 times smaller penalties": {
        "preset": "paper",
        **FORWARD,
        "linear_penalty": 0.01,
        "activation_penalty": 0.1,
        "ridge": 1e-3,
    },
    "full multiplier step, Z before W": {**STALLS, "last_layer_order": "Z,W", "ridge": 1e-3},
    "the same, 10 sweeps an update": {
        **STALLS,
        "last_layer_order": "Z,W",
        "ridge": 1e-3,
        "num_sweeps_per_multiplier_update": 10,
    },
    "no multiplier": {"preset": "penalty", "order": "forward", "last_layer_order": "W,Z"},
    "no multiplier, backward": {"preset": "penalty"},
    "no multiplier, alternating": {"preset": "penalty", "order": "alternating"},
    "no multiplier, growing penalties": {
        "preset": "penalty",
        "linear_penalty": 0.01,
        "activation_penalty": 0.01,
        "penalty_growth": 1.05,
    },
    "no multiplier, Jacobi": {"preset": "penalty", "update": "jacobi"},
    "ADMM": {"preset": "admm"},
    "restarted, exact steps, one block": {"num_blocks": 1, "max_relaxation": 1.0},
    "restarted, one block": {"num_blocks": 1},
    "restarted (default)": {},
    "restarted, penalties 0.03": {"linear_penalty": 0.03, "activation_penalty": 0.03},
    "restarted, penalties 0.3": {"linear_penalty": 0.3, "activation_penalty": 0.3},
    "restarted, ridge 0.01": {"ridge": 0.01},
    "restarted, no weight decay": {"weight_decay": 0.0},
    "restarted, weight decay 1e-4": {"weight_decay": 1e-4},
    "restarted, full last step": {"step": 1.0},
}


def load(network: str, seed: int, num_rows: int) -> datasets.Dataset:
    """Load the data of a network, with a validation part; `num_rows` is for `higgs_like`."""
    name = NETWORKS[network][0]
    options = {"num_rows": num_rows} if name == "higgs_like" else {}
    return datasets.load(name, seed=seed, validation_fraction=0.25, **options)


def make_model(network: str, data: datasets.Dataset, seed: int) -> keras.Model:
    """Return a network that ends in logits."""
    outputs = 1 if data.num_classes == 2 else data.num_classes
    return models.mlp(data.input_shape, NETWORKS[network][1], outputs, seed=seed)


def loss_of(data: datasets.Dataset) -> str:
    """Return Keras's name of the loss."""
    return "binary_crossentropy" if data.num_classes == 2 else "sparse_categorical_crossentropy"


def train(network: str, data: datasets.Dataset, options: dict, seed: int, epochs: int) -> dict[str, list[float]]:
    """Train one network without gradients; return validation accuracy and seconds of each sweep."""
    if options.get("preset") == "paper":
        options = {"seed": seed, **options}
    # For two classes, the model's output is a logit.
    accuracy = keras.metrics.BinaryAccuracy("accuracy", threshold=0.0) if data.num_classes == 2 else "accuracy"
    trainer = BregmanTrainer(make_model(network, data, seed), loss_of(data), [accuracy], **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The accuracies show divergence.
        history = trainer.fit(
            data.x_train,
            data.y_train,
            epochs=epochs,
            verbose=0,
            validation_data=(data.x_validation, data.y_validation),
        ).history
    found = history.get("val_accuracy") or [0.0]
    return {"accuracy": found + found[-1:] * (epochs - len(found)), "seconds": history["seconds"]}


def train_adam(network: str, data: datasets.Dataset, seed: int, epochs: int) -> dict[str, list[float]]:
    """Train the same network by Adam, in batches of 32 rows (256 for `higgs_like`); return as `train` does."""
    keras.utils.set_random_seed(seed)
    model = make_model(network, data, seed)
    binary = data.num_classes == 2
    loss = keras.losses.BinaryCrossentropy if binary else keras.losses.SparseCategoricalCrossentropy
    metric = keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy") if binary else "accuracy"
    model.compile(keras.optimizers.Adam(), loss(from_logits=True), metrics=[metric])
    begin = time.perf_counter()
    history = model.fit(
        data.x_train,
        data.y_train,
        batch_size=256 if network == "higgs_like" else 32,
        epochs=epochs,
        verbose=0,
        validation_data=(data.x_validation, data.y_validation),
    ).history
    return {"accuracy": history["val_accuracy"], "seconds": [(time.perf_counter() - begin) / epochs] * epochs}


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the study."""
    title = "Training without gradients: which settings work"
    run = start("bregman_defaults", title, argv, __doc__, data="")
    seeds = range(100 + run.seed, 100 + run.seed + run.choose(1, 3, 10))
    epochs = {name: run.choose(3, 60, 100) for name in NETWORKS} | {"higgs_like": run.choose(1, 15, 30)}
    num_rows = run.choose(2000, 30_000, 60_000)
    names = run.choose(["as printed", "no multiplier", "restarted (default)"], list(VARIANTS), list(VARIANTS))
    networks = run.choose(["digits", "breast_cancer"], list(NETWORKS), list(NETWORKS))
    # Three seeds of the largest network are enough.
    cells = [(n, v, s) for n in networks for v in [*names, "Adam"] for s in (seeds[:3] if n == "higgs_like" else seeds)]
    found: dict[str, dict[str, list]] = {network: {} for network in networks}
    for network, variant, seed in track(cells, "training"):
        data = load(network, seed, num_rows)
        if variant == "Adam":
            result = train_adam(network, data, seed, epochs[network])
        else:
            result = train(network, data, VARIANTS[variant], seed, epochs[network])
        found[network].setdefault(variant, []).append(result)
    run.results = {network: summarise(by_variant) for network, by_variant in found.items()}
    for network, rows in run.results.items():
        print(f"\n{network}: validation accuracy in % after a tenth, half, and all of {epochs[network]} sweeps")
        for variant, row in rows.items():
            print(
                f"  {variant:38} {' '.join(f'{100 * value:5.1f}' for value in row['at'])}   +- "
                f"{100 * row['standard_error']:.1f}   {1000 * row['seconds_per_sweep']:.0f} ms a sweep"
            )
    for network, rows in run.results.items():
        printed, ours, adam = (rows[name] for name in ("as printed", "restarted (default)", "Adam"))
        run.compare(
            f"{network}: final validation accuracy, as printed, default, Adam",
            "the method trains",
            ", ".join(f"{100 * row['at'][-1]:.1f}%" for row in (printed, ours, adam)),
            held=ours["at"][-1] >= adam["at"][-1] - adam["standard_error"],
            partly=ours["at"][-1] > printed["at"][-1],
        )
    return run.finish(draw(run.results))


def summarise(by_variant: dict[str, list]) -> dict[str, dict]:
    """Average the results of `train` over seeds, by variant; accuracies are after a tenth, half and all sweeps."""
    # The median of the seconds leaves out the first sweep, which compiles.
    rows = {}
    for variant, results in by_variant.items():
        curves = np.array([result["accuracy"] for result in results])
        count = curves.shape[1]
        at = [max(0, round(count * share) - 1) for share in (0.1, 0.5, 1.0)]
        error = curves[:, -1].std(ddof=1) / len(curves) ** 0.5 if len(curves) > 1 else 0.0
        rows[variant] = {
            "at": [float(curves[:, k].mean()) for k in at],
            "standard_error": float(error),
            "curve": curves.mean(axis=0).tolist(),
            "seconds_per_sweep": float(np.median([s for result in results for s in result["seconds"]])),
        }
    return rows


def draw(results: dict[str, dict]) -> plt.Figure:
    """Return a figure of validation accuracies against sweeps, one panel per network."""
    figure, panels = _plotting.make_panels(-(-len(results) // 2), 2, height=6.5)
    shown = ["as printed", "no multiplier", "ADMM", "restarted, exact steps, one block", "restarted (default)", "Adam"]
    for ax, (network, rows) in zip(panels, results.items(), strict=True):
        for variant in shown:
            if variant in rows:
                curve = rows[variant]["curve"]
                ax.plot(range(1, len(curve) + 1), curve, label=variant)
        ax.set(title=network, xlabel="sweeps (epochs)", ylabel="validation accuracy")
    _plotting.move_legends_above(figure)
    return figure


if __name__ == "__main__":
    main()
