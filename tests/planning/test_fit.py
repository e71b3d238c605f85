"""The fit returns what is known: a noisy quadratic's spectrum and noise, and a linear regression's loss."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfopt import models
from tfopt.curvature import Objective, Probe, gradient_noise
from tfopt.nqm import NoisyQuadratic
from tfopt.planning import fit_noisy_quadratic

CURVATURE = np.geomspace(1e-2, 1.0, 6)
KNOWN = NoisyQuadratic(CURVATURE, 2 * CURVATURE, [12, 10, 8, 6, 5, 4], np.linspace(1.0, 2.0, 6))


def make_regression(num_rows=2000, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, 4)).astype("float32") * [1.0, 0.5, 2.0, 1.0]
    y = x @ rng.standard_normal((4, 1)) + 0.5 * rng.standard_normal((num_rows, 1))
    return x.astype("float32"), y.astype("float32")


def least_squares(x, y):
    design = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    return float(np.mean((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2))


def quick(model, data, loss="mse", batch_norm="moving", **options):
    options = {"budget_seconds": None, "num_runs": 4, "num_matvecs": 10, **options}
    return fit_noisy_quadratic(Objective(model, loss, data, batch_norm=batch_norm), **options)


@pytest.fixture(scope="module")
def regression():
    return make_regression()


@pytest.fixture(scope="module")
def fitted(regression):
    return quick(models.mlp(4, (), 1, seed=0), regression, num_runs=8, self_check=True)


# --- recovery of a known noisy quadratic


def by_curvature(fit):
    """Directions, noise and squared start gradient at each of the known curvatures."""
    nearest = np.argmin(np.abs(np.log(fit.curvature[:, None] / CURVATURE)), axis=1)
    problem = fit.problem
    start = problem.curvature**2 * problem.initial_second_moment * problem.multiplicity
    parts = (fit.counts.mean(axis=0), fit.noise.mean(axis=0), start)
    return np.concatenate([np.bincount(nearest, part, len(CURVATURE)) for part in parts])


NUM_SEEDS = 5


@pytest.mark.parametrize("is_displaced", [False, True])
def test_recovers_a_noisy_quadratic_within_its_intervals(is_displaced):
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    model = models.noisy_quadratic(KNOWN, seed=0)
    start = model.get_weights()
    known = KNOWN.multiplicity * [
        np.ones(6),
        KNOWN.noise_variance,
        CURVATURE**2 * KNOWN.initial_second_moment,
    ]
    hits, ratios, floors = [], [], []
    for seed in range(NUM_SEEDS):
        rows = np.random.default_rng(seed).standard_normal((2048, int(KNOWN.dim)))
        displaced = {}
        if is_displaced:
            model.set_weights([0.3 * part for part in start])
            displaced = {"initial_weights": start}
        fit = fit_noisy_quadratic(
            Objective(model, models.output_as_loss, (rows, np.zeros((len(rows), 1)))),
            budget_seconds=None,
            matrix="hessian",
            num_examples=math.inf,
            seed=seed,
            **displaced,
        )
        found = fit.interval(by_curvature)
        hits.append((found.low <= known.ravel()) & (known.ravel() <= found.high))
        ratios.append(found.value / known.ravel())
        floor = fit.interval(lambda part: part.floor)
        floors.append(floor.low <= 0.0 <= floor.high)
        assert fit.problem.initial_loss + fit.floor == pytest.approx(KNOWN.initial_loss, rel=0.05)
        assert not fit.flat_share.any()
    # At level 0.9; squares of few normal numbers are covered a little less often (0.86 to 0.89 over 40 seeds).
    assert 0.8 <= np.mean(hits) <= 0.98
    assert np.mean(floors) >= 0.6
    # In each direction squared normal numbers, of 8 runs for each seed. To the start, noise x times as large was added.
    added = KNOWN.noise_variance / (256 * CURVATURE**2 * KNOWN.initial_second_moment)
    variances = np.array([np.full(6, 2.0), np.full(6, 2.0), 4 * added + 2 * added**2])
    variances /= 8 * NUM_SEEDS * KNOWN.multiplicity
    errors = np.abs(np.mean(ratios, axis=0) - 1.0).reshape(3, 6)
    assert (errors <= 4 * np.sqrt(variances)).all(), errors / np.sqrt(variances)


# --- a linear regression, whose loss is a quadratic, exactly


def test_floor_is_the_least_squares_loss(fitted, regression):
    """Whichever the random vectors: all rows are there, and the loss is a quadratic."""
    assert fitted.floor == pytest.approx(least_squares(*regression), rel=1e-3)


def test_floor_of_a_sample_is_that_of_endless_rows(regression):
    x, y = regression
    model = models.mlp(4, (), 1, seed=0)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, epochs=1, batch_size=50, verbose=0)
    found = quick(model, (x, y), num_runs=8, num_examples=math.inf)
    interval = found.interval(lambda fit: fit.floor, 0.99)
    assert interval.low <= 0.25 <= interval.high  # the noise in y
    assert interval.high - interval.low < 0.1


@pytest.mark.parametrize("distance", [0.0, 10.0])
@pytest.mark.parametrize("num_examples", [None, math.inf])
def test_floor_from_far_away(distance, num_examples):
    """Noise is larger there by the square of the distance, and what a sample's minimum owes to it is not."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8192, 60)).astype("float32")
    weights = rng.standard_normal((60, 1))
    y = x @ (distance * weights / np.linalg.norm(weights)) + rng.standard_normal((8192, 1))
    model = models.mlp(60, (), 1, seed=0)
    model.set_weights([np.zeros((60, 1)), np.zeros(1)])
    # Curvatures lie within a factor of 1.5, so that few products resolve them.
    fit = quick(model, (x, y.astype("float32")), num_runs=8, num_matvecs=12, num_examples=num_examples)
    assert fit.floor == pytest.approx(1.0, abs=0.06)
    assert fit.quadratic_initial_loss == pytest.approx(fit.loss.mean(), rel=0.03)
    if num_examples is math.inf:  # the noise at a distance d is that at the minimum times 1 + d^2
        assert fit.chance == pytest.approx(1 / (1 + distance**2), abs=0.25)


