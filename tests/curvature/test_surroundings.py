"""Measurements under TensorFlow's debugging switch and in the scope of a strategy of one replica: as outside."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import curvature
from tfopt.callbacks import Convexity, GradientBreakdown, GradientNoiseScale, WeightNorms
from tfopt.relative_trust import breakdown_profile

X, Y = np.random.default_rng(0).normal(size=(2, 16, 1)).astype("float32")


@contextlib.contextmanager
def eager_functions():
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


SURROUNDINGS = {
    "run_functions_eagerly": eager_functions,
    "MirroredStrategy": lambda: tf.distribute.MirroredStrategy(["/cpu:0"]).scope(),
    "OneDeviceStrategy": lambda: tf.distribute.OneDeviceStrategy("/cpu:0").scope(),
}
# Keras gives the model to TensorFlow's data functions, which the switch leaves compiled.
pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`")


class OfReplica(keras.layers.Layer):
    """Shrinks its inputs unless it is called in a replica, as `fit` calls it; a strategy's scope itself is none."""

    def call(self, x):
        return 0.5 * x if tf.distribute.get_replica_context() is None else x


def make_model():
    model = keras.Sequential([
        keras.Input((1,)),
        keras.layers.Dense(3, "tanh", kernel_regularizer="l2"),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.2),
        OfReplica(),
        keras.layers.Dense(1),
    ])
    rng = np.random.default_rng(1)
    model.set_weights([np.abs(rng.normal(size=weight.shape)) for weight in model.get_weights()])
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    return model


def measure():
    model = make_model()
    objective = curvature.Objective(model, None, (X, Y))
    hessian, gauss_newton = curvature.HessianOperator(objective), curvature.GaussNewtonOperator(objective)
    noise = curvature.gradient_noise(objective, group_size=4, num_hessian_groups=2)
    return [
        objective.loss_and_gradient()[0],
        curvature.extremal_eigenvalues(hessian).lambda_max,
        curvature.extremal_eigenvalues(gauss_newton).lambda_max,
        noise.covariance_trace.value,
        noise.hessian_covariance_trace.value,
        *breakdown_profile(objective, [0.1]).largest_breakdown,
    ]


def record():
    model = make_model()
    model.get_layer(index=2).rate = 0.0
    callbacks = [Convexity((X, Y)), GradientBreakdown((X, Y)), GradientNoiseScale((X, Y)), WeightNorms()]
    model.fit(X, Y, verbose=0, shuffle=False, callbacks=callbacks)
    return [
        value
        for callback in callbacks
        for name, series in callback.history.items()
        if name.startswith(("convexity/", "hessian/lambda", "breakdown/", "gradient_noise/"))
        for value in series
    ] + [norm for norms in callbacks[-1].history["norms"] for norm in norms.values()]


@functools.cache
def expected(function):
    return function()


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("function", [measure, record])
def test_measurements_are_the_same(function, name):
    outside = expected(function)
    with SURROUNDINGS[name]():
        inside = function()
    assert len(inside) == len(outside) > 4
    np.testing.assert_allclose(inside, outside, rtol=1e-4, atol=1e-6)
