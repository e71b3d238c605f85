"""First passages, against a search through every step."""

import importlib

import numpy as np
import pytest
from nqm_oracles import first_passage, loss_curve

from tfopt.nqm import Algorithm, NoisyQuadratic, expected_loss, largest_stable_learning_rate, steps_to_target

NUM_STEPS = 3000


def random_case(seed):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 6)
    curvature = rng.uniform(0.1, 1, size) ** 2
    problem = NoisyQuadratic(
        curvature,
        rng.choice([0.0, 1.0], size, p=[0.2, 0.8]) * curvature,
        rng.integers(1, 4, size),
        rng.uniform(0, 2, size),
    )
    return rng, problem, float(rng.choice([4, 16, 64, 1024])), problem.initial_loss * rng.choice([0.5, 0.1, 0.02])


def settings_of(rng, problem, family):
    settings = {"nesterov": family.startswith("nesterov")}
    if family != "sgd" and family != "average":
        settings["momentum"] = 1 - 10 ** rng.uniform(-3, 0)
    if "average" in family:
        settings["ema_decay"] = 1 - 10 ** rng.uniform(-3, 0)
    limit = largest_stable_learning_rate(problem, settings.get("momentum", 0.0), nesterov=settings["nesterov"])
    return {"learning_rate": float(limit) * rng.choice([0.003, 0.03, 0.3, 0.9, 1.0, 1.02]), **settings}


@pytest.mark.parametrize(
    "family", ["sgd", "momentum", "nesterov", "average", "momentum and average", "nesterov average"]
)
def test_passages_are_those_found_by_looking_at_every_step(family):
    outcomes = set()
    for seed in range(40):
        rng, problem, size, target = random_case(seed)
        settings = settings_of(rng, problem, family)
        curve = loss_curve(problem, size, NUM_STEPS, **settings)
        expected, found = (
            first_passage(curve, target),
            float(steps_to_target(problem, Algorithm(**settings), size, target)),
        )
        if np.isinf(expected) and np.isfinite(found):
            assert found > NUM_STEPS
            continue
        assert found == expected, (seed, settings)
        falls = bool((np.diff(curve) <= 0).all())
        outcomes.add("never" if np.isinf(expected) else "monotone" if falls else "not monotone")
    assert outcomes >= {"never", "not monotone"}


@pytest.mark.parametrize("momentum", [1 - 1e-15, 1 - 2e-16])
def test_oscillations_without_an_end_are_followed(momentum):
    """Roots of size 1, but complex: they turn, and pass through zero again and again."""
    problem, algorithm = NoisyQuadratic([1.0], [0.0]), Algorithm(0.013, momentum)
    target = 0.002
    expected = first_passage(loss_curve(problem, 1, NUM_STEPS, learning_rate=0.013, momentum=momentum), target)
    assert np.isfinite(expected)
    assert float(steps_to_target(problem, algorithm, 1, target)) == expected


def test_a_loss_that_passes_once_and_settles_above():
    problem, algorithm = NoisyQuadratic([1.0], [1.0]), Algorithm(0.5, 0.9)
    curve = loss_curve(problem, 20, 2000, learning_rate=0.5, momentum=0.9)
    lowest = int(np.argmin(curve))
    assert 0 < lowest < 10
    assert curve[-1] == pytest.approx(0.072, abs=1e-3)
    assert curve[-1] > 1.5 * curve[lowest]
    assert steps_to_target(problem, algorithm, 20, curve[lowest] * 1.0001) == lowest
    assert np.isinf(steps_to_target(problem, algorithm, 20, curve[lowest] * 0.9999))


def test_an_unstable_setting_may_pass_first():
    problem = NoisyQuadratic([1.0, 0.01], [1e-6, 1e-6], 1.0, [1e-8, 1.0])
    settings = {"learning_rate": 2.2}
    curve = loss_curve(problem, 1, 200, **settings)
    target = 1.01 * curve.min()
    assert curve[-1] > 10 * target
    assert steps_to_target(problem, Algorithm(**settings), 1, target) == first_passage(curve, target)
    assert np.isinf(steps_to_target(problem, Algorithm(**settings), 1, 0.99 * curve.min()))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999])
