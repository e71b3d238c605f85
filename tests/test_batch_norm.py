"""Every measurement says how batch normalisation was computed in it."""

import contextlib

import keras
import numpy as np
import pytest

from tfopt.callbacks import Convexity
from tfopt.curvature import HessianOperator, Objective, extremal_eigenvalues, gradient_noise, spectral_density, trace
from tfopt.planning import fit_noisy_quadratic
from tfopt.relative_trust import StepMeter, breakdown_profile


@pytest.mark.parametrize("mode", ["batch", "moving"])
def test_every_result_says_how_batches_were_normalised(mode):
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    x = np.random.default_rng(0).normal(size=(96, 3)).astype("float32")
    data = (x, x[:, :1])
    objective = Objective(model, "mse", data, batch_norm=mode)
    operator, meter = HessianOperator(objective), StepMeter(objective)
    with pytest.warns(UserWarning, match="batch_norm='moving'") if mode == "batch" else contextlib.nullcontext():
        fit = fit_noisy_quadratic(objective, None, num_runs=4, num_matvecs=4)
    results = [
        extremal_eigenvalues(operator, 4),
        spectral_density(operator, 2, 4),
        trace(operator, 2),
        gradient_noise(objective, group_size=8),
        breakdown_profile(objective, [0.1]),
        meter.measure([weights + 0.1 for weights in meter.weights()]),
        fit,
        Convexity(data, "mse", batch_norm=mode),
    ]
    assert [result.batch_norm for result in results] == [mode] * len(results)
    assert extremal_eigenvalues(np.eye(3)).batch_norm is None
