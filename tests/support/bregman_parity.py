"""Training without gradients on ranks with unequal shards, compared with one process that has all rows."""

import keras
import numpy as np
import tensorflow as tf

from tfopt import models
from tfopt.bregman import BregmanTrainer
from tfopt.callbacks import AverageMetrics, Convexity, GradientBreakdown, GradientNoiseScale, WeightNorms

NUM_ROWS = 61
CASES = {
    "restarted": {"preset": "restarted", "num_blocks": 1},
    "blocks": {"preset": "restarted", "num_blocks": 4},
    "paper": {"preset": "paper", "seed": 3},
    "penalty": {"preset": "penalty"},
    "jacobi": {"preset": "penalty", "update": "jacobi", "initialization": "gaussian"},
    "admm": {"preset": "admm", "multiplier_step": 1, "ridge": 0.01},
    # Inputs and targets have different units; their statistics must be those of all ranks.
    "regression": {"loss": "mse"},
    "flattened table": {"loss": "mse", "inputs": (3, 2)},
    # The weights are untrained and are kept; inputs and targets have different units.
    "copied": {"loss": "mse", "is_copied": True},
}
# A third rank has another share of the rows, which each sum and each statistic of the data must take.
ON_THREE_RANKS = ["restarted", "jacobi", "regression"]
SUBJECTS = {}


def subject(function):
    SUBJECTS[f"bregman_{function.__name__}"] = function
    return function


def make_data(num_rows=NUM_ROWS, inputs=6):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(num_rows, inputs))
    return x, (x @ rng.normal(size=(inputs, 3)) + np.abs(x[:, :1])).argmax(1)


def make_regression_data():
    x, labels = make_data()
    units = 10.0 ** np.arange(-2, 4)
    return 30.0 * units + units * x, 40.0 + np.array([1e-2, 1.0, 1e2]) * (np.eye(3)[labels] + np.abs(x[:, 1:4]))


def shard_of(data, ranks):
    # Rank r has about (r + 1) times as many rows as rank 0.
    shares = np.cumsum([0, *range(1, ranks.size + 1)]) * len(data[0]) // (ranks.size * (ranks.size + 1) // 2)
    return [part[shares[ranks.rank] : shares[ranks.rank + 1]] for part in data]


def make_trainer(
    ranks,
    widths=(6, 6),  # as many as inputs: XLA compiles once for both hidden layers
    inputs=6,
    is_measured=True,
    loss="sparse_categorical_crossentropy",
    is_copied=False,
    **options,
):
    keras.config.set_dtype_policy("float64")
    try:
        # The ranks begin with different weights, and the weights of rank 0 are used.
        model = models.mlp(inputs, widths, 3, seed=ranks.rank)
        if is_copied and ranks.rank == 0:
            model.set_weights(models.mlp(inputs, widths, 3, seed=7).get_weights())
    finally:
        keras.config.set_dtype_policy("float32")
    of_classes = keras.metrics.SparseCategoricalCrossentropy("crossentropy", from_logits=True)
    metrics = ["mse" if loss == "mse" else of_classes] if is_measured else None
    return BregmanTrainer(model, loss, metrics, communicator=ranks, **options)


def train(case, ranks):
    trainer = make_trainer(ranks, **CASES[case])
    x, y = shard_of(make_regression_data() if "loss" in CASES[case] else make_data(), ranks)
    x = x.reshape(-1, *trainer.model.input_shape[1:])
    history = trainer.fit(x, y, epochs=5, verbose=0, validation_data=(x, y))
    logs = {name: values for name, values in history.history.items() if name not in ("seconds", "bytes_reduced")}
    return {"weights": [w.tolist() for w in trainer.model.get_weights()], "logs": logs}


def measure(ranks):
    """Train with the measuring callbacks; each rank's rows are its probe."""
    trainer = make_trainer(ranks)
    x, y = shard_of(make_data(), ranks)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    options = {"data": (x, y), "loss": loss, "communicator": ranks}
    callbacks = [Convexity(num_matvecs=60, **options), GradientBreakdown(**options), GradientNoiseScale(**options)]
    callbacks += [AverageMetrics(ranks), WeightNorms()]
    history = trainer.fit(x, y, epochs=3, verbose=0, callbacks=callbacks)
    names = ["loss", "convexity/loss", "convexity/curvature_along_gradient", "hessian/lambda_max", "hessian/lambda_min"]
    names += ["breakdown/relative_gradient_breakdown", "breakdown/cosine", "breakdown/descent_bound"]
    found = {name: history.history[name] for name in [*names, "weight_norms/max"]}
    return found | {f"steps {place}": callback.history["step"] for place, callback in enumerate(callbacks[:3])}


