"""Every run has all rows, exactly, or says how many it has: against sums over all rows in NumPy."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.communicator import SerialCommunicator
from tfopt.curvature import Objective, Probe
from tfopt.models import mlp
from tfopt.planning import fit_noisy_quadratic
from tfopt.planning.dealt_rows import LARGEST_BATCH, NUM_GROUPS, DealtRows

NUM_INPUTS = 2


def make_data(num_rows):
    """Rows whose residuals grow along the data, so that rows at an end are unlike the others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows, NUM_INPUTS)).astype("float32")
    late = np.linspace(0.0, 3.0, num_rows)[:, None]
    return x, (x.sum(axis=1, keepdims=True) + late + rng.standard_normal((num_rows, 1))).astype("float32")


def rows_gradients(model, x, y):
    """Loss, and the gradient of each row's squared error, from the equations."""
    kernel, bias = (part.astype(np.float64) for part in model.get_weights())
    ones = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    residuals = ones @ np.concatenate([kernel, bias[:, None]]) - y
    return float(np.mean(residuals**2)), 2.0 * residuals * ones


class Unequal(keras.utils.PyDataset):
    """Batches of 1, 2, 3, ... rows."""

    def __init__(self, x, y):
        super().__init__()
        cuts = np.cumsum(np.arange(1, 200))
        cuts = cuts[cuts < len(x)]
        self.parts = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


FORMS = {
    "arrays": lambda x, y: (x, y),
    "batches of 10": lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(10),
    "batches of 1000": lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(1000),
    "sorted": lambda x, y: Probe(x[np.argsort(y[:, 0])], y[np.argsort(y[:, 0])], batch_size=96),
    "unequal": Unequal,
}


# Each form with every other number of rows.
NUMBERS = [7, 48, 100, 500, 997, 4000, 8000]
DEALT = [(rows, form) for i, rows in enumerate(NUMBERS) for j, form in enumerate(FORMS) if (i + j) % 2 == 0]


