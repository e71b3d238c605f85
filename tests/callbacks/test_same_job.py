"""A checkpoint is taken over by the job that has written it, and by no other: what differs is named."""

import contextlib
import dataclasses
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfopt.callbacks import ResumableCheckpoint
from tfopt.callbacks._resuming.job import differences, setup_of
from tfopt.callbacks._resuming.layer_arguments import own_attributes
from tfopt.datasets import EpochBatches

pytestmark = pytest.mark.usefixtures("each_fit_in_its_own_process")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
LABELS = np.arange(16) % 2
WEIGHTS = np.linspace(0.5, 1.0, 16)


def compiled(*inside, loss="mse", optimizer="sgd", **options):
    model = keras.Sequential([keras.Input((4,)), *inside, layers.Dense(1)])
    model.compile(optimizer, loss, jit_compile=False, **options)
    return model


def branches(joined=(0, 1), second=2.0):
    inputs = keras.Input((4,))
    parts = [layers.Dense(3, "tanh")(inputs) for _ in range(3)]
    both = keras.ops.multiply(layers.Add()([parts[place] for place in joined]), second)
    model = keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([both, *parts])))
    model.compile("sgd", "mse")
    return model


class Powered(keras.losses.Loss):
    def __init__(self, power):
        super().__init__()
        self._power = power

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred) ** self._power, -1)


class Named(layers.Layer):
    """Keeps names that Keras numbers anew."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3)
        self.tag, self.inner_names = f"{self.name}_x", [self.inner.name]

    def call(self, x):
        return self.inner(x)


class Scaled(layers.Layer):
    """Its argument cannot be written down, so that `get_config` raises."""

    def __init__(self, inner, factor=1.0):
        super().__init__()
        self.inner, self.factor = inner, factor

    def call(self, x):
        return self.inner(x) * self.factor


class Own(keras.Model):
    def __init__(self, rate=0.5, beta=1.0, activation="tanh"):
        super().__init__()
        self.first, self.drop, self.last = layers.Dense(3, activation), layers.Dropout(rate), layers.Dense(1)
        self.beta, self.log, self.rows = beta, "/logs/one", []

    def call(self, x):
        return self.beta * self.last(self.drop(self.first(x)))


def own(cls=Own, **options):
    model = cls(**options)
    model.compile("sgd", "mse", jit_compile=False)
    return model


def times(factor):
    return lambda x: factor * x


def frozen(number):
    model = compiled(layers.Dense(2))
    model.layers[number].trainable = False
    return model


def two_outputs(**options):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(inputs), "b": layers.Dense(1, name="b")(inputs)})
    model.compile("sgd", **options)
    return model


def inner_dense(**options):
    return compiled(keras.Sequential([keras.Input((4,)), layers.Dense(3, **options)]))


class Squares(keras.regularizers.Regularizer):
    """Has no `get_config`, so that the layer's raises."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, weight):
        return self.factor * keras.ops.sum(weight**2)


def regularized(factor, activation="tanh"):
    return compiled(layers.Dense(3, activation, kernel_regularizer=Squares(factor)))


@dataclasses.dataclass
class Options:
    beta: float = 1.0


class Optional(Own):
    def __init__(self, options, more=None):
        super().__init__()
        self.options, self.more, self.weighting = options, more or {"alpha": 1.0}, Squares(1.0)


def constant(gamma):
    class Constant(Own):
        pass

    Constant.gamma = gamma
    return own(cls=Constant)


def optional(*args):
    model = Optional(*args)
    model.compile("sgd", "mse")
    return model


def words(text):
    inputs = keras.Input((1,), dtype="string")
    layer = layers.TextVectorization(output_mode="multi_hot")
    layer.adapt(text)
    model = keras.Model(inputs, layers.Dense(1)(layer(inputs)))
    model.compile("sgd", "mse")
    return model