@subject
def measuring(ranks, folder):
    return measure(ranks)


@subject
def parity(ranks, folder):
    return {case: train(case, ranks) for case in (CASES if ranks.size == 2 else ON_THREE_RANKS)}


@subject
def bytes_reduced(ranks, folder):
    """The bytes of one sweep, for two numbers of rows; all chunks have one shape, to compile once."""
    found = {}
    for preset, width, options in (("restarted", 9, {"num_blocks": 1}), ("penalty", 5, {})):
        for num_rows in (60, 120):
            trainer = make_trainer(ranks, (width,), is_measured=False, preset=preset, chunk_rows=10, **options)
            x, y = shard_of(make_data(num_rows), ranks)
            logs = trainer.fit(x, y, epochs=2, verbose=0).history
            found[f"{preset} {width} {num_rows}"] = logs["bytes_reduced"]
    return found


def refused(function):
    def run(ranks, folder):
        try:
            function(ranks)
        except (ValueError, RuntimeError) as error:
            return str(error)
        return "nothing was raised"

    SUBJECTS[f"bregman_{function.__name__}"] = run


@refused
def nan_on_the_last_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    if ranks.rank == ranks.size - 1:
        x[2, 1] = np.nan
    make_trainer(ranks).fit(x, y, epochs=1, verbose=0)


@refused
def an_empty_shard(ranks):
    x, y = shard_of(make_data(), ranks)
    keep = 0 if ranks.rank == 1 else len(x)
    make_trainer(ranks).fit(x[:keep], y[:keep], epochs=1, verbose=0)


@refused
def other_inputs_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    make_trainer(ranks).fit(x[:, : 6 - (ranks.rank == 0)], y, epochs=1, verbose=0)


@refused
def other_options_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    make_trainer(ranks, ridge=0.1 + 0.1 * (ranks.rank == 1)).fit(x, y, epochs=1, verbose=0)


@refused
def more_epochs_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    make_trainer(ranks).fit(x, y, epochs=1 + (ranks.rank == 0), verbose=0)


@refused
def validation_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    make_trainer(ranks).fit(x, y, epochs=1, verbose=0, validation_data=(x, y) if ranks.rank == 0 else None)


@refused
def a_refused_callback_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)
    callbacks = [keras.callbacks.ReduceLROnPlateau()] * (ranks.rank == 1)
    make_trainer(ranks).fit(x, y, epochs=1, verbose=0, callbacks=callbacks)


@refused
def a_pipeline_that_breaks_on_one_rank(ranks):
    x, y = shard_of(make_data(), ranks)

    def check(row, label):
        return tf.debugging.check_numerics(row, "broken"), label

    x[0] = np.nan if ranks.rank == 1 else 0.0
    make_trainer(ranks).fit(tf.data.Dataset.from_tensor_slices((x, y)).map(check).batch(4), epochs=1, verbose=0)


@subject
def another_checkpoint_on_one_rank(ranks, folder):
    x, y = shard_of(make_data(), ranks)
    make_trainer(ranks).fit(x, y, epochs=1, verbose=0, checkpoint=folder)
    try:
        make_trainer(ranks).fit(x + (ranks.rank == 1), y, epochs=2, verbose=0, checkpoint=folder)
    except ValueError as error:
        return str(error)
    return "nothing was raised"


@subject
def stopping_on_one_rank(ranks, folder):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1 and ranks.rank == 0

    x, y = shard_of(make_data(), ranks)
    return make_trainer(ranks).fit(x, y, epochs=9, verbose=0, callbacks=[Stop()]).epoch


@subject
def resuming(ranks, folder):
    x, y = shard_of(make_data(), ranks)

    def fit(place, epochs):
        trainer = make_trainer(ranks, **CASES["paper"])
        history = trainer.fit(x, y, epochs=epochs, verbose=0, checkpoint=folder / place)
        return [w.tolist() for w in trainer.model.get_weights()], history.history["loss"]

    fit("parts", 2)
    return fit("parts", 5) == fit("whole", 5)
