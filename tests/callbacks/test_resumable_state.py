"""Whatever state a training has, it is resumed to the same bits, or refused by name."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers
from tfopt.callbacks import ResumableCheckpoint

from tfopt.datasets import EpochBatches
from tfopt.optimizers import LARS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
SEQUENCES = RNG.normal(size=(16, 3, 4)).astype("float32")


class TwoParts(keras.Model):
    """Two parts, each with an optimizer of its own; no `call`, as Keras's GANs have none."""

    def __init__(self):
        super().__init__()
        self.coder = keras.Sequential([keras.Input((4,)), layers.Dense(3, "tanh")])
        self.decoder = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        self.optimizers = {"coder": LARS(5.0), "decoder": optimizers.Adam(0.05)}

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.decoder(self.coder(x)) - y))
        parts = self.coder.trainable_variables, self.decoder.trainable_variables
        for optimizer, gradients, variables in zip(
            self.optimizers.values(), tape.gradient(loss, parts), parts, strict=True
        ):
            optimizer.apply(gradients, variables)
        return {"loss": loss}


class Holder:
    """Somebody's own object, with a state."""

    def __init__(self):
        self.average = keras.Variable(0.0, trainable=False)


OUTSIDE = tf.Variable(0.0)


class Steered(keras.Model):
    """Its steps depend on variables in all places where people put them."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)
        self.scale, self.held = tf.Variable(1.0), [Holder()]
        self.noise = tf.random.Generator.from_seed(3)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, y = data
        noise = self.noise.normal(()) + tf.random.get_global_generator().normal(())
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x) - y)) * self.scale
            loss += (noise + OUTSIDE + self.held[0].average) * tf.reduce_sum(self.dense.kernel)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        self.scale.assign(self.scale * 0.9)
        self.held[0].average.assign(0.5 * self.held[0].average + 0.5 * loss)
        OUTSIDE.assign_add(0.1)
        return {"loss": loss}


def steered():
    OUTSIDE.assign(0.0)
    tf.random.set_global_generator(tf.random.Generator.from_seed(5))
    model = Steered()
    model.compile(optimizers.SGD(0.01))
    return model


def two_parts(**options):
    model = TwoParts()
    model.compile(**options)
    return model


def stateful():
    model = keras.Sequential([
        keras.Input((3, 4), batch_size=8),
        layers.SimpleRNN(2, stateful=True),
        layers.Dense(1),
    ])
    model.compile(optimizers.SGD(0.1), "mse")
    return model


def choosing():
    adam, sgd = optimizers.Adam(0.05), optimizers.SGD(0.05, momentum=0.9)
    chosen = optimizers.MultiOptimizer(lambda variable: adam if "kernel" in variable.path else sgd)
    return plain(chosen)


def mapped():
    parts = optimizers.OptimizerMap(optimizers.Adam(0.05), {".*bias": optimizers.SGD(0.05, momentum=0.9)})
    return plain(optimizers.MultiOptimizer(parts))


def scaled():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, dtype="mixed_float16")])
    model.compile(
        optimizers.LossScaleOptimizer(optimizers.Adam(0.05), dynamic_growth_steps=3), "mse", jit_compile=False
    )
    return model


def plain(optimizer="sgd", loss="mse"):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, "tanh"), layers.Dense(1)])
    model.compile(optimizer, loss, jit_compile=False)
    return model


def train(make, folder, epochs, x=X, seed=0, **options):
    keras.utils.set_random_seed(seed)
    model = make()
    checkpoint = ResumableCheckpoint(folder, verbose=0)
    batches = EpochBatches(x, Y, batch_size=8)
    model.fit(batches, shuffle=False, epochs=epochs, verbose=0, callbacks=[checkpoint], **options)
    return [np.asarray(variable).tobytes() for variable in model.variables]


@pytest.mark.parametrize(
    "make",
    [
        lambda: two_parts(optimizer=None),
        lambda: two_parts(optimizer="rmsprop"),
        steered,
        stateful,
        choosing,
        mapped,
        scaled,
        lambda: plain(optimizers.SGD(lambda: 0.1)),
    ],
    ids=["two_parts", "two_parts_unused", "steered", "stateful", "choosing", "mapped", "scaled", "rate_function"],
)
def test_every_state_is_resumed_to_the_same_bits(make, tmp_path):
    x = SEQUENCES if make is stateful else X
    whole = train(make, tmp_path / "whole", 4, x)
    train(make, tmp_path / "parts", 2, x)
    assert train(make, tmp_path / "parts", 4, x, seed=9) == whole


def eager(build=True):
    model = two_parts(optimizer=None, run_eagerly=True)
    for optimizer, part in zip(model.optimizers.values(), (model.coder, model.decoder), strict=True):
        if build:
            optimizer.build(part.trainable_variables)
    return model


def test_eager_steps_are_resumed_if_their_optimizers_are_built(tmp_path):
    whole = train(eager, tmp_path / "whole", 2)
    train(eager, tmp_path / "parts", 1)
    assert train(eager, tmp_path / "parts", 2) == whole
    with pytest.raises(ValueError, match=r"made while training was running: .*optimizers\['coder'\]: .*build"):
        train(lambda: eager(build=False), tmp_path / "late", 1)


class Rows(keras.metrics.Metric):
    """Counts rows."""

    def __init__(self):
        super().__init__(name="rows")
        self.count = self.add_weight(initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(float(y_true.shape[0]))

    def result(self):
        return keras.ops.convert_to_tensor(self.count)


@pytest.mark.parametrize("kind", ["metrics", "weighted_metrics"])
@pytest.mark.parametrize("is_named", [False, True], ids=["list", "dictionary"])
def test_metric_objects_of_eager_models_begin_each_epoch_empty(kind, is_named, tmp_path):
    def run(place, epochs):
        entry = keras.Input((4,))
        model = keras.Model(entry, layers.Dense(1, name="last")(entry))
        metrics = [Rows(), keras.metrics.MeanAbsoluteError()]
        model.compile("sgd", "mse", run_eagerly=True, **{kind: {"last": metrics} if is_named else metrics})
        return model.fit(X, Y, epochs=epochs, verbose=0, callbacks=[ResumableCheckpoint(tmp_path / place, verbose=0)])

    keras.utils.set_random_seed(0)
    whole = run("whole", 3).history
    keras.utils.set_random_seed(0)
    run("parts", 1)
    assert run("parts", 3).history == whole
    assert whole["rows"] == [float(len(X))] * 3


def test_eager_steps_draw_the_same_random_numbers(tmp_path):
    def make():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(1), Drawing(lambda: tf.random.normal(()))])
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    whole = train(make, tmp_path / "whole", 2)
    train(make, tmp_path / "parts", 1)
    assert train(make, tmp_path / "parts", 2, seed=9) == whole


class Counting(Steered):
    """Its eager steps, and a callback, change plain Python numbers in all places where people put them."""

    def __init__(self):
        super().__init__()
        self._count, self.mean, self.seen, self.drop = 0, 0.0, {"all": [np.zeros(2)]}, layers.Dropout(0.5)
        self.held[0].weights = np.ones(3)

    def call(self, x, training=False):
        return self.dense(self.drop(x, training=training))

    def train_step(self, data):
        x, y = data
        self._count += 1
        self.mean = 0.9 * self.mean + tf.reduce_mean(x)
        self.seen["all"].append(np.ones(1))
        self.held[0].weights[1] *= 0.5
        factor = self._count + self.mean + len(self.seen["all"]) + self.held[0].weights[1]
        return super().train_step((x * 0.1 * factor, y))


def test_plain_numbers_are_resumed(tmp_path):
    def run(folder, epochs, seed=0):
        keras.utils.set_random_seed(seed)
        OUTSIDE.assign(0.0)
        tf.random.set_global_generator(tf.random.Generator.from_seed(5))
        model = Counting()
        model(X[:1])
        model.compile(optimizers.SGD(0.01), run_eagerly=True)
        halve = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: setattr(model.drop, "rate", model.drop.rate / 2))
        callbacks = [ResumableCheckpoint(folder, verbose=0), halve]
        model.fit(X, Y, batch_size=8, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
        return [np.asarray(variable).tobytes() for variable in model.variables], model._count, model.drop.rate

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    assert run(tmp_path / "parts", 4, seed=9) == whole
    assert whole[1:] == (8, 0.5 / 16)


def test_tracing_first_costs_no_second_trace(tmp_path):
    traces = []

    class Counting(TwoParts):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    def make():
        model = Counting()
        model.compile(optimizer=None)
        return model

    train(make, tmp_path, 2)
    assert len(traces) == 2  # TensorFlow itself traces twice what makes variables


class Drawing(layers.Layer):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def call(self, x):
        return x + self.draw()


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


ROWS = tf.data.Dataset.from_tensor_slices((X, Y))
FLIP = layers.RandomFlip(seed=1)
UNORDERED = tf.data.Options()
UNORDERED.deterministic = False
FACTOR = tf.Variable(2.0)


def through_python(**options):
    return ROWS.map(lambda x, y: (tf.ensure_shape(tf.numpy_function(np.sin, [x], tf.float32, **options), (4,)), y))


def generated():
    signature = (tf.TensorSpec((4,)), tf.TensorSpec((1,)))
    return tf.data.Dataset.from_generator(lambda: zip(X, Y, strict=True), output_signature=signature)


EIGHT = tf.data.experimental.assert_cardinality(8)
SIXTEEN = tf.data.experimental.assert_cardinality(16)


def of_a_batch(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: generated().batch(8), "calls Python by .*from_generator.*EpochBatches"),
        (lambda: through_python().cache().batch(8), "calls Python by tf.numpy_function.*stateful=False"),
        (
            lambda: ROWS.map(lambda x, y: (tf.ensure_shape(tf.py_function(tf.sin, [x], tf.float32), (4,)), y)).batch(8),
            "calls Python by tf.py_function",
        ),
        (lambda: through_python(stateful=False).batch(8), None),
        (lambda: ROWS.apply(tf.data.experimental.shuffle_and_repeat(16, 1, seed=3)).batch(8), "draws anew"),
        (lambda: ROWS.map(lambda x, y: (FLIP(x[None, None])[0, 0], y)).batch(8), "changes a variable.*seed_generator"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal(()), y)).batch(8), "draws random numbers.*Normal"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal((), seed=1), y), 2).batch(8), "draws random.*Normal"),
        (lambda: ROWS.map(lambda x, y: (x + tf.random.normal((), seed=1), y)).batch(8), None),
        (lambda: ROWS.map(lambda x, y: (x * FACTOR, y), num_parallel_calls=2).batch(8), None),
        (
            lambda: ROWS.map(lambda x, y: (x, y), num_parallel_calls=2, deterministic=False).batch(8),
            "in the order in wh",
        ),
        (lambda: ROWS.batch(8).with_options(UNORDERED), "in the order in which they are ready"),
        (lambda: tf.data.Dataset.zip(ROWS.batch(8).shuffle(2), ROWS.batch(8)).map(lambda a, b: b), "no seed"),
        (lambda: ROWS.shuffle(9, reshuffle_each_iteration=False).batch(8), "no seed is set.*set_random_seed"),
        (lambda: ROWS.shuffle(9, seed=1).shuffle(9, seed=2).batch(8), None),
        (lambda: ROWS.shuffle(9, seed=1).batch(8).cache().take(1), "CacheDataset .*a TakeDataset may stop"),
        (lambda: ROWS.shuffle(9, seed=1).repeat(2).batch(8).take(3), "RepeatDataset .*a TakeDataset may stop"),
        (
            lambda: tf.data.Dataset.zip(ROWS.batch(8), ROWS.shuffle(9, seed=1).repeat().batch(8)).map(lambda a, b: a),
            "RepeatDataset comes after `shuffle`, and a ZipDataset may stop before its end",
        ),
        (lambda: ROWS.batch(8).flat_map(lambda x, y: of_a_batch(x, y).shuffle(8)).batch(8), "function.*without a seed"),
        (
            lambda: ROWS.batch(8).flat_map(lambda x, y: of_a_batch(x, y).shuffle(8, seed=1)).apply(SIXTEEN).batch(8),
            None,
        ),
    ],
    ids=[
        "generator",
        "numpy",
        "eager",
        "numpy_stateless",
        "shuffle_and_repeat",
        "layer",
        "unseeded",
        "seeded_parallel",
        "seeded",
        "constant",
        "map_unordered",
        "unordered",
        "zipped",
        "shuffled_once",
        "shuffled_twice",
        "cached",
        "repeated",
        "zipped_endless",
        "shuffled_within",
        "shuffled_within_seeded",
    ],
)
def test_random_data_sets(data, message, tmp_path):
    tf.random.set_seed(None)
    model, checkpoint = plain(), ResumableCheckpoint(tmp_path / "folder", verbose=0)
    if message is None:
        model.fit(data(), shuffle=None, verbose=0, callbacks=[checkpoint])
    else:
        with pytest.raises(ValueError, match=message):
            model.fit(data(), shuffle=None, verbose=0, callbacks=[checkpoint])


class Own(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[8 * index : 8 * index + 8], Y[8 * index : 8 * index + 8]


class OwnFromAnyEpoch(Own):
    def start_at(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(
    "make", [OwnFromAnyEpoch, lambda workers: EpochBatches(X, Y, batch_size=8)], ids=["own", "ours"]
)
def test_batches_that_fit_shuffles_by_a_seed_are_refused(make, tmp_path):
    keras.utils.set_random_seed(0)
    with pytest.raises(ValueError, match="shuffles the batches of .* with Python's random numbers.*shuffle=False"):
        plain().fit(make(workers=2), verbose=0, callbacks=[ResumableCheckpoint(tmp_path, verbose=0)])


def test_batches_of_worker_threads_in_their_order_are_accepted(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path / "folder", stateless=[Own], verbose=0)
    plain().fit(Own(workers=2), shuffle=False, verbose=0, callbacks=[checkpoint])


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (lambda: X, {"y": Y, "batch_size": 5}),
        (lambda: {"a": X, "b": tf.constant(X)}, {"y": [Y], "batch_size": 8, "sample_weight": np.ones(16)}),
        (lambda: X.astype("float64"), {"y": Y, "batch_size": 8, "class_weight": dict.fromkeys(range(-9, 9), 1.0)}),
        (lambda: X, {"y": Y, "batch_size": 8, "shuffle": 1}),
    ],
    ids=["rest", "nested", "double", "truthy"],
)
@pytest.mark.parametrize("is_seeded", [True, False])
def test_arrays_that_fit_shuffles_come_in_the_same_order(data, options, is_seeded, tmp_path):
    check_rows(tmp_path, data, is_seeded, **options)


class Recording(keras.Model):
    """Remembers the rows of each batch."""

    def __init__(self):
        super().__init__()
        self.dense, self.drop, self.rows = layers.Dense(1), layers.Dropout(0.5), []

    def call(self, x, training=False):
        return self.dense(self.drop(x["a"] if isinstance(x, dict) else x, training=training))

    def train_step(self, data):
        x = data[0]["a"] if isinstance(data[0], dict) else data[0]
        tf.py_function(lambda rows: self.rows.append(rows.numpy().astype("float32")), [x], [])
        return super().train_step(data)


def check_rows(folder, data, is_seeded, **options):
    def run(place, epochs, seed=0, callbacks=True):
        keras.utils.set_random_seed(seed)
        if not is_seeded:
            tf.random.set_seed(None)
        model = Recording()
        model.compile(optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        checkpoints = [ResumableCheckpoint(place, verbose=0)] * callbacks
        model.fit(data(), epochs=epochs, verbose=0, callbacks=checkpoints, **options)
        return model.rows, [np.asarray(variable).tobytes() for variable in model.variables]

    whole_rows, whole = run(folder / "whole", 4)
    run(folder / "parts", 2)
    rows, resumed = run(folder / "parts", 4, seed=0 if is_seeded else 9)
    assert resumed == whole
    if is_seeded:
        assert run(folder / "none", 4, callbacks=False)[1] == whole
        with pytest.raises(ValueError, match="order of rows was Keras's, from the seed 0 of tf.random, is .* 9 of"):
            run(folder / "parts", 5, seed=9)
    assert len(rows) == len(whole_rows)  # which the model holds, so that those of before are resumed too
    assert all(map(np.array_equal, rows, whole_rows))
    num_batches = len(whole_rows) // 4
    epochs = [np.concatenate(whole_rows[epoch * num_batches :][:num_batches]) for epoch in range(4)]
    assert all(sorted(map(tuple, epoch)) == sorted(map(tuple, X)) for epoch in epochs)
    assert is_seeded or any(not np.array_equal(epoch, epochs[0]) for epoch in epochs[1:])


class EvaluatingOnTheData(keras.callbacks.Callback):
    """Draws from the data set's generator behind the back of `fit`."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_end(self, epoch, logs=None):
        list(self.data)

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class OwnInThreads(OwnFromAnyEpoch):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]