P = functools.partial
MODELS = {
    "activation": (
        P(compiled, layers.Dense(3, "relu")),
        P(compiled, layers.Dense(3, "tanh")),
        "activation was keras.relu, is keras.tanh",
    ),
    "dropout": (P(compiled, layers.Dropout(0.1)), P(compiled, layers.Dropout(0.2)), "rate was 0.1, is 0.2"),
    "l2": (
        lambda: compiled(layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.1))),
        lambda: compiled(layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.2))),
        "kernel_regularizer was .*l2: 0.1.*, is .*l2: 0.2",
    ),
    "dtype": (P(compiled, layers.Dense(3)), lambda: compiled(layers.Dense(3, dtype="mixed_bfloat16")), "dtype was"),
    "lambda": (
        lambda: compiled(layers.Lambda(times(2.0))),
        lambda: compiled(layers.Lambda(times(3.0))),
        "function was .*factor: 2.0.*, is .*factor: 3.0",
    ),
    "function": (
        lambda: compiled(layers.Dense(3, lambda x: 2 * x)),
        lambda: compiled(layers.Dense(3, lambda x: 3 * x)),
        "activation was .*lambda",
    ),
    "wiring": (branches, P(branches, joined=(0, 2)), "connections was"),
    "constant": (branches, P(branches, second=3.0), "connections was"),
    "inside": (inner_dense, P(inner_dense, activation="relu"), "activation was keras.linear, is keras.relu"),
    "no_config": (
        lambda: compiled(Scaled(layers.Dense(2))),
        lambda: compiled(Scaled(layers.Dense(2), 2.0)),
        "attribute factor was 1.0, is 2.0",
    ),
    "no_config_inside": (
        lambda: compiled(Scaled(layers.Dense(2))),
        lambda: compiled(Scaled(layers.Dense(2, "relu"))),
        "activation was keras.linear, is keras.relu",
    ),
    "own_rate": (own, P(own, rate=0.1), "rate was 0.5, is 0.1"),
    "own_beta": (own, P(own, beta=2.0), "beta was 1.0, is 2.0"),
    "wrapped": (
        lambda: compiled(layers.Reshape((2, 2)), layers.Bidirectional(layers.LSTM(2, dropout=0.1))),
        lambda: compiled(layers.Reshape((2, 2)), layers.Bidirectional(layers.LSTM(2, dropout=0.2))),
        "dropout was 0.1, is 0.2",
    ),
    "frozen": (P(frozen, 0), P(frozen, 1), r"layer 2 \(Dense\)'s trainable was False, is True"),
    "loss": (compiled, lambda: compiled(loss=keras.losses.Huber(2.0)), "loss was mse, is Huber.*delta: 2.0"),
    "loss_function": (
        lambda: compiled(loss=lambda y, p: (y - p) ** 2),
        lambda: compiled(loss=lambda y, p: (y - p) ** 4),
        "loss was .*lambda",
    ),
    "loss_class": (
        P(compiled, loss=Powered(2)),
        P(compiled, loss=Powered(3)),
        "loss's attribute _power was 2, is 3",
    ),
    "names": (
        lambda: compiled(Named(), layers.Dropout(0.1)),
        lambda: compiled(Named(), layers.Dropout(0.2)),
        "rate was 0.1, is 0.2",
    ),
    "loss_weights": (
        P(two_outputs, loss={"a": "mse", "b": "mse"}, loss_weights={"a": 1.0, "b": 0.5}),
        P(two_outputs, loss={"a": "mse", "b": "mse"}, loss_weights={"a": 1.0, "b": 0.1}),
        "loss_weights was .*b: 0.5.*, is .*b: 0.1",
    ),
    "crop": (lambda: cropped(3), lambda: cropped(4), "seed was 3, is 4"),
    "unseeded_crop": (lambda: cropped(None), lambda: cropped(5), "seed was None, is 5"),
    "regularizer": (P(regularized, 0.1), P(regularized, 0.2), "kernel_regularizer was Squares .*0.1"),
    "beside_regularizer": (
        P(regularized, 0.1),
        P(regularized, 0.1, "relu"),
        "activation was keras.tanh, is keras.relu",
    ),
    "options": (lambda: optional(Options()), lambda: optional(Options(2.0)), "options was Options {beta: 1.0}, is"),
    "dictionary": (P(optional, Options()), P(optional, Options(), {"alpha": 2.0}), "more was {alpha: 1.0}, is"),
    "of_class": (P(constant, 1.0), P(constant, 2.0), "attribute gamma was 1.0, is 2.0"),
    "vocabulary": (P(words, ["a b"]), P(words, ["a c"]), "vocabulary was .*, is"),
    "initializer": (
        lambda: compiled(layers.Dense(3, kernel_initializer="ones")),
        lambda: compiled(layers.Dense(3)),
        "kernel_initializer was Ones",
    ),
    "rename": (lambda: compiled(layers.Dense(3, name="one")), lambda: compiled(layers.Dense(3, name="two")), None),
    "constraint": (
        lambda: compiled(layers.Dense(3, kernel_constraint=keras.constraints.MaxNorm(1.0))),
        lambda: compiled(layers.Dense(3)),
        "kernel_constraint was MaxNorm .*max_value: 1.0.*, is None",
    ),
}


