"""Batches whose order follows from the seed and the epoch, on any number of ranks."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfopt.datasets import EpochBatches


def rank_of(rank, size):
    return SimpleNamespace(rank=rank, size=size)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 5))
def test_ranks_together_see_the_batches_of_one_process(num_rows, size, rows_of_a_rank, epoch):
    batch_size = size * rows_of_a_rank
    if num_rows < size:
        return
    x = np.arange(num_rows)
    alone = EpochBatches(x, batch_size=batch_size, communicator=rank_of(0, 1))
    ranks = [EpochBatches(x, batch_size=batch_size, communicator=rank_of(rank, size)) for rank in range(size)]
    for batches in (alone, *ranks):
        batches.start_at(epoch)
    assert len({len(batches) for batches in ranks}) == 1
    for index in range(len(ranks[0])):
        parts = [batches[index][0] for batches in ranks]
        assert len({len(part) for part in parts}) == 1
        whole = alone[index][0]
        together = np.concatenate(parts)
        np.testing.assert_array_equal(together, whole[: len(whole) // size * size])
        is_last = index == len(alone) - 1
        assert len(together) == len(whole) or is_last
    assert len(alone) - len(ranks[0]) in (0, 1)
    served = sum(len(part) for batches in ranks for (part,) in batches)
    assert served == num_rows // size * size  # Fewer than `size` rows are left out, all of them of the last batch.


@pytest.mark.parametrize(
    ("size", "batch_size", "nearest"),
    [(3, 32, "30 and 33"), (3, 64, "63 and 66"), (6, 32, "30 and 36"), (2, 15, "14 and 16"), (8, 100, "96 and 104")],
)
@pytest.mark.parametrize("num_rows", [20, 1000])
def test_batches_that_ranks_cannot_share_equally_are_refused(num_rows, size, batch_size, nearest):
    for rank in range(size):
        with pytest.raises(ValueError, match=f"number of ranks, {size}, .*batch_size={batch_size}. .* are {nearest}$"):
            EpochBatches(np.arange(num_rows), batch_size=batch_size, communicator=rank_of(rank, size))
    assert len(EpochBatches(np.arange(num_rows), batch_size=batch_size, communicator=rank_of(0, 1))[0][0])


def test_every_epoch_has_its_own_order_and_all_rows():
    batches = EpochBatches(np.arange(10), np.arange(10), batch_size=4, seed=3)
    orders = []
    for epoch in range(3):
        batches.start_at(epoch)
        rows = np.concatenate([x for x, _ in batches])
        assert sorted(rows) == list(range(10))
        np.testing.assert_array_equal(rows, batches.order(epoch))
        orders.append(rows.tolist())
    assert len({tuple(order) for order in orders}) == 3
    other_seed = EpochBatches(np.arange(10), batch_size=4, seed=4)
    assert other_seed.order(0).tolist() != orders[0]
    assert EpochBatches(np.arange(10), shuffle=False).order(2).tolist() == list(range(10))


def test_fit_moves_through_the_epochs():
    seen = []

    class Spy(EpochBatches):
        def __getitem__(self, index):
            batch = super().__getitem__(index)
            seen.append((self.epoch, batch[0][:, 0].tolist()))
            return batch

    x = np.arange(6.0).reshape(6, 1)
    batches = Spy(x, x, batch_size=3, seed=1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(batches, shuffle=False, epochs=3, verbose=0)
    served = [rows for epoch in range(3) for rows in x[batches.order(epoch), 0].reshape(2, 3).tolist()]
    assert [rows for epoch, rows in seen][-6:] == served
    assert batches.epoch == 3


ROWS = np.arange(50.0, dtype="float32")[:, None]  # 7 batches of 8 rows


def make_model(seen, steps_per_execution=1, is_built=True):
    class Spy(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            tf.py_function(lambda x: seen.append(x.numpy().ravel().astype(int).tolist()), [data[0]], [])
            return super().train_step(data)

    model = Spy()
    if is_built:
        model(ROWS[:1])
    model.compile("sgd", "mse", jit_compile=False, steps_per_execution=steps_per_execution)
    return model


def passes(batches, *numbers):
    """The batches of some passes, row by row."""
    orders = [batches.order(number).tolist() for number in numbers]
    return [order[start : start + 8] for order in orders for start in range(0, 50, 8)]


@pytest.mark.filterwarnings("ignore:.*ran out of data")
@pytest.mark.parametrize(
    ("steps", "epochs", "steps_per_execution", "num_seen"),
    [(1, 9, 1, 9), (3, 7, 1, 17), (3, 4, 2, 14), (7, 2, 1, 14), (14, 2, 1, 14), (None, 2, 1, 14)],
)
def test_an_epoch_is_a_pass_for_all_steps_per_epoch(steps, epochs, steps_per_execution, num_seen):
    seen = []
    batches = EpochBatches(ROWS, ROWS, batch_size=8, seed=1)
    model = make_model(seen, steps_per_execution)
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert seen == passes(batches, 0, 1, 2)[:num_seen]
    assert batches.epoch == num_seen // 7
    # Another `fit` begins another pass.
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)
    assert seen[num_seen:] == passes(batches, -(-num_seen // 7))[: len(seen) - num_seen]


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_ranks_serve_parts_of_the_same_batches_with_steps_per_epoch():
    seen = [], []
    for rank in range(2):
        batches = EpochBatches(ROWS, ROWS, batch_size=8, seed=1, communicator=rank_of(rank, 2))
        make_model(seen[rank]).fit(batches, epochs=7, steps_per_epoch=2, shuffle=False, verbose=0)
    together = [first + second for first, second in zip(*seen, strict=True)]
    assert together == passes(batches, 0, 1)[: len(together)]


def test_a_look_for_shapes_uses_no_pass_up():
    seen = []
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        model = make_model(seen, is_built=False)
    batches = EpochBatches(ROWS, ROWS, batch_size=8, seed=1)
    model.fit(batches, steps_per_epoch=7, shuffle=False, verbose=0)
    assert sorted(seen) == sorted(passes(batches, 0))


def test_several_workers_are_refused_within_a_pass():
    batches = EpochBatches(ROWS, ROWS, batch_size=8, seed=1)
    batches.workers = 2
    model = make_model([])
    model.fit(batches, epochs=2, steps_per_epoch=7, shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="less than the 7 batches.*steps_per_epoch=3 and workers=2. Set workers=1"):
        model.fit(batches, epochs=2, steps_per_epoch=3, shuffle=False, verbose=0)


def test_passes_that_are_left_early_count():
    batches = EpochBatches(ROWS, ROWS, batch_size=8, seed=1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.ones((1, 1))])
    model.compile("sgd", "mse")
    for epoch in range(2):
        predicted = model.predict(batches, steps=2, verbose=0).ravel()
        assert predicted.tolist() == batches.order(epoch)[:16].tolist()
    for epoch in (2, 3):
        model.evaluate(batches, steps=2, verbose=0)
        assert batches.epoch == epoch
    model.fit(ROWS, ROWS, epochs=2, validation_data=batches, validation_steps=3, verbose=0)
    assert batches.epoch == 5


@pytest.mark.parametrize("begins", [True, False])
def test_loops_of_ones_own_go_on_at_the_end_of_an_epoch(begins):
    batches = EpochBatches(ROWS, batch_size=8, seed=1)
    for epoch in range(3):
        if begins:
            batches.on_epoch_begin()
        for _ in range(2):  # Reading changes nothing.
            assert np.concatenate([x for (x,) in batches]).ravel().tolist() == batches.order(epoch).tolist()
        batches.on_epoch_end()
    assert batches.epoch == 3


def test_structures_and_weights_come_through():
    batches = EpochBatches({"a": np.arange(4), "b": np.ones((4, 2))}, np.arange(4), np.full(4, 2.0), batch_size=2)
    x, y, weight = batches[0]
    np.testing.assert_array_equal(x["a"], y)
    assert x["b"].shape == (2, 2)
    assert weight.tolist() == [2.0, 2.0]
    with pytest.raises(IndexError, match="Batch 2 of 2"):
        batches[2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(3), "y": np.ones(4)}, ValueError, "must have equally many rows. Received: {'x': \\[3\\], 'y'"),
        ({"x": None}, ValueError, "must have equally many rows"),
        ({"x": np.ones(3), "sample_weight": np.ones(3)}, ValueError, "`sample_weight` needs `y`"),
        ({"x": 3.0}, TypeError, "`x` must hold arrays with one row per sample"),
        ({"x": np.ones(3), "batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"x": np.ones(3), "seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"x": np.ones(3), "shuffle": 1}, TypeError, "`shuffle` must be True or False"),
        ({"x": np.ones(3), "communicator": rank_of(0, 4)}, ValueError, "one row for each of 4 ranks. Received: 3"),
        ({"x": np.ones(9), "batch_size": 3, "communicator": rank_of(0, 4)}, ValueError, "batch_size=3. .* are 4 and 8"),
    ],
)
def test_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        EpochBatches(**arguments)