def test_the_start_is_seen_from_the_end_of_a_pilot(regression):
    x, y = regression
    model = models.mlp(4, (), 1, seed=0)
    start = model.get_weights()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    first = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=1, batch_size=50, verbose=0)
    fit = quick(model, (x, y), None, initial_weights=start)
    assert fit.is_displaced
    assert fit.loss.mean() == pytest.approx(model.evaluate(x, y, verbose=0), rel=0.02)
    assert fit.initial_loss.mean() == pytest.approx(first, rel=0.1)
    assert fit.floor + fit.problem.initial_loss == pytest.approx(first, rel=0.1)
    assert "loss at the start" in repr(fit)


def test_noise_is_that_of_single_rows(fitted, regression):
    x, y = regression
    exact = gradient_noise(models.mlp(4, (), 1, seed=0), "mse", x, y, num_hessian_groups=500)
    assert fitted.noise_scale == pytest.approx(exact.noise_scale.value, rel=0.1)
    assert fitted.covariance_trace.mean() == pytest.approx(exact.covariance_trace.value, rel=0.1)
    trace = fitted.interval(lambda fit: fit.hessian_covariance_trace, 0.99)
    known = exact.hessian_covariance_trace  # of the Hessian, here the Gauss-Newton matrix
    assert trace.low - 3 * known.standard_error <= known.value <= trace.high + 3 * known.standard_error


def test_all_rows_are_no_sample(regression):
    """The gradient of all N rows is free of noise: nothing is subtracted from it where N rows are all there are."""
    x, y = (part[:512] for part in regression)
    model = models.mlp(4, (), 1, seed=0)
    objective = Objective(model, "mse", (x, y), batch_norm="moving")
    options = {"budget_seconds": None, "num_runs": 4, "num_matvecs": 10}
    whole, endless = (fit_noisy_quadratic(objective, num_examples=n, **options) for n in (None, math.inf))
    square = gradient_noise(model, "mse", x, y).squared_gradient_norm
    np.testing.assert_allclose(whole.squared_gradient_norm, square, rtol=1e-3)
    assert whole.chance == 1.0
    np.testing.assert_array_equal(whole.sampling, 0.0)
    assert endless.squared_gradient_norm.std() > 0.01 * square
    assert (endless.sampling == 8 / endless.num_rows * 0.5).all()
    assert whole.num_examples == 512.0
    np.testing.assert_allclose(whole.effective_batch_size([1, 256, 512]), [512 / 511, 512, 1e15])
    np.testing.assert_array_equal(endless.effective_batch_size([1, 10_000]), [1, 10_000])