def cropped(seed):
    inputs = keras.Input((4,))
    image = layers.RandomCrop(1, 1, seed=seed)(layers.Reshape((2, 2, 1))(inputs))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(image)))
    model.compile("sgd", "mse")
    return model


def everything_of(model):
    return {**setup_of(model), **own_attributes(model)}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_differ_are_told_apart_and_those_of_one_code_are_not(name):
    one, other, message = MODELS[name]
    first, second, third = [everything_of(make()) for make in (one, other, one)]
    assert differences(first, third, {}) == []
    found = differences(first, second, {})
    assert any(re.search(message, text) for text in found) if message else not found, found


def rows(x=X, weights=None, size=8):
    return tf.data.Dataset.from_tensor_slices((x, Y) if weights is None else (x, Y, weights)).batch(size)


class Batches(keras.utils.PyDataset):
    def __init__(self, x=X, is_random=False):
        super().__init__()
        self.x, self.is_random = x, is_random

    def __len__(self):
        return 2

    def __getitem__(self, index):
        noise = np.random.normal() if self.is_random else 0.0  # noqa: NPY002
        return self.x[8 * index : 8 * index + 8] + noise, Y[8 * index : 8 * index + 8]


def fit(folder, epochs, x=X, y=Y, make=lambda: compiled(layers.Dense(3, "tanh")), seed=0, callbacks=(), **options):
    keras.utils.set_random_seed(seed)
    model = make()
    checkpoint = ResumableCheckpoint(folder, stateless=[Batches, *options.pop("stateless", ())], verbose=0)
    options = {"shuffle": False, **options}
    model.fit(x, y, epochs=epochs, verbose=0, callbacks=[*callbacks, checkpoint], **options)
    return [np.asarray(variable).tobytes() for variable in (*model.variables, *model.optimizer.variables)]


def other(array):
    array = np.array(array)
    array[3] += 1
    return array


