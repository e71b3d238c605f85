"""Models that resize images: their products are right, whatever the interpolation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.curvature import GaussNewtonOperator, HessianOperator
from tfopt.curvature.forward_mode import measuring

pytestmark = pytest.mark.self_checked

LAYERS = keras.layers


def make_model(resizing):
    keras.utils.set_random_seed(0)
    first = LAYERS.Conv2D(3, 2, activation="tanh", name="first")
    return keras.Sequential([
        *(keras.Input((4, 5, 2)), first, resizing, LAYERS.Conv2D(2, 2, activation="tanh")),
        *(LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(1)),
    ])


def make_data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, 4, 5, 2)).astype("float32"), rng.normal(size=(6, 1)).astype("float32")


def by_differences(model, x, y, vector, step=1e-3):
    """By central differences of plain gradients, in which TensorFlow is right."""
    values = [variable.numpy() for variable in model.trainable_variables]
    parts = np.split(vector, np.cumsum([value.size for value in values])[:-1])
    found = []
    for sign in (1.0, -1.0):
        for variable, value, part in zip(model.trainable_variables, values, parts, strict=True):
            variable.assign(value + sign * step * part.reshape(value.shape))
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        found.append(np.concatenate([part.numpy().ravel() for part in gradients]))
    for variable, value in zip(model.trainable_variables, values, strict=True):
        variable.assign(value)
    return (found[0] - found[1]) / (2.0 * step)


class Function(LAYERS.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


RESIZINGS = {
    "upsampling": lambda: LAYERS.UpSampling2D(2, interpolation="bilinear"),
    "nearest": lambda: LAYERS.Resizing(5, 3, interpolation="nearest"),
    "bilinear": lambda: LAYERS.Resizing(5, 3),
    "bicubic": lambda: LAYERS.Resizing(2, 7, interpolation="bicubic"),
    "lanczos": lambda: LAYERS.Resizing(2, 7, interpolation="lanczos3"),
    "cropped": lambda: LAYERS.Resizing(3, 6, crop_to_aspect_ratio=True),
    "padded": lambda: LAYERS.Resizing(3, 6, pad_to_aspect_ratio=True),
    "antialiased": lambda: Function(lambda x: tf.image.resize(x, (2, 3), antialias=True)),
    "gaussian": lambda: Function(lambda x: tf.image.resize(x, (2, 6), "gaussian")),
    "size of the input": lambda: Function(lambda x: tf.image.resize(x, 2 * tf.shape(x)[1:3] - 1)),
    "corners": lambda: Function(
        lambda x: tf.raw_ops.Identity(input=tf.compat.v1.image.resize_bicubic(x, (4, 6), True))
    ),
}


@pytest.mark.parametrize("name", RESIZINGS)
def test_products_are_those_of_differences(name):
    model, (x, y) = make_model(RESIZINGS[name]()), make_data()
    vector = np.random.default_rng(1).normal(size=model.count_params()).astype("float32")
    vector /= np.linalg.norm(vector)
    expected = by_differences(model, x, y, vector)
    found = HessianOperator(model, "mse", x, y) @ vector
    assert np.linalg.norm(found - expected) <= 3e-3 * np.linalg.norm(expected)
    assert np.isfinite(GaussNewtonOperator(model, "mse", x, y) @ vector).all()


@pytest.mark.parametrize("operator", [HessianOperator, GaussNewtonOperator])
def test_nearest_is_what_repeated_pixels_are(operator):
    x, y = make_data()
    found, expected = (
        operator(make_model(layer), "mse", x, y).to_dense()
        for layer in (LAYERS.Resizing(6, 8, interpolation="nearest"), LAYERS.UpSampling2D(2, interpolation="nearest"))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("method", ["nearest", "bilinear", "bicubic", "lanczos5", "mitchellcubic"])
@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
@pytest.mark.parametrize("antialias", [False, True])
def test_images_are_those_of_the_operation(method, dtype, antialias):
    x = np.random.default_rng(0).integers(0, 9, (2, 5, 6, 3)).astype(dtype)
    plain = tf.image.resize(x, (7, 4), method, antialias=antialias)
    with measuring(None):
        found = tf.image.resize(x, (7, 4), method, antialias=antialias)
    assert found.dtype == plain.dtype
    assert found.shape == plain.shape
    np.testing.assert_allclose(found, plain, atol=1e-4)
