"""Exclusions from weight decay: they count before the first step; later ones are refused unless they change nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from trajectories import values

from tfopt.distributed import DistributedOptimizer
from tfopt.optimizers import LARS, Fromage

# How an optimizer is made, and which part of it is asked to exclude variables.
MAKERS = {
    "fromage": lambda: Fromage(weight_decay=0.1),
    "lars": lambda: LARS(weight_decay=0.1),
    "lars_by_pattern": lambda: LARS(weight_decay=0.1, weight_decay_exclude=["never"]),
    "distributed_fromage": lambda: DistributedOptimizer(Fromage(weight_decay=0.1)),
    "distributed_lars": lambda: DistributedOptimizer(LARS(weight_decay=0.1)),
    "distributed_adam": lambda: DistributedOptimizer(keras.optimizers.Adam(weight_decay=0.1)),
    "distributed_scaled_adam": lambda: DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(weight_decay=0.1))
    ),
    "distributed_scaled_lars": lambda: DistributedOptimizer(
        keras.optimizers.LossScaleOptimizer(LARS(weight_decay=0.1))
    ),
}
ALL = pytest.mark.parametrize("name", MAKERS)


def make_variables():
    return [keras.Variable([1.0, 2.0], name=name) for name in ("kernel", "bias", "gamma")]


def step(optimizer, variables):
    scale = float(getattr(optimizer, "initial_scale", 1.0))  # loss scaling divides by it
    optimizer.apply([tf.constant([0.5 * scale, -0.1 * scale])] * 3, variables)


@ALL
def test_exclusions_before_the_first_step_count(name):
    variables, untouched = make_variables(), make_variables()
    optimizer, other = MAKERS[name](), MAKERS[name]()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    step(optimizer, variables)
    step(other, untouched)
    assert (values(variables[1]) != values(untouched[1])).any()
    np.testing.assert_array_equal(values(variables[0]), values(untouched[0]))
    np.testing.assert_array_equal(values(variables[2]), values(untouched[2]))


CHANGING = {
    "another name": lambda variables: {"var_names": ["gamma"]},
    "another variable": lambda variables: {"var_list": [variables[0]]},
    "one more name": lambda variables: {"var_names": ["bias", "kernel"]},
    "one more variable": lambda variables: {"var_list": variables[:2], "var_names": ["bias"]},
}
IDLE = {
    "the same": lambda variables: {"var_names": ["bias"]},
    "the same by variable": lambda variables: {"var_list": [variables[1]]},
    "nothing": lambda variables: {},
    "none that it has": lambda variables: {"var_names": ["embedding"], "var_list": [keras.Variable([1.0])]},
}


@pytest.mark.parametrize("is_traced", [False, True])
@ALL
def test_later_ones_are_refused_unless_they_change_nothing(name, is_traced):
    variables, expected = make_variables(), make_variables()
    optimizer, other = MAKERS[name](), MAKERS[name]()
    for one in (optimizer, other):
        one.exclude_from_weight_decay(var_names=["bias"])
    take = tf.function(lambda: step(optimizer, variables), autograph=False) if is_traced else None
    for _ in range(2):
        (take or (lambda: step(optimizer, variables)))()
        step(other, expected)
        for arguments in CHANGING.values():
            with pytest.raises(ValueError, match=r"must be called before the first step.*(kernel|gamma)"):
                optimizer.exclude_from_weight_decay(**arguments(variables))
        for arguments in IDLE.values():
            optimizer.exclude_from_weight_decay(**arguments(variables))
    for one, two in zip(variables, expected, strict=True):
        np.testing.assert_allclose(values(one), values(two), rtol=1e-6)


@ALL
def test_exclusions_must_be_lists(name):
    """Keras takes the letters of a string one by one: "bias" excludes everything with an a, b, i or s in its path."""
    optimizer = MAKERS[name]()
    for arguments in ({"var_names": "bias"}, {"var_list": keras.Variable([1.0])}):
        with pytest.raises(TypeError, match=f"`{next(iter(arguments))}` must be a list of"):
            optimizer.exclude_from_weight_decay(**arguments)


def test_what_a_pattern_of_lars_excludes_may_be_excluded_again():
    variables = make_variables()
    optimizer = LARS(weight_decay=0.1, weight_decay_exclude=["bias"])
    optimizer.build(variables)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    DistributedOptimizer(optimizer).exclude_from_weight_decay(var_list=[variables[1]])
    with pytest.raises(ValueError, match="names 2 variables that decay \\(kernel, gamma\\)"):
        DistributedOptimizer(optimizer).exclude_from_weight_decay(var_names=["kernel", "gamma"])
