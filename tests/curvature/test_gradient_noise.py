"""The scatter of gradients, against gradients of single rows that Keras computes one by one."""

import sys

import curvature_oracles as oracles
import keras
import numpy as np
import pytest

from tfopt.curvature import HessianOperator, gradient_noise, simple_noise_scale

ROWS = 24


@pytest.fixture(scope="module")
def problem_once():
    keras.config.set_floatx("float64")
    model, x, y = oracles.make("regularized", rows=ROWS)
    loss = keras.losses.MeanSquaredError()
    rows = [slice(place, place + 1) for place in range(ROWS)]
    single = [oracles.gradient(model, loss, x[row], y[row], model.trainable_variables, False) for row in rows]
    return model, x, y, np.array(single)


@pytest.fixture
def problem(problem_once):
    keras.config.set_floatx("float64")
    return problem_once


def split(vector, model):
    sizes = np.cumsum([np.prod(v.shape) for v in model.trainable_variables])[:-1]
    parts = np.split(vector, sizes)
    return [part.reshape(v.shape) for part, v in zip(parts, model.trainable_variables, strict=True)]


@pytest.mark.parametrize("group_size", [1, 4])
def test_equals_the_rows_one_by_one(problem, group_size):
    model, x, y, single = problem
    groups = single.reshape(ROWS // group_size, group_size, -1).mean(axis=1)
    covariance = group_size * np.cov(groups.T)
    rng = np.random.default_rng(1)
    directions = [3.0 * rng.normal(size=single.shape[1]) for _ in range(2)]
    hessian = HessianOperator(model, "mse", x, y).to_dense()
    noise = gradient_noise(
        model,
        "mse",
        x,
        y,
        group_size=group_size,
        directions=[directions[0], split(directions[1], model)],
        num_hessian_groups=ROWS,
        batch_size=8,
    )
    np.testing.assert_allclose(noise.gradient, single.mean(axis=0), rtol=1e-10, atol=1e-12)
    assert noise.squared_gradient_norm == pytest.approx(np.sum(single.mean(axis=0) ** 2))
    assert noise.covariance_trace.value == pytest.approx(np.trace(covariance), rel=1e-10)
    assert noise.hessian_covariance_trace.value == pytest.approx(np.trace(hessian @ covariance), rel=1e-9)
    for direction, projection in zip(directions, noise.projections, strict=True):
        unit = direction / np.linalg.norm(direction)
        assert projection.value == pytest.approx(unit @ covariance @ unit, rel=1e-10)
    assert noise.covariance_trace.num_draws == ROWS // group_size
    assert (noise.num_rows, noise.group_size, noise.batch_norm) == (ROWS, group_size, "batch")


@pytest.mark.parametrize("group_size", [5, ROWS // 3, ROWS // 2])
def test_standard_errors_leave_out_each_group_in_turn(problem, group_size):
    model, x, y, single = problem
    count = ROWS // group_size
    groups = single[: count * group_size].reshape(count, group_size, -1).mean(axis=1)
    unit = np.ones(single.shape[1]) / np.sqrt(single.shape[1])
    noise = gradient_noise(
        model, "mse", x, y, group_size=group_size, directions=[unit], num_hessian_groups=count, self_check=False
    )
    hessian = HessianOperator(model, "mse", x, y, self_check=False).to_dense()
    matrices = (np.eye(len(unit)), np.outer(unit, unit), hessian)
    found = (noise.covariance_trace, noise.projections[0], noise.hessian_covariance_trace)
    for matrix, estimate in zip(matrices, found, strict=True):
        if count == 2:
            assert np.isnan(estimate.standard_error)
            continue
        without = [group_size * np.trace(matrix @ np.cov(np.delete(groups, index, axis=0).T)) for index in range(count)]
        expected = np.sqrt((count - 1) * np.var(without))
        assert estimate.standard_error == pytest.approx(expected, rel=1e-6)


def test_standard_errors_are_those_of_other_draws():
    """Of probes drawn anew, estimates scatter as much as one of them says."""
    keras.config.set_floatx("float64")
    model, _, _ = oracles.make("dense")
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(10):
        x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
        draws.append(gradient_noise(model, "mse", x, y, directions=[np.ones(26)], num_hessian_groups=20))
    for of in (
        lambda noise: noise.covariance_trace,
        lambda noise: noise.projections[0],
        lambda noise: noise.hessian_covariance_trace,
    ):
        values = np.array([of(noise).value for noise in draws])
        claimed = np.array([of(noise).standard_error for noise in draws])
        assert claimed.mean() == pytest.approx(values.std(ddof=1), rel=0.6)


def test_batches_scatter_as_predicted(problem):
    """Without replacement: tr C / B (1 - B / N), the mean over all batches that there are."""
    model, x, y, single = problem
    noise = gradient_noise(model, "mse", x, y)
    rng = np.random.default_rng(0)
    mean = single.mean(axis=0)
    for size in (1, 6, 20):
        squares = [
            np.sum((single[rng.choice(ROWS, size, replace=False)].mean(axis=0) - mean) ** 2) for _ in range(4000)
        ]
        error = np.std(squares) / np.sqrt(len(squares))
        assert abs(noise.batch_variance(size, ROWS) - np.mean(squares)) < 4 * error
    assert noise.batch_variance(ROWS, ROWS) == 0.0
    assert noise.batch_variance(5) == pytest.approx(noise.covariance_trace.value / 5)


def test_noise_scale(problem):
    model, x, y, single = problem
    noise = gradient_noise(model, "mse", x, y)
    trace = np.trace(np.cov(single.T))
    mean = single.mean(axis=0)
    assert noise.noise_scale.value == pytest.approx(trace / (mean @ mean - trace / ROWS))
    # The same from two batch sizes, where both means are taken over all batches of a population.
    small = np.mean(np.sum(single**2, axis=1))
    infinite = simple_noise_scale(small, mean @ mean, 1, ROWS)
    assert infinite == pytest.approx(noise.noise_scale.value)
    assert np.isinf(simple_noise_scale(3.0, 1.0, 1, 2))


def test_batch_normalization_has_no_single_rows():
    model, x, y = oracles.make("batch_norm")
    with pytest.raises(ValueError, match="Single rows have no gradients if batches are normalised"):
        gradient_noise(model, "mse", x, y)
    assert gradient_noise(model, "mse", x, y, batch_norm="moving").covariance_trace.value > 0
    assert gradient_noise(model, "mse", x, y, group_size=3).covariance_trace.value > 0


def test_frozen_batch_normalization_has_single_rows():
    model, x, y = oracles.make("batch_norm")
    model.layers[1].trainable = False
    assert gradient_noise(model, "mse", x, y).covariance_trace.value > 0


@pytest.mark.parametrize("rows", [8, 16])
def test_masks_are_seen_where_a_batch_is_one_group(rows):
    """Then there are no two groups to compare with their batch: halves of one are."""
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    labels = np.repeat([0, 1, 2], [3, 7, 6])  # all that is ignored is in one half
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
        gradient_noise(model, ignoring, x, labels, group_size=8, batch_size=rows)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert gradient_noise(model, plain, x, labels, group_size=8, batch_size=rows).covariance_trace.value > 0


def test_losses_that_are_no_mean_over_rows_are_refused():
    model, x, y = oracles.make("dense")
    for loss, weight in (
        (keras.losses.MeanSquaredError(reduction="sum"), None),
        (keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"), np.arange(1.0, 7.0)),
    ):
        with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
            gradient_noise(model, loss, x, y, weight)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda *p: gradient_noise(*p, group_size=0), ValueError, "`group_size` must be an integer >= 1"),
        (
            lambda *p: gradient_noise(*p, group_size=4),
            ValueError,
            "at least two groups of `group_size` rows, each within a batch. Received: 1",
        ),
        (lambda *p: gradient_noise(*p, directions=[[1.0]]), ValueError, "`directions` must be vectors of 26 entries"),
        (
            lambda *p: gradient_noise(*p, directions=[np.zeros(26)]),
            ValueError,
            "`directions` must be finite and not zero",
        ),
        (lambda *p: gradient_noise(*p, num_hessian_groups=-1), ValueError, "`num_hessian_groups` must be"),
        (lambda *p: gradient_noise(*p).batch_variance(7, 6), ValueError, "`batch_size` must be at most `num_rows`"),
        (lambda *p: simple_noise_scale(1.0, 1.0, 2, 2), ValueError, "`big_size` must be an integer >= 3"),
    ],
)
def test_bad_arguments(call, error, message):
    model, x, y = oracles.make("dense")
    with pytest.raises(error, match=message):
        call(model, "mse", x, y)


def test_standard_error_of_the_noise_scale_is_the_jackknifes():
    """Left out one by one, and beside the scatter over fresh data."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, dtype="float64")])
    model.set_weights([np.ones((3, 1))])

    def draw(rows):
        x = rng.normal(size=(rows, 3))
        return x, rng.normal(size=(rows, 1)) - 3 * x[:, :1]

    x, y = draw(14)
    noise = gradient_noise(model, "mse", x, y, group_size=2)
    left_out = []
    for group in range(7):
        kept = np.delete(np.arange(14), [2 * group, 2 * group + 1])
        left_out.append(gradient_noise(model, "mse", x[kept], y[kept], group_size=2).noise_scale.value)
    expected = np.sqrt(6 * np.var(left_out))
    assert noise.noise_scale.standard_error == pytest.approx(expected, rel=1e-6)
    assert np.isnan(gradient_noise(model, "mse", x[:4], y[:4], group_size=2).noise_scale.standard_error)
    found = [gradient_noise(model, "mse", *draw(120), group_size=4) for _ in range(12)]
    errors = [n.noise_scale.standard_error for n in found]
    assert np.std([n.noise_scale.value for n in found]) == pytest.approx(np.median(errors), rel=0.5)


def test_gradients_that_are_not_kept_give_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    data = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    kept = gradient_noise(model, "mse", *data)
    monkeypatch.setattr(sys.modules["tfopt.curvature.groups"], "KEPT_BYTES", 0)
    again = gradient_noise(model, "mse", *data)
    assert kept.covariance_trace == again.covariance_trace
    assert kept.noise_scale == again.noise_scale
