"""The probe takes what `fit` takes, and says what is wrong with the rest."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import HessianOperator, Probe
from tfopt.datasets import EpochBatches


def make_data(rows=10):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 3)).astype("float32"), rng.normal(size=(rows, 2)).astype("float32")


def make_model():
    return keras.Sequential([
        keras.Input((3,)),
        keras.layers.Dense(2, activation="tanh", kernel_initializer=keras.initializers.HeNormal(0)),
    ])


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        x, y = make_data()
        return x[4 * index : 4 * index + 4], y[4 * index : 4 * index + 4]


def generate():
    for index in range(3):
        yield Batches()[index]


SOURCES = {
    "arrays": lambda x, y: Probe(x, y, batch_size=4),
    "tensors": lambda x, y: Probe(tf.constant(x), tf.constant(y), batch_size=4),
    "lists": lambda x, y: Probe(x, y.tolist() and y, batch_size=4),
    "dataset": lambda x, y: Probe(tf.data.Dataset.from_tensor_slices((x, y)).batch(4)),
    "unknown": lambda x, y: Probe(tf.data.Dataset.from_tensor_slices((x, y)).batch(4).filter(lambda *_: True)),
    "infinite": lambda x, y: Probe(tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat(), num_batches=3),
    "PyDataset": lambda x, y: Probe(Batches()),
    "EpochBatches": lambda x, y: Probe(EpochBatches(x, y, batch_size=4, shuffle=False)),
    "generator": lambda x, y: Probe(generate(), num_batches=3),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_gives_the_same_batches(name):
    x, y = make_data()
    probe = SOURCES[name](x, y)
    assert [batch.num_rows for batch in probe.batches] == [4, 4, 2]
    assert probe.num_rows == 10
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in probe.batches]), x)
    np.testing.assert_array_equal(np.concatenate([batch.y for batch in probe.batches]), y)
    matrix = HessianOperator(make_model(), "mse", probe)
    whole = HessianOperator(make_model(), "mse", x, y)
    vector = np.arange(8.0)
    np.testing.assert_allclose(matrix @ vector, whole @ vector, rtol=1e-4, atol=1e-5)


def test_lists_are_taken_apart_as_fit_takes_them():
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4.0)[:, None]

    def batches():
        yield [x, y]

    probe = Probe(batches(), num_batches=1)
    np.testing.assert_array_equal(probe.batches[0].x, x)
    np.testing.assert_array_equal(probe.batches[0].y, y)


def test_dictionaries_weights_and_inputs_alone():
    x, y = make_data()
    probe = Probe({"a": x, "b": (x, x)}, {"u": y}, np.arange(10.0), batch_size=7)
    assert sorted(probe.batches[0].x) == ["a", "b"]
    assert probe.batches[1].sample_weight.numpy().tolist() == [7.0, 8.0, 9.0]
    assert Probe(x).batches[0].y is None
    assert Probe(tf.data.Dataset.from_tensor_slices(x).batch(5)).batches[0].x.shape == (5, 3)
    assert repr(Probe(np.ones((3000, 1)))) == "Probe(3,000 rows in 6 batches)"


def test_a_part_of_a_long_source_is_enough():
    x, y = make_data()
    assert Probe(Batches(), num_batches=2).num_rows == 8
    assert Probe(tf.data.Dataset.from_tensor_slices((x, y)).batch(4), num_batches=1).num_rows == 4


def with_bad(array, value):
    array = array.copy()
    array[7, 1] = value
    return array


X, Y = make_data()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((None,), {}, ValueError, "`x` must be the inputs on which to measure"),
        ((X, Y[:9]), {}, ValueError, r"equally many rows. Received: {'x': \[10\], 'y': \[9\]}"),
        ((X, Y, np.ones(3)), {}, ValueError, r"equally many rows.*'sample_weight': \[3\]"),
        ((X[:0], Y[:0]), {}, ValueError, "has no batches. Received: an empty data set"),
        ((tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0),), {}, ValueError, "has no batches"),
        (
            (with_bad(X, np.nan), Y),
            {"batch_size": 4},
            ValueError,
            "`x` must be finite.* nan in batch 1, row 3",
        ),
        ((X, with_bad(Y, np.inf)), {}, ValueError, "`y` must be finite. Received: inf in batch 0, row 7"),
        ((X, Y), {"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ((X, Y), {"num_batches": 2}, ValueError, "`num_batches` is only for data sets and generators"),
        ((Batches(), Y), {}, ValueError, "`y` must be None if `x` is a Batches"),
        ((Batches(),), {"batch_size": 4}, ValueError, "`batch_size` must be None if `x` is a Batches"),
        ((generate(),), {}, ValueError, "`num_batches` must be given for a generator"),
        (
            (generate(),),
            {"num_batches": 4},
            ValueError,
            "`num_batches` batches.*num_batches=4 of 3",
        ),
        ((Batches(),), {"num_batches": 4}, ValueError, "must have `num_batches` batches"),
        ((tf.data.Dataset.range(3).batch(2).repeat(),), {}, ValueError, "which may be infinite"),
        ((tf.data.Dataset.range(3).batch(2).repeat().filter(lambda _: True),), {}, ValueError, "may be infinite"),
        ((iter([(X, Y), (X,)]),), {"num_batches": 2}, ValueError, "batches of different structures"),
        (
            (tf.data.Dataset.range(3),),
            {},
            TypeError,
            "`x` must hold arrays of numbers or strings with one",
        ),
        ((3.0,), {}, TypeError, "`x` must hold arrays of numbers or strings with one row per sample. Received: 3.0"),
        ((tf.ragged.constant([[1], [1, 2]]),), {}, TypeError, "`x` must be dense. Received: a RaggedTensor"),
        ((iter([(X, Y, Y, Y)]),), {"num_batches": 1}, ValueError, r"yield x, \(x, y\) or \(x, y, sample_weight\)"),
        ((iter([(X, Y), (X, Y, Y[:, 0])]),), {"num_batches": 2}, ValueError, "batches of different structures"),
        ((iter([(X, Y[:3])]),), {"num_batches": 1}, ValueError, r"equally many rows. Received: \[3, 10\]"),
        ((X, Y), {"class_weight": {0: 1.0}}, ValueError, "`class_weight` is not supported.*sample_weight="),
    ],
)
def test_bad_data(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Probe(*arguments, **options)


def test_data_that_do_not_fit_the_model():
    with pytest.raises(ValueError, match="`x` must fit the model"):
        HessianOperator(make_model(), "mse", X[:, :2], Y)
    with pytest.raises(ValueError, match="class_weight"):
        HessianOperator(make_model(), "mse", X, Y, class_weight={0: 2.0})