# --- data, models, repeatability


def test_same_seed_same_fit_and_the_model_stays_as_it_is(regression):
    model = models.mlp(4, (8,), 1, seed=0)
    before = model.get_weights()
    objective = Objective(model, "mse", regression)
    options = {"budget_seconds": None, "num_runs": 4, "num_matvecs": 10}
    first, second, other = (fit_noisy_quadratic(objective, seed=seed, **options) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.noise, second.noise)
    assert first.noise.shape != other.noise.shape or (first.noise != other.noise).any()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sorted_arrays_are_shuffled(regression):
    x, y = regression
    order = np.argsort(y[:, 0])
    found = quick(models.mlp(4, (), 1, seed=0), (x[order], y[order]), num_runs=8, num_examples=math.inf)
    assert found.loss.std() < 0.3 * found.loss.mean()


@pytest.mark.parametrize("kind", ["dataset", "probe", "weights", "one part"])
def test_takes_what_a_probe_takes(regression, fitted, kind):
    x, y = regression
    data = {
        "dataset": tf.data.Dataset.from_tensor_slices((x, y)).batch(128),
        "probe": Probe(x, y, batch_size=100),
        "weights": (x, y, np.ones(len(x), "float32")),
        "one part": (tf.data.Dataset.from_tensor_slices((x, y)).batch(128),),
    }[kind]
    found = quick(models.mlp(4, (), 1, seed=0), data, num_runs=8)
    assert found.floor == pytest.approx(fitted.floor, rel=0.1)


def test_inputs_by_name_and_batch_normalization(regression):
    x, y = regression
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    hidden = keras.layers.Dense(8, "tanh")(keras.layers.Concatenate()([a, b]))
    output = keras.layers.Dense(1)(keras.layers.BatchNormalization()(hidden))
    model = keras.Model([a, b], output)
    data = ({"a": x[:, :2], "b": x[:, 2:]}, y)
    moving = quick(model, data)
    with pytest.warns(UserWarning, match="normalises each group of a few rows by its own statistics") as caught:
        batch = quick(model, data, batch_norm="batch")
    assert caught[0].filename == __file__
    assert moving.num_parameters == batch.num_parameters == 4 * 8 + 8 + 2 * 8 + 9
    assert batch.curvature[-1] > moving.curvature[-1]  # normalised outputs are larger than those of a fresh layer
    start = model.get_weights()  # with moving averages, which are no part of the displacement
    model.compile(keras.optimizers.SGD(0.01), "mse")
    model.fit(data[0], y, epochs=1, verbose=0)
    assert quick(model, data, initial_weights=start).is_displaced


def test_half_precision(regression):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = models.mlp(4, (8,), 1, seed=0)
    assert quick(model, regression).floor > 0.0


def test_more_parameters_than_rows():
    x, y = make_regression(256)
    fit = quick(models.mlp(4, (64, 64), 1, seed=0), (x, y), num_matvecs=20)
    assert fit.num_parameters > 10 * 256
    assert 0.0 < fit.floor < fit.loss.mean()
    assert fit.problem.initial_loss <= 1.5 * fit.loss.mean()


# --- time


