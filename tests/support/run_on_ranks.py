"""What each of N ranks does in the tests of `tfopt.distributed`; started once for each N.

Each subject is a function of the communicator; what it returns, or the error that it raises, is saved by rank.
"""

import csv
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bregman_parity
import callback_table
import curvature_parity
import event_files
import keras
import numpy as np
import parity
import tensorflow as tf
from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    ResumableCheckpoint,
    WarmupLearningRate,
    WeightNorms,
)

from tfopt import communicator as communicators
from tfopt.datasets import EpochBatches
from tfopt.distributed import DistributedOptimizer, shard
from tfopt.distributed.gradients import mean_gradients, merge_rows
from tfopt.planning import fit_noisy_quadratic

SUBJECTS = {}


def subject(function):
    SUBJECTS[function.__name__] = function
    return function


def misuse(function):
    """A subject that must end in an error on every rank; its message and how long it took are saved."""

    def catch(ranks, folder):
        start = time.perf_counter()
        try:
            function(ranks, folder)
        except Exception as error:
            return {
                "error": type(error).__name__,
                "message": str(error),
                "seconds": time.perf_counter() - start,
            }
        return {"error": None, "message": "nothing was raised", "seconds": time.perf_counter() - start}

    SUBJECTS[function.__name__] = catch
    return function


def make_model(seed=0, **options):
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, kernel_initializer=keras.initializers.HeNormal(seed)),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(seed + 1)),
    ])
    options = {"optimizer": DistributedOptimizer(keras.optimizers.Adam(0.01)), "jit_compile": False, **options}
    model.compile(loss="mse", **options)
    return model


def make_data(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def fit(model, data, **options):
    return model.fit(*data, **{"batch_size": 4, "verbose": 0, "shuffle": False, **options})


def weights_of(model):
    return [np.asarray(weight).tolist() for weight in model.get_weights()]


# --- the communicator


@subject
def reductions(ranks, folder):
    before = ranks.bytes_reduced
    mine = ranks.rank + 1.0
    eager = ranks.allreduce_sum([tf.constant([mine, 2 * mine]), tf.constant(ranks.rank, tf.int64)])
    mean = ranks.allreduce_mean([tf.constant(mine, tf.float64), tf.constant([6e4], tf.float16)])

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None])])
    def in_graph(x):
        first = ranks.allreduce_sum([x])[0]
        second = ranks.allreduce_sum([2.0 * x, tf.ones([2, 2], tf.float64)])
        return first, *second, *ranks.allreduce_mean([x])

    graph = in_graph(tf.constant([mine, mine, mine]))
    counted = ranks.bytes_reduced - before
    graph = in_graph(tf.constant([mine]))
    return {
        "eager": [eager[0].numpy().tolist(), int(eager[1])],
        "mean": [float(mean[0]), mean[1].numpy().tolist()],
        "graph": [part.numpy().tolist() for part in graph],
        "shapes": [part.shape.as_list() for part in eager],
        "bytes": counted,
        "bytes_of_second_run": ranks.bytes_reduced - before - counted,
    }


@subject
def other_collectives(ranks, folder):
    root = ranks.size - 1
    rows = tf.fill([ranks.rank + 1, 2], float(ranks.rank))
    gathered = ranks.allgather(rows)
    in_graph = tf.function(lambda: ranks.broadcast([tf.constant(ranks.rank)], root)[0], autograph=False)()
    ranks.barrier()
    return {
        "gathered": gathered.numpy().tolist(),
        "objects": ranks.allgather_object({"rank": ranks.rank}),
        "broadcast": [int(t) for t in ranks.broadcast([tf.constant(ranks.rank), tf.constant(10 + ranks.rank)], root)],
        "in_graph": int(in_graph),
        "current_is_the_same": communicators.current() is ranks,
    }


@subject
def joining(ranks, folder):
    """The first rank makes fewer sums than the last; the others see zeros in its place, again and again."""
    sums = []
    for _ in range(3):
        for _ in range(ranks.rank + 1):
            sums.append(float(ranks.allreduce_sum([tf.constant(1.0)], name="joining")[0]))
        ranks.join()
    return sums


