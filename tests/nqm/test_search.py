"""The best settings: checked step by step, against fine grids, and against what the paper found."""

import numpy as np
import pytest
from nqm_oracles import first_passage, loss_curve

from tfopt._progress import Progress
from tfopt.nqm import (
    Algorithm,
    NoisyQuadratic,
    critical_batch_size,
    expected_loss,
    information_bound,
    optimize,
    refinement,
    steps_to_target,
)
from tfopt.nqm.candidates import Candidates
from tfopt.nqm.settings_space import SettingsSpace

TARGET = 0.01
SIZES = 4.0 ** np.arange(11)


@pytest.fixture(scope="module")
def standard():
    return NoisyQuadratic.power_law(num_bins=100)


@pytest.fixture(scope="module")
def best(standard):
    cases = {
        "sgd": ("sgd", 0.0),
        "momentum": ("momentum", 0.0),
        "ema": ("ema", 0.0),
        "momentum_ema": ("momentum_ema", 0.0),
        "preconditioned sgd": ("sgd", 0.5),
        "preconditioned": ("momentum", 0.5),
    }
    # With two free settings beside the rate a search takes long: every other batch size.
    sizes = {"momentum_ema": SIZES[::2]}
    return {
        name: optimize(standard, family, sizes.get(name, SIZES), TARGET, preconditioner_power=power)
        for name, (family, power) in cases.items()
    }


def test_every_optimum_reaches_the_target_and_one_step_fewer_does_not(standard, best):
    for name, found in best.items():
        for place, steps in enumerate(found.steps.astype(int)):
            setting = found.algorithm.take(place)
            size = found.batch_size[place]
            before, after = expected_loss(standard, setting, size, [steps - 1, steps])
            assert after <= TARGET < before, (name, size)
            if steps < 3000:
                rate, momentum, decay, power = map(float, setting.settings)
                curve = loss_curve(
                    standard,
                    size,
                    steps,
                    learning_rate=rate,
                    momentum=momentum,
                    nesterov=setting.nesterov,
                    ema_decay=decay,
                    preconditioner_power=power,
                )
                assert first_passage(curve, TARGET) == steps


def test_no_optimum_is_worse_than_a_fine_grids(standard, best):
    for size in (1.0, 1024.0, 4.0**9):
        place = int(np.flatnonzero(best["sgd"].batch_size == size)[0])
        center = best["sgd"].algorithm.take(place).learning_rate
        rates = center * np.linspace(0.5, 1.5, 2001)
        assert best["sgd"].steps[place] <= 1 + steps_to_target(standard, Algorithm(rates), size, TARGET).min()
    place = int(np.flatnonzero(best["momentum"].batch_size == 4.0**9)[0])
    rates, momenta = np.linspace(3.0, 3.9, 91)[:, None], np.linspace(0.95, 0.97, 41)
    grid = steps_to_target(standard, Algorithm(rates, momenta), 4.0**9, TARGET).min()
    assert best["momentum"].steps[place] <= max(grid + 1, 1.001 * grid)
    rates, decays = 0.694 * np.linspace(0.8, 1.2, 41)[:, None], 1 - 8.9e-5 * np.linspace(0.5, 2.0, 61)
    grid = steps_to_target(standard, Algorithm(rates, 0.0, False, decays), 16.0, TARGET).min()
    assert best["ema"].steps[2] <= 1.001 * grid


def test_small_problems_against_fine_grids():
    # Where deadbeat rates, dips and unstable settings matter.
    problems = [
        NoisyQuadratic([1.0], [1.0]),
        NoisyQuadratic([1.0, 0.01], [1e-6, 1e-6], 1.0, [1e-8, 1.0]),
        NoisyQuadratic([1.0, 0.5, 0.01], [0.1, 2.0, 0.0]),
    ]
    for problem in problems:
        target = 0.02 * problem.initial_loss
        for size in (1.0, 30.0, 1e4):
            rates, momenta = np.geomspace(1e-4, 300, 300)[:, None], np.append(0.0, 1 - np.geomspace(0.5, 1e-3, 15))
            grid = steps_to_target(problem, Algorithm(rates, momenta), size, target).min()
            found = optimize(problem, "momentum", size, target).steps[0]
            assert found <= max(grid + 1, 1.001 * grid), (problem, size)