def test_progress_is_shown(regression, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich believe in a terminal
    quick(models.mlp(4, (), 1, seed=0), regression, progress=True)
    assert "fitting a noisy quadratic" in capsys.readouterr().err


# --- what a fit gives


def test_fits_print_plot_and_export(fitted):
    text = repr(fitted)
    assert "NoisyQuadraticFit(5 parameters, 8 runs, all 2,000 rows in each run, " in text
    assert "simple noise scale" in text
    frame = fitted.to_dataframe()
    assert len(frame) == len(fitted.curvature)
    assert frame["directions"].sum() == pytest.approx(5.0, rel=0.5)
    assert (frame["noise_variance_low"] <= frame["noise_variance"]).all()
    assert (frame["squared_distance"] <= frame["squared_distance_high"]).all()
    ax = fitted.plot()
    assert ax.get_legend_handles_labels()[1] == ["directions", "gradient noise", "loss to be gained"]
    assert all(line.get_ydata()[0] == pytest.approx(1.0) for line in ax.lines)
    half = fitted.take([0, 0, 1, 1])
    assert half.num_runs == 4
    assert half.loss.mean() == pytest.approx(fitted.loss[:2].mean())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget_seconds": 0}, ValueError, "`budget_seconds` must be a finite number > 0"),
        ({"budget_seconds": "long"}, TypeError, "`budget_seconds` must be"),
        ({"matrix": "fisher"}, ValueError, "`matrix` must be one of 'gauss_newton', 'hessian'"),
        ({"num_runs": 3}, ValueError, "`num_runs` must be an integer >= 4"),
        ({"num_matvecs": 1}, ValueError, "`num_matvecs` must be an integer >= 2"),
        ({"num_rows_per_run": 0}, ValueError, "`num_rows_per_run` must be"),
        ({"num_bins": 1.5}, TypeError, "`num_bins` must be an integer"),
        ({"seed": -1}, ValueError, "`seed` must be"),
        ({"num_examples": 10}, ValueError, "`num_examples` must be a finite number >= 2000"),
        ({"num_examples": math.nan}, ValueError, "`num_examples` must be"),
        ({"num_examples": 2000.5}, ValueError, "`num_examples` must be a whole number or infinity"),
        ({"num_examples": np.array([1, 2])}, TypeError, "`num_examples` must be"),
        ({"initial_weights": 3}, TypeError, "`initial_weights` must be a result of model.get_weights"),
        (
            {"initial_weights": [np.zeros((4, 1))]},
            ValueError,
            r"of shapes \[\(4, 1\), \(1,\)\]. Received: \[\(4, 1\)\]",
        ),
        ({"initial_weights": [np.full((4, 1), np.nan), np.zeros(1)]}, ValueError, "must be finite"),
        ({"progress": "yes"}, TypeError, "`progress` must be True, False or None"),
    ],
)
def test_bad_arguments_are_named(regression, options, error, message):
    with pytest.raises(error, match=message):
        quick(models.mlp(4, (), 1, seed=0), regression, **options)


def test_bad_data_are_named(regression, fitted):
    x, y = regression
    model = models.mlp(4, (), 1, seed=0)
    for data, error, message in (
        ([x, y], TypeError, r"`data` must be a tuple \(x, y\), not a list"),
        ((x, y[:10]), ValueError, "`data` must be what a Probe can hold: .*equally many rows"),
        ((np.full_like(x, np.nan), y), ValueError, "`data` must be what a Probe can hold: .*finite"),
        ((x[:, :2], y), ValueError, "`x` must fit the model"),
        ((x, y, None, None), ValueError, "Received: a tuple of 4"),
    ):
        with pytest.raises(error, match=message):
            quick(model, data)
    with pytest.raises(ValueError, match="at least 8 rows for each of 4 runs"):
        quick(model, (x[:20], y[:20]), num_examples=1000)
    with pytest.raises(ValueError, match="`initial_weights` must differ"):
        quick(model, regression, initial_weights=model.get_weights())
    with pytest.raises(TypeError, match="`model` must be a Keras 3 model"):
        quick("model", regression)
    with pytest.raises(TypeError, match="`function` must be a function of a fit. Received: 'floor'"):
        fitted.interval("floor")
    with pytest.raises(ValueError, match="`batch_size` must hold finite numbers > 0 and <= 2000"):
        fitted.effective_batch_size([1, 5000])
    with pytest.raises(RuntimeError, match="is zero, because the loss is linear in the model's outputs"):
        quick(model, regression, "mae", self_check=True)
    for confidence, num_draws in ((1.0, 100), (0.9, 5)):
        with pytest.raises(ValueError, match="`(confidence|num_draws)` must be"):
            fitted.interval(lambda fit: fit.floor, confidence, num_draws)
