"""Milne 2019 (arXiv 1810.12805), the regression experiment: how much of the loss change is certified as convex?

The target is 0 on 100 points uniform in [-1, 1], with one hidden layer of two ReLUs, no biases, lambda = 1, and
gradient descent to convergence. Published: on 51.6% +- 24.0% (mean +- standard deviation of 100 trials) of the loss
change the weights were in U(lambda, theta) for some theta > 0. The paper does not give the initial weights, and the
answer depends on them. So the figure shows the fraction as a function of the initial scale, for the paper's certificate
and the sharper one.

All trials run at once in NumPy. One of them also runs in Keras, with the callback `Convexity`, and must give the same
fraction.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting
from tfopt.callbacks import Convexity
from tfopt.curvature import convexity_modulus
from tfopt.models import milne_regression

PUBLISHED_MEAN, PUBLISHED_DEVIATION = 0.516, 0.240
LEARNING_RATE = 0.05
KINDS = ("paper", "sharp")


def descend(points: np.ndarray, inner: np.ndarray, outer: np.ndarray, num_steps: int) -> dict[str, np.ndarray]:
    """Run gradient descent on l(W) + |W|^2 / 2 in many trials; return certified fractions, of shape (trials,)."""
    # Inputs have shape (trials, rows), and both weights have shape (trials, 2).
    radius = np.abs(points).max(axis=1)
    changes = np.zeros(len(points))
    certified = {kind: np.zeros(len(points)) for kind in KINDS}
    before = None
    for _ in range(num_steps + 1):
        hidden = np.maximum(points[:, :, None] * inner[:, None, :], 0.0)
        outputs = np.einsum("tnh,th->tn", hidden, outer)
        error = np.mean(outputs**2, axis=1)  # Keras's mse is twice the paper's l.
        loss = error / 2 + (np.sum(inner**2, axis=1) + np.sum(outer**2, axis=1)) / 2
        if before is not None:
            change = np.abs(loss - before[0])
            changes += change
            for kind in KINDS:
                certified[kind] += change * before[1][kind]
        norm = np.maximum(np.linalg.norm(inner, axis=1), np.linalg.norm(outer, axis=1))
        before = loss, {kind: convexity_modulus(1.0, error, norm, radius, 1, kind=kind) > 0 for kind in KINDS}
        back = outputs[:, :, None] / points.shape[1]
        gradient_outer = np.sum(back * hidden, axis=1) + outer
        gradient_inner = np.sum(back * outer[:, None, :] * (hidden > 0) * points[:, :, None], axis=1) + inner
        inner, outer = inner - LEARNING_RATE * gradient_inner, outer - LEARNING_RATE * gradient_outer
    return {kind: total / changes for kind, total in certified.items()}


def share_in_keras(points: np.ndarray, inner: np.ndarray, outer: np.ndarray, num_steps: int) -> list[float]:
    """Run one trial in Keras, with the callback; return the certified fractions of the paper's and the sharper form."""
    model = milne_regression()
    model.set_weights([inner.reshape(1, 2), outer.reshape(2, 1)])
    # Keras's mse + |W|^2 is twice the paper's loss.
    model.compile(keras.optimizers.SGD(LEARNING_RATE / 2), loss="mse", jit_compile=False)
    x = points.reshape(-1, 1).astype("float32")
    convexity = Convexity((x, np.zeros_like(x)), every_n_steps=1, eigenvalues=False, certificate=True)
    rows = {"batch_size": len(x), "epochs": num_steps, "verbose": 0, "shuffle": False}
    model.fit(x, np.zeros_like(x), callbacks=[convexity], **rows)
    return [convexity.history[f"convexity/fraction_certified_{kind}"][-1] for kind in KINDS]


def crossing(scales: np.ndarray, means: np.ndarray) -> float | None:
    """Return the scale at which a falling curve crosses the published mean; None if it does not."""
    if not means.min() <= PUBLISHED_MEAN <= means.max():
        return None
    return float(np.interp(-PUBLISHED_MEAN, -means, scales))


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Milne 2019: certified share of the loss change, small regression"
    run = start("milne_regression", title, argv, __doc__, data="")
    num_trials, num_steps = run.choose((20, 100), (400, 400), (2000, 1000))
    scales = np.array(run.choose([0.5, 2.0, 4.0], [0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0], np.linspace(0.25, 5, 20)))
    rng = np.random.default_rng(run.seed)
    points = rng.uniform(-1, 1, (num_trials, 100))
    normal = rng.standard_normal((2, num_trials, 2))
    shares = [descend(points, scale * normal[0], scale * normal[1], num_steps) for scale in scales]
    figure, [ax] = _plotting.make_panels()
    ax.axhspan(PUBLISHED_MEAN - PUBLISHED_DEVIATION, PUBLISHED_MEAN + PUBLISHED_DEVIATION, color="0.9")
    ax.axhline(PUBLISHED_MEAN, color="0.5", linestyle=":", label="published, 51.6% +- 24.0%")
    for kind, marker, color in zip(KINDS, "os", _plotting.COLORS, strict=False):
        found = np.array([share[kind] for share in shares])
        mean, deviation = found.mean(axis=1), found.std(axis=1, ddof=1)
        ax.errorbar(
            scales, mean, deviation, fmt=marker, color=color, linestyle="-", capsize=3, label=f"{kind} certificate"
        )
        run.results[kind] = {"mean": mean.tolist(), "standard_deviation": deviation.tolist()}
    ax.set(xlabel="standard deviation of the initial weights", ylabel="certified share of the loss change")
    ax.set(xticks=scales[:: -(-len(scales) // 8)], ylim=(0, None))
    _plotting.move_legends_above(figure, columns=1)
    run.results["initial_scale"] = scales.tolist()
    where = crossing(scales, np.array(run.results["paper"]["mean"]))
    spread = None if where is None else float(np.interp(where, scales, run.results["paper"]["standard_deviation"]))
    run.compare(
        "share certified by the paper's bound",
        "51.6% +- 24.0%",
        "never" if where is None else f"51.6% +- {spread:.1%} for initial weights of standard deviation {where:.2f}",
        held=where is not None and abs(spread - PUBLISHED_DEVIATION) < 0.04,
        partly=where is not None,
    )
    inner, outer = 2 * normal[0], 2 * normal[1]
    alone = descend(points, inner, outer, num_steps=100)
    trial = int(np.argmin(np.abs(alone["paper"] - 0.5)))  # About half of its loss change is certified.
    expected = [float(alone[kind][trial]) for kind in KINDS]
    ours = share_in_keras(points[trial], inner[trial], outer[trial], num_steps=100)
    run.compare(
        "one trial in Keras, with the callback",
        " and ".join(f"{share:.1%}" for share in expected) + " (NumPy)",
        " and ".join(f"{share:.1%}" for share in ours),
        held=bool(np.allclose(ours, expected, atol=0.01)),
    )
    run.results["one_trial"] = {"numpy": expected, "keras": ours}
    return run.finish(figure)


if __name__ == "__main__":
    main()
