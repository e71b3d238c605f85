"""Every row of the table follows its equations; nothing else does."""

import functools
import itertools

import keras
import numpy as np
import pytest
from optimizer_table import CLASSES, TABLE, WAYS_TO_STEP
from trajectories import (
    NUM_STEPS,
    SHAPES,
    compiled,
    make_problem,
    make_variables,
    relative_errors,
    run,
    run_oracle,
    values,
)

# In half precision the oracle's weights are rounded after each step too, so only single roundings can differ.
TOLERANCES = {"float64": 1e-12, "float32": 3e-6, "float16": 2e-4, "bfloat16": 1e-3}


@pytest.fixture(autouse=True)
def _floatx(request):
    """Learning rates are variables of Keras's default type: without this they would be rounded to float32."""
    if "float64" in str(request.node.name) or "tell_optimizers_apart" in request.node.name:
        keras.config.set_floatx("float64")


@functools.cache
def expected(name, dtype, rate=None):
    row = TABLE[name]
    return run_oracle(row.make_oracle(), *make_problem(), rate or row.learning_rate, dtype)


# Eager and graph run the same operations, so half precision is seen in one of them. For each class all ways are tried,
# for each of its other settings those in which each execution and each type occurs.
WAYS = [
    (way, dtype)
    for way in ("eager", "graph", "xla")
    for dtype in TOLERANCES
    if way != "eager" or "float16" not in dtype
]
FEW = [("eager", "float64"), ("graph", "float32"), ("graph", "bfloat16"), ("xla", "float16")]


@pytest.mark.parametrize(
    ("name", "execution", "dtype"), [(name, *way) for name in TABLE for way in (WAYS if name in CLASSES else FEW)]
)
def test_follows_its_equations(name, execution, dtype):
    actual = run(TABLE[name].make(), *make_problem(), dtype, execution)
    errors = relative_errors(actual, expected(name, dtype))
    assert max(errors) < TOLERANCES[dtype], dict(zip(SHAPES, errors, strict=True))


OTHERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate),
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "adam": lambda rate: keras.optimizers.Adam(rate),
    "lamb": lambda rate: keras.optimizers.Lamb(rate),
}


# At the same learning rate these are the same: `fast` is one rate among others, a slow one meets no bound, and the
# guide's optimizer is LAMB.
SAME = {("fromage", "fromage_fast"), ("fromage_fast", "fromage"), ("fromage", "fromage_p_bound"), ("guide", "lamb")}
PAIRS = [(name, other) for name in TABLE for other in [*OTHERS, *TABLE] if name != other and (name, other) not in SAME]


@functools.cache
def by(other, rate):
    return run(OTHERS[other](rate), *make_problem(), "float64", "eager")


@pytest.mark.parametrize(("name", "other"), PAIRS)
def test_the_golden_trajectories_tell_optimizers_apart(name, other):
    """The comparison above would fail for any other optimizer at the same learning rate: it tests something."""
    rate = TABLE[name].learning_rate
    # Ours by their equations, which they follow.
    theirs = by(other, rate) if other in OTHERS else expected(other, "float64", rate)
    assert max(relative_errors(theirs, expected(name, "float64"))) > 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_schedules_are_followed(name):
    schedule = keras.optimizers.schedules.ExponentialDecay(TABLE[name].learning_rate, 3, 0.5)
    actual = run(TABLE[name].make(learning_rate=schedule), *make_problem())
    rate = lambda step: TABLE[name].learning_rate * 0.5 ** (step / 3)  # noqa: E731
    wanted = run_oracle(TABLE[name].make_oracle(), *make_problem(), rate)
    assert max(relative_errors(actual, wanted)) < TOLERANCES["float32"]
    assert max(relative_errors(actual, expected(name, "float32"))) > 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_a_callable_learning_rate_is_called(name):
    rate = TABLE[name].learning_rate
    actual = run(TABLE[name].make(learning_rate=lambda: rate), *make_problem(), execution="eager")
    assert max(relative_errors(actual, expected(name, "float32"))) < TOLERANCES["float32"]


@pytest.mark.parametrize(("name", "execution"), list(itertools.product(CLASSES, ("eager", "graph", "xla"))))
def test_a_learning_rate_set_between_steps_is_used(name, execution):
    weights, gradients = make_problem(num_steps=NUM_STEPS)
    optimizer = TABLE[name].make()
    variables = make_variables(weights, "float32")
    optimizer.build(variables)
    apply = compiled(optimizer, execution)
    new_rate = TABLE[name].learning_rate / 4
    for index, grads in enumerate(gradients):
        if index == 5:
            optimizer.learning_rate = new_rate
        apply([keras.ops.convert_to_tensor(g, dtype="float32") for g in grads])
    rates = lambda step: TABLE[name].learning_rate if step < 5 else new_rate  # noqa: E731
    wanted = run_oracle(TABLE[name].make_oracle(), weights, gradients, rates)
    assert max(relative_errors([values(v) for v in variables], wanted)) < TOLERANCES["float32"]


@pytest.mark.parametrize(
    ("name", "execution"),
    [(name, "graph") for name in WAYS_TO_STEP] + [(name, way) for name in CLASSES for way in ("eager", "xla")],
)
def test_learning_rate_zero_leaves_weights_alone(name, execution):
    weights, gradients = make_problem()
    actual = run(TABLE[name].make(learning_rate=0.0), weights, gradients, "float32", execution)
    for a, w in zip(actual, weights, strict=True):
        np.testing.assert_array_equal(a, w.astype("float32"))
