"""Hidden states in the graphs of the training and the validation step are saved, or refused by name."""

import keras
import pytest
import tensorflow as tf
from keras import layers
from resumable_trainings import Drawing, X, Y, train

from tfopt.callbacks import ResumableCheckpoint

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")


class Out:
    """Where nobody looks."""

    __slots__ = ("variable",)

    def __init__(self, value=0.0):
        self.variable = tf.Variable(value)


class Hidden(keras.Model):
    """Its steps use states that no walk through attributes finds."""

    def __init__(self, draw, is_validation):
        super().__init__()
        self.dense = layers.Dense(1)
        out = Out()
        out.variable = draw
        self.draw, self.is_validation = out, is_validation

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        drawn = 0.0 if self.is_validation else self.draw.variable()
        return {**super().train_step((x * (1.0 + drawn), y)), "own": drawn}

    def test_step(self, data):
        return {**super().test_step(data), "own": self.draw.variable()}


def reading():
    """Read a variable that a callback changes."""
    READ.append(Out(1.0))
    here = READ[-1]
    return lambda: here.variable * 0.1


READ: list["Out"] = []


def halving():
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: READ[-1].variable.assign(READ[-1].variable * 0.5))


def seeded():
    out = Out()
    out.variable = keras.random.SeedGenerator(3)
    return lambda: keras.random.normal((), seed=out.variable)


def branching():
    out = Out()

    @tf.function
    def draw():
        return tf.cond(out.variable < 1.0, lambda: out.variable.assign_add(0.3), lambda: out.variable)

    return draw


def looking_up():
    """Accepted, because nothing changes."""
    values = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([0.5, 1.5]))
    tables, written = [tf.lookup.StaticHashTable(values, 0.0)], Out()

    @tf.function
    def draw():
        written.variable.assign_add(1.0)  # and never read
        return tables[0].lookup(tf.constant(1, tf.int64))

    return draw


@pytest.mark.parametrize(
    ("make", "is_validation"),
    [
        (reading, False),
        (reading, True),
        (seeded, False),
        (branching, False),
        (branching, True),
        (looking_up, False),
        (lambda: lambda: keras.random.normal(()), False),
    ],
    ids=["reading", "reading_val", "seeded", "branching", "branching_val", "looking_up", "unseeded"],
)
def test_hidden_states_are_found_in_the_graphs_of_the_steps(make, is_validation, tmp_path):
    def run(folder, epochs, seed=0):
        keras.utils.set_random_seed(seed)
        model = Hidden(make(), is_validation)
        model.compile("sgd", "mse", jit_compile=False)
        callbacks = [halving()] * (make is reading) + [ResumableCheckpoint(folder, verbose=0)]
        options = {"shuffle": False, "verbose": 0, "callbacks": callbacks}
        validation = {"validation_data": (X, Y), "validation_batch_size": 8} if is_validation else {}
        return model.fit(X, Y, batch_size=8, epochs=epochs, **options, **validation).history

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    assert run(tmp_path / "parts", 4, seed=9) == whole
    values = whole["val_own" if is_validation else "own"]
    assert (len(set(values)) == 1) == (make is looking_up)


def reading_elsewhere():
    batches = [iter(tf.data.Dataset.from_tensor_slices([1.0, 2.0]).repeat())]
    return lambda: next(batches[0])


def filling_a_table():
    tables = [tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)]

    def draw():
        tables[0].insert(tf.constant(1, tf.int64), tables[0].lookup(tf.constant(1, tf.int64)) + 1.0)
        return tf.ensure_shape(tables[0].lookup(tf.constant(1, tf.int64)), ())

    return draw


def naming():
    out = Out("")

    def draw():
        out.variable.assign(tf.strings.join([out.variable, "a"]))
        return tf.cast(tf.strings.length(out.variable), tf.float32)

    return draw


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: tf.random.normal((), seed=3), "random numbers by TensorFlow's RandomStandardNormal.*SeedGenerator"),
        (lambda: tf.nn.dropout(tf.ones(()), 0.5), "random numbers by TensorFlow's RandomUniform"),
        (reading_elsewhere(), "uses an object from outside by TensorFlow's IteratorGetNext.*Pass all data to `fit`"),
        (filling_a_table(), "uses an object from outside by TensorFlow's LookupTableInsertV2"),
        (naming(), r"changes the variable Variable \(\) string, which ResumableCheckpoint cannot save"),
    ],
    ids=["normal", "dropout", "iterator", "table", "text"],
)
def test_a_step_with_a_hidden_state_is_refused_before_it_is_run(draw, message, tmp_path):
    def make():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1), Drawing(draw)])
        model.compile("sgd", "mse", jit_compile=False)
        return model

    with pytest.raises(ValueError, match=message):
        train(make, tmp_path / "folder", 1)
    assert not (tmp_path / "folder").exists()


def test_a_validation_step_with_a_hidden_state_is_refused(tmp_path):
    model = Hidden(lambda: tf.random.normal(()), is_validation=True)
    model.compile("sgd", "mse", jit_compile=False)
    checkpoint = ResumableCheckpoint(tmp_path / "folder")
    with pytest.raises(ValueError, match="The validation step draws random numbers by TensorFlow's RandomStandardNor"):
        model.fit(X, Y, shuffle=False, validation_split=0.5, verbose=0, callbacks=[checkpoint])
    assert not (tmp_path / "folder").exists()
