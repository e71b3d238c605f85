"""A fit keeps its time limit, or refuses it early, by a clock that products and gradients move."""

import logging
import math

import numpy as np
import pytest

from tfopt import models
from tfopt.communicator import SerialCommunicator
from tfopt.curvature import GaussNewtonOperator, Objective
from tfopt.nqm import OptimalSettings
from tfopt.planning import budget as budgets
from tfopt.planning import fit_noisy_quadratic, plan_batch_size, planner
from tfopt.planning.budget import FEWEST_MATVECS, Budget, Costs, Effort
from tfopt.planning.measurement import RunMeasurer

NUM_ROWS = 2000


@pytest.fixture
def clock(monkeypatch):
    """Seconds in a list."""
    now = [50.0]
    monkeypatch.setattr(budgets, "clock", lambda: now[0])
    return now


@pytest.fixture(scope="module")
def objective():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((NUM_ROWS, 4)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True)) + 0.5 * rng.standard_normal((NUM_ROWS, 1))
    model = models.mlp(4, (40,), 1, activation="tanh", seed=0)
    return Objective(model, "mse", (x, y.astype("float32")), batch_norm="moving")


@pytest.fixture
def work(clock, monkeypatch):
    """Make every product and gradient take seconds in proportion to its rows, and each first product compile."""
    costs = {"per row": 1e-3, "compile": 2.0, "slower after": math.inf, "slower": 3.0, "products": 0}
    matvec, gradients = GaussNewtonOperator.matvec, RunMeasurer._gradient_and_noise
    loss_and_gradient = Objective.loss_and_gradient
    compiled = set()

    def spend(rows, factor):
        costs["products"] += 1
        clock[0] += (
            factor * costs["per row"] * rows * (costs["slower"] if costs["products"] > costs["slower after"] else 1.0)
        )

    def slow_matvec(self, vector):
        rows = self.objective.num_rows
        clock[0] += costs["compile"] * (rows not in compiled)
        compiled.add(rows)
        spend(rows, 1.0)
        return matvec(self, vector)

    def slow_gradients(self, batches, index):
        spend(sum(batch.num_rows for batch in batches), 1.5)
        return gradients(self, batches, index)

    def slow_gradient(self):
        clock[0] += (0.5 * costs["compile"]) * ("gradient" not in compiled)
        compiled.add("gradient")
        spend(self.num_rows, 0.4)
        return loss_and_gradient(self)

    monkeypatch.setattr(GaussNewtonOperator, "matvec", slow_matvec)
    monkeypatch.setattr(RunMeasurer, "_gradient_and_noise", slow_gradients)
    monkeypatch.setattr(Objective, "loss_and_gradient", slow_gradient)
    return costs


# --- the fit


@pytest.mark.parametrize(
    ("per_row", "seconds", "rows"),
    [
        (1e-7, 60.0, NUM_ROWS),  # everything fits
        (3e-5, 60.0, 1500),  # some of the rows
        (3e-4, 60.0, 64),  # a smaller batch
        (3e-4, 120.0, 128),
        (1e-3, 60.0, 64),
    ],
)
def test_a_fit_keeps_its_budget_with_as_many_rows_as_fit(objective, clock, work, per_row, seconds, rows):
    work["per row"] = per_row
    begin = clock[0]
    fit = fit_noisy_quadratic(objective, seconds)
    assert fit.seconds == pytest.approx(clock[0] - begin)
    assert fit.seconds <= 1.2 * seconds
    assert fit.num_runs >= 4
    assert 0.5 * rows <= fit.num_rows_per_run <= 2.1 * rows
    if fit.num_rows_per_run < NUM_ROWS:
        assert fit.seconds >= 0.4 * seconds  # and uses it


@pytest.mark.parametrize(("per_row", "seconds"), [(5e-3, 30.0), (5e-3, 60.0), (2e-2, 120.0), (1e-3, 1.0)])
def test_a_budget_that_is_too_short_is_refused_early_with_one_that_is_enough(objective, clock, work, per_row, seconds):
    work["per row"] = per_row
    begin = clock[0]
    with pytest.raises(ValueError, match="`budget_seconds` is too short: the smallest fit takes about") as error:
        fit_noisy_quadratic(objective, seconds)
    assert clock[0] - begin <= max(10.0, 0.3 * seconds)
    assert f"Received: budget_seconds={seconds:g}. Pass budget_seconds=" in str(error.value)
    enough = float(str(error.value).rpartition("budget_seconds=")[2].split(",")[0])
    begin = clock[0]
    assert fit_noisy_quadratic(objective, enough).num_runs >= 4
    assert clock[0] - begin <= 1.2 * enough


def test_fewer_products_are_offered_where_they_fit(objective, clock, work):
    work["per row"] = 2e-3
    with pytest.raises(ValueError, match=r", or num_matvecs=\d+ for a coarser spectrum") as error:
        fit_noisy_quadratic(objective, 25.0)
    fewer = int(str(error.value).rpartition("num_matvecs=")[2].split()[0])
    assert 5 <= fewer < FEWEST_MATVECS
    assert fit_noisy_quadratic(objective, 25.0, num_matvecs=fewer).seconds <= 1.2 * 25.0