OSCILLATING = [
    # Settings that were found by drawing thousands of them, on problems of few directions.
    (NoisyQuadratic([0.02, 0.15, 0.004], [0.009] * 3, [18, 5, 16], [0.5, 0.25, 4.5]), "momentum", 600.0, 6e-5, 1566),
    (
        NoisyQuadratic([0.0012, 0.1071, 0.6716], [0.000134, 0.00294, 0.1455], [10, 7, 16], [5.98, 1.83, 0.372]),
        "momentum",
        63988.0,
        0.012069,
        15,
    ),
    (
        NoisyQuadratic([0.182, 0.379, 0.00563], [0.6745, 1.948, 0.02664], [1, 4, 19], [2.592, 5.705, 0.1724]),
        "nesterov",
        12.13,
        0.0011826,
        57336,
    ),
]


@pytest.mark.parametrize(("problem", "family", "size", "target", "known"), OSCILLATING)
def test_narrow_valleys_are_found(problem, family, size, target, known):
    assert optimize(problem, family, [size], target).steps[0] <= 1.005 * known


def test_what_is_found_for_one_batch_size_serves_the_others(best):
    problem = NoisyQuadratic([1.0, 0.1], [1.0, 0.1])
    apart = [optimize(problem, "momentum", [size], 1e-6).steps[0] for size in (1.0, 100.0)]
    together = optimize(problem, "momentum", [100.0, 1.0], 1e-6).steps[::-1]
    assert apart[0] / apart[1] == pytest.approx(100, rel=0.1)
    np.testing.assert_allclose(together, apart, rtol=0.12)
    for found in best.values():
        assert (np.diff(found.steps) <= 0).all()


def test_no_larger_batch_takes_more_steps_than_a_smaller_one(monkeypatch):
    problem, sizes = NoisyQuadratic([1.0, 0.1], [1.0, 0.1]), np.array([64.0, 1.0, 16.0])
    monkeypatch.setattr(refinement, "MAX_SHARINGS", 0)  # the last pass alone
    search = refinement.Refinement(problem, SettingsSpace("sgd", 0.0), sizes, 0.05, Progress("", False))
    points = np.log([[[1e-3]], [[0.05]], [[2e-3]]])
    steps = steps_to_target(problem, Algorithm(np.exp(points[:, 0, 0])), sizes, 0.05)
    assert steps[1] < steps[2] < steps[0]
    found = search._share(Candidates(points, steps[:, None].copy()))
    assert found.steps[0, 0] <= found.steps[2, 0] <= found.steps[1, 0] == steps[1]
    np.testing.assert_allclose(np.exp(found.points), 0.05)


def test_what_a_search_leaves_undecided_is_decided_in_the_end(monkeypatch):
    monkeypatch.setattr(refinement, "PASSAGE_TABLES", ((26, 2),))
    problem = NoisyQuadratic([1.0, 0.1], [1.0, 0.1])
    found = optimize(problem, "sgd", [4.0], 0.02)
    curve = loss_curve(problem, 4.0, int(found.steps[0]), learning_rate=float(found.algorithm.learning_rate[0]))
    assert first_passage(curve, 0.02) == found.steps[0]


def test_decays_as_close_to_1_as_small_batches_ask_for():
    problem = NoisyQuadratic([1.0, 0.1], [1.0, 0.1])
    found = optimize(problem, "ema", [1, 100], 1e-8)
    assert found.steps[0] / found.steps[1] == pytest.approx(100, rel=1e-3)
    assert found.algorithm.ema_decay[0] > 1 - 1e-7


def test_what_oscillates_for_too_long_is_left_out():
    problem = NoisyQuadratic([1.0, 0.1], [1.0, 0.1])
    found = optimize(problem, "momentum", [1, 100], 1e-9)
    assert np.isfinite(found.steps).all()
    place = found.steps.astype(int)
    losses = [expected_loss(problem, found.algorithm.take(i), [1, 100][i], place[i]) for i in (0, 1)]
    assert max(losses) <= 1e-9


