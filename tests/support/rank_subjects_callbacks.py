"""Callbacks on ranks, with measuring callbacks and what they need: shards and saved models."""

import csv
import warnings

import callback_table
import curvature_parity
import event_files
import keras
import numpy as np
import parity
import tensorflow as tf
from rank_subjects import TwoOptimizers, fit, make_data, make_model, subject, weights_of

from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    ResumableCheckpoint,
    WarmupLearningRate,
    WeightNorms,
    _time_share,
)
from tfopt.curvature import HessianOperator, Objective, extremal_eigenvalues
from tfopt.datasets import EpochBatches
from tfopt.distributed import DistributedOptimizer, shard
from tfopt.planning import fit_noisy_quadratic

_time_share.FREE_SECONDS = 1e9  # On a busy machine, ranks would put off what the tests expect.


@subject
def equal_starts(ranks, folder):
    results = {}
    data = make_data(16, seed=ranks.rank)
    for name, callbacks in (("by_optimizer", []), ("by_callback", [BroadcastVariables(root_rank=ranks.size - 1)])):
        model = make_model(seed=10 * ranks.rank)
        model.layers[1].moving_mean.assign(tf.fill([6], float(ranks.rank)))
        if callbacks:
            model.optimizer.build(model.trainable_variables)
            model.optimizer.variables[2].assign(tf.fill([4, 6], 0.5 * ranks.rank))
        initial = weights_of(model)
        fit(model, data, epochs=0 if callbacks else 1, callbacks=callbacks)
        results[name] = {
            "initial": initial,
            "weights": weights_of(model),
            "momentum": np.asarray(model.optimizer.variables[2]).tolist(),
        }
    deferred = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    deferred.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse", jit_compile=False)
    fit(deferred, data, epochs=1, steps_per_epoch=1, callbacks=[BroadcastVariables()])
    results["deferred"] = weights_of(deferred)
    return results


@subject
def unfrozen_on_all_ranks(ranks, folder):
    """By steps and by epochs, with different rows on each rank."""

    class Unfreeze(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[0].trainable = self.model.layers[1].trainable = True
                self.model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse", jit_compile=False)
                self.model.make_train_function()

    model, data = make_model(), make_data(8, seed=ranks.rank)
    model.layers[0].trainable = model.layers[1].trainable = False
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse", jit_compile=False)
    convexity, breakdown = Convexity(data, spectrum_every_n_epochs=1), GradientBreakdown(data, every_n_steps=1)
    fit(model, data, epochs=2, callbacks=[BroadcastVariables(), Unfreeze(), convexity, breakdown])
    now = extremal_eigenvalues(HessianOperator(model, "mse", *data))
    return {
        "lambda_max": convexity.history["hessian/lambda_max"],
        "now": now.lambda_max,
        "steps": [convexity.history["step"], breakdown.history["step"]],
        "variables": [len(entry) for entry in breakdown.history["cosine"]],
    }


@subject
def shared_objectives(ranks, folder):
    """The number of objectives of callbacks whose data are equal on all ranks, and on one rank only."""
    found, (x, y) = [], make_data(8, seed=ranks.rank)
    for is_equal in (True, ranks.rank == 0):
        model = make_model()
        model.compile(DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse", jit_compile=False)
        callbacks = [GradientBreakdown((x, y)), GradientBreakdown((x, y if is_equal else y + 1), log_name="other")]
        fit(model, (x, y), epochs=1, callbacks=[BroadcastVariables(), *callbacks])
        found.append(len({id(callback._shared.objective) for callback in callbacks}))
    return found


@subject
def optimizers_of_its_own(ranks, folder):
    """The states of a model's own optimizers are broadcast too."""
    model = TwoOptimizers(DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)))
    model.dense.build((None, 4))
    model.built = True
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse", jit_compile=False)
    model.optimizer.build([model.dense.bias])
    model.own["kernel"].build([model.dense.kernel])
    model.own["kernel"].variables[2].assign(tf.fill([4, 1], float(ranks.rank)))
    norms = WeightNorms()
    fit(model, make_data(8, seed=ranks.rank), callbacks=[BroadcastVariables(root_rank=1), norms])
    return {"weights": weights_of(model), "step": norms.history["step"]}


@subject
def optimizers_in_the_place_of_compiles(ranks, folder):
    """The form of GANs: the model has all optimizers, and `compile` has one that is not used, or none."""
    found = []
    for options in ({}, {"optimizer": None}):
        model = TwoOptimizers(*(DistributedOptimizer(keras.optimizers.SGD(rate)) for rate in (0.05, 0.02)))
        model.dense.build((None, 4))
        model.built = True
        model.compile(loss="mse", jit_compile=False, **options)
        before = weights_of(model)
        batches = EpochBatches(*make_data(16), batch_size=8, shuffle=False, communicator=ranks)
        callbacks = [BroadcastVariables(), AverageMetrics()]
        model.fit(batches, shuffle=False, epochs=2, verbose=0, callbacks=callbacks)
        found.append({"before": before, "after": weights_of(model)})
    return found


