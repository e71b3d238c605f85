"""Bad arguments are refused by name, before anything is computed."""

import keras
import numpy as np
import pytest
from optimizer_table import TABLE
from trajectories import values

from tfopt.optimizers import LARS, Fromage


@pytest.mark.parametrize("make", [Fromage, LARS])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("fast", TypeError),
        (None, TypeError),
        (-0.1, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
        (True, TypeError),
    ],
)
def test_learning_rate(make, value, error):
    with pytest.raises(error, match=r"`learning_rate` must be .*Received: learning_rate="):
        make(value)


@pytest.mark.parametrize("make", [Fromage, LARS])
@pytest.mark.parametrize("value", [1, np.float32(0.5), np.int64(2), 0])
def test_numbers_of_any_kind_are_learning_rates(make, value):
    assert float(make(value).learning_rate) == float(value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"p_bound": 0.0}, ValueError),
        ({"p_bound": -1}, ValueError),
        ({"p_bound": "2"}, TypeError),
        ({"p_bound": float("nan")}, ValueError),
    ],
)
def test_fromage(arguments, error):
    with pytest.raises(error, match=f"`{next(iter(arguments))}` must be .*Received"):
        Fromage(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"momentum": 1.0}, ValueError),
        ({"momentum": -0.1}, ValueError),
        ({"momentum": "0.9"}, TypeError),
        ({"trust_coefficient": 0.0}, ValueError),
        ({"trust_coefficient": None}, TypeError),
        ({"weight_decay": -1e-4}, ValueError),
        ({"epsilon": -1.0}, ValueError),
        ({"norm_floor": -1.0}, ValueError),
        ({"norm_floor": None}, TypeError),
        ({"norm_floor": np.inf}, ValueError),
        ({"nesterov": 1}, TypeError),
        ({"clip": "yes"}, TypeError),
        ({"denominator": "l2"}, ValueError),
        ({"layer_adaptation_exclude": "bias"}, ValueError),
        ({"weight_decay_exclude": 3}, TypeError),
        ({"weight_decay_exclude": [3]}, TypeError),
    ],
)
def test_lars(arguments, error):
    with pytest.raises(error, match=f"`{next(iter(arguments))}` must be .*Received"):
        LARS(**arguments)


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(ValueError, match=r"`weight_decay_exclude` holds '\(', which is not a regular expression"):
        LARS(weight_decay_exclude=["("])


def test_a_lone_pattern_is_answered_with_what_was_probably_meant():
    with pytest.raises(ValueError, match=r"Did you mean \['bias'\]"):
        LARS(weight_decay_exclude="bias")


@pytest.mark.parametrize("make", [Fromage, LARS])
def test_unknown_arguments_are_refused(make):
    with pytest.raises(ValueError, match="not recognized"):
        make(lr=0.1)


def test_what_decides_the_state_cannot_change_afterwards():
    with pytest.raises(AttributeError):
        LARS().momentum = 0.0
    with pytest.raises(AttributeError):
        LARS().norm_floor = 0.0
    with pytest.raises(AttributeError):
        Fromage().p_bound = 2.0


@pytest.mark.parametrize("name", TABLE)
def test_building_twice_changes_nothing(name):
    optimizer, variable = TABLE[name].make(), keras.Variable([1.0, 2.0])
    optimizer.build([variable])
    before = list(optimizer.variables)
    optimizer.build([variable])
    assert [id(v) for v in optimizer.variables] == [id(v) for v in before]


def test_patterns_are_searched_for_in_paths():
    kernel, bias = keras.Variable([[1.0, 2.0]], name="kernel"), keras.Variable([1.0, 2.0], name="bias")
    optimizer = LARS(0.1, trust_coefficient=0.5, layer_adaptation_exclude=["bi.s"], momentum=0.0)
    optimizer.build([kernel, bias])
    gradient = np.array([3.0, 4.0], "float32")
    optimizer.apply([keras.ops.convert_to_tensor(gradient[None]), keras.ops.convert_to_tensor(gradient)])
    np.testing.assert_allclose(values(bias), np.array([1.0, 2.0]) - 0.1 * gradient, rtol=1e-6)
    expected = np.array([1.0, 2.0]) - 0.1 * 0.5 * np.sqrt(5) / 5 * gradient
    np.testing.assert_allclose(values(kernel)[0], expected, rtol=1e-6)
