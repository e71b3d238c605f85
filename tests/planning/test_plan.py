"""Plans say what the noisy quadratic model says, and build what trains."""

import dataclasses
import math

import keras
import numpy as np
import pytest

from tfopt import models, nqm
from tfopt.curvature import Objective
from tfopt.planning import BatchSizePlan, fit_noisy_quadratic, plan_batch_size, plan_from_fit, planner, prediction
from tfopt.planning import plan as plan_module

SIZES = [2**k for k in range(15)]
KNOWN = nqm.NoisyQuadratic(np.geomspace(1e-2, 1.0, 5), 2 * np.geomspace(1e-2, 1.0, 5), [8, 6, 4, 3, 2])
TARGET = 0.02 * KNOWN.initial_loss


@pytest.fixture(scope="module")
def fit():
    """A fit to a known noisy quadratic, at its start; of a dozen seeds one misses its intervals."""
    rows = np.random.default_rng(1).standard_normal((8192, int(KNOWN.dim))).astype("float32")
    data = (rows, np.zeros((len(rows), 1), "float32"))
    model = models.noisy_quadratic(KNOWN, seed=0)
    options = {"matrix": "hessian", "num_examples": math.inf, "num_matvecs": 10}  # 5 curvatures
    return fit_noisy_quadratic(Objective(model, models.output_as_loss, data), None, **options)


@pytest.fixture(scope="module")
def plan(fit):
    return plan_from_fit(fit, TARGET, batch_sizes=SIZES)


@pytest.mark.parametrize("family", ["sgd", "momentum", "ema"])
def test_predictions_hold_those_of_the_known_problem(plan, family):
    known = nqm.optimize(KNOWN, family, SIZES, TARGET, largest_momentum=0.9)
    steps = plan.steps[family]
    held = (0.9 * steps.low <= known.steps) & (known.steps <= 1.1 * steps.high)
    assert held.mean() >= 0.8
    np.testing.assert_allclose(steps.value + 1, known.steps + 1, rtol=0.35)
    critical = plan.critical_batch_size[family]
    assert 0.8 * critical.low <= nqm.critical_batch_size(known).batch_size <= 1.25 * critical.high
    assert critical.high < 4 * critical.low


def test_predictions_are_the_best_settings_of_the_fitted_problem(plan, fit):
    level = TARGET - fit.floor
    best = nqm.optimize(fit.problem, "momentum", SIZES, level, largest_momentum=0.9)
    np.testing.assert_array_equal(plan.curves["momentum"].steps, best.steps)
    np.testing.assert_array_equal(plan.steps["momentum"].value, best.steps)
    assert (plan.curves["momentum"].algorithm.momentum <= 0.9).all()
    assert plan.curves["momentum"].target_loss == TARGET
    expected = nqm.critical_batch_size((SIZES, best.steps)).batch_size
    assert plan.critical_batch_size["momentum"].value == expected
    for found in plan.steps.values():
        assert (found.low <= found.high).all()
        assert (found.low <= found.value * 1.02).all()


def test_intervals_widen_with_their_level(fit, plan):
    few = SIZES[:6]
    narrow = plan_from_fit(fit, TARGET, batch_sizes=few, families=["sgd"], confidence=0.5).steps["sgd"]
    wide = plan.steps["sgd"]
    assert (narrow.confidence, wide.confidence) == (0.5, 0.9)
    assert (np.log(wide.high / wide.low)[:6] > 1.5 * np.log(narrow.high / narrow.low)).all()


