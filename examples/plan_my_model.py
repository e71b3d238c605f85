"""Which batch size should I train my model with? Plan it after a short pilot, then train as planned.

Replace the model, loss and data by your own. Here they are a small network and a synthetic substitute for the HIGGS
data. A pilot of one epoch at a guessed rate shows where training leads. A noisy quadratic, fitted there, predicts the
number of steps to the pilot's loss at every batch size, with the best rate and momentum. The script then trains the
model from its first weights as the plan suggests, and prints the measured beside the predicted steps.

The script writes `figure.png` and `plan.json` into `runs/plan_my_model/`. Run `python examples/plan_my_model.py`; it
takes half a minute.
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

from tfopt import _plotting
from tfopt.curvature import Objective
from tfopt.models import mlp
from tfopt.planning import BatchSizePlan, plan_batch_size


class UntilLoss(keras.callbacks.Callback):
    """Stops training when the loss on some rows is at most a target, checked every `interval` steps."""

    def __init__(self, x: np.ndarray, y: np.ndarray, target: float, interval: int) -> None:
        super().__init__()
        self.x, self.y, self.target, self.interval = x, y, target, interval
        self.steps, self.is_reached = 0, False

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count the step, and evaluate the loss."""
        self.steps += 1
        if self.steps % self.interval == 0:
            loss = self.model.compute_loss(self.x, self.y, self.model(self.x, training=False))
            self.is_reached = bool(loss <= self.target)
            self.model.stop_training = self.is_reached


def train_as_planned(
    model: keras.Model, loss: keras.losses.Loss, x: np.ndarray, y: np.ndarray, plan: BatchSizePlan, epochs: int
) -> UntilLoss:
    """Train with the suggested batch size and optimizer to the plan's target; return the callback that counts steps."""
    found = plan.suggest()
    until = UntilLoss(x[:8192], y[:8192], plan.target_loss, interval=max(int(found.steps) // 50, 1))
    model.compile(plan.make_optimizer(), loss)
    model.fit(x, y, batch_size=found.batch_size, epochs=epochs, verbose=0, callbacks=[until])
    return until


def main(argv: list[str] | None = None) -> BatchSizePlan:
    """Run the pilot, plan and train; return the plan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/plan_my_model"))
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the fit and the search")
    parser.add_argument("--smoke", action="store_true", help="fewer rows and runs, as a test")
    example_data.add_arguments(parser, default="higgs_like")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    if arguments.data == "higgs_like" and arguments.rows is None:
        arguments.rows = 5_400 if arguments.smoke else 66_700  # Three quarters of them are for training.
    data = example_data.load(arguments)
    x, y = data.x_train, data.y_train
    model = mlp(data.input_shape, (32,), data.num_classes, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    initial_weights = model.get_weights()
    model.compile(keras.optimizers.SGD(0.3), loss)
    model.fit(x, y, epochs=1, batch_size=64, verbose=0)  # This is the pilot.

    plan = plan_batch_size(
        Objective(model, loss, (x, y)),
        budget_seconds=None if arguments.smoke else arguments.budget,
        initial_weights=initial_weights,
        families=["sgd", "momentum"],
        **({"num_runs": 4, "num_matvecs": 10, "num_draws": 20} if arguments.smoke else {}),
    )
    print(plan.fit)
    print(plan)
    figure, panels = _plotting.make_panels(2, height=7.0)
    plan.plot(panels[0])
    plan.fit.plot(panels[1])
    figure.savefig(arguments.output / "figure.png", dpi=150)
    plt.close(figure)
    plan.save(arguments.output / "plan.json")

    model.set_weights(initial_weights)
    found = plan.suggest()
    until = train_as_planned(model, loss, x, y, plan, epochs=20)
    print(
        f"Trained with batch size {found.batch_size}, learning rate {found.learning_rate:.3g} and momentum "
        f"{found.momentum:.2g}: {until.steps if until.is_reached else 'more than ' + str(until.steps)} steps to a loss "
        f"of {plan.target_loss:.4g}. The plan predicted {found.steps:.0f}"
    )
    return plan


if __name__ == "__main__":
    main()
