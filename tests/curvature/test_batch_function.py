"""Objectives of the same loss share compiled functions; whatever changes the loss makes new ones."""

import contextlib
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import models
from tfopt.curvature import HessianOperator, Objective, batch_function, gradient_noise, known_products, recently_used

X = np.linspace(-1, 1, 24, dtype="float32").reshape(8, 3)
Y = np.cos(np.arange(16, dtype="float32")).reshape(8, 2)


def forget():
    known_products._products.clear()
    batch_function._known.clear()


@pytest.fixture
def _empty():
    forget()


@pytest.fixture(scope="module")
def _roomy():
    """Functions of all models of the table are kept, so that each model meets those of all before it."""
    forget()
    with pytest.MonkeyPatch.context() as patch:
        for kept in (known_products._products, batch_function._known):
            patch.setattr(kept, "_most", 1000)
        measured(make, {})
        measured(make, {"loss": with_constant(1.0)})
        yield


@contextlib.contextmanager
def sharing_nothing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recently_used.RecentlyUsed, "find", lambda self, key: None)
        patch.setattr(recently_used.RecentlyUsed, "keep", lambda self, key, thing: None)
        yield


class Scaled(keras.layers.Layer):
    """Multiplies by Python values and by a variable that is not trained."""

    num_calls = 0

    def __init__(self, factor=1.0, for_single_rows=1.0, dtype=None):
        super().__init__(dtype=dtype)
        self.factor, self.for_single_rows = factor, for_single_rows
        self.moving = self.add_weight(shape=(), initializer="ones", trainable=False, name="moving")

    def call(self, x):
        Scaled.num_calls += 1
        own = self.for_single_rows if x.shape[0] == 1 else 1.0
        return own * self.factor * keras.ops.cast(self.moving, x.dtype) * keras.ops.tanh(x)


class Unused(keras.layers.Layer):
    def build(self, shape):
        self.unused = self.add_weight(shape=(5,), trainable=False)

    def call(self, x):
        return x


def make(*more, last=None, factor=1.0, for_single_rows=1.0, regularizer=None, penalty=0.0, dtype=None, **options):
    inputs = keras.Input((3,))
    options = {"units": 3, "activation": "tanh"} | options
    hidden = keras.layers.Dense(**options, kernel_regularizer=regularizer, dtype=dtype)(inputs)
    hidden = Scaled(factor, for_single_rows, dtype)(hidden)
    hidden = keras.layers.ActivityRegularization(l2=penalty, dtype=dtype)(hidden)
    for layer in more:
        hidden = layer(hidden)
    outputs = keras.layers.Dense(2, dtype=dtype)(hidden)
    model = keras.Model(inputs, outputs if last is None else last(outputs))
    for index, variable in enumerate(model.trainable_variables):
        variable.assign(np.sin(np.arange(variable.numpy().size) + index).reshape(variable.shape))
    return model


def changed(name, value):
    """Return a model whose layer got another attribute after it was made."""
    model = make()
    setattr(model.layers[2], name, value)
    return model


def frozen(index):
    model = make()
    model.layers[index].trainable = False
    return model


def compiled(model, loss, **options):
    model.compile("sgd", loss, **options)
    return model


def with_constant(number):
    kept = tf.constant([[number, 1.0]])
    return lambda y, z: keras.ops.mean(keras.ops.square(y - z * kept), axis=-1)


# The model, and arguments of the objective that replace those of `GIVEN`.
GIVEN = {"loss": "mse", "data": (X, Y)}
CHANGED = {
    "a Python value": (lambda: make(factor=2.0), {}),
    "a Python value, set later": (lambda: changed("factor", 2.0), {}),
    "a regulariser": (lambda: make(regularizer=keras.regularizers.L2(0.5)), {}),
    "another strength of a regulariser": (lambda: make(regularizer=keras.regularizers.L2(0.25)), {}),
    "a penalty of a layer": (lambda: make(penalty=0.3), {}),
    "another activation": (lambda: make(activation="sigmoid"), {}),
    "another width": (lambda: make(units=4), {}),
    "a first layer that is frozen": (lambda: frozen(1), {}),
    "a last layer that is frozen": (lambda: frozen(-1), {}),
    "batch normalisation": (lambda: make(keras.layers.BatchNormalization()), {}),
    "moving averages": (lambda: make(keras.layers.BatchNormalization()), {"batch_norm": "moving"}),
    "dropout, which is off": (lambda: make(keras.layers.Dropout(0.5, seed=0)), {}),
    "noise, which is off": (lambda: make(keras.layers.GaussianNoise(0.5, seed=0)), {}),
    "mixed precision": (lambda: make(dtype="mixed_bfloat16"), {}),
    "double precision": (lambda: make(dtype="float64"), {}),
    "a state that is not used": (lambda: make(last=keras.layers.Dropout(0.5, seed=0)), {}),
    "another state that is not used": (lambda: make(last=Unused()), {}),
    "another loss": (make, {"loss": "log_cosh"}),
    "a setting of the loss": (make, {"loss": keras.losses.Huber(0.1)}),
    "another setting of the loss": (make, {"loss": keras.losses.Huber(0.2)}),
    "a constant of the loss": (make, {"loss": with_constant(3.0)}),
    "a weight of the loss": (lambda: compiled(make(), "mse", loss_weights=[3.0]), {"loss": None}),
    "weights of rows": (make, {"data": (X, Y, np.arange(1, 9, dtype="float32"))}),
    "fewer rows": (make, {"data": (X[:6], Y[:6])}),
    "integer targets": (make, {"data": (X, Y.astype("int32"))}),
    "one variable": (make, {"variables": 0}),
}