@subject
def order_in_graphs(ranks, folder):
    """Operations of the same name whose operands are ready in another order on each rank."""

    def late(value, is_late):
        # A long way round, on one of the ranks.
        count = tf.constant(200_000 if is_late else 1)
        body = lambda i, x: (i + 1, x + 0.0)  # noqa: E731
        return tf.while_loop(lambda i, _: i < count, body, [0, tf.convert_to_tensor(value)])[1]

    one = tf.function(lambda v: ranks.allreduce_sum([v])[0], autograph=False)
    two = tf.function(lambda v: ranks.allreduce_sum([v])[0], autograph=False)

    @tf.function(autograph=False)
    def both():
        return one(late(1.0, ranks.rank == 0)), two(late(10.0, ranks.rank == 1))

    @tf.function(autograph=False)
    def in_conditions():
        sums = []
        for value, rank in ((1.0, 0), (10.0, 1)):
            operand = late(value, ranks.rank == rank)
            sums.append(tf.cond(operand > 0.0, lambda v=operand: ranks.allreduce_sum([v])[0], lambda v=operand: v))
        return sums

    @tf.function(autograph=False)
    def in_a_loop():
        body = lambda i, total: (i + 1, total + ranks.allreduce_sum([tf.cast(i, tf.float32)])[0])  # noqa: E731
        return tf.while_loop(lambda i, _: i < 20, body, [0, 0.0], parallel_iterations=10)[1]

    @tf.function(autograph=False)
    def apart():
        # Nothing but the loop's counter connects the turns.
        array = tf.TensorArray(tf.float32, 20)
        body = lambda i, a: (i + 1, a.write(i, ranks.allreduce_sum([tf.cast(i, tf.float32)])[0]))  # noqa: E731
        return tf.while_loop(lambda i, _: i < 20, body, [0, array], parallel_iterations=10)[1].stack()

    return {
        "functions": [float(v) for v in both()],
        "conditions": [float(v) for v in in_conditions()],
        "loop": float(in_a_loop()),
        "apart": [float(v) for v in apart()],
    }


@misuse
def other_calls(ranks, folder):
    ranks.allgather_object(ranks.rank, "apples" if ranks.rank else "pears")


@misuse
def gather_of_a_scalar(ranks, folder):
    ranks.allgather(tf.constant(1.0))


@misuse
def root_that_is_no_rank(ranks, folder):
    ranks.broadcast([tf.constant(1.0)], root_rank=ranks.size)


# --- gradients


def sparse_gradients(ranks, num_rows, num_tokens):
    """The same tokens twice on each rank, and some of them on all ranks."""
    variable = keras.Variable(np.zeros((num_rows, 3), "float32"))
    indices = np.arange(num_tokens).repeat(2) * (1 + ranks.rank) % num_rows
    values = np.random.default_rng(ranks.rank).normal(size=(len(indices), 3)).astype("float32")
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([num_rows, 3]))
    dense = np.zeros((num_rows, 3), "float32")
    np.add.at(dense, indices, values)
    return slices, variable, dense


@subject
def sparse_means(ranks, folder):
    results = {}
    for name, num_rows, num_tokens in (("small", 50, 7), ("gathered", 10_000, 7), ("averaged", 10_000, 9_000)):
        slices, variable, dense = sparse_gradients(ranks, num_rows, num_tokens)
        other = keras.Variable(np.zeros(2, "float32"))
        before = ranks.bytes_reduced

        @tf.function(autograph=False)
        def mean(slices=slices, variable=variable, other=other):
            return mean_gradients([slices, None, tf.ones(2)], [variable, other, other], ranks)

        found, nothing, ones = mean()
        moved = ranks.bytes_reduced - before
        (expected,) = ranks.allreduce_mean([tf.constant(dense)])
        is_sparse = isinstance(found, tf.IndexedSlices)
        results[name] = {
            "is_sparse": is_sparse,
            "bytes": moved,
            "num_rows": int(tf.size(found.indices)) if is_sparse else None,
            "rows_are_different": bool(len(np.unique(found.indices)) == len(found.indices)) if is_sparse else None,
            "error": float(np.abs(tf.convert_to_tensor(found).numpy() - expected.numpy()).max()),
            "others": [nothing is None, ones.numpy().tolist()],
        }
    merged = merge_rows(tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([3, 1, 3])))
    results["merged"] = [merged.indices.numpy().tolist(), merged.values.numpy().tolist()]
    return results