CLASSES = LABELS[:, None].astype("float32")
DATA = {
    "x": ({}, {"x": other(X)}, "checksum of x was [0-9]+, is [0-9]+"),
    "y": ({"y": tf.constant(Y)}, {"y": other(Y)}, "checksum of y was"),
    "batch_size": ({}, {"batch_size": 20}, "batch_size was 32, is 20"),
    "sample_weight": ({"sample_weight": WEIGHTS}, {"sample_weight": other(WEIGHTS)}, "checksum of sample_weight was"),
    "no_weight": ({}, {"sample_weight": WEIGHTS}, "checksum of sample_weight was None, is"),
    "class_weight": (
        {"y": CLASSES, "class_weight": {0: 1, 1: 2}},
        {"y": CLASSES, "class_weight": {0: 1, 1: 3}},
        "class_weight was {0: 1.0, 1: 2.0}, is {0: 1.0, 1: 3.0}",
    ),
    "split": ({"validation_split": 0.25}, {"validation_split": 0.5}, "number of rows was 12, is 8"),
    "data_set": ({"x": rows(), "y": None}, {"x": rows(other(X)), "y": None}, "checksum of the first batch"),
    "data_sets_weight": (
        {"x": rows(weights=WEIGHTS), "y": None},
        {"x": rows(weights=other(WEIGHTS)), "y": None},
        "checksum of the first batch",
    ),
    "py_data_set": ({"x": Batches(), "y": None}, {"x": Batches(other(X)), "y": None}, "checksum of the first batch"),
    "weights_of_epoch_batches": (
        {"x": EpochBatches(X, Y, WEIGHTS), "y": None},
        {"x": EpochBatches(X, Y, other(WEIGHTS)), "y": None},
        "checksum of sample_weight was",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_other_data_are_refused(name, tmp_path):
    one, another, message = DATA[name]
    fit(tmp_path, 1, **one)
    with pytest.raises(ValueError, match=f"written with other arguments.*{message}"):
        fit(tmp_path, 2, **another)


def named():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    model = keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(layers.Concatenate()([*inputs.values()]))))
    model.compile("adam", "mse", jit_compile=False)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"y": CLASSES, "class_weight": {0: 1, 1: 2}, "batch_size": 5, "shuffle": True},
        {"sample_weight": WEIGHTS, "validation_split": 0.25, "initial_epoch": 1, "steps_per_epoch": 3},
        {"x": rows(weights=WEIGHTS).cache(), "y": None, "steps_per_epoch": 2, "shuffle": None},
        {"x": {"b": X, "a": 2 * X}, "make": named, "batch_size": 4, "validation_data": ({"a": X, "b": X}, Y)},
        {"x": Batches(), "y": None, "class_weight": {0: 2.0}},
        {"x": Batches(is_random=True), "y": None},
    ],
    ids=["classes", "split", "data_set", "names", "py_data_set", "random"],
)
def test_the_same_job_goes_on_to_the_same_bits(options, tmp_path):
    whole = fit(tmp_path / "whole", 4, **options)
    fit(tmp_path / "parts", 2, **options)
    assert fit(tmp_path / "parts", 4, **options) == whole


def test_reading_batches_to_know_them_again_draws_no_random_number(tmp_path):
    states = []
    begin = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: states.append(np.random.get_state()))  # noqa: NPY002
    for place in ("before", "after"):
        keras.utils.set_random_seed(0)
        checkpoint = ResumableCheckpoint(tmp_path / place, stateless=[Batches], verbose=0)
        callbacks = [begin, checkpoint] if place == "before" else [checkpoint, begin]
        compiled().fit(Batches(is_random=True), shuffle=False, verbose=0, callbacks=callbacks)
    assert repr(states[0]) == repr(states[1])


def test_a_checkpoint_from_before_the_first_epoch_is_refused(tmp_path):
    fit(tmp_path, 1)
    with pytest.raises(ValueError, match="has 1 epochs.*would begin after 3. Received: initial_epoch=3"):
        fit(tmp_path, 5, initial_epoch=3)


class Unfreeze(keras.callbacks.Callback):
    """Freeze or unfreeze a layer in the middle of training, as for fine-tuning."""

    def __init__(self, loss="mse", layer=0):
        super().__init__()
        self.loss, self.layer = loss, layer

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            layer = self.model.layers[self.layer]
            layer.trainable = not layer.trainable
            self.model.compile(self.model.optimizer, self.loss, jit_compile=False)
            self.model.make_train_function()