@pytest.mark.parametrize(
    "data",
    [
        lambda: ROWS.shuffle(16, seed=3).batch(2),
        lambda: ROWS.cache().shuffle(16).map(lambda x, y: (x, y), 2).batch(2, drop_remainder=True).prefetch(2),
        lambda: tf.data.Dataset.zip(ROWS.shuffle(5, seed=1), ROWS.shuffle(5, seed=1)).map(lambda a, b: a).batch(2),
        lambda: ROWS.batch(4).shuffle(4).unbatch().filter(lambda x, y: True).padded_batch(2).take(8).apply(EIGHT),
        lambda: EpochBatches(X, Y, batch_size=2),
        lambda: OwnInThreads(workers=1),
        lambda: OwnInThreads(workers=2),
    ],
    ids=["seed", "global_seed", "zip", "batches", "epoch_batches", "py_dataset", "threads"],
)
def test_shuffled_data_sets_resume(data, tmp_path):
    def run(place, ends):
        keras.utils.set_random_seed(0)
        model, rows = Recording(), data()
        if isinstance(rows, keras.utils.PyDataset):
            tf.random.set_seed(None)  # with a seed, Keras's own order is wanted, which a thread draws
        model.compile(optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
        callbacks, shuffle = [ResumableCheckpoint(place, verbose=0)] if place else [], True
        if isinstance(rows, tf.data.Dataset):
            callbacks, shuffle = [EvaluatingOnTheData(rows), *callbacks], None  # which Keras wants with a data set
        for epochs in ends:
            model.fit(rows, shuffle=shuffle, epochs=epochs, verbose=0, callbacks=callbacks)
        return model.rows, [np.asarray(variable).tobytes() for variable in model.variables]

    whole_rows, whole = run(tmp_path / "whole", [5])
    run(tmp_path / "parts", [1, 3])
    rows, resumed = run(tmp_path / "parts", [5])
    assert resumed == whole
    if isinstance(data(), tf.data.Dataset):
        assert run(None, [5])[1] == whole  # Keras's own order
    assert len(rows) == len(whole_rows) == 40
    assert all(map(np.array_equal, rows, whole_rows))
    epochs = [np.concatenate(whole_rows[start : start + 8]) for start in range(0, 40, 8)]
    assert all(sorted(map(tuple, epoch)) == sorted(map(tuple, X)) for epoch in epochs)
    assert len({epoch.tobytes() for epoch in epochs}) > 2


def test_other_data_sets_are_named(tmp_path):
    def run(size, epochs, factor=1.0):
        data = ROWS.shuffle(size, seed=3).map(lambda x, y: (factor * x, y)).batch(2)
        plain().fit(data, shuffle=None, epochs=epochs, verbose=0, callbacks=[ResumableCheckpoint(tmp_path, verbose=0)])

    run(16, 1)
    with pytest.raises(ValueError, match="data set was .*'buffer_size': 16.* is .*'buffer_size': 8"):
        run(8, 2)
    with pytest.raises(ValueError, match="data set was .*'functions'.* is .*'functions'"):
        run(16, 2, factor=2.0)
    run(16, 2)


def other_adam(**options):
    adam = optimizers.Adam(**options)
    return optimizers.MultiOptimizer(lambda variable: adam)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (lambda: other_adam(beta_1=0.8), lambda: other_adam(beta_1=0.7), "beta_1 was 0.8, is 0.7"),
        (lambda: optimizers.SGD(lambda: 0.1), lambda: optimizers.SGD(lambda: 0.2), "learning_rate was .* is "),
        (lambda: "sgd", lambda: optimizers.SGD(nesterov=True), "nesterov was False, is True"),
    ],
    ids=["several", "function", "plain"],
)
def test_other_arguments_of_optimizers_are_named(one, other, message, tmp_path):
    train(lambda: plain(one()), tmp_path, 1)
    with pytest.raises(ValueError, match=f"written with other arguments.*{message}"):
        train(lambda: plain(other()), tmp_path, 2)