@subject
def several_tables(ranks, folder):
    """Embedding gradients that are averaged as whole tables, beside each other and a dense one."""
    tables = [keras.Variable(np.zeros((2000, 16), "float32")) for _ in range(2)]
    other = keras.Variable(np.zeros(3, "float32"))
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build([*tables, other])

    @tf.function(autograph=False)
    def step():
        gradients = []
        for place in range(2):
            # Rank 0's first and rank 1's second gradient are late.
            count = tf.constant(20_000 if ranks.rank == place else 1)
            value = tf.while_loop(lambda i, _, c=count: i < c, lambda i, x: (i + 1, x + 0.0), [0, 1.0 + place])[1]
            gradients.append(tf.IndexedSlices(tf.fill([2000, 16], value), tf.range(2000), tf.constant([2000, 16])))
        optimizer.apply([*gradients, tf.ones(3)], [*tables, other])

    for _ in range(5):
        step()
    return [np.unique(table.numpy()).tolist() for table in [*tables, other]]


@subject
def compressed_means(ranks, folder):
    gradients = [tf.constant([1.0 + ranks.rank, 1e-3]), tf.constant([4.0 * ranks.rank], tf.float64)]
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros(1), dtype="float64")]
    before = ranks.bytes_reduced
    means = mean_gradients(gradients, variables, ranks, "float16")
    return {
        "means": [mean.numpy().tolist() for mean in means],
        "dtypes": [mean.dtype.name for mean in means],
        "bytes": ranks.bytes_reduced - before,
    }


@subject
def repeated_tokens(ranks, folder):
    """Adam on an embedding whose tokens repeat, against Adam on the dense mean gradient."""
    tokens = np.array([[1, 2, 1, 1], [2, 2, 3, 1]])[[ranks.rank % 2]]
    table = keras.layers.Embedding(5, 2, embeddings_initializer="ones")
    table.build()
    rate = 0.1
    optimizer = DistributedOptimizer(keras.optimizers.Adam(rate))
    expected = keras.Variable(table.embeddings.numpy())
    dense_optimizer = keras.optimizers.Adam(rate)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(table(tokens) ** 2)
        gradients = tape.gradient(loss, [table.embeddings.value])
        dense = tf.math.unsorted_segment_sum(gradients[0].values, gradients[0].indices, 5)
        optimizer.apply(gradients, [table.embeddings])
        dense_optimizer.apply(ranks.allreduce_mean([dense]), [expected])
    return float(np.abs(table.embeddings.numpy() - expected.numpy()).max())


@subject
def overwritten_variables(ranks, folder):
    """Float8 layers hand over a variable's next value in place of a gradient: rank 0's counts."""
    plain, scale = keras.Variable(np.ones(2)), keras.Variable(np.ones(3))
    scale.overwrite_with_gradient = True
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.apply([tf.fill([2], float(ranks.rank)), tf.fill([3], 10.0 + ranks.rank)], [plain, scale])
    return [plain.numpy().tolist(), scale.numpy().tolist()]


# --- parity


@subject
def parity_with_one_process(ranks, folder):
    results, num_bytes = {}, {}
    for case in parity.CASES:
        before = ranks.bytes_reduced
        found = parity.train(case, ranks, DistributedOptimizer)
        num_bytes[case] = ranks.bytes_reduced - before
        results |= {f"{case}/{name}": value for name, value in found.items()}
    np.savez(folder / f"parity-{ranks.rank}.npz", **results)
    return num_bytes


