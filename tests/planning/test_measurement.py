"""What a run measures, on rows of its own."""

import keras
import numpy as np
import pytest

from tfopt.communicator import SerialCommunicator
from tfopt.curvature import GaussNewtonOperator, Probe
from tfopt.curvature.groups import Groups
from tfopt.models import mlp
from tfopt.planning import budget
from tfopt.planning.budget import FEWEST_MATVECS, Effort
from tfopt.planning.dealt_rows import DealtRows
from tfopt.planning.measurement import FEWEST_LATE_MATVECS, RunMeasurer

NUM_INPUTS = 3


def make_data(num_rows, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_rows, NUM_INPUTS)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) + rng.standard_normal((num_rows, 1))).astype("float32")


def make_rows(probe, num_runs, are_shared=False):
    return DealtRows(probe, num_runs, are_shared, np.random.default_rng(0), SerialCommunicator())


@pytest.fixture
def linear():
    """A linear regression, whose rows have gradients that fit on a line of NumPy."""
    x, y = make_data(256)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    operator = GaussNewtonOperator(model, "mse", x, y)
    ones = np.column_stack([x, np.ones(len(x))])
    weights = np.concatenate([part.ravel() for part in model.get_weights()])
    gradients = 2.0 * (ones @ weights[:, None] - y) * ones
    return operator, x, gradients.astype(np.float64)


