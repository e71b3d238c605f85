"""Time sweeps of training without gradients against matrix products and NumPy.

Run with `python benchmarks/bregman.py`. The effect of more ranks is measured in `benchmarks/scaling.py`.
"""

import itertools
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import environment
import numpy as np
import scipy
import tensorflow as tf

from tfopt import models
from tfopt.bregman import BregmanTrainer

# Rows and widths. With one output the loss is the binary cross-entropy.
SHAPES = {"60,000 x 784-256-256-10": (60_000, (784, 256, 256, 10)), "200,000 x 28-300-1": (200_000, (28, 300, 1))}
REPETITIONS = 7


def plain_flops(num_rows: int, widths: tuple[int, ...]) -> float:
    """Return the operations of the printed algorithm's matrix products in one sweep over N = `num_rows` rows."""
    # A layer with p inputs and n outputs takes, with multiplications and additions counted separately: N p^2 for A'A
    # (its symmetric half), 2 N p n for A'Z, and 2 N p n for A W. A hidden activation of width p below a layer with n
    # outputs takes 2 N p n for Z W' and 2 N p^2 for the product with the inverse. Entrywise updates and small systems
    # are not counted.
    total = 0.0
    for layer, (p, n) in enumerate(itertools.pairwise(widths)):
        total += num_rows * (p * p + 4 * p * n)
        if layer > 0:
            total += num_rows * (2 * p * n + 2 * p * p)
    return total


def matrix_product_rate(size: int = 2048) -> float:
    """Return operations per second of a product of two float32 matrices of `size` rows and columns, the best of ten."""
    a = tf.random.stateless_normal((size, size), (0, 0))
    product = tf.function(lambda x: tf.matmul(x, x), autograph=False)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        product(a).numpy()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)


def make(num_rows: int, widths: tuple[int, ...], seed: int = 0, **options) -> tuple:
    """Return a trainer with these options, inputs and labels, all random; `widths` are of the inputs and each layer."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, widths[0]), dtype=np.float32)
    y = rng.integers(0, max(widths[-1], 2), num_rows)
    loss = "binary_crossentropy" if widths[-1] == 1 else "sparse_categorical_crossentropy"
    model = models.mlp(widths[0], widths[1:-1], widths[-1], seed=0)
    return BregmanTrainer(model, loss, measure_every_n_epochs=1000, **options), x, y


def seconds_of_sweeps(num_rows: int, widths: tuple[int, ...], **options) -> list[float]:
    """Return the seconds of each of the last sweeps, since the first ones compile."""
    trainer, x, y = make(num_rows, widths, **options)
    history = trainer.fit(x, y, epochs=REPETITIONS + 3, verbose=0)
    return history.history["seconds"][2:-1]  # The last sweep also measures.


def numpy_sweep(x: np.ndarray, y: np.ndarray, widths: tuple[int, ...], with_pinv: bool) -> float:
    """Return the seconds of one sweep of the printed algorithm in NumPy, float32, one hidden layer, hinge on {0, 1}."""
    # Weights come from the pseudo-inverse of the activations, as printed, if `with_pinv`; else from Cholesky's
    # factorisation.
    beta, gamma = np.float32(1), np.float32(10)
    rng = np.random.default_rng(0)
    z = [rng.standard_normal((len(x), n), dtype=np.float32) for n in widths[1:]]
    a = [x, rng.standard_normal((len(x), widths[1]), dtype=np.float32)]
    w2 = rng.standard_normal((widths[1], widths[2]), dtype=np.float32)
    targets, multiplier = y[:, None].astype(np.float32), np.zeros_like(z[1])

    def solve(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if with_pinv:
            return np.linalg.pinv(left) @ right
        matrix = left.T @ left
        matrix += 1e-6 * np.trace(matrix) / len(matrix) * np.eye(len(matrix), dtype="f4")
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(matrix), left.T @ right)

    begin = time.perf_counter()
    w1 = solve(a[0], z[0])
    inverse = np.linalg.inv(beta * w2 @ w2.T + gamma * np.eye(len(w2), dtype=np.float32))
    a[1] = (beta * z[1] @ w2.T + gamma * np.maximum(z[0], 0)) @ inverse
    m = a[0] @ w1
    up, down = np.maximum(0, (gamma * a[1] + beta * m) / (gamma + beta)), np.minimum(0, m)
    is_up = gamma * (a[1] - up) ** 2 + beta * (up - m) ** 2 <= gamma * a[1] ** 2 + beta * (down - m) ** 2
    z[0] = np.where(is_up, up, down)
    w2 = solve(a[1], z[1])
    m = a[1] @ w2
    u = m - multiplier / (2 * beta)
    one = np.where(u >= 1, u, np.minimum(1, u + 1 / (2 * beta)))
    zero = np.where(u <= 0, u, np.maximum(0, u - 1 / (2 * beta)))
    z[1] = np.where(targets > 0.5, one, zero)
    multiplier = multiplier + beta * (z[1] - m)
    return time.perf_counter() - begin


def on_one_process() -> dict:
    """Time sweeps against matrix products and NumPy, and return medians and ratios by shape."""
    found = {}
    for name, (num_rows, widths) in SHAPES.items():
        rate = matrix_product_rate()
        floor = plain_flops(num_rows, widths) / rate
        row = {"operations": plain_flops(num_rows, widths), "operations_per_second": rate, "floor_seconds": floor}
        cases = {
            "paper": {"preset": "paper"},
            "penalty": {"preset": "penalty"},
            "restarted, one block": {"num_blocks": 1},
            "restarted (default)": {},
        }
        for case, options in cases.items():
            seconds = float(np.median(seconds_of_sweeps(num_rows, widths, **options)))
            row[case] = {"seconds": seconds, "over_floor": seconds / floor}
            print(f"{name}, {case}: {1000 * seconds:.0f} ms a sweep, {seconds / floor:.2f} of the floor", flush=True)
        found[name] = row
    num_rows, widths = SHAPES["200,000 x 28-300-1"]
    _, x, y = make(num_rows, widths)
    plain = {
        name: min(numpy_sweep(x, y, widths, with_pinv) for _ in range(3))
        for name, with_pinv in (("pinv", True), ("Cholesky", False))
    }
    ours = found["200,000 x 28-300-1"]["paper"]["seconds"]
    found["NumPy, 200,000 x 28-300-1"] = {
        name: {"seconds": seconds, "times_ours": seconds / ours} for name, seconds in plain.items()
    }
    print(found["NumPy, 200,000 x 28-300-1"])
    return found


def main() -> None:
    """Run, print and write the results."""
    environment.write(environment.RESULTS / "bregman.json", ["tensorflow", "keras", "numpy"], on_one_process())


if __name__ == "__main__":
    main()