@pytest.mark.parametrize("after", [100, 300])
def test_a_machine_that_slows_down_is_caught_up_with(objective, work, after):
    """Three times slower in the middle of the first run, or later."""
    work.update({"per row": 1e-4, "slower after": after})
    assert fit_noisy_quadratic(objective, 60.0).seconds <= 1.2 * 60.0


def test_a_fit_that_is_late_all_the_same_is_told(objective, work):
    work.update({"per row": 8e-4, "slower after": 60, "slower": 20.0})
    with pytest.warns(UserWarning, match=r"The fit took .* s, because the machine became slower .*budget_seconds=30\."):
        fit_noisy_quadratic(objective, 30.0)


def test_without_a_budget_the_clock_decides_nothing(objective, work):
    fits = []
    for per_row in (1e-6, 10.0):
        work["per row"] = per_row
        fits.append(fit_noisy_quadratic(objective, None, num_runs=4, num_matvecs=5))
    np.testing.assert_array_equal(fits[0].noise, fits[1].noise)
    assert fits[0].num_rows_per_run == fits[1].num_rows_per_run == NUM_ROWS


def test_products_are_checked_once_for_all_runs(objective, monkeypatch):
    checks, multiply = [], GaussNewtonOperator._checked_product
    checked = lambda self, vectors: checks.append(self) or multiply(self, vectors)  # noqa: E731
    monkeypatch.setattr(GaussNewtonOperator, "_checked_product", checked)
    for seconds in (None, 1e6):
        checks.clear()
        fit_noisy_quadratic(objective, seconds, num_runs=4, num_matvecs=5, self_check=True)
        assert len(checks) == 1


# --- what is told


def test_the_estimate_is_told_in_a_file_and_to_the_logger(objective, work, capsys, caplog):
    work["per row"] = 3e-4
    with caplog.at_level(logging.INFO, "tfopt"):
        fit_noisy_quadratic(objective, 60.0, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [record.message for record in caplog.records] == lines
    (told,) = [line for line in lines if "60 s in all; a fit to all rows would take about" in line]
    assert lines.index(told) < lines.index(next(line for line in lines if "run 1 of 8" in line))
    work["per row"] = 1e-7
    fit_noisy_quadratic(objective, 60.0, num_runs=4, num_matvecs=5, progress=True)
    assert "s in all" in capsys.readouterr().err
    fit_noisy_quadratic(objective, 60.0, num_runs=4, num_matvecs=5)
    assert not capsys.readouterr().err  # a file, and nobody has asked


# --- the parts


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1e9, Effort(50, 4)),  # all that is wanted
        (2 * (0.5 + 3 * 50 * 0.1) * 1.01, Effort(50, 2)),  # fewer rows
        (10.0, Effort(31, 1)),  # then fewer products
        (0.1, Effort(FEWEST_MATVECS, 1)),  # and never less than this
        (-5.0, Effort(FEWEST_MATVECS, 1)),
    ],
)
def test_effort_follows_from_the_time_there_is(seconds, expected):
    assert Costs(0.5, 0.1, 3).affordable(Effort(50, 4), seconds) == expected


def test_all_ranks_have_the_time_of_the_one_that_has_least(clock):
    class Other(SerialCommunicator):
        def allgather_object(self, value, name):
            return [value, value - 7.0]

    limit = Budget(30.0, Other(), reserved=5.0)
    clock[0] += 10.0
    assert limit.left() == 30.0 - 5.0 - 10.0 - 7.0
    limit.release()
    assert limit.left() == 30.0 - 10.0 - 7.0


# --- the plan


@pytest.fixture
def slow_search(clock, monkeypatch):
    """Searches take seconds of the clock; a family is searched once, and found again in later plans."""
    searched, known, find_best, intervals = [], {}, planner.find_best, planner.intervals

    def slowly(fit, family, *rest) -> OptimalSettings:
        clock[0] += 20.0
        searched.append(family)
        if family not in known:
            known[family] = find_best(fit, family, *rest)
        return known[family]

    def of_known(fit, best, *rest):
        key = (best.family, "intervals")
        if key not in known:
            known[key] = intervals(fit, best, *rest)
        return known[key]

    monkeypatch.setattr(planner, "find_best", slowly)
    monkeypatch.setattr(planner, "intervals", of_known)
    return searched


def plan(objective, seconds, **options):
    options = {"families": ("sgd", "momentum"), "batch_sizes": [4, 16, 64], "num_draws": 20, **options}
    return plan_batch_size(objective, None, seconds, num_runs=4, num_matvecs=5, **options)


def test_a_plan_keeps_its_budget_and_names_what_it_leaves_out(objective, clock, work, slow_search):
    work["per row"] = 1e-6
    begin = clock[0]
    with pytest.warns(UserWarning, match=r"ended before the search for sgd\. .*families=\['sgd'\]\) searches them"):
        found = plan(objective, 30.0)
    assert clock[0] - begin <= 1.2 * 30.0
    assert found.families == tuple(slow_search) == ("momentum",)
    slow_search.clear()
    assert plan(objective, 300.0).families == ("sgd", "momentum")
    assert plan(objective, None).families == ("sgd", "momentum")