# --- callbacks


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
    mine = slice(0, 250) if ranks.rank == 0 else slice(249 + ranks.rank, None, ranks.size - 1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
    found = fit_noisy_quadratic(model, (x[mine], y[mine]), "mse", 20.0, num_runs=4, num_matvecs=6)
    parts = (found.noise, found.start, found.gain_elsewhere[1:], found.floor, found.num_examples, found.num_rows)
    return [np.asarray(part).tolist() for part in parts]


# --- callbacks that measure


@subject
def every_callback(ranks, folder):
    """All callbacks at once under each optimizer and way to run a step; under more than two ranks a single cell.

    Those that measure by steps too are there once for each optimizer and for each way.
    """
    results = {}
    for row, optimizer in enumerate(callback_table.OPTIMIZERS):
        for column, mode in enumerate(callback_table.MODES):
            if ranks.size == 2 or (optimizer, mode) == ("lars", "graph"):
                place = folder / f"{optimizer}-{mode}-{ranks.rank}"
                place.mkdir()
                by_steps = (row + column) % 3 == 0  # so with LARS in a graph
                results[f"{optimizer}/{mode}"] = measured_on_ranks(ranks, optimizer, mode, place, by_steps)
    return results


def measured_on_ranks(ranks, optimizer, mode, folder, by_steps):
    x, y = callback_table.X[ranks.rank :: ranks.size][:8], callback_table.Y[ranks.rank :: ranks.size][:8]
    table = {
        name: make((x, y), folder)
        for name, make in callback_table.CALLBACKS.items()
        if name not in ("BroadcastVariables", "AverageMetrics", "ResumableCheckpoint")
        and (by_steps or not name.endswith("by steps"))
    }
    table["between ranks"] = GradientNoiseScale()
    checkpoint = ResumableCheckpoint(folder.parent / f"{optimizer}-{mode}", verbose=0)
    loggers = [
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        keras.callbacks.TensorBoard(folder / "board"),
    ]
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps_per_execution, and of the checkpoint's unknown callbacks
        for callbacks in ([*loggers, *table.values()], []):
            model = callback_table.make_model(optimizer, mode, DistributedOptimizer)
            first = [BroadcastVariables(), AverageMetrics()]
            last = [checkpoint] * bool(callbacks)
            rows = np.resize(np.arange(len(x)), 2 * callback_table.STEPS)
            runs.append(callback_table.fit(model, [*first, *callbacks, *last], x[rows], y[rows], batch_size=2))
    (history, values), (plain_history, plain) = runs
    board = event_files.read_scalars(folder / "board")
    logged = [key for keys in callback_table.LOGGED.values() for key in keys]
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


@subject
def noise_between_ranks(ranks, folder):
    """Against the gradients themselves; the model stands still, so that they are those of any step."""
    rng = np.random.default_rng(ranks.rank)
    x, y = rng.normal(size=(12, 4)).astype("float32"), rng.normal(size=(12, 1)).astype("float32")
    results = {}
    for name, options in (("plain", {}), ("compressed", {"compression": "float16"}), ("mixed", {})):
        keras.config.set_dtype_policy("mixed_float16" if name == "mixed" else "float32")
        try:
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="ones")])
            model.compile(DistributedOptimizer(keras.optimizers.SGD(0.0), **options), "mse", jit_compile=False)
            fit(model, (x, y), batch_size=3)  # compiles a step that does not watch
            noise = GradientNoiseScale(local_batch_size=None if name == "plain" else 3)
            before = ranks.bytes_reduced
            fit(model, (x, y), batch_size=3, epochs=2, callbacks=[BroadcastVariables(), noise])
            results[name] = {**noise.history, "bytes": ranks.bytes_reduced - before}
        finally:
            keras.config.set_dtype_policy("float32")
    local = []
    for start in range(0, 12, 3):
        rows, targets = np.c_[x, np.ones(12)][start : start + 3], y[start : start + 3, 0]
        local.append(2 / 3 * rows.T @ (rows @ np.array([1.0, 1.0, 1.0, 1.0, 0.0]) - targets))
    results["local_gradients"] = np.array(local).tolist()
    return results


