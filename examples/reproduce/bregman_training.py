"""Taylor et al. 2016 (arXiv 1605.02026), Figures 1 and 2: training without gradients against gradient methods.

The task is the Higgs problem with a network 28-300-1. Published times to 64%: 7.8 s on 7,200 cores, 181 s for L-BFGS on
a GPU, 44 minutes for conjugate gradients, and never for plain SGD. A linear classifier reaches 64%; L-BFGS later
reached 75%. Here all methods train the same network from the same weights on the same rows (`higgs_like` unless
HIGGS.csv is on disk), on one machine. Clocks run during training only, not during measurements and compilation.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import time
from collections.abc import Callable

import keras
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
import tensorflow as tf
from reproduction import Reproduction, start
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from tfopt import _plotting, datasets, models
from tfopt.bregman import BregmanTrainer

# Seconds on a method's clock, and its weights at those times.
Trace = list[tuple[float, list[np.ndarray]]]


def make_model(data: datasets.Dataset, hidden_units: int, seed: int) -> keras.Model:
    """Return the network, which ends in a logit."""
    return models.mlp(data.input_shape, (hidden_units,), 1, seed=seed)


class Clock(keras.callbacks.Callback):
    """Keeps the weights and the time at the end of each epoch; the time to keep them does not count."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: Trace = []
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keep the weights."""
        now = time.perf_counter()
        self.trace.append((now - self.begin, self.model.get_weights()))
        self.begin += time.perf_counter() - now


def without_gradients(data: datasets.Dataset, model: keras.Model, epochs: int, **options) -> Trace:
    """Train by `BregmanTrainer` with some options, and return the trace."""
    first = model.get_weights()
    trainer = BregmanTrainer(model, "binary_crossentropy", measure_every_n_epochs=epochs, **options)
    trainer.fit(data.x_train, data.y_train, epochs=2, verbose=0)  # This compiles.
    model.set_weights(first)
    clock = Clock()
    trainer.fit(data.x_train, data.y_train, epochs=epochs, verbose=0, callbacks=[clock])
    return clock.trace


def sweeps_of(data: datasets.Dataset, model: keras.Model, epochs: int, **options) -> dict[str, list[float]]:
    """Train again without a clock; return objective and primal residuals after each sweep."""
    trainer = BregmanTrainer(model, "binary_crossentropy", **options)
    history = trainer.fit(data.x_train, data.y_train, epochs=epochs, verbose=0).history
    return {name: values for name, values in history.items() if name == "objective" or "residual" in name}


def by_keras(data: datasets.Dataset, model: keras.Model, epochs: int, optimizer: keras.Optimizer) -> Trace:
    """Train by an optimizer, in batches of 256 rows, and return the trace."""
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=True)
    optimizer.build(model.trainable_variables)
    clock = Clock()
    batches = tf.data.Dataset.from_tensor_slices((data.x_train, data.y_train.astype("float32")))
    batches = batches.shuffle(len(data.x_train), seed=0).batch(256, drop_remainder=True).prefetch(2)
    variables = [*model.variables, *optimizer.variables]
    first = [keras.ops.convert_to_numpy(variable) for variable in variables]
    model.fit(batches.take(1), epochs=1, verbose=0, shuffle=False)  # This compiles.
    for variable, value in zip(variables, first, strict=True):
        variable.assign(value)
    model.fit(batches, epochs=epochs, verbose=0, callbacks=[clock], shuffle=False)
    return clock.trace


def by_scipy(data: datasets.Dataset, model: keras.Model, iterations: int, method: str) -> Trace:
    """Train on all rows at once by one of SciPy's methods, with loss and gradient compiled by XLA; return the trace."""
    shapes = [w.shape for w in model.get_weights()]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    x, y = tf.constant(data.x_train), tf.constant(data.y_train[:, None], tf.float32)

    @tf.function(jit_compile=True, autograph=False)
    def loss_and_gradient(flat: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(flat)
            parts = tf.split(flat, [int(np.prod(shape)) for shape in shapes])
            w1, b1, w2, b2 = (tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True))
            outputs = tf.nn.relu(x @ w1 + b1) @ w2 + b2
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y, outputs))
        return loss, tape.gradient(loss, flat)

    def function(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = loss_and_gradient(tf.constant(flat, tf.float32))
        return float(loss), gradient.numpy().astype(np.float64)

    flat = np.concatenate([w.ravel() for w in model.get_weights()]).astype(np.float64)
    function(flat)  # This compiles.
    trace: Trace = []
    begin = time.perf_counter()

    def keep(current: np.ndarray) -> None:
        trace.append((
            time.perf_counter() - begin,
            [p.reshape(s) for p, s in zip(np.split(current, cuts), shapes, strict=True)],
        ))

    scipy.optimize.minimize(
        function, flat, jac=True, method=method, callback=keep, options={"maxiter": iterations, "gtol": 0.0}
    )
    return trace


def accuracies(trace: Trace, model: keras.Model, data: datasets.Dataset) -> dict[str, list[float]]:
    """Return the seconds of a trace, and accuracies on (at most 50,000) training rows and on test rows."""
    result: dict[str, list[float]] = {"seconds": [], "train": [], "test": []}
    x_train, y_train = data.x_train[:50_000], data.y_train[:50_000]
    for seconds, weights in trace:
        model.set_weights(weights)
        result["seconds"].append(seconds)
        for name, x, y in (("train", x_train, y_train), ("test", data.x_test, data.y_test)):
            outputs = model.predict(x, batch_size=8192, verbose=0)[:, 0]
            result[name].append(float(((outputs > 0) == (y > 0.5)).mean()))
    return result


def first_time(result: dict[str, list[float]], accuracy: float) -> float:
    """Return the seconds until a test accuracy was first reached; infinity for never."""
    return next((s for s, a in zip(result["seconds"], result["test"], strict=True) if a >= accuracy), float("inf"))


def fixed_features(data: datasets.Dataset, hidden_units: int, seed: int) -> float:
    """Return the test accuracy of least squares on the untrained hidden layer."""
    w1, b1 = make_model(data, hidden_units, seed).get_weights()[:2]
    features, test = (np.maximum(x @ w1 + b1, 0) for x in (data.x_train, data.x_test))
    return RidgeClassifier(alpha=1.0).fit(features, data.y_train).score(test, data.y_test)


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    run = start("bregman_training", "Taylor et al. 2016: training without gradients, Higgs", argv, __doc__, data="")
    data = datasets.load("higgs_like", num_rows=run.choose(3000, 200_000, 1_000_000), seed=run.seed)
    width, epochs = run.choose(20, 300, 300), run.choose(2, 20, 50)
    iterations = run.choose(3, 150, 500)
    methods: dict[str, Callable[[keras.Model], Trace]] = {
        "without gradients (default)": lambda m: without_gradients(data, m, epochs),
        "without gradients, one block": lambda m: without_gradients(data, m, epochs, num_blocks=1),
        "as printed": lambda m: without_gradients(data, m, epochs, preset="paper"),
        "L-BFGS": lambda m: by_scipy(data, m, iterations, "L-BFGS-B"),
        "CG": lambda m: by_scipy(data, m, iterations, "CG"),
        "SGD, momentum 0.9": lambda m: by_keras(data, m, epochs, keras.optimizers.SGD(0.05, momentum=0.9)),
        "Adam": lambda m: by_keras(data, m, epochs, keras.optimizers.Adam()),
    }
    for name, train in methods.items():
        keras.utils.set_random_seed(run.seed)
        trace = train(make_model(data, width, run.seed))
        run.results[name] = accuracies(trace, make_model(data, width, run.seed), data)
        last = run.results[name]
        print(f"{name}: {last['test'][-1]:.3f} on test rows after {last['seconds'][-1]:.1f} s", flush=True)
    for name, options in (("without gradients (default)", {}), ("as printed", {"preset": "paper"})):
        run.results[f"{name}, sweeps"] = sweeps_of(data, make_model(data, width, run.seed), epochs, **options)
    linear = LogisticRegression(max_iter=200).fit(data.x_train, data.y_train).score(data.x_test, data.y_test)
    fixed = fixed_features(data, width, run.seed)
    run.results["levels"] = {"logistic regression": linear, "untrained hidden layer, least squares": fixed}
    compare(run, linear, fixed)
    return run.finish(draw(run.results, list(methods), linear, fixed))


def compare(run: Reproduction, linear: float, fixed: float) -> None:
    """Compare published with measured results; `linear` and `fixed` are accuracies of the two simple methods."""
    results = run.results
    names = ("without gradients (default)", "L-BFGS", "CG", "SGD, momentum 0.9", "Adam")
    for what, level in (("the linear classifier's level", linear), ("70%", 0.70), ("75%", 0.75)):
        times = {name: first_time(results[name], level) for name in names}
        ours, lbfgs, cg = (times[name] for name in names[:3])
        said = ", ".join(
            f"{name} {seconds:.2f} s" if seconds < 1e9 else f"{name} never" for name, seconds in times.items()
        )
        run.compare(
            f"time to {what} ({100 * level:.1f}% of test rows)",
            "7,200 cores 7.8 s, L-BFGS on a GPU 181 s, CG 44 min (64%)" if level == linear else "not given",
            said,
            held=ours < min(lbfgs, cg),
            partly=ours < cg,
        )
    printed = max(results["as printed"]["test"])
    run.compare(
        "the printed algorithm stalls at the linear classifier's level",
        "64%, as logistic regression",
        f"{100 * printed:.1f}%; logistic regression {100 * linear:.1f}%",
        held=abs(printed - linear) < 0.02,
        partly=printed < fixed,
    )
    best = {name: max(results[name]["test"]) for name in names}
    run.compare(
        "accuracy on test rows in the end",
        "L-BFGS 75%",
        ", ".join(f"{name} {100 * value:.1f}%" for name, value in best.items())
        + f"; fixed features {100 * fixed:.1f}%",
        held=best[names[0]] >= best["L-BFGS"],
        partly=best[names[0]] > linear,
    )


def draw(results: dict, names: list[str], linear: float, fixed: float) -> plt.Figure:
    """Return a figure of test accuracy against seconds and sweeps, and of objectives and residuals against sweeps."""
    figure, (by_seconds, by_sweeps, inside) = _plotting.make_panels(3, height=10.5)
    by_sweeps.sharey(by_seconds)
    for name in names:
        result = results[name]
        by_seconds.plot(result["seconds"], result["test"], marker=".", label=name)
        if "gradients" in name or name == "as printed":
            (line,) = by_sweeps.plot(
                range(1, len(result["test"]) + 1), result["test"], linestyle="-", label=f"{name}, test"
            )
            by_sweeps.plot(range(1, len(result["train"]) + 1), result["train"], "--", color=line.get_color())
    for ax in (by_seconds, by_sweeps):
        ax.axhline(linear, color="gray", linestyle=":", label="logistic regression")
        ax.axhline(fixed, color="gray", linestyle="--", label="untrained hidden layer")
        _plotting.add_legend(ax)
    by_seconds.set(xscale="log", xlabel="seconds", ylabel="accuracy on test rows")
    by_sweeps.set(xlabel="sweeps (dashed: training rows)", ylabel="accuracy")
    for name, style in (("without gradients (default)", "-"), ("as printed", "--")):
        for k, (what, values) in enumerate(results[f"{name}, sweeps"].items()):
            inside.semilogy(
                range(1, len(values) + 1), values, style, color=_plotting.COLORS[k], label=f"{what}, {name}"
            )
    inside.set(xlabel="sweeps")
    _plotting.add_legend(inside)
    return figure


if __name__ == "__main__":
    main()