@subject
def seeds_stay_apart(ranks, folder):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=ranks.rank), keras.layers.Dense(1)])
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8), epochs=1, callbacks=[BroadcastVariables()])
    return [np.asarray(v).tolist() for v in model.variables if v.name == "seed_generator_state"]


@subject
def metrics(ranks, folder):
    class Constant(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["value"], logs["text"] = ranks.rank + epoch, "kept"

    model = make_model(metrics=["mae"])
    history = fit(
        model,
        make_data(16, seed=ranks.rank),
        epochs=2,
        validation_data=make_data(8, seed=10 + ranks.rank),
        callbacks=[BroadcastVariables(), Constant(), AverageMetrics(), keras.callbacks.EarlyStopping("loss")],
    )
    return history.history


@subject
def summed_losses(ranks, folder):
    """Fit a line with a sum of squares over the rows of all ranks, after a step without callbacks."""
    x, y = (np.array_split(part, ranks.size)[ranks.rank] for part in make_data(12, seed=3))
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(
        DistributedOptimizer(keras.optimizers.SGD(0.01)), keras.losses.MeanSquaredError("sum"), jit_compile=False
    )
    options = {"batch_size": 12, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
    model.fit(x, y, **options)
    before = weights_of(model)
    history = model.fit(x, y, **options, epochs=3, callbacks=[BroadcastVariables(), AverageMetrics()]).history
    return {"before": before, "after": weights_of(model), **history}


@subject
def losses_that_are_warned_of(ranks, folder):
    texts = {}
    labels = np.array([[0, 1, 2, 2], [1, 0, 0, 0], [2, 0, 0, 0]])
    for name, loss in (
        ("mean", keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
        ("ignoring", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)),
    ):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Embedding(3, 3)])
        model.compile(DistributedOptimizer("sgd"), loss, jit_compile=False)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(labels, labels, verbose=0, callbacks=[BroadcastVariables()])
        texts[name] = [str(one.message) for one in caught]
    return texts


@subject
def warm_up(ranks, folder):
    rates = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(np.asarray(self.model.optimizer.learning_rate)))

    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.6)))
    history = fit(model, make_data(8), epochs=3, callbacks=[WarmupLearningRate(epochs=2), Rates()])
    return {"rates": rates, "logged": history.history["learning_rate"]}


@subject
def shards(ranks, folder):
    rows = tf.data.Dataset.range(3 * ranks.size + 1)
    pairs = tf.data.Dataset.from_tensor_slices(({"a": tf.range(2 * ranks.size)}, tf.range(2 * ranks.size)))
    unknown = rows.filter(lambda _: True)
    return {
        "known": [int(x) for x in shard(rows)],
        "unknown": [int(x) for x in shard(unknown)],
        "unknown_batches": [x.numpy().tolist() for x in shard(unknown.batch(2))],
        "unknown_pairs": [[int(x["a"]), int(y)] for x, y in shard(pairs.filter(lambda *_: True))],
        "infinite": [int(x) for x in shard(rows.repeat()).take(4)],
        "arrays": [part.tolist() for part in shard((np.arange(3 * ranks.size + 1), np.arange(3 * ranks.size + 1)))],
    }


@subject
def automatic_loss_scaling(ranks, folder):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = make_model()
        fit(model, make_data(16, seed=ranks.rank), callbacks=[BroadcastVariables()])
        return [type(model.optimizer).__name__, model.optimizer.__class__.__name__, weights_of(model)]
    finally:
        keras.config.set_dtype_policy("float32")


@subject
def saved_model(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(parity.OPTIMIZERS["lars"]()))
    data = make_data(16, seed=ranks.rank)
    fit(model, data, callbacks=[BroadcastVariables()])
    if ranks.rank == 0:
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(folder / "tf"))
        np.savez(folder / "variables.npz", *[np.asarray(v) for v in [*model.variables, *model.optimizer.variables]])
        np.savez(folder / "data.npz", *data)
    ranks.barrier()
    return True


@subject
def curvature(ranks, folder):
    x, y, starts = curvature_parity.make_rows(ranks.size)
    mine = slice(*starts[ranks.rank : ranks.rank + 2])
    return curvature_parity.measure(x[mine], y[mine], ranks)


@subject
def a_fit_on_unequal_shards(ranks, folder):
    x, y = curvature_parity.make_noisy_rows()
    mine = slice(0, 250) if ranks.rank == 0 else slice(250, None)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    found = fit_noisy_quadratic(Objective(model, "mse", (x[mine], y[mine])), 20.0, num_runs=4, num_matvecs=6)
    parts = (found.noise, found.start, found.gain_elsewhere[1:], found.floor, found.num_examples, found.num_rows)
    return [np.asarray(part).tolist() for part in parts]