@pytest.mark.parametrize("make", [optimizers.AdamW, LARS])
def test_other_exclusions_from_weight_decay_are_named(make, tmp_path):
    def excluding(name):
        optimizer = make(weight_decay=0.1)
        if name:
            optimizer.exclude_from_weight_decay(var_names=[name])
        return plain(optimizer)

    train(lambda: excluding("kernel"), tmp_path, 1)
    for name in ("bias", None):
        with pytest.raises(ValueError, match=r"variables without weight decay was \[[0-9, ]+\], is \[[0-9, ]*\]"):
            train(lambda name=name: excluding(name), tmp_path, 2)
    train(lambda: excluding("kernel"), tmp_path, 2)


def test_other_arguments_of_a_parts_optimizer_are_named(tmp_path):
    def make(rate):
        model = two_parts(optimizer=None)
        model.optimizers["decoder"] = optimizers.Adam(rate)
        return model

    train(lambda: make(0.1), tmp_path, 1)
    with pytest.raises(ValueError, match=r"optimizers\['decoder'\]'s learning_rate was 0.1.*, is 0.2"):
        train(lambda: make(0.2), tmp_path, 2)


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    class Second(keras.callbacks.Callback):
        said = ""

        def on_epoch_end(self, epoch, logs=None):
            def again():
                try:
                    train(plain, tmp_path, 1)
                except ValueError as error:
                    self.said = str(error)

            thread = threading.Thread(target=again)
            thread.start()
            thread.join()

    second = Second()
    checkpoint = ResumableCheckpoint(tmp_path, stateless=[Second], verbose=0)
    plain().fit(X, Y, shuffle=False, verbose=0, callbacks=[checkpoint, second])
    assert "Another training writes its checkpoints" in second.said
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-000001.rank-0-of-1.npz"]


def test_a_data_set_that_calls_python_is_accepted_on_the_users_word(tmp_path):
    checkpoint = ResumableCheckpoint(tmp_path, stateless=[tf.data.Dataset], verbose=0)
    plain().fit(through_python().batch(8), shuffle=None, verbose=0, callbacks=[checkpoint])