def test_finite_data_have_less_noise_at_large_batches(fit):
    options = {"batch_sizes": [1, 64, 1024, 4096, 8192], "families": ["sgd"], "num_draws": 20}
    finite = plan_from_fit(dataclasses.replace(fit, num_examples=8192.0), TARGET, **options)
    endless = plan_from_fit(fit, TARGET, **options)
    steps, more = finite.steps["sgd"].value, endless.steps["sgd"].value
    assert (steps <= more).all()
    exact = nqm.optimize(fit.problem, "sgd", [4096 / (1 - 0.5)], TARGET - fit.floor).steps
    assert steps[-2] == exact[0]
    silent = nqm.NoisyQuadratic(fit.curvature, 0.0, fit.problem.multiplicity, fit.problem.initial_second_moment)
    assert steps[-1] == nqm.optimize(silent, "sgd", [1.0], TARGET - fit.floor).steps[0]


def test_default_targets(fit):
    here = plan_from_fit(fit, families=["sgd"], num_draws=20)
    assert here.target_loss == pytest.approx(fit.floor + 0.1 * fit.problem.initial_loss)
    assert here.batch_sizes.tolist() == [2**k for k in range(17)]
    away = dataclasses.replace(fit, is_displaced=True, loss=fit.loss * 0.5 + 0.1, gain=fit.gain * 0.5)
    options = {"batch_sizes": [1, 2, 4], "families": ["sgd"], "num_draws": 20}
    assert plan_from_fit(away, **options).target_loss == pytest.approx(0.5 * fit.loss.mean() + 0.1)


# --- what to train with


def test_suggestions(plan):
    found = plan.suggest()
    critical = plan.critical_batch_size["momentum"].value
    assert found.batch_size == max(size for size in SIZES if size <= critical)
    place = SIZES.index(found.batch_size)
    assert found.steps == plan.steps["momentum"].value[place]
    assert found.examples == found.steps * found.batch_size
    assert found.learning_rate == plan.curves["momentum"].algorithm.learning_rate[place]
    between = plan.suggest(24, "sgd")  # no power of two
    smaller, larger = plan.suggest(16, "sgd"), plan.suggest(32, "sgd")
    assert larger.steps < between.steps < smaller.steps
    assert smaller.learning_rate < between.learning_rate < larger.learning_rate


@pytest.mark.parametrize("family", ["sgd", "momentum", "ema"])
def test_optimizers_are_what_was_suggested(plan, family):
    found, optimizer = plan.suggest(64, family), plan.make_optimizer(64, family)
    assert isinstance(optimizer, keras.optimizers.SGD)
    assert float(optimizer.learning_rate) == pytest.approx(found.learning_rate)
    assert optimizer.momentum == pytest.approx(found.momentum)
    assert optimizer.use_ema == (family == "ema")
    if family == "ema":
        assert optimizer.ema_momentum == pytest.approx(found.ema_decay)
    # It reaches the target in about the steps predicted; averaged over trainings, as the loss is one of a mean.
    losses, model = [], models.noisy_quadratic(KNOWN, seed=0)
    model.compile(optimizer, models.output_as_loss, jit_compile=False)
    optimizer.build(model.trainable_variables)
    fresh = [np.array(variable) for variable in optimizer.variables]
    for seed in range(12):
        model.set_weights(models.noisy_quadratic(KNOWN, seed=seed).get_weights())
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        noise = nqm.noise_batches(KNOWN, batch_size=64, num_batches=int(found.steps), seed=seed)
        model.fit(noise, shuffle=False, verbose=0)
        losses.append(float(model(np.zeros((1, int(KNOWN.dim)), "float32"))[0, 0]))
    assert np.mean(losses) == pytest.approx(TARGET, rel=0.35)


def test_schedules_take_fewer_steps(plan, fit):
    schedule = plan.make_schedule(4)
    assert schedule.num_steps < plan.suggest(4, "sgd").steps
    keras.optimizers.SGD(schedule.to_keras())
    assert plan.make_schedule(num_pieces=3).learning_rates.shape == (3,)


# --- what a plan gives