# --- measuring callbacks


# Cell -> callbacks. Eager steps are other steps, and all that is measured of a state is the same: those that measure
# steps are enough there.
CELLS = {
    ("adam", "eager"): ("GradientBreakdown by steps", "WarmupLearningRate", "WeightNorms"),
    ("lars", "steps_per_execution"): tuple(callback_table.CALLBACKS),
}


@subject
def every_callback(ranks, folder):
    """All callbacks together, in steps that run as Python and in executions of several compiled steps."""
    results = {}
    for (optimizer, mode), names in CELLS.items():
        place = folder / f"{optimizer}-{mode}-{ranks.rank}"
        place.mkdir()
        results[f"{optimizer}/{mode}"] = measured_on_ranks(ranks, optimizer, mode, names, place)
    return results


def measured_on_ranks(ranks, optimizer, mode, names, folder):
    x, y = callback_table.X[ranks.rank :: ranks.size][:8], callback_table.Y[ranks.rank :: ranks.size][:8]
    table = {
        name: callback_table.CALLBACKS[name]((x, y), folder)
        for name in names
        if name not in ("BroadcastVariables", "AverageMetrics", "ResumableCheckpoint")
    }
    table["between ranks"] = GradientNoiseScale(log_name="between_ranks")
    checkpoint = ResumableCheckpoint(folder.parent / f"{optimizer}-{mode}", verbose=0)
    loggers = [
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.TensorBoard(folder / "board", write_graph=False),
    ]
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about steps_per_execution, and about unknown callbacks
        for callbacks in ([], [*loggers, *table.values()]):  # the first run has no callback that could change the model
            model = callback_table.model_at_its_start(optimizer, mode, DistributedOptimizer)
            first = [BroadcastVariables(), AverageMetrics()]
            last = [checkpoint] * bool(callbacks)
            rows = np.resize(np.arange(len(x)), 2 * callback_table.STEPS)
            runs.append(callback_table.fit(model, [*first, *callbacks, *last], x[rows], y[rows], batch_size=2))
    (plain_history, plain), (history, values) = runs
    board = event_files.read_scalars(folder / "board")
    logged = [key for name in names for key in callback_table.LOGGED.get(name, [])]
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    return {
        "same": all(np.array_equal(a, b) for a, b in zip(values, plain, strict=True)),
        "same_history": all(history[name] == plain_history[name] for name in plain_history),
        "steps": {name: callback.history["step"] for name, callback in table.items() if hasattr(callback, "history")},
        "history": {name: series for name, series in history.items() if "seconds" not in name},
        "in_csv": all(
            np.allclose([float(row[name]) for row in rows], history[name], equal_nan=True) for name in logged
        ),
        "in_board": all(
            np.allclose(list(board[f"epoch_{name}"].values()), history[name], rtol=1e-5, equal_nan=True)
            for name in logged
        ),
    }


NOISE_CASES = (("plain", {}), ("compressed", {"compression": "float16"}), ("mixed", {}))


@subject
def noise_between_ranks(ranks, folder):
    """A comparison with the gradients themselves; the weights are constant, so every step has the same gradients."""
    rng = np.random.default_rng(ranks.rank)
    x, y = rng.normal(size=(12, 4)).astype("float32"), rng.normal(size=(12, 1)).astype("float32")
    results = {}
    for name, options in NOISE_CASES[: 1 if ranks.size > 2 else None]:
        keras.config.set_dtype_policy("mixed_float16" if name == "mixed" else "float32")
        try:
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
            model.compile(DistributedOptimizer(keras.optimizers.SGD(0.0), **options), "mse", jit_compile=False)
            fit(model, (x, y), batch_size=3)  # compiles a step without measurement
            noise = GradientNoiseScale(local_batch_size=None if name == "plain" else 3)
            before = ranks.bytes_reduced
            fit(model, (x, y), batch_size=3, epochs=2, callbacks=[BroadcastVariables(), noise])
            results[name] = {**noise.history, "bytes": ranks.bytes_reduced - before}
            if name == "plain":  # a second training in other batches must equal a first one
                measured = []
                for callback in (noise, GradientNoiseScale()):
                    fit(model, (x, y), batch_size=6, callbacks=[BroadcastVariables(), callback])
                    measured.append(callback.history["gradient_noise/covariance_trace"])
                results["second"] = measured
        finally:
            keras.config.set_dtype_policy("float32")
    local = []
    for start in range(0, 12, 3):
        rows, targets = np.c_[x, np.ones(12)][start : start + 3], y[start : start + 3, 0]
        local.append(2 / 3 * rows.T @ (rows @ np.array([1.0, 1.0, 1.0, 1.0, 0.0]) - targets))
    results["local_gradients"] = np.array(local).tolist()
    return results