# --- misuse: every rank must end in a clear error, soon


@misuse
def a_measurement_on_one_rank(ranks, folder):
    data = make_data(8)
    callbacks = [BroadcastVariables()] + [Convexity(data)] * (ranks.rank == 0)
    fit(make_model(), data, callbacks=callbacks)


@misuse
def measuring_unequal_weights(ranks, folder):
    data = make_data(8)
    fit(make_model(seed=10 * ranks.rank), data, callbacks=[GradientBreakdown(data)])


@misuse
def noise_of_a_plain_optimizer(ranks, folder):
    fit(make_model(optimizer=keras.optimizers.SGD(0.1)), make_data(8), callbacks=[GradientNoiseScale()])


@misuse
def noise_of_accumulated_gradients(ranks, folder):
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[BroadcastVariables(), GradientNoiseScale()])


@misuse
def noise_of_batches_of_unknown_size(ranks, folder):
    def batches():
        while True:
            yield make_data(4)

    callbacks = [BroadcastVariables(), GradientNoiseScale()]
    make_model().fit(batches(), steps_per_epoch=2, verbose=0, callbacks=callbacks)


@misuse
def different_numbers_of_batches(ranks, folder):
    fit(make_model(), make_data(8 + 4 * ranks.rank), callbacks=[BroadcastVariables(), AverageMetrics()])


@misuse
def unknown_numbers_of_batches(ranks, folder):
    data = tf.data.Dataset.from_tensor_slices(make_data(40)).batch(4)
    limit = 4 + 3 * (ranks.rank == 1)
    endless = data.take(limit).filter(lambda *_: True)
    make_model().fit(endless, epochs=3, verbose=0, callbacks=[AverageMetrics(), BroadcastVariables()])


@misuse
def unknown_numbers_with_sparse_gradients(ranks, folder):
    parity.set_precision("sparse")
    try:
        x, y = parity.make_data("sparse")
        rows = tf.data.Dataset.from_tensor_slices((tuple(x), y)).batch(4)
        model = parity.make_model("sparse")
        model.compile(DistributedOptimizer("adam"), "mse", jit_compile=False)
        data = rows.take(5 - (ranks.rank == 1)).filter(lambda *_: True)
        model.fit(data, epochs=2, verbose=0, callbacks=[BroadcastVariables()])
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@misuse
def frozen_on_one_rank(ranks, folder):
    model = make_model()
    model.layers[0].trainable = ranks.rank != 1
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def frozen_on_one_rank_without_callbacks(ranks, folder):
    model = make_model()
    model.layers[0].trainable = ranks.rank != 1
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8))


@misuse
def other_learning_rate(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1 + 0.1 * ranks.rank)))
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def other_optimizer_state(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.5 * ranks.rank)))
    model.optimizer.build(model.trainable_variables)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def other_clipping(ranks, folder):
    optimizer = keras.optimizers.SGD(0.1, clipnorm=0.01 if ranks.rank == 1 else None)
    fit(make_model(optimizer=DistributedOptimizer(optimizer)), make_data(8))