def test_plans_print_plot_and_export(plan, tmp_path):
    text = repr(plan)
    assert len(text.splitlines()) == 3 + 3 + 1 + 2 + len(SIZES)
    assert "measured in 8 runs, 1,024 rows of an endless stream in each run" in text
    assert f"down to {plan.fit.floor:.4g} at its minimum" in text
    assert "critical batch size, momentum:" in text
    frame = plan.to_dataframe()
    assert len(frame) == 3 * len(SIZES)
    assert set(frame["family"]) == {"sgd", "momentum", "ema"}
    ax = plan.plot()
    assert ax.get_legend_handles_labels()[1] == ["sgd", "momentum", "ema", "simple noise scale", "critical batch size"]
    assert "after a pilot sgd" in plan.plot(label="after a pilot").get_legend_handles_labels()[1]
    plan.save(tmp_path / "plan.json")
    found = BatchSizePlan.load(tmp_path / "plan.json")
    assert repr(found) == text
    assert found.suggest(96) == plan.suggest(96)


def test_critical_batch_sizes_beyond_the_largest(fit):
    noisy = dataclasses.replace(fit, noise=1e3 * fit.noise, sampling=0.0 * fit.sampling, loss=fit.loss + 0.1)
    found = plan_from_fit(noisy, TARGET + 0.1, batch_sizes=[1, 2, 4, 8], families=["momentum"], num_draws=20)
    assert found.critical_batch_size["momentum"].value == math.inf
    assert "beyond the largest" in repr(found)
    assert found.suggest().batch_size == 8
    found.plot()


def test_targets_that_few_batch_sizes_reach(fit, monkeypatch):
    """Two sizes are too few to tell the critical one; suggested is the smallest that gets there."""

    def find_best(fit, family, sizes, target, largest_momentum):
        found = prediction.find_best(fit, family, sizes, target, largest_momentum)
        return dataclasses.replace(found, steps=np.where(np.array(sizes) < 4, np.inf, found.steps))

    for module in (planner, plan_module):
        monkeypatch.setattr(module, "find_best", find_best)
    found = plan_from_fit(fit, TARGET, batch_sizes=[1, 2, 4, 8], families=["sgd"], num_draws=20)
    assert math.isnan(found.critical_batch_size["sgd"].value)
    assert "critical batch size, sgd:          unknown" in repr(found)
    assert found.suggest().batch_size == 4
    with pytest.raises(ValueError, match="No setting reaches a loss of .* at batch_size=2. Take a larger one"):
        found.suggest(2)
    frame = found.to_dataframe()
    assert frame["steps"].tolist() == [math.inf, math.inf, *found.curves["sgd"].steps[2:]]


def test_minima_that_no_loss_has_are_told(fit):
    deep = dataclasses.replace(fit, loss=fit.loss - fit.floor - 1.0)
    assert deep.floor == pytest.approx(-1.0)
    with pytest.warns(UserWarning, match="minimum lies at a loss of -1: unless the model's loss can be negative"):
        plan_from_fit(deep, 0.1, batch_sizes=[1, 2, 4], families=["sgd"], num_draws=20)
    with (
        pytest.warns(UserWarning, match="minimum lies"),
        pytest.raises(ValueError, match="`target_loss` must be given: a tenth of the way .* train a pilot"),
    ):
        plan_from_fit(deep)
    there = dataclasses.replace(fit, is_displaced=True, gain=0.0 * fit.gain, loss=0.0 * fit.loss)
    with pytest.raises(ValueError, match="`target_loss` must be given: the model's loss, 0, is that of"):
        plan_from_fit(there)


def test_from_a_model_in_one_call():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2048, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True) + rng.standard_normal((2048, 1)).astype("float32")
    model = models.mlp(4, (), 1, seed=0)
    objective, options = Objective(model, "mse", (x, y)), {"num_runs": 4, "num_matvecs": 10, "seed": 3}
    found = plan_batch_size(objective, families=["sgd"], num_draws=20, **options)
    assert found.families == ("sgd",)
    assert found.batch_sizes[-1] == 2048
    assert found.suggest().family == "sgd"
    again = fit_noisy_quadratic(objective, **options)
    np.testing.assert_array_equal(found.fit.noise, again.noise)