def test_the_exact_spectrum_differs_from_its_bins(best):
    found = optimize(NoisyQuadratic.power_law(), "momentum", [2.0**20], TARGET)
    assert found.steps[0] <= 151  # published grid: 179; refined: 152 on 100 bins, 150 on the exact spectrum
    assert best["momentum"].steps[-1] <= 152
    assert found.algorithm.learning_rate[0] == pytest.approx(3.73, rel=0.02)
    assert found.algorithm.momentum[0] == pytest.approx(0.9616, abs=0.005)


def test_momentum_ties_with_sgd_at_small_batches_and_wins_at_large_ones(standard, best):
    # At a fixed momentum, a and a / (1 - beta) are interchangeable while the batch is small.
    for momentum in (0.5, 0.9, 0.99):
        rate = best["sgd"].algorithm.take(0).learning_rate * (1 - momentum)
        steps = steps_to_target(standard, Algorithm(rate * np.linspace(0.95, 1.05, 101), momentum), 1.0, TARGET).min()
        assert steps == pytest.approx(best["sgd"].steps[0], rel=0.01)
    ratio = best["sgd"].steps / best["momentum"].steps
    assert ratio[-1] > 40
    assert (ratio >= 1 - 1e-3).all()
    # A momentum closer to 1 than anybody uses warms the rate up over the whole training, and gains a little.
    assert 1.1 < ratio[0] < 1.25
    assert best["momentum"].algorithm.momentum[0] > 0.9999


def test_a_largest_momentum_is_kept_to(standard, best):
    found = optimize(standard, "momentum", SIZES, TARGET, largest_momentum=0.9)
    assert found.algorithm.momentum.max() <= 0.9 * (1 + 1e-12)
    assert found.steps[0] == pytest.approx(best["sgd"].steps[0], rel=1e-3)
    assert (found.steps >= (1 - 1e-3) * best["momentum"].steps).all()
    none = optimize(standard, "momentum", SIZES[-2:], TARGET, largest_momentum=0.0)
    np.testing.assert_allclose(none.steps, best["sgd"].steps[-2:], rtol=1e-3)


def test_preconditioning_extends_perfect_scaling(best):
    plain, preconditioned = (critical_batch_size(best[name]).batch_size for name in ("sgd", "preconditioned sgd"))
    assert preconditioned > 2 * plain
    assert (best["preconditioned"].steps <= best["momentum"].steps).all()
    assert critical_batch_size(best["momentum"]).batch_size > 8 * plain


def test_averaging_saves_steps_at_small_batches_and_lowers_the_critical_batch(best):
    ratio = best["sgd"].steps / best["ema"].steps
    assert ratio[0] > 5
    assert ratio[-1] == pytest.approx(1.0, abs=0.02)
    assert critical_batch_size(best["ema"]).batch_size < 0.5 * critical_batch_size(best["sgd"]).batch_size
    either = np.minimum(best["ema"].steps, best["momentum"].steps)[::2]
    assert (best["momentum_ema"].steps <= 1.002 * either + 1).all()


def test_the_best_rate_grows_linearly_up_to_the_critical_batch(best):
    rates = best["sgd"].algorithm.learning_rate
    slope = np.log(rates[1:] / rates[:-1]) / np.log(4)
    assert slope[:3] == pytest.approx(1.0, abs=0.05)  # B up to 64
    assert slope[-3:] == pytest.approx(0.0, abs=0.05)


def test_nothing_beats_the_information_bound(standard, best):
    for found in best.values():
        assert (found.steps >= information_bound(standard, found.batch_size, TARGET)).all()