def test_an_unstable_direction_without_noise_never_comes_back(momentum, nesterov, decay):
    problem = NoisyQuadratic([1.0, 0.1], [0.0, 0.1])
    limit = float(largest_stable_learning_rate(problem, momentum, nesterov=nesterov))
    # At the limit the loss stays where it is, but for rounding; an average shrinks it all the same.
    rates = limit * np.array([1.0, 1.0 + 1e-15, 1.0 + 1e-9, 1.001, 3.0])
    target = 1e-4 if decay == 0 else 1e-12
    assert np.isinf(steps_to_target(problem, Algorithm(rates, momentum, nesterov, decay), 1e6, target)).all()


def test_just_above_and_just_below_the_steady_state():
    problem, algorithm = NoisyQuadratic([1.0, 0.1], [1.0, 0.1]), Algorithm(0.1)
    settled = float(expected_loss(problem, algorithm, 4, 10**7))
    assert np.isinf(steps_to_target(problem, algorithm, 4, settled * (1 - 1e-9)))
    found = int(steps_to_target(problem, algorithm, 4, settled * (1 + 1e-9)))
    assert expected_loss(problem, algorithm, 4, [found - 1, found])[1] <= settled * (1 + 1e-9)
    assert expected_loss(problem, algorithm, 4, found - 1) > settled * (1 + 1e-9)


def test_long_runs_on_the_exact_spectrum_by_exact_powers():
    problem = NoisyQuadratic.power_law()
    algorithm = Algorithm([0.003, 0.006, 0.01, 1e-5], [0.0, 0.5, 0.0, 0.9999], False, [0.0, 0.0, 0.9999, 0.99999])
    found = steps_to_target(problem, algorithm, 16, 0.01)
    assert (found > 10_000).all()
    for place, steps in enumerate(found.astype(int)):
        before, after = expected_loss(problem, algorithm.take(place), 16, [steps - 1, steps])
        assert after <= 0.01 < before


def test_grids_keep_their_shape():
    problem = NoisyQuadratic([1.0], [1.0])
    rates, sizes = np.array([[0.01], [0.1], [0.0]]), np.array([1.0, 10.0, 100.0])
    found = steps_to_target(problem, Algorithm(rates), sizes, 0.02)
    assert found.shape == (3, 3)
    for i, rate in enumerate((0.01, 0.1)):
        for j, size in enumerate(sizes):
            assert found[i, j] == first_passage(loss_curve(problem, size, 2000, learning_rate=rate), 0.02)
    assert np.isinf(found[2]).all()  # a rate of 0 never moves


def test_a_target_that_is_reached_already():
    problem = NoisyQuadratic([1.0], [1.0])
    assert steps_to_target(problem, Algorithm([0.0, 0.1]), 1, problem.initial_loss).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("target", [0.0, -1.0, np.nan, np.inf])
def test_bad_targets(target):
    with pytest.raises(ValueError, match="`target_loss` must be a finite number > 0"):
        steps_to_target(NoisyQuadratic([1.0], [1.0]), Algorithm(0.1), 1, target)


def test_what_cannot_be_decided_is_said(monkeypatch):
    walk = importlib.import_module("tfopt.nqm.steps_to_target")
    monkeypatch.setattr(walk, "TABLES", ((3, 3), (5, 4)))
    with pytest.raises(RuntimeError, match="could not be decided in 4 strides"):
        steps_to_target(NoisyQuadratic([1.0], [1.0]), Algorithm(0.01), 1000, 0.01)


def test_a_small_step_is_not_rounded_over_many_steps():
    """With x = 1e-11 the rounding of 1 - x alone would be off by 1e-6 of the steps."""
    problem = NoisyQuadratic([1.0, 0.5], [1e-30, 0.0], 1.0, [1.0, 0.0])
    rates = np.array([1e-11, 3e-10, 1e-7, 0.3])
    expected = np.ceil(np.log(0.02) / (2 * np.log1p(-rates)))
    np.testing.assert_allclose(steps_to_target(problem, Algorithm(rates), 1.0, 0.01), expected, rtol=1e-11)
