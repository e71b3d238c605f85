"""Products of networks that pool by maxima, against the Hessian that the equations give."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import GaussNewtonOperator, HessianOperator
from tfopt.curvature.forward_mode import measuring
from tfopt.curvature.max_pooling import differentiated_once

FILTERS, CHANNELS = 2, 2
# Of each case: the extents of the images, sizes of windows, strides, padding, whether a mask serves it.
CASES = {
    "divided": ((6, 4), (2, 2), (2, 2), "valid", True),
    "divided, padding of none": ((6, 4), (3, 2), (3, 2), "same", True),
    "with a rest": ((7, 5), (2, 3), (2, 3), "valid", True),
    "with padding": ((5, 5), (2, 2), (2, 2), "same", False),
    "overlapping": ((7, 7), (3, 3), (2, 2), "valid", False),
    "with gaps": ((7, 7), (2, 2), (3, 3), "valid", False),
}


@pytest.fixture(autouse=True)
def _float64():
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def make(case, hides=False, rows=4):
    """A network x -> u' maxima(tanh(w * x)), where * is a convolution with one weight per channel and filter."""
    extents, sizes, strides, padding, _ = CASES[case]
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, *extents, CHANNELS)), rng.normal(size=(rows, 1))
    x[0, :2, :2] = 1.0  # some windows have several largest entries
    hidden = rng.random((*extents, 1)) < (0.1 if hides else 0.0)
    model = keras.Sequential([
        keras.Input((*extents, CHANNELS)),
        keras.layers.Conv2D(FILTERS, 1, activation="tanh", use_bias=False),
        keras.layers.Lambda(lambda z: tf.where(hidden, tf.constant(-np.inf, z.dtype), z)),
        keras.layers.MaxPooling2D(sizes, strides, padding),
        keras.layers.Flatten(),
        keras.layers.Dense(1, use_bias=False),
    ])
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model, x, y, hidden


def largest(case, activations, shape):
    """The place of the largest entry of each window, in rows and columns, of arrays (height, width)."""
    _, sizes, strides, padding, _ = CASES[case]
    extents = activations.shape
    total = [max((n - 1) * s + k - e, 0) for n, s, k, e in zip(shape, strides, sizes, extents, strict=True)]
    before = [t // 2 if padding == "same" else 0 for t in total]
    for place in np.ndindex(*shape):
        starts = [p * s - b for p, s, b in zip(place, strides, before, strict=True)]
        ranges = [
            range(max(start, 0), min(start + size, extent))
            for start, size, extent in zip(starts, sizes, extents, strict=True)
        ]
        yield max(((i, j) for i in ranges[0] for j in ranges[1]), key=lambda at: activations[at])


def hessian(case, model, x, y, hidden, is_gauss_newton=False):
    w, u = (variable.numpy() for variable in model.trainable_variables)
    w = w.reshape(CHANNELS, FILTERS)
    shape = model.layers[2].output.shape[1:3]
    u = u.reshape(*shape, FILTERS)
    size = w.size + u.size
    found = np.zeros((size, size))
    for image, target in zip(x, y[:, 0], strict=True):
        slope, curved, output = np.zeros(size), np.zeros((size, size)), 0.0
        for filter_ in range(FILTERS):
            ours = np.arange(CHANNELS) * FILTERS + filter_
            activations = np.where(hidden[..., 0], -np.inf, np.tanh(image @ w[:, filter_]))
            for index, at in enumerate(largest(case, activations, shape)):
                pixel, z = image[at], activations[at]
                weight = u.reshape(-1, FILTERS)[index, filter_]
                place = w.size + index * FILTERS + filter_
                output += weight * z
                slope[ours] += weight * (1 - z * z) * pixel
                slope[place] += z
                curved[np.ix_(ours, ours)] += weight * -2 * z * (1 - z * z) * np.outer(pixel, pixel)
                curved[ours, place] += (1 - z * z) * pixel
                curved[place, ours] += (1 - z * z) * pixel
        found += 2 / len(x) * np.outer(slope, slope)
        if not is_gauss_newton:
            found += 2 / len(x) * (output - target) * curved
    return found


@pytest.mark.parametrize("hides", [False, True], ids=["", "infinite entries"])
@pytest.mark.parametrize("case", CASES)
def test_products_are_those_of_the_equations(case, hides):
    model, x, y, hidden = make(case, hides)
    expected = hessian(case, model, x, y, hidden)
    found = HessianOperator(model, "mse", x, y, self_check=not hides)
    np.testing.assert_allclose(found.to_dense(), expected, atol=1e-12)
    vector = np.sin(np.arange(len(expected)))
    np.testing.assert_allclose(found @ vector, expected @ vector, atol=1e-12)


def test_gauss_newton_products_too():
    model, x, y, hidden = make("divided")
    expected = hessian("divided", model, x, y, hidden, is_gauss_newton=True)
    np.testing.assert_allclose(GaussNewtonOperator(model, "mse", x, y).to_dense(), expected, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_fast_second_derivatives_are_taken_where_windows_are_divided(case):
    extents, sizes, strides, padding, has_mask = CASES[case]
    with tf.Graph().as_default():
        images = tf.compat.v1.placeholder("float32", (None, *extents, CHANNELS))
        before = tf.nn.max_pool2d(images, sizes, strides, padding.upper())
        with measuring(None):
            measured = tf.nn.max_pool2d(images, sizes, strides, padding.upper())
            with differentiated_once():
                once = tf.nn.max_pool2d(images, sizes, strides, padding.upper())
    assert (before.op.type, once.op.type) == ("MaxPool", "MaxPool")
    assert measured.op.type == ("AvgPool" if has_mask else "MaxPool")
    assert measured.shape.as_list() == before.shape.as_list()


@pytest.mark.parametrize("case", ["divided", "overlapping"])
def test_poolings_and_zeros_are_not_handed_from_part_to_part(case):
    """Zeros that are handed over are added; the derivative of a pooling in another function is slow."""
    model, x, y, _ = make(case)
    matrix = HessianOperator(model, "mse", x, y)
    with matrix.shared():
        matrix @ np.ones(matrix.shape[0])
        product = next(iter(matrix._products.values())).function
    kinds = {tensor.op.type for tensor in product._kept}
    assert "Tanh" in kinds
    assert not kinds & {"Fill", "MaxPool"}