def test_results_print_and_tabulate(best):
    found = best["momentum_ema"]
    frame = found.to_dataframe()
    assert frame.index.name == "batch_size"
    assert frame.loc[256.0, "steps"] == found.steps[2]
    np.testing.assert_allclose(found.examples, found.steps * SIZES[::2])
    np.testing.assert_allclose(
        found.effective_learning_rate, found.algorithm.learning_rate / (1 - found.algorithm.momentum)
    )
    assert len(repr(found).splitlines()) == 2 + len(SIZES[::2])
    assert found.is_stable.all()
    assert found.plot().get_lines()[0].get_label() == "momentum_ema"


def test_unstable_optima_are_marked():
    problem = NoisyQuadratic([1.0, 0.01], [1e-12, 1e-6], 1.0, [1e-12, 1.0])
    found = optimize(problem, "sgd", 1.0, 1e-4)
    assert not found.is_stable[0]
    assert found.algorithm.learning_rate[0] > 2
    assert "unstable" in repr(found)


def test_a_target_that_is_reached_already(standard):
    found = optimize(standard, "momentum_ema", [1, 2], 5.0)
    assert found.steps.tolist() == [0.0, 0.0]
    assert found.algorithm.learning_rate.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="No steps are taken where the target is not below"):
        critical_batch_size(([1, 2, 3], [0, 0, 0]))


def test_without_noise_the_batch_size_does_not_matter():
    problem = NoisyQuadratic([1.0, 0.1], [0.0, 0.0])
    found = optimize(problem, "sgd", [1.0, 1e6], 1e-6)
    assert found.steps[0] == found.steps[1]
    rates = np.linspace(1.7, 1.99, 2001)
    assert found.steps[0] <= steps_to_target(problem, Algorithm(rates), 1.0, 1e-6).min()


def test_progress_is_shown(standard, capsys, monkeypatch):
    optimize(standard, "sgd", [1.0], TARGET)
    assert capsys.readouterr().err == ""  # no terminal here
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes rich believe in one
    optimize(standard, "sgd", [1.0], TARGET, progress=True)
    assert "steps to a loss of 0.01: sgd" in capsys.readouterr().err


def test_curvatures_that_differ_too_much():
    problem = NoisyQuadratic([1.0, 1e-17], [0.0, 0.0], [1.0, 1e17])
    with pytest.raises(ValueError, match="`target_loss` is reached by no setting"):
        optimize(problem, "sgd", [1.0], 1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("adam", [1], 0.1), ValueError, "`family` must be one of 'sgd', 'momentum'"),
        (("sgd", [], 0.1), ValueError, "`batch_sizes` must hold one or more finite numbers > 0"),
        (("sgd", [[1]], 0.1), ValueError, "`batch_sizes`"),
        (("sgd", [0], 0.1), ValueError, "`batch_sizes` must hold finite numbers > 0. Received: batch_sizes=0"),
        (("sgd", [1], 0.0), ValueError, "`target_loss`"),
        (("sgd", [1], None), TypeError, "`target_loss`"),
        (("sgd", "a", 0.1), TypeError, "`batch_sizes`"),
    ],
)
def test_bad_arguments(standard, arguments, error, message):
    with pytest.raises(error, match=message):
        optimize(standard, *arguments)


def test_directions_in_which_nothing_moves_do_not_make_settings_unstable():
    problem = NoisyQuadratic([1.0, 1e-3], [0.0, 0.0], 1.0, [0.0, 1.0])
    found = optimize(problem, "sgd", [1], 1e-5)
    assert found.algorithm.learning_rate[0] > 2.0  # beyond the limit of the steep direction, which is at its minimum
    assert found.is_stable.all()


def test_bad_options(standard):
    with pytest.raises(ValueError, match="`preconditioner_power`"):
        optimize(standard, "sgd", [1], 0.1, preconditioner_power=2.0)
    with pytest.raises(ValueError, match="`largest_momentum` must be a finite number >= 0 and < 1"):
        optimize(standard, "momentum", [1], 0.1, largest_momentum=1.0)
    with pytest.raises(TypeError, match="`problem` must be a tfopt.nqm.NoisyQuadratic"):
        optimize(Algorithm(0.1), "sgd", [1], 0.1)
    with pytest.raises(TypeError, match="`progress` must be True, False or None"):
        optimize(standard, "sgd", [1], 0.1, progress="yes")