def test_a_target_out_of_reach_does_not_lose_the_fit():
    x = np.random.default_rng(0).standard_normal((512, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True) + np.random.default_rng(1).standard_normal((512, 1)).astype("float32")
    objective = Objective(models.mlp(4, (), 1, seed=0), "mse", (x, y))
    options = {"families": ["sgd"], "num_draws": 20}
    with pytest.raises(ValueError, match="`target_loss` must lie between") as caught:
        plan_batch_size(objective, 1e3, num_runs=4, num_matvecs=5, **options)
    fit = caught.value.fit
    assert "plan_from_fit(error.fit" in caught.value.__notes__[0]
    target = 0.5 * (fit.floor + fit.quadratic_initial_loss)
    assert plan_from_fit(fit, target, **options).target_loss == target


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"families": None}, TypeError, "`families` must be a list"),
        ({"families": np.array([])}, ValueError, "`families` must be a list"),
        ({"families": "sgd"}, TypeError, "`families` must be a list"),
        ({"families": []}, ValueError, "`families` must be a list"),
        ({"families": ["adam"]}, ValueError, "`families` must be one of 'sgd'"),
        ({"batch_sizes": [1, 2]}, ValueError, "`batch_sizes` must be three or more, rising"),
        ({"batch_sizes": [1, 4, 2]}, ValueError, "`batch_sizes` must be three or more, rising"),
        ({"batch_sizes": [0, 1, 2]}, ValueError, "`batch_sizes` must be"),
        ({"batch_sizes": 64}, TypeError, "`batch_sizes` must"),
        ({"largest_momentum": 1.0}, ValueError, "`largest_momentum` must be"),
        ({"confidence": 0.0}, ValueError, "`confidence` must be"),
        ({"num_draws": 5}, ValueError, "`num_draws` must be an integer >= 20"),
        ({"seed": 1.5}, TypeError, "`seed` must be"),
        ({"target_loss": math.nan}, ValueError, "`target_loss` must be a finite number"),
        ({"target_loss": -1.0}, ValueError, "floor, .* Received: target_loss=-1. Fit after a longer pilot"),
        ({"target_loss": 1e3}, ValueError, "It is reached before the first step"),
        ({"progress": 1}, TypeError, "`progress` must be"),
    ],
)
def test_bad_arguments_are_named(fit, options, error, message):
    with pytest.raises(error, match=message):
        plan_from_fit(fit, **options)


def test_bad_arguments_are_found_before_any_work():
    for options, error in (({"families": ["adam"]}, ValueError), ({"target_loss": "low"}, TypeError)):
        with pytest.raises(error, match="`(families|target_loss)` must be"):
            plan_batch_size("no objective", **options)
    x = np.zeros((100, 4), "float32")
    with pytest.raises(ValueError, match="`batch_sizes` must be three or more, rising, up to the 100 rows"):
        plan_batch_size(Objective(models.mlp(4, (), 1), "mse", (x, x[:, :1])), batch_sizes=[1, 10, 1000])
    with pytest.raises(TypeError, match="`fit` must be a result of fit_noisy_quadratic"):
        plan_from_fit(KNOWN)


def test_bad_batch_sizes_are_named(plan, fit):
    assert type(plan.suggest(np.int64(64)).batch_size) is int
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1"):
        plan.suggest(0)
    with pytest.raises(TypeError, match="`batch_size` must be an integer"):
        plan.make_schedule(1.5)
    with pytest.raises(ValueError, match="`family` must be one of 'sgd', 'momentum', 'ema'"):
        plan.suggest(8, "nesterov")
    finite = dataclasses.replace(plan, fit=dataclasses.replace(fit, num_examples=8192.0))
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1 and <= 8192"):
        finite.make_optimizer(10_000)