def test_noise_vectors_have_the_covariance_of_single_rows(linear, monkeypatch):
    monkeypatch.setattr(Groups, "check", lambda *_: None)  # 150 times the same
    operator, x, gradients = linear
    rows = make_rows(operator.objective.probe, 4)
    picked = np.concatenate([batch.x.numpy() for batch in rows.batches(0, 99)])
    mine = gradients[[int(np.flatnonzero((x == row).all(axis=1))[0]) for row in picked]]
    covariance = np.cov(mine.T)
    vectors = []
    for seed in range(150):
        run = RunMeasurer(operator, rows, None, seed)._gradient_and_noise(rows.batches(0, 99), 0)
        _, gradient, noise, trace, num_rows = run
        vectors.append(noise)
    np.testing.assert_allclose(gradient, mine.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert num_rows == len(mine)
    assert rows.group_size == 2  # 64 rows in 32 groups
    groups = mine.reshape(-1, 2, 4).mean(axis=1)
    exact = 2 * np.cov(groups.T)  # of single rows, as groups of two show it
    assert trace == pytest.approx(np.trace(exact), rel=1e-4)
    found = np.mean([np.outer(v, v) for v in vectors], axis=0)
    assert np.linalg.norm(found - exact) < 0.4 * np.linalg.norm(exact)
    assert np.linalg.norm(exact - covariance) < np.linalg.norm(covariance)


def test_masses_add_up_to_squared_norms(linear):
    operator, _, _ = linear
    rows = make_rows(operator.objective.probe, 4)
    displacement = np.array([1.0, 2.0, 3.0, 4.0])
    run = RunMeasurer(operator, rows, displacement, 0).run(1, Effort(4, 99))
    _, gradient, noise, _, _ = RunMeasurer(operator, rows, displacement, 0)._gradient_and_noise(rows.batches(1, 99), 1)
    matrix = operator.over(Probe.from_batches(rows.batches(1, 99))).to_dense()
    assert run.gradient.masses.sum() == pytest.approx(gradient @ gradient, rel=1e-4)
    assert run.noise.masses.sum() == pytest.approx(noise @ noise, rel=1e-4)
    start = gradient + matrix @ displacement
    assert run.start.masses.sum() == pytest.approx(start @ start, rel=1e-4)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(run.start.nodes, eigenvalues, rtol=1e-3)
    np.testing.assert_allclose(run.start.masses, (vectors.T @ start) ** 2, rtol=2e-3)
    model = operator.objective.model
    before = model.get_weights()
    model.set_weights([before[0] + displacement[:3, None], before[1] + displacement[3:]])
    here = operator.over(Probe.from_batches(rows.batches(1, 99))).loss_and_gradient()[0]
    assert run.initial_loss == pytest.approx(here, rel=1e-5)


def test_a_run_ends_with_its_time(monkeypatch):
    wide = keras.Sequential([keras.Input((NUM_INPUTS,)), keras.layers.Dense(40, "tanh"), keras.layers.Dense(1)])
    x, y = make_data(256)
    operator = GaussNewtonOperator(wide, "mse", x, y)
    measurer = RunMeasurer(operator, make_rows(operator.objective.probe, 4), None, 0)
    assert len(measurer.run(0, Effort(60, 99), 0.0).noise.nodes) == FEWEST_LATE_MATVECS
    now = [0.0]
    monkeypatch.setattr(budget, "clock", lambda: now[0])
    matvec = GaussNewtonOperator.matvec

    def slow_matvec(self, vector):
        now[0] += 1.0
        return matvec(self, vector)

    monkeypatch.setattr(GaussNewtonOperator, "matvec", slow_matvec)
    run = measurer.run(0, Effort(60, 99), 75.0)  # 25 s for each vector, and products of a second
    assert [len(part.nodes) for part in (run.counts, run.noise, run.gradient)] == [25, 25, 25]
    monkeypatch.undo()
    assert len(measurer.run(0, Effort(60, 99), 1e6).noise.nodes) > FEWEST_MATVECS
    assert len(measurer.run(0, Effort(60, 99)).noise.nodes) > FEWEST_MATVECS


def test_the_minimum_of_some_rows_is_tried_on_others(linear):
    """By the quadratic of the second run's rows, at the minimum of the first run's."""
    operator, _, _ = linear
    rows = make_rows(operator.objective.probe, 4)
    measurer = RunMeasurer(operator, rows, None, 0)
    first, second = measurer.run(0, Effort(4, 99)), measurer.run(1, Effort(4, 99))
    assert np.isnan(first.gain_elsewhere)
    model = operator.objective.model
    weights = model.get_weights()
    here = [operator.over(Probe.from_batches(rows.batches(run, 99))) for run in (0, 1)]
    gradient = np.concatenate([np.asarray(part).ravel() for part in here[0].loss_and_gradient()[1]])
    step = -np.linalg.solve(here[0].to_dense(), gradient)
    before = here[1].loss_and_gradient()[0]
    model.set_weights([weights[0] + step[:3, None], weights[1] + step[3:]])
    assert second.gain_elsewhere == pytest.approx(before - here[1].loss_and_gradient()[0], rel=1e-3)


def test_weights_that_are_not_finite_are_refused():
    x, y = make_data(128)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    operator = GaussNewtonOperator(model, "mse", x, y)
    model.set_weights([np.full((NUM_INPUTS, 1), np.nan), np.zeros(1)])
    with pytest.raises(
        ValueError, match="`model` must have a finite loss and gradient on the data. Received: a loss of n"
    ):
        RunMeasurer(operator, make_rows(operator.objective.probe, 4), None, 0).check()


def test_losses_that_are_no_means_are_refused():
    x, y = make_data(128)
    model = mlp(NUM_INPUTS, (), 1, seed=0)
    loss = keras.losses.MeanSquaredError(reduction="sum")
    operator = GaussNewtonOperator(model, loss, x, y)
    with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
        RunMeasurer(operator, make_rows(operator.objective.probe, 4), None, 0).check()


@pytest.mark.parametrize("are_shared", [False, True])
def test_masks_in_the_rows_of_a_run_are_seen(are_shared):
    """One row of 256 is ignored: the run that has it is refused, and where all have all rows, the first one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(256, NUM_INPUTS)).astype("float32"), rng.integers(1, 3, 256)
    y[-1] = 0
    model = mlp(NUM_INPUTS, (), 3, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    operator = GaussNewtonOperator(model, loss, x, y, batch_size=64)
    rows = make_rows(operator.objective.probe, 4, are_shared)
    measurer = RunMeasurer(operator, rows, None, 0)
    for run in range(4):
        batches = rows.batches(run, 99)
        if any((batch.y.numpy() == 0).any() for batch in batches):
            with pytest.raises(ValueError, match="`loss` must be a mean over rows"):
                measurer.run(run, Effort(2, 99))
            break
        measurer.run(run, Effort(2, 99))
    else:
        pytest.fail("No run has had the row")
