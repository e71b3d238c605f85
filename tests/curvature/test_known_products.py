"""Operators of the same function share a compiled product; whatever changes the function makes a new one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import HessianOperator, Objective, known_products

X, Y = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3), np.ones((4, 2), "float32")


@pytest.fixture(autouse=True)
def _empty():
    known_products._products.clear()


class Scaled(keras.layers.Layer):
    """Multiplies by Python values and a variable that is not trained."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.moving = self.add_weight(shape=(), initializer="ones", trainable=False, name="moving")

    def call(self, x):
        return self.factor * self.moving * keras.ops.tanh(x)


def make(factor=1.0, units=2, regularizer=None, penalty=0.0, activation="tanh"):
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(3, activation, kernel_regularizer=regularizer)(inputs)
    hidden = keras.layers.ActivityRegularization(l2=penalty)(Scaled(factor)(hidden))
    model = keras.Model(inputs, keras.layers.Dense(units)(hidden))
    for index, variable in enumerate(model.trainable_variables):
        variable.assign(np.sin(np.arange(variable.numpy().size) + index).reshape(variable.shape))
    return model


def product(model, loss="mse", x=X, y=Y, sample_weight=None, **options):
    matrix = HessianOperator(model, loss, x, y, sample_weight, **options)
    return matrix, matrix @ np.linspace(-1, 1, matrix.shape[0], dtype="float32")


def alone(*arguments, **options):
    """The product of an operator that finds nothing to share."""
    known_products._products.clear()
    _, found = product(*arguments, **options)
    known_products._products.clear()
    return found


def function_of(matrix):
    return next(iter(matrix._products.values())).function


def test_an_equal_model_shares_the_function_with_its_own_values():
    first, _ = product(make(), self_check=True)
    other = make()
    other.layers[2].moving.assign(3.0)
    other.trainable_variables[0].assign(other.trainable_variables[0] * 2)
    second, found = product(other, x=2 * X, self_check=True)
    assert function_of(second) is function_of(first)
    np.testing.assert_allclose(found, alone(other, x=2 * X), rtol=1e-6)


def frozen():
    model = make()
    model.layers[1].trainable = False
    return model


def attribute_changed():
    model = make()
    model.layers[2].factor = 2.0
    return model


def with_constant(number):
    kept = tf.constant([[number, 1.0]])
    return lambda y, z: keras.ops.mean(keras.ops.square(y - z * kept))


CHANGED = {
    "a Python value": (lambda: make(factor=2.0), {}),
    "a Python value, set later": (attribute_changed, {}),
    "a regulariser": (lambda: make(regularizer=keras.regularizers.L2(0.5)), {}),
    "a penalty of a layer": (lambda: make(penalty=0.3), {}),
    "another activation": (lambda: make(activation="sigmoid"), {}),
    "a frozen layer": (frozen, {}),
    "another loss": (make, {"loss": "log_cosh"}),
    "a constant of the loss": (make, {"loss": with_constant(3.0)}),
    "weights of rows": (make, {"sample_weight": np.arange(4, dtype="float32")}),
    "other rows": (make, {"x": X[:3], "y": Y[:3]}),
    "a reduction": (make, {"loss": keras.losses.MeanSquaredError(reduction="sum")}),
}


@pytest.mark.parametrize("change", CHANGED)
def test_another_function_is_compiled_anew(change):
    build, options = CHANGED[change]
    options = {"loss": "mse", "x": X, "y": Y} | options
    expected = alone(build(), **options)
    for loss in ("mse", with_constant(1.0)):
        product(make(), loss)
    _, found = product(build(), **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_variables_that_are_chosen_are_part_of_the_function():
    model = make()
    kernel, bias, *_ = model.trainable_variables
    product(model, variables=[kernel, bias])
    matrix, found = product(model, variables=[bias, kernel])
    np.testing.assert_allclose(found, alone(model, variables=[bias, kernel]), rtol=1e-6)
    assert matrix.shape == (12, 12)


def test_a_value_that_changes_between_the_objective_and_the_product_spoils_nothing():
    model = make()
    objective = Objective(model, "mse", (X, Y))
    model.layers[2].factor = 2.0
    HessianOperator(objective) @ np.ones(20, "float32")  # traced with the new value
    model.layers[2].factor = 1.0
    _, found = product(model)
    np.testing.assert_allclose(found, alone(model), rtol=1e-6)


@tf.custom_gradient
def _doubled(x):
    return 2.0 * x, lambda upstream: 2.0 * upstream


@pytest.mark.parametrize(
    "function", [_doubled, lambda x: tf.while_loop(lambda i, _: i < 2, lambda i, a: (i + 1, a * a), (0, x))[1]]
)
def test_what_a_graph_does_not_show_is_not_known_again(function):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Lambda(function)(keras.layers.Dense(2)(inputs)))
    assert Objective(model, "mse", (X, Y)).batch_loss.fingerprint is None
    first, second = product(model)[0], product(model)[0]
    assert function_of(first) is not function_of(second)


def test_a_check_that_was_left_out_is_made_up_for():
    silent = make(activation=lambda x: x + tf.stop_gradient(tf.square(x)))
    product(silent, self_check=False)
    with pytest.raises(RuntimeError, match="are wrong"):
        product(silent, self_check=True)
    with pytest.raises(RuntimeError, match="are wrong"):
        product(silent, self_check=True)


def test_columns_are_multiplied_as_vectors_are():
    matrix, _ = product(make(), batch_size=3)
    columns = np.sin(np.arange(60, dtype="float32")).reshape(20, 3)
    before = matrix.num_matvecs
    found = matrix.matmat(columns)
    np.testing.assert_allclose(found, np.stack([matrix @ column for column in columns.T], 1), rtol=1e-5, atol=1e-6)
    assert matrix.num_matvecs == before + 6
    assert (matrix @ columns).shape == (20, 3)
    with pytest.raises(ValueError, match=r"must have the shape \(20, k\)"):
        matrix.matmat(columns[:-1])
