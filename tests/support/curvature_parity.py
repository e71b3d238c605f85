"""Measurements of a model's curvature on the rows of one rank, or on all rows in one process."""

import keras
import numpy as np

from tfopt.curvature import GaussNewtonOperator, HessianOperator, extremal_eigenvalues, gradient_noise, trace


def make_rows(size):
    """Rows for all ranks, 3 for the first and 6 for each other, and the index where the rows of each rank begin."""
    x = np.random.default_rng(5).normal(size=(6 * size - 3, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True), [0, *range(3, 6 * size, 6)]


def measure(x, y, communicator):
    model = keras.Sequential([
        keras.Input((4,)),
        keras.layers.Dense(6, activation="tanh", kernel_initializer=keras.initializers.HeNormal(0)),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(1), kernel_regularizer="l2"),
    ])
    options = {"batch_norm": "moving", "communicator": communicator}
    results = {}
    for operator in (HessianOperator, GaussNewtonOperator):
        matrix = operator(model, "mse", x, y, **options)
        ends = extremal_eigenvalues(matrix, 30, tolerance=1e-4)
        with matrix.shared():
            product = (matrix @ np.ones(matrix.shape[0], "float32")).tolist()
        numbers = [ends.lambda_min, ends.lambda_max, trace(matrix, 5).value]
        results |= {f"{operator.__name__} product": product, f"{operator.__name__} numbers": numbers}
        loss, gradient = matrix.loss_and_gradient()
        results["loss"] = [loss]
        results["gradient"] = np.concatenate([np.asarray(part).reshape(-1) for part in gradient]).tolist()
    along = np.ones(matrix.shape[0])
    noise = gradient_noise(model, "mse", x, y, directions=[along], num_hessian_groups=100, **options)
    for name in ("covariance_trace", "hessian_covariance_trace"):
        estimate = getattr(noise, name)
        results[name] = [estimate.value, estimate.standard_error, estimate.num_draws]
    results["noise"] = [noise.projections[0].value, noise.num_rows]
    return results


def make_noisy_rows():
    """600 rows of a linear regression: inputs of shape (600, 4) and targets of shape (600, 1), float32."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(600, 4))
    y = x.sum(axis=1, keepdims=True) + rng.normal(size=(600, 1))
    return x.astype("float32"), y.astype("float32")