@misuse
def frozen_later_on_one_rank(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1)))
    fit(model, make_data(8), callbacks=[BroadcastVariables()])
    model.layers[0].trainable = ranks.rank != 1
    model.compile(model.optimizer, "mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def a_callback_on_one_rank(ranks, folder):
    callbacks = [BroadcastVariables()] + [AverageMetrics()] * (ranks.rank == 0)
    fit(make_model(), make_data(8), callbacks=callbacks)


@misuse
def the_only_callback_on_one_rank(ranks, folder):
    fit(make_model(), make_data(8), callbacks=[AverageMetrics()] * (ranks.rank == 0))


@misuse
def plain_optimizer(ranks, folder):
    fit(make_model(optimizer=keras.optimizers.SGD(0.1)), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def plain_optimizer_on_one_rank(ranks, folder):
    optimizer = keras.optimizers.SGD(0.1)
    optimizer = optimizer if ranks.rank == 1 else DistributedOptimizer(optimizer)
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def xla(ranks, folder):
    fit(make_model(jit_compile=True), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def xla_without_callbacks(ranks, folder):
    fit(make_model(jit_compile=True), make_data(8))


@misuse
def horovods_own_wrapper(ranks, folder):
    import horovod.tensorflow.keras as horovod_keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = horovod_keras.DistributedOptimizer(keras.optimizers.SGD(0.1))
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[WeightNorms()])


@misuse
def early_stopping_on_local_metrics(ranks, folder):
    class StopOnOneRank(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = ranks.rank == 1

    fit(make_model(), make_data(8), epochs=4, callbacks=[BroadcastVariables(), AverageMetrics(), StopOnOneRank()])


@misuse
def model_built_by_its_first_step(ranks, folder):
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8))


@misuse
def optimizer_inside_loss_scaling(ranks, folder):
    keras.optimizers.LossScaleOptimizer(DistributedOptimizer("sgd"))


# --- checkpoints


def checkpointed(ranks, folder, epochs, stop_after=None):
    """Train with dropout, a plateau and a shuffled order; perhaps be interrupted in the middle of an epoch."""

    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if stop_after is not None and self.model.optimizer.iterations >= 4 * stop_after + 2:
                raise KeyboardInterrupt

    keras.utils.set_random_seed(7 + ranks.rank)
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, activation="tanh"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(1),
    ])
    wrap = DistributedOptimizer if ranks.size > 1 else (lambda optimizer: optimizer)
    model.compile(wrap(keras.optimizers.Adam(0.01)), "mse", jit_compile=False)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0)
    batches = EpochBatches(*make_data(24, seed=1), batch_size=6, seed=4, communicator=ranks)
    callbacks = [
        BroadcastVariables(communicator=ranks),
        AverageMetrics(communicator=ranks),
        plateau,
        ResumableCheckpoint(folder, stateless=[Interrupt], communicator=ranks),
        Interrupt(),
    ]
    try:
        model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
    except KeyboardInterrupt:
        return None
    return {
        "variables": [np.asarray(v).tolist() for v in [*model.variables, *model.optimizer.variables]],
        "history": model.history.history,
        "epochs": model.history.epoch,
        "wait": plateau.wait,
    }


@subject
def resumed(ranks, folder):
    whole = checkpointed(ranks, folder / "whole", 6)
    checkpointed(ranks, folder / "resumed", 6, stop_after=3)
    files = sorted(path.name for path in (folder / "resumed").glob(f"*.rank-{ranks.rank}-*"))
    again = checkpointed(ranks, folder / "resumed", 6)
    checkpointed(ranks, folder / "truncated", 6, stop_after=4)
    ranks.barrier()
    if ranks.rank == ranks.size - 1:
        newest = max((folder / "truncated").glob(f"*.rank-{ranks.rank}-*"))
        newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    ranks.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        truncated = checkpointed(ranks, folder / "truncated", 6)
    return {
        "same": again == whole,
        "same_after_truncation": truncated == whole,
        "warnings": [str(w.message) for w in caught if "damaged" in str(w.message)],
        "files": files,
        "epochs": again["epochs"],
    }


SUBJECTS |= bregman_parity.SUBJECTS


def main(folder):
    folder = Path(folder)
    ranks = communicators.current()
    report = {}
    for name, function in SUBJECTS.items():
        place = folder / name
        place.mkdir(exist_ok=True)
        start = time.perf_counter()
        try:
            report[name] = {"result": function(ranks, place)}
        except Exception:
            report[name] = {"failure": traceback.format_exc()}
            print(f"{name} failed on rank {ranks.rank}", traceback.format_exc(), flush=True)
        report[name]["total_seconds"] = time.perf_counter() - start
        (folder / f"report-{ranks.rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
