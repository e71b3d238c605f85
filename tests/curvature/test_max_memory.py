"""Products keep the memory that was asked for, or say that they cannot."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import GaussNewtonOperator, HessianOperator, Probe
from tfopt.curvature.memory import MARGIN, peak_bytes
from tfopt.curvature.split import SplitFunction

SCRIPT = Path(__file__).parents[1] / "support" / "measure_products.py"
ROWS, WIDE = 64, 256


def make(*layers, loss="mse", rows=ROWS, **options):
    keras.utils.set_random_seed(0)
    layers = layers or (
        keras.layers.Dense(WIDE, "tanh"),
        keras.layers.Reshape((WIDE, 1)),
        keras.layers.Dense(8, "tanh"),
    )
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Flatten(), keras.layers.Dense(1)])
    rng = np.random.default_rng(0)
    return model, loss, rng.normal(size=(rows, 2)).astype("float32"), rng.normal(size=(rows, 1)).astype("float32")


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_batches_are_cut_and_products_stay(operator):
    arguments = make()
    whole = operator(*arguments)
    vector = np.sin(np.arange(whole.shape[0], dtype="float32"))
    expected = whole @ vector
    needed = whole._product(0).function.peak_bytes
    limit = needed // 3
    cut = operator(*arguments, max_memory=limit)
    sizes = [batch.num_rows for batch in cut.objective.probe.batches]
    assert sum(sizes) == cut.objective.num_rows == ROWS
    assert 4 <= len(sizes) <= 6  # a part does not depend on the rows
    assert max(sizes) - min(sizes) <= len(sizes)
    assert all(cut._product(index).function.peak_bytes <= limit for index in range(len(sizes)))
    np.testing.assert_allclose(cut @ vector, expected, rtol=1e-4, atol=1e-6)
    with cut.shared():
        np.testing.assert_allclose(cut @ vector, expected, rtol=1e-4, atol=1e-6)
        kept = [cut._product(index).function.num_bytes for index, part in enumerate(cut._shared) if part is not None]
    assert sum(kept) + max(cut._product(index).function.peak_bytes for index in range(len(sizes))) <= limit or not kept
    other = cut.over(Probe(*arguments[2:]))
    assert len(other.objective.probe.batches) == len(sizes)
    assert len(operator(*arguments, max_memory=needed).objective.probe.batches) == 1


# What makes a loss of a batch no mean over its rows -> layers and further arguments
NOT_CUT = {
    "batch statistics": ((keras.layers.Dense(WIDE, "tanh"), keras.layers.BatchNormalization()), {}),
    "a sum": ((keras.layers.Dense(WIDE, "tanh"),), {"loss": keras.losses.MeanSquaredError(reduction="sum")}),
    "pairs of rows": (
        (keras.layers.Dense(WIDE, "tanh"),),
        {"loss": lambda y, z: keras.ops.mean((y - z) ** 2) * keras.ops.mean(z * keras.ops.roll(z, 1, 0))},
    ),
}


@pytest.mark.parametrize("case", NOT_CUT)
def test_a_cut_that_changes_the_loss_is_refused(case):
    layers, options = NOT_CUT[case]
    arguments = make(*layers, **options)
    needed = HessianOperator(*arguments)._product(0).function.peak_bytes
    with pytest.raises(ValueError, match="`max_memory` must hold a product on each batch, because the loss changes"):
        HessianOperator(*arguments, max_memory=needed // 2)
    HessianOperator(*arguments, max_memory=needed)


@pytest.mark.parametrize(
    "layer", [keras.layers.LSTM(4, return_sequences=True), keras.layers.GRU(4, return_sequences=True, unroll=False)]
)
def test_a_bound_is_refused_where_the_graph_does_not_show_the_memory(layer):
    arguments = make(keras.layers.Reshape((2, 1)), layer)
    with pytest.raises(ValueError, match=r"`max_memory` needs a model whose .* loops \(recurrent layers\)"):
        HessianOperator(*arguments, max_memory=10**9)


def test_moving_averages_are_cut():
    layers, _ = NOT_CUT["batch statistics"]
    arguments = make(*layers)
    needed = HessianOperator(*arguments, batch_norm="moving")._product(0).function.peak_bytes
    cut = HessianOperator(*arguments, batch_norm="moving", max_memory=needed // 2)
    assert len(cut.objective.probe.batches) > 1


def test_what_no_batch_can_keep_is_refused():
    with pytest.raises(ValueError, match=r"`max_memory` must hold a product on one row, which takes [\d,]+ bytes"):
        HessianOperator(*make(), max_memory=100)
    for wrong, error in ((0, ValueError), (1.5, TypeError), ("1 GB", TypeError), (True, TypeError)):
        with pytest.raises(error, match="`max_memory` must be an integer >= 1"):
            HessianOperator(*make(), max_memory=wrong)


def test_the_estimate_counts_what_is_alive_at_once():
    size = 4000  # bytes of each result
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", (10, 100))
        first = tf.tanh(x)
        second = tf.tanh(first)
        kept = tf.reshape(second, (100, 10))  # takes no memory, and keeps that of `second`
        third = tf.tanh(tf.tanh(tf.tanh(second)))
        unused = tf.exp(x)
        results = [third, kept]
    assert unused.shape == x.shape
    assert peak_bytes(graph, [first]) == int(MARGIN * size)
    assert peak_bytes(graph, [second]) == peak_bytes(graph, [first, second]) == int(MARGIN * 2 * size)
    assert peak_bytes(graph, results) == int(MARGIN * 3 * size)


@pytest.mark.slow_by_nature
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_the_peak_that_a_process_has_is_below_the_limit():
    found = {}
    for limit in (200_000_000, None):
        command = [sys.executable, SCRIPT, json.dumps(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("MEMORY")]
        found[limit] = json.loads(line.removeprefix("MEMORY "))
    assert found[200_000_000]["peak"] <= 200_000_000 < found[None]["peak"]
    assert found[200_000_000]["batches"] > found[None]["batches"] == 1
    assert found[200_000_000]["end"] == pytest.approx(found[None]["end"], rel=1e-4)


def test_columns_share_the_common_part_of_a_batch_that_is_not_cached(monkeypatch):
    matrix = HessianOperator(*make(), batch_size=ROWS // 2)
    columns = np.sin(np.arange(matrix.shape[0] * 3, dtype="float32")).reshape(-1, 3)
    expected = np.stack([matrix @ column for column in columns.T], axis=1)
    prepared = []
    prepare = SplitFunction.prepare
    monkeypatch.setattr(SplitFunction, "prepare", lambda self, *fixed: prepared.append(1) or prepare(self, *fixed))
    np.testing.assert_allclose(matrix @ columns, expected, rtol=1e-4, atol=1e-6)
    assert len(prepared) == 2  # batches