def test_a_model_that_was_compiled_again_in_fit_is_resumed_only_as_it_is_then(tmp_path):
    def early():
        return compiled(layers.Dense(2), optimizer=keras.optimizers.SGD(0.1, momentum=0.9))

    def late():
        model = early()
        model.optimizer.build(model.trainable_variables)
        model.layers[0].trainable = False
        model.compile(model.optimizer, "mae", jit_compile=False)
        return model

    options = {"callbacks": [Unfreeze("mae")], "stateless": [Unfreeze]}
    with pytest.warns(UserWarning, match="compiled again while it was trained: loss was mse, is mae; .*trainable was"):
        whole = fit(tmp_path / "whole", 4, make=early, **options)
    with pytest.warns(UserWarning, match="compiled again"):
        fit(tmp_path / "parts", 3, make=early, **options)
    with pytest.raises(ValueError, match=r"loss was mae, is mse; layer 2 \(Dense\)'s trainable was False.*two `fit`s"):
        fit(tmp_path / "parts", 4, make=early, **options)
    assert fit(tmp_path / "parts", 4, make=late) == whole


def test_compiling_again_with_the_same_arguments_changes_nothing(tmp_path):
    def same(epoch, logs):
        model.compile(model.optimizer, "mse", jit_compile=False)
        model.make_train_function()

    results = []
    for place, epochs in (("whole", 3), ("parts", 2), ("parts", 3)):
        keras.utils.set_random_seed(0)
        model = compiled()
        again = keras.callbacks.LambdaCallback(on_epoch_begin=same)
        callbacks = [again, ResumableCheckpoint(tmp_path / place, verbose=0)]
        model.fit(X, Y, shuffle=False, epochs=epochs, verbose=0, callbacks=callbacks)
        results.append([np.asarray(variable).tobytes() for variable in model.variables])
    assert results[0] == results[2]


def test_two_phases_in_one_folder_are_refused_with_advice(tmp_path):
    fit(tmp_path, 1, make=lambda: frozen(0))
    with pytest.raises(
        ValueError,
        match=r"belongs to another model or optimizer.*trainable was False, is True.*two `fit`s, with a folder",
    ):
        fit(tmp_path, 2, make=lambda: compiled(layers.Dense(2), optimizer="adam"))


def test_other_code_is_warned_about_and_so_are_fewer_epochs(tmp_path):
    def make(factor):
        class Model(Own):
            if factor == 1:

                def call(self, x):
                    return super().call(x)

            else:

                def call(self, x):
                    return super().call(x) * 2

        return own(cls=Model)

    fit(tmp_path, 1, make=lambda: make(1))
    with pytest.warns(
        UserWarning, match="was written with other code in .*Model.call. If that code computes something else"
    ):
        fit(tmp_path, 2, make=lambda: make(2))
    with pytest.warns(UserWarning, match="has 2 epochs, more than `fit` asks for. Received: epochs=1"):
        fit(tmp_path, 1, make=lambda: make(1 + 1))


class Falling:
    __module__ = "pytest"  # as of an installed package, whose objects are not saved

    def __init__(self):
        self.calls = 0

    def __call__(self, epoch, rate):
        self.calls += 1
        return 0.1 / self.calls


def counting(model):
    calls = [0]

    def count(epoch, logs):
        calls[0] += 1

    return keras.callbacks.LambdaCallback(on_epoch_end=count)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: keras.callbacks.LearningRateScheduler(Falling()), "LearningRateScheduler number .*'s schedule"),
        (counting, None),
        (lambda model: keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: model.get_weights()), None),
    ],
    ids=["schedule", "counter", "model"],
)
def test_functions_with_a_state_that_is_not_saved_are_warned_about(make, message, tmp_path):
    model = compiled()
    callbacks = [make(model), ResumableCheckpoint(tmp_path, verbose=0)]
    expected = contextlib.nullcontext() if message is None else pytest.warns(UserWarning, match=message)
    with expected:
        model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