def measured(build, options):
    """The loss alone, the loss and its gradient, the scatter of gradients, and a product, of a new objective."""
    options = GIVEN | options
    model = build()
    if "variables" in options:
        options["variables"] = model.trainable_variables[options["variables"]]
    objective = Objective(model, options.pop("loss"), options.pop("data"), **options)
    loss, gradient = objective.loss_and_gradient()
    noise = gradient_noise(objective, group_size=2)
    matrix = HessianOperator(objective, self_check=False)
    product = matrix @ np.linspace(-1, 1, matrix.shape[0], dtype=matrix.dtype)
    flat = np.concatenate([np.ravel(part) for part in gradient])
    return [objective.loss(), loss, noise.covariance_trace.value, flat, product]


@pytest.mark.usefixtures("_roomy")
@pytest.mark.parametrize("change", CHANGED)
def test_another_loss_is_compiled_anew(change):
    found = measured(*CHANGED[change])
    with sharing_nothing():
        alone = measured(*CHANGED[change])
    for value, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("_empty")
def test_code_that_treats_single_rows_otherwise_is_traced_for_them():
    """The losses of all rows are the same function, and those of single rows are not."""
    for factor in (1.0, 2.0):
        model = make(for_single_rows=factor)
        objective = Objective(model, "mse", (X, Y))
        objective.loss_and_gradient()
        row = (tf.constant(X[:1]), tf.constant(Y[:1]), None)
        _, gradient = objective.batch_gradient(objective.values(), row)
        hidden = np.tanh(np.tanh(X[:1] @ np.asarray(model.weights[0]) + np.asarray(model.weights[1])))
        kernel, bias = (np.asarray(weight, np.float64) for weight in model.layers[-1].weights)
        error = factor * hidden @ kernel + bias - Y[:1]
        np.testing.assert_allclose(gradient[-1], error[0], rtol=1e-5)


@pytest.mark.usefixtures("_empty")
def test_a_second_objective_of_an_equal_model_compiles_nothing(monkeypatch):
    """Values of all variables are its own."""
    compiled, traced = [], batch_function.traced
    monkeypatch.setattr(batch_function, "traced", lambda *given: compiled.append(scale) or traced(*given))
    for scale in (1.0, 2.0):
        model = make(keras.layers.BatchNormalization(), factor=3.0)
        model.layers[2].moving.assign(scale)
        objective = Objective(model, "mse", (scale * X, Y))
        loss, gradient = objective.loss_and_gradient()
        noise = gradient_noise(objective, group_size=4)
    assert compiled == [1.0] * 4  # gradients of all rows and of groups, and two more with moving averages
    with sharing_nothing():
        objective = Objective(model, "mse", (scale * X, Y))
        alone, of_alone = objective.loss_and_gradient()
        again = gradient_noise(objective, group_size=4)
    assert loss == pytest.approx(alone, rel=1e-6)
    for found, expected in zip(gradient, of_alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert noise.covariance_trace.value == pytest.approx(again.covariance_trace.value, rel=1e-6)


@pytest.mark.usefixtures("_empty")
def test_gradients_of_networks_that_pool_by_maxima_are_kept(monkeypatch):
    """Products pool by other operations than gradients."""
    compiled, traced = [], batch_function.traced
    monkeypatch.setattr(batch_function, "traced", lambda *given: compiled.append(seed) or traced(*given))
    images, labels = np.sin(np.arange(512.0, dtype="float32")).reshape(8, 8, 8, 1), np.arange(8) % 3
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for seed in (0, 1):
        Objective(models.convnet((8, 8, 1), (2,), 3, seed=seed), loss, (images, labels)).loss_and_gradient()
    assert compiled == [0]


@pytest.mark.usefixtures("_empty")
def test_a_value_that_changes_between_the_objective_and_its_gradient_spoils_nothing():
    model = make()
    objective = Objective(model, "mse", (X, Y))
    model.layers[2].factor = 2.0
    objective.loss_and_gradient()  # traced with the new value
    model.layers[2].factor = 1.0
    loss, _ = Objective(model, "mse", (X, Y)).loss_and_gradient()
    forget()
    assert loss == Objective(model, "mse", (X, Y)).loss_and_gradient()[0]


@tf.custom_gradient
def _doubled(x):
    return 2.0 * x, lambda upstream: 3.0 * upstream


@pytest.mark.usefixtures("_empty")
@pytest.mark.parametrize(
    "function", [_doubled, lambda x: tf.while_loop(lambda i, _: i < 2, lambda i, a: (i + 1, a * a), (0, x))[1]]
)
def test_what_a_graph_does_not_show_is_not_shared(function):
    Objective(make(keras.layers.Lambda(function)), "mse", (X, Y)).loss_and_gradient()
    assert not batch_function._known._things


@pytest.mark.usefixtures("_empty")
def test_a_function_that_is_kept_does_not_keep_the_model():
    model = make()
    Objective(model, "mse", (X, Y)).loss_and_gradient()
    assert batch_function._known._things
    gone = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert gone() is None


def test_only_so_many_functions_are_kept():
    kept = recently_used.RecentlyUsed(2)
    for key in "abac":
        if kept.find(key) is None:
            kept.keep(key, key.upper())
    assert [kept.find(key) for key in "abc"] == ["A", None, "C"]
