"""Why did this training diverge? The curvature before the first step already says so.

The script trains one network on digits by SGD with momentum 0.9 at three learning rates, with the callback Convexity.
It draws the loss, and the learning rate times the largest eigenvalue of the Hessian. On a quadratic loss, steps diverge
where that product is above 2 (1 + momentum) = 3.8. Expect the largest rate to begin eight times above the limit, and to
diverge within 15 steps. The middle rate begins above the limit too, but the curvature falls before the loss rises.

Run `python examples/why_did_it_diverge.py`; it takes half a minute on two cores.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import example_data
import keras
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from tfopt import _plotting, datasets, models
from tfopt.callbacks import Convexity

RATES = (0.02, 0.1, 0.5)


def diagnose(rate: float, data: datasets.Dataset, epochs: int, seed: int) -> Convexity:
    """Train one network and return what the callback has measured."""
    keras.utils.set_random_seed(seed)
    model = models.mlp(data.input_shape, (64,) * 4, data.num_classes, seed=seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss, jit_compile=False)
    probe = (data.x_train[:256], data.y_train[:256])
    convexity = Convexity(probe, every_n_steps=2, spectrum_every_n_epochs=1)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0, callbacks=[convexity])
    return convexity


def draw(measured: dict[float, Convexity], path: Path) -> None:
    """Draw the loss, and the product of learning rate and largest eigenvalue, against steps."""
    figure, (losses, products) = _plotting.make_panels(1, 2, height=3.4)
    for rate, convexity in measured.items():
        steps, history = np.array(convexity.history["step"]), convexity.history
        product = np.array(history["hessian/learning_rate_times_lambda_max"])
        known = np.isfinite(product)
        losses.plot(steps, history["convexity/loss"], label=f"rate {rate:g}")
        products.plot(steps[known], product[known], marker="o")
        if rate == RATES[0]:  # This training reaches its end.
            products.set_xticks(steps[known])
    limit = convexity.history["hessian/stability_limit"][0]
    products.axhline(limit, color="black", linestyle="--")
    products.text(steps[-1], limit * 1.1, f"stability limit {limit:g}", horizontalalignment="right")
    losses.set(xlabel="step", ylabel="training loss", yscale="log")
    products.set(xlabel="step", ylabel="learning rate times lambda_max", yscale="log")
    _plotting.move_legends_above(figure, columns=len(measured))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[float, float]:
    """Run the example; return the product of rate and largest eigenvalue before the first step, by rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/why_did_it_diverge"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="one epoch, as a test")
    example_data.add_arguments(parser)
    arguments = parser.parse_args(argv)
    data, epochs = example_data.load(arguments), 1 if arguments.smoke else arguments.epochs
    measured = {rate: diagnose(rate, data, epochs, arguments.seed) for rate in RATES}
    products = {}
    for rate, convexity in measured.items():
        history = convexity.history
        products[rate] = history["hessian/learning_rate_times_lambda_max"][0]
        print(
            f"learning rate {rate:g}: before the first step {products[rate]:.1f} of a limit of "
            f"{history['hessian/stability_limit'][0]:g}; loss after {history['step'][-1]} steps "
            f"{history['convexity/loss'][-1]:.3g}"
        )
    arguments.output.mkdir(parents=True, exist_ok=True)
    draw(measured, arguments.output / "diagnosis.png")
    return products


if __name__ == "__main__":
    main()
