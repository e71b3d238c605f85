"""Bernstein et al. 2020 (arXiv 2002.03432): why Fromage has a prefactor. LARS's weights grow until they overflow.

If the loss does not depend on the scale of a weight matrix, as before a normalisation, its gradient is orthogonal to
it. Then a step of relative size eta multiplies its norm by sqrt(1 + eta^2), and Fromage divides by exactly that. LARS
with trust_coefficient=1 and no momentum is Fromage without the division. At eta = 1 float32 weights overflow after 256
steps and float16 weights after 31; at eta = 0.01 float32 weights take 1.8 million steps.

The overflow is shown with gradients made orthogonal by hand, because in a network another part fails first (the
variance that BatchNorm computes overflows after half as many steps). The growth at eta = 0.01 is that of a network.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from reproduction import Reproduction, start

from tfopt import _plotting, datasets, models
from tfopt.optimizers import LARS, Fromage


def norms_with_orthogonal_gradients(optimizer: keras.Optimizer, dtype: str, num_steps: int, seed: int) -> np.ndarray:
    """Apply an optimizer to orthogonal gradients; return the norms before and after each step, until infinite."""
    rng = np.random.default_rng(seed)
    start = rng.standard_normal((64, 32))
    weights = keras.Variable(start / np.linalg.norm(start), dtype=dtype)
    found = []
    for _ in range(num_steps + 1):
        values = np.asarray(weights.value, np.float64)
        found.append(np.linalg.norm(values) if np.isfinite(values).all() else np.inf)
        if found[-1] == np.inf:
            break
        direction, unit = rng.standard_normal(values.shape), values / found[-1]
        gradient = direction - np.sum(direction * unit) * unit
        optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype)], [weights])
    return np.array(found)


def norms_in_a_network(optimizer: keras.Optimizer, data: datasets.Dataset, num_steps: int, seed: int) -> np.ndarray:
    """Train a network with a scale-invariant first kernel; return that kernel's norm before and after each step."""
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, (32,), data.num_classes, batch_normalization=True, seed=seed)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    rng = np.random.default_rng(seed)
    found = []
    for step in range(num_steps + 1):
        found.append(np.linalg.norm(np.asarray(model.get_layer("hidden_1").kernel.value, np.float64)))
        if step < num_steps:
            rows = rng.choice(len(data.x_train), 64, replace=False)
            model.train_on_batch(data.x_train[rows], data.y_train[rows])
    return np.array(found)


def main(argv: list[str] | None = None) -> Reproduction:
    """Run the reproduction."""
    title = "Bernstein et al. 2020: norms under LARS and Fromage"
    run = start("norms_to_overflow", title, argv, __doc__)
    data = run.load()
    num_small = run.choose(50, 1000, 20_000)
    lars = lambda rate: LARS(rate, trust_coefficient=1.0, momentum=0.0)  # noqa: E731
    by_hand = {
        f"{name}, eta = 1, {dtype}": norms_with_orthogonal_gradients(make(1.0), dtype, 300, run.seed)
        for name, make in (("LARS", lars), ("Fromage", Fromage))
        for dtype in ("float32", "float16")
    }
    in_network = {
        f"{name}, eta = 0.01": norms_in_a_network(make(0.01), data, num_small, run.seed)
        for name, make in (("LARS", lars), ("Fromage", Fromage))
    }
    figure, panels = _plotting.make_panels(2, height=6.0)
    for ax, found, title in zip(
        panels, (by_hand, in_network), ("orthogonal gradients", "a network with BatchNorm"), strict=True
    ):
        for name, norms in found.items():
            ax.plot(norms, label=name)
            run.results[name] = [float(norm) if np.isfinite(norm) else None for norm in norms]
        ax.set(xlabel="step", ylabel="norm", title=title)
        _plotting.add_legend(ax)
    panels[0].set_yscale("log")
    overflows = [len(by_hand[f"LARS, eta = 1, {dtype}"]) - 1 for dtype in ("float32", "float16")]
    run.compare(
        "LARS at eta = 1: steps until float32 and float16 weights overflow",
        "256 and 31",
        f"{overflows[0]} and {overflows[1]}",
        # At norm 1 the entries are smaller than 1, so they overflow up to log2(number of entries) steps later.
        held=256 <= overflows[0] <= 256 + 11 and 31 <= overflows[1] <= 31 + 11,
        partly=overflows[0] < 300,
    )
    growth = in_network["LARS, eta = 0.01"][-1] / in_network["LARS, eta = 0.01"][0]
    expected = (1 + 0.01**2) ** (num_small / 2)
    run.compare(
        f"LARS at eta = 0.01: growth in {num_small} steps of a network",
        f"(1 + eta^2)^(n/2) = {expected:.4f}",
        f"{growth:.4f}",
        held=abs(growth / expected - 1) < 0.01,
    )
    kept = {"eta = 1": by_hand["Fromage, eta = 1, float32"], "eta = 0.01": in_network["Fromage, eta = 0.01"]}
    drifts = [norms[-1] / norms[0] - 1 for norms in kept.values()]
    run.compare(
        "Fromage: change of the norm in 300 steps at eta = 1, and in the network at 0.01",
        "none",
        ", ".join(f"{drift:+.2%}" for drift in drifts),
        held=max(map(abs, drifts)) < 0.01,
    )
    return run.finish(figure)


if __name__ == "__main__":
    main()
