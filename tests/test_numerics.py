import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import numerics


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (64, 64), (17, 241), (2, 3, 4, 512)])
def test_norm_is_the_frobenius_norm(shape, dtype):
    array = np.random.default_rng(0).standard_normal(shape)
    tensor = keras.ops.cast(keras.ops.convert_to_tensor(array), dtype)
    rounded = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64"))
    result = numerics.norm(tensor)
    assert keras.backend.standardize_dtype(result.dtype) == numerics.accumulation_dtype(dtype)
    assert float(result) == pytest.approx(np.linalg.norm(rounded.ravel()), rel=1e-12 if dtype == "float64" else 2e-7)


@pytest.mark.parametrize(("dtype", "exponents"), [("float32", (-33, -20, 20, 37)), ("float64", (-300, -200, 200, 300))])
@pytest.mark.parametrize("size", [5, 4096])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_norm_neither_overflows_nor_underflows(dtype, exponents, size, jit_compile):
    array = np.random.default_rng(0).standard_normal(size)
    compiled = tf.function(numerics.norm, jit_compile=jit_compile, autograph=False)
    for exponent in exponents:
        tensor = tf.constant(array * 10.0**exponent / np.linalg.norm(array), dtype)
        assert float(compiled(tensor)) / 10.0**exponent == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norm_of_zeros_is_zero_and_of_nothing_too(dtype):
    assert float(numerics.norm(tf.zeros((3, 4), dtype))) == 0.0
    assert float(numerics.norm(tf.zeros((0, 4), dtype))) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_of_anything_non_finite_is_nan(bad, dtype):
    assert np.isnan(float(numerics.norm(tf.cast(tf.constant([1.0, bad, 0.0]), dtype))))


def test_densify_adds_up_repeated_rows():
    slices = tf.IndexedSlices(
        tf.constant([[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]]), tf.constant([2, 0, 2]), tf.constant([4, 2])
    )
    expected = [[10.0, 20.0], [0.0, 0.0], [4.0, 6.0], [0.0, 0.0]]
    np.testing.assert_array_equal(numerics.densify(slices, (4, 2)), expected)
    np.testing.assert_array_equal(numerics.densify(tf.constant(expected), (4, 2)), expected)
