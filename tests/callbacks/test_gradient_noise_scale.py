"""What GradientNoiseScale records on a probe; on ranks: tests/distributed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt.callbacks import GradientNoiseScale
from tfopt.curvature import gradient_noise
from tfopt.distributed.gradient_scatter import GradientScatter
from tfopt.models import mlp

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :2] + np.random.default_rng(1).normal(size=(64, 2)).astype("float32")


def make_model():
    model = mlp(4, [8], 2, seed=0)
    model.compile(keras.optimizers.SGD(0.005), "mse", jit_compile=False)
    return model


def test_values_are_those_of_gradient_noise():
    model, callback = make_model(), GradientNoiseScale((X, Y), group_size=4)
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0, callbacks=[callback])
    noise = gradient_noise(model, None, X, Y, group_size=4)
    last = {name: series[-1] for name, series in callback.history.items()}
    assert callback.history["step"] == [0, 4, 8]
    assert last["gradient_noise/noise_scale"] == pytest.approx(noise.noise_scale.value, rel=1e-5)
    assert last["gradient_noise/noise_scale_standard_error"] == pytest.approx(noise.noise_scale.standard_error)
    assert last["gradient_noise/covariance_trace"] == pytest.approx(noise.covariance_trace.value, rel=1e-5)
    signal = noise.squared_gradient_norm - noise.covariance_trace.value / 64
    assert last["gradient_noise/squared_gradient_norm"] == pytest.approx(signal, rel=1e-5)


def test_groups_that_are_no_mean_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="`data` must have at least two groups"):
        model.fit(X, Y, verbose=0, callbacks=[GradientNoiseScale((X, Y), group_size=40)])


def test_masks_late_in_the_probe_are_refused_at_the_start():
    model = mlp(4, [], 3, seed=0)
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile("sgd", ignoring)
    labels = np.resize([1, 2], 64)
    labels[-2:] = 0
    before = model.get_weights()
    with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
        model.fit(X, labels, verbose=0, callbacks=[GradientNoiseScale((X, labels), group_size=4, batch_size=16)])
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_alone_it_needs_a_probe():
    with pytest.raises(ValueError, match="`data` must be given on a single rank"):
        GradientNoiseScale()


@pytest.mark.parametrize("name", ["group_size", "local_batch_size"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1"):
        GradientNoiseScale((X, Y), **{name: 0})


def test_plot():
    callback = GradientNoiseScale((X, Y))
    assert len(callback.plot().lines) == 0
    make_model().fit(X, Y, epochs=2, verbose=0, callbacks=[callback])
    (line,) = callback.plot().lines
    np.testing.assert_array_equal(line.get_ydata(), callback.history["gradient_noise/noise_scale"])


# --- local against averaged gradients, on drawn ones


def draw_steps(scatter, num_steps, size, batch, scale=1.0, dimension=20, seed=0):
    """Gradients of norm 1 with tr C = 50, of `size` ranks with `batch` rows each."""
    rng = np.random.default_rng(seed)
    truth = np.ones(dimension) / np.sqrt(dimension)
    for _ in range(num_steps):
        local = truth + rng.normal(size=(size, dimension)) * np.sqrt(50 / dimension / batch)
        squares = [scatter.local([tf.constant(scale * g[:5]), None, tf.constant(scale * g[5:])], scale) for g in local]
        scatter.update(tf.reduce_mean(squares), [tf.constant(scale * local.mean(axis=0))], scale)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_scatter_estimates_the_noise_scale(scale):
    scatter = GradientScatter(4)
    draw_steps(scatter, 400, 4, batch=10, scale=scale)
    found = scatter.take()
    assert found.num_steps == 400
    assert 10 * found.covariance_trace == pytest.approx(50, rel=0.05)
    assert found.squared_gradient_norm == pytest.approx(1.0, rel=0.1)
    assert abs(10 * found.noise_scale - 50) < 4 * 10 * found.noise_scale_standard_error
    assert scatter.take().num_steps == 0  # it begins anew


def test_its_standard_error_is_that_of_repeated_draws():
    scatter, scales, errors = GradientScatter(2), [], []
    for seed in range(80):
        draw_steps(scatter, 40, 2, batch=25, seed=seed)
        found = scatter.take()
        scales.append(found.noise_scale if np.isfinite(found.noise_scale) else np.nan)
        errors.append(found.noise_scale_standard_error)
    assert np.nanmedian(errors) == pytest.approx(np.nanstd(scales), rel=0.25)


def test_steps_that_are_not_finite_are_left_out_and_noise_alone_has_no_scale():
    scatter = GradientScatter(2)
    scatter.update(scatter.local([tf.constant([np.inf])], 1.0), [tf.constant([np.inf])], 1.0)
    assert scatter.take().num_steps == 0
    scatter.update(tf.constant(2.0, tf.float64), [tf.constant([0.5], tf.float64)], 1.0)
    found = scatter.take()
    assert found.squared_gradient_norm < 0
    assert found.noise_scale == np.inf
