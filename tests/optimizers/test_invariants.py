"""Properties that follow from the definitions, over random variables and magnitudes."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_oracles import norm
from optimizer_table import TABLE
from trajectories import compiled, values

from tfopt.optimizers import LARS, Fromage

EXECUTIONS = pytest.mark.parametrize("execution", ["eager", "graph", "xla"])
SHAPE = (130, 128)  # large enough for the fused kernels


def one_step(optimizer, weights, gradient, dtype="float32"):
    variable = keras.Variable(weights, dtype=dtype)
    optimizer.build([variable])
    optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype=dtype)])
    return values(variable).astype("float64")


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(-30, 30), seed=st.integers(0, 10**6), rows=st.sampled_from([1, 3, 130]))
@pytest.mark.parametrize("name", ["fromage", "lars"])
def test_the_gradients_length_does_not_matter(name, exponent, seed, rows):
    rng = np.random.default_rng(seed)
    weights, gradient = rng.standard_normal((rows, 128)), rng.standard_normal((rows, 128))
    reference = one_step(TABLE[name].make(), weights, gradient)
    scaled = one_step(TABLE[name].make(), weights, gradient * 10.0**exponent)
    np.testing.assert_allclose(scaled, reference, rtol=2e-5, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(exponent=st.floats(-25, 25), seed=st.integers(0, 10**6), rows=st.sampled_from([1, 130]))
@pytest.mark.parametrize("name", ["fromage", "lars"])
def test_the_relative_step_does_not_depend_on_the_weights_size(name, exponent, seed, rows):
    rng = np.random.default_rng(seed)
    weights, gradient = rng.standard_normal((rows, 128)), rng.standard_normal((rows, 128))
    reference = one_step(TABLE[name].make(), weights, gradient)
    scaled = one_step(TABLE[name].make(), weights * 10.0**exponent, gradient) / 10.0**exponent
    np.testing.assert_allclose(scaled, reference, rtol=2e-5, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(eta=st.floats(1e-4, 2.0), seed=st.integers(0, 10**6))
def test_a_fromage_step_has_relative_length_eta_up_to_the_prefactor(eta, seed):
    rng = np.random.default_rng(seed)
    weights, gradient = rng.standard_normal((20, 30)), rng.standard_normal((20, 30))
    stepped = one_step(Fromage(eta), weights, gradient) * np.sqrt(1 + eta**2)
    assert norm(stepped - weights) / norm(weights) == pytest.approx(eta, rel=1e-4, abs=1e-6)


@EXECUTIONS
@pytest.mark.parametrize("shape", [SHAPE, (8, 6)])
def test_orthogonal_gradients_keep_norms_under_fromage_and_grow_them_under_lars(shape, execution):
    eta, steps = 0.3, 20
    rng = np.random.default_rng(0)
    start = rng.standard_normal(shape)
    for optimizer, factor in (
        (Fromage(eta), 1.0),
        (LARS(eta, trust_coefficient=1.0, momentum=0.0), np.sqrt(1 + eta**2)),
    ):
        variable = keras.Variable(start)
        optimizer.build([variable])
        apply = compiled(optimizer, execution)
        norms = [norm(start)]
        for _ in range(steps):
            w, g = values(variable).astype("float64"), rng.standard_normal(shape)
            g -= w * np.sum(w * g) / np.sum(w * w)
            apply([keras.ops.convert_to_tensor(g, dtype="float32")])
            norms.append(norm(values(variable)))
        np.testing.assert_allclose(np.divide(norms[1:], norms[:-1]), factor, rtol=2e-6)


def grow_until_overflow(dtype, eta):
    """Steps until the norm of a matrix under gradients orthogonal to it can no longer be represented."""
    optimizer = LARS(eta, trust_coefficient=1.0, momentum=0.0)
    variable = keras.Variable(np.array([[1.0, 0.0], [0.0, 1.0]]) / np.sqrt(2), dtype=dtype)
    optimizer.build([variable])
    apply = compiled(optimizer, "graph")
    for step in range(1000):
        w = values(variable).astype("float64")
        if not np.isfinite(w).all():
            return step
        apply([keras.ops.convert_to_tensor([[w[0, 1], -w[0, 0]], [w[1, 1], -w[1, 0]]], dtype=dtype)])
    raise AssertionError("no overflow in 1,000 steps")


def test_norms_survive_until_the_type_itself_overflows():
    """Growth by sqrt(2) a step: float32 ends at 2^128, after 256 steps; a plain sum of squares at half of that."""
    assert 250 <= grow_until_overflow("float32", 1.0) <= 260
    assert 28 <= grow_until_overflow("float16", 1.0) <= 34


@EXECUTIONS
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_extreme_magnitudes_take_ordinary_steps(dtype, execution):
    """|g| / |w| = 1e60 or 1e-60 where it can be written: the ratio overflows, the step does not."""
    rng = np.random.default_rng(0)
    for shape in (SHAPE, (3, 4)):
        variable, optimizer = keras.Variable(np.zeros(shape), dtype=dtype), Fromage(0.5)
        optimizer.build([variable])
        apply = compiled(optimizer, execution)
        for scale in (1e-30, 1e-15, 1e15, 1e30):
            weights, gradient = scale * rng.standard_normal(shape), rng.standard_normal(shape) / scale
            variable.assign(weights)
            apply([keras.ops.convert_to_tensor(gradient, dtype=dtype)])
            expected = (weights - 0.5 * norm(weights) * (gradient / norm(gradient))) / np.sqrt(1.25)
            actual = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float64")))
            error = norm(actual / scale - expected / scale) / norm(expected / scale)
            assert error < (2e-2 if dtype == "bfloat16" else 1e-5), (shape, scale)


@EXECUTIONS
def test_zero_weights_take_a_plain_step_under_the_printed_rules(execution):
    rng = np.random.default_rng(0)
    gradients = [np.asarray(rng.standard_normal(shape)) for shape in (SHAPE, (5,), ())]
    for optimizer, factor in (
        (Fromage(0.1), 0.1 / np.sqrt(1.01)),
        (LARS(0.1, norm_floor=0), 0.1),
        (LARS(0.1, norm_floor=0, clip=True), 0.1),
    ):
        variables = [keras.Variable(np.zeros(gradient.shape, "float32")) for gradient in gradients]
        optimizer.build(variables)
        compiled(optimizer, execution)([keras.ops.convert_to_tensor(g, dtype="float32") for g in gradients])
        for variable, gradient in zip(variables, gradients, strict=True):
            np.testing.assert_allclose(values(variable), -factor * gradient, rtol=1e-5)


@EXECUTIONS
def test_zero_gradients_only_shrink_or_decay(execution):
    rng = np.random.default_rng(0)
    weights = [np.asarray(rng.standard_normal(shape)) for shape in (SHAPE, (5,), ())]
    for optimizer, factor in (
        (Fromage(0.1), 1 / np.sqrt(1.01)),
        (LARS(0.1), 1.0),
        (LARS(0.1, weight_decay=0.5), 1 - 0.1 * 0.5),  # ratio 1
    ):
        variables = [keras.Variable(weight, dtype="float32") for weight in weights]
        optimizer.build(variables)
        compiled(optimizer, execution)([keras.ops.zeros(weight.shape) for weight in weights])
        for variable, weight in zip(variables, weights, strict=True):
            np.testing.assert_allclose(values(variable), factor * weight, rtol=1e-6)


@EXECUTIONS
def test_denominator_norm_guards_the_norm_of_the_whole_update(execution):
    """At g = -wd w the update vanishes: nothing moves, and nothing is NaN."""
    weights = np.random.default_rng(0).standard_normal(SHAPE).astype("float32")
    variable = keras.Variable(weights)
    optimizer = LARS(1.0, weight_decay=0.5, denominator="norm", momentum=0.0)
    optimizer.build([variable])
    compiled(optimizer, execution)([keras.ops.convert_to_tensor(-0.5 * weights)])
    np.testing.assert_array_equal(values(variable), weights)


def test_p_bound_caps_norms_but_not_those_that_were_zero():
    kernel, bias = keras.Variable(np.ones((4, 4), "float32")), keras.Variable(np.zeros(4, "float32"))
    optimizer = Fromage(0.5, p_bound=1.2)
    optimizer.build([kernel, bias])
    largest = 0.0
    for _ in range(30):
        optimizer.apply([-keras.ops.convert_to_tensor(kernel), -keras.ops.ones(4)])
        largest = max(largest, norm(values(kernel)))
    assert largest == pytest.approx(1.2 * 4, rel=1e-6)
    assert norm(values(bias)) > 0.5


def test_half_precision_keeps_norms():
    """In float16 sqrt(1 + 0.01^2) rounds to 1: with steps computed there, norms would drift by 5e-5 a step."""
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.standard_normal((64, 64)), dtype="float16")
    start, optimizer = norm(values(variable)), Fromage(0.01)
    optimizer.build([variable])
    apply = compiled(optimizer, "graph")
    for _ in range(1000):
        w, g = values(variable).astype("float64"), rng.standard_normal((64, 64))
        apply([keras.ops.convert_to_tensor(g - w * np.sum(w * g) / np.sum(w * w), dtype="float16")])
    assert norm(values(variable)) == pytest.approx(start, rel=0.01)  # without the prefactor: 1.05