@pytest.mark.parametrize(("num_rows", "form"), DEALT)
def test_all_rows_are_in_every_run(num_rows, form):
    x, y = make_data(num_rows)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    fit = fit_noisy_quadratic(
        Objective(model, "mse", FORMS[form](x, y)), None, num_runs=4, num_matvecs=3, self_check=False, progress=False
    )
    loss, gradients = rows_gradients(model, x, y)
    mean = gradients.mean(axis=0)
    np.testing.assert_allclose(fit.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(fit.squared_gradient_norm, mean @ mean, rtol=1e-6)
    np.testing.assert_array_equal(fit.sampling, 0.0)
    assert fit.num_rows == 4 * num_rows
    assert f"all {num_rows:,} rows in each run" in repr(fit)
    found = fit.interval(lambda part: float(part.loss.mean()))
    assert found.high - found.low <= 1e-6 * loss
    # Scatter of M groups in each of 4 runs: the trace of a covariance is as uncertain as its largest eigenvalue.
    traces = np.linalg.eigvalsh(np.cov(gradients.T))
    error = np.sqrt(2.0 * np.sum(traces**2) / (4 * min(NUM_GROUPS, num_rows) - 4))
    assert abs(fit.covariance_trace.mean() - traces.sum()) <= 4 * error
    if num_rows <= NUM_GROUPS:
        np.testing.assert_allclose(fit.covariance_trace, traces.sum(), rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_sample_are_of_all_kinds(form):
    """What a run has not is left out at random, and is said."""
    x, y = make_data(4000)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    options = {"num_runs": 4, "num_matvecs": 3, "num_rows_per_run": 600, "self_check": False, "progress": False}
    fit = fit_noisy_quadratic(Objective(model, "mse", FORMS[form](x, y)), None, **options)
    loss, gradients = rows_gradients(model, x, y)
    assert fit.num_rows_per_run == fit.num_rows / 4 == 500
    np.testing.assert_allclose(fit.sampling, 1 / 500 - 1 / 4000)
    assert "500 rows of 4,000 in each run" in repr(fit)
    assert fit.loss.mean() == pytest.approx(loss, rel=0.1)
    assert fit.covariance_trace.mean() == pytest.approx(np.trace(np.cov(gradients.T)), rel=0.3)
    assert fit.take([0, 0, 1]).num_rows_per_run == 500


def test_a_stream_is_said():
    x, y = make_data(500)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    objective = Objective(model, "mse", (x, y))
    fit = fit_noisy_quadratic(objective, None, num_runs=4, num_matvecs=3, num_examples=math.inf)
    assert "125 rows of an endless stream in each run" in repr(fit)


class Ranks:
    """Ranks that are threads."""

    def __init__(self, size):
        self.size, self._items, self._barrier = size, [None] * size, threading.Barrier(size)

    def of(self, rank):
        job = self

        class Rank(SerialCommunicator):
            size = job.size

            def allgather_object(self, item, name="object"):
                job._items[rank] = item
                job._barrier.wait(100)
                found = list(job._items)
                job._barrier.wait(100)
                return found

            def allreduce_sum(self, tensors, name="sum"):
                return [tf.add_n(parts) for parts in zip(*self.allgather_object(tensors), strict=True)]

            def allgather(self, tensor, name="gather"):
                return tf.concat(self.allgather_object(tensor), axis=0)

        Rank.rank = rank
        return Rank()


@pytest.mark.parametrize("cuts", [[200], [3, 700]])
def test_all_rows_of_all_ranks_are_in_every_run(cuts):
    """Of ranks with unequal numbers of rows, one of which has few."""
    x, y = make_data(1100)
    parts = list(zip(np.split(x, cuts), np.split(y, cuts), strict=True))
    ranks = Ranks(len(parts))
    models = [mlp(NUM_INPUTS, (), 1, seed=0) for _ in parts]

    def measure(rank):
        objective = Objective(models[rank], "mse", parts[rank], communicator=ranks.of(rank))
        return fit_noisy_quadratic(objective, None, num_runs=4, num_matvecs=3, self_check=False, progress=False)

    with ThreadPoolExecutor(len(parts)) as pool:
        fits = list(pool.map(measure, range(len(parts))))
    loss, gradients = rows_gradients(models[0], x, y)
    mean = gradients.mean(axis=0)
    for fit in fits:
        np.testing.assert_allclose(fit.loss, loss, rtol=1e-6)
        np.testing.assert_allclose(fit.squared_gradient_norm, mean @ mean, rtol=1e-6)
        np.testing.assert_array_equal(fit.sampling, 0.0)
        assert fit.num_rows == 4 * len(x)
        np.testing.assert_array_equal(fit.counts, fits[0].counts)


# --- the deal itself


def deal(probe, num_runs, are_shared=False):
    return DealtRows(probe, num_runs, are_shared, np.random.default_rng(0), SerialCommunicator())


def seen(rows, run, count=None):
    return np.concatenate([batch.x.numpy().ravel() for batch in rows.batches(run, count)])


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "num_runs"), [(1000, 512, 8), (64, 512, 8), (5000, 64, 4), (97, 20, 4), (9001, 7, 4)]
)
def test_runs_have_rows_of_their_own(num_rows, batch_size, num_runs):
    rows = deal(Probe(np.arange(num_rows)[:, None], batch_size=batch_size), num_runs)
    everything = np.concatenate([seen(rows, run) for run in range(num_runs)])
    assert len(set(everything)) == len(everything) > num_rows - num_runs  # no row twice
    sizes = [batch.num_rows for run in range(num_runs) for batch in rows.batches(run)]
    assert max(sizes) == rows.batch_size <= LARGEST_BATCH
    assert max(sizes) - min(sizes) <= 1
    assert len(rows.batches(1)) == rows.num_batches
    assert len(rows.batches(1, 1)) == 1
    assert rows.group_size <= max(rows.batch_size // 2, 1)
    np.testing.assert_array_equal(seen(rows, 1, 1), seen(rows, 1)[: len(seen(rows, 1, 1))])


def test_shared_rows_are_in_another_order_in_each_run():
    rows = deal(Probe(np.arange(1000)[:, None], batch_size=96), 8, are_shared=True)
    for run in range(8):
        np.testing.assert_array_equal(np.sort(seen(rows, run)), np.arange(1000))
    assert (seen(rows, 0) != seen(rows, 1)).any()


@pytest.mark.parametrize("are_shared", [False, True])
def test_rows_of_different_shapes_stay_apart(are_shared):
    """Two long batches, one short one of three rows: fewer than runs."""
    parts = [np.full((20, 2), 1.0), np.full((3, 5), 2.0), np.full((30, 2), 3.0)]
    rows = deal(Probe(iter(parts), num_batches=3), 4, are_shared)
    counts = np.array([
        [np.sum([b.x.shape[1] == width for b in rows.batches(run)]) for width in (2, 5)] for run in range(4)
    ])
    numbers = [
        np.bincount([b.x.shape[1] for b in rows.batches(run)], [b.num_rows for b in rows.batches(run)], 6)
        for run in range(4)
    ]
    assert (counts <= 1).all()
    whole = np.sum(numbers, axis=0)
    assert (whole[2], whole[5]) == ((200, 12) if are_shared else (48, 3))


def test_too_few_rows_are_refused():
    with pytest.raises(
        ValueError, match=r"`objective` must have at least 8 rows for each of 8 runs.* Received: 63 rows"
    ):
        deal(Probe(np.zeros((63, 1))), 8)
    with pytest.raises(ValueError, match=r"`objective` must have at least 2 rows. Received: 1"):
        deal(Probe(np.zeros((1, 1))), 8, are_shared=True)
