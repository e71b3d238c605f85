"""Critical batch sizes on known curves."""

import numpy as np
import pytest

from tfopt.nqm import NoisyQuadratic, critical_batch_size, optimize

SIZES = 2.0 ** np.arange(-10, 22)
HYPERBOLA = (SIZES, 500 * (1 + 64 / SIZES))


@pytest.mark.parametrize("definition", ["examples", "steps", "asymptotes"])
def test_the_definitions_agree_on_a_hyperbola(definition):
    found = critical_batch_size(HYPERBOLA, definition)
    assert found.batch_size == pytest.approx(64, rel=1e-3)
    assert found.hyperbola == pytest.approx(64, rel=1e-6)
    assert found.fit_error < 1e-6
    assert found.least_examples == pytest.approx(500 * 64, rel=1e-3)
    assert found.fewest_steps == pytest.approx(500, rel=1e-3)
    assert found.definition == definition


@pytest.mark.parametrize("definition", ["examples", "steps"])
def test_curves_that_reach_exactly_twice_their_fewest(definition):
    """Step counts are whole numbers: the level may be met at one of the batch sizes, where no sign changes."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = 2.0 ** np.arange(rng.integers(4, 9))
        steps = np.maximum.accumulate(rng.integers(1, 30, len(sizes))[::-1])[::-1].astype(float)
        values = (sizes * steps) if definition == "examples" else steps[::-1]
        values[-1] = 2 * values[:-1].min()
        steps = values / sizes if definition == "examples" else values[::-1]
        found = critical_batch_size((sizes, steps), definition).batch_size
        assert sizes[0] <= found <= sizes[-1]


def test_the_order_of_the_batch_sizes_does_not_matter():
    order = np.random.default_rng(0).permutation(len(SIZES))
    assert critical_batch_size((SIZES[order], HYPERBOLA[1][order])) == critical_batch_size(HYPERBOLA)


def test_the_standard_problem():
    problem = NoisyQuadratic.power_law(num_bins=100)
    curve = optimize(problem, "sgd", 4.0 ** np.arange(14), 0.01)
    dense = optimize(problem, "sgd", 2.0 ** np.arange(8, 13, 0.25), 0.01)
    found = {name: critical_batch_size(curve, name) for name in ("examples", "steps", "asymptotes")}
    # Interpolated between powers of 4 as between those of 2^(1/4).
    sizes, steps = np.append(dense.batch_size, curve.batch_size), np.append(dense.steps, curve.steps)
    sizes, places = np.unique(sizes, return_index=True)
    exact = critical_batch_size((sizes, steps[places]))
    assert found["examples"].batch_size == pytest.approx(exact.batch_size, rel=0.03)
    assert exact.batch_size == pytest.approx(1240, rel=0.005)
    assert found["steps"].batch_size == pytest.approx(601, rel=0.08)
    assert found["asymptotes"].batch_size == pytest.approx(902, rel=0.01)
    assert 0.02 < found["examples"].fit_error < 0.2  # it is no hyperbola


@pytest.mark.parametrize(
    ("curve", "definition", "error", "message"),
    [
        (HYPERBOLA, "noise", ValueError, "`definition` must be one of 'examples', 'steps', 'asymptotes'"),
        ("curve", "steps", TypeError, "`curve` must be the result of `optimize`"),
        (([1, 2], [2, 1]), "steps", ValueError, "`curve` must hold three or more"),
        (([1, 2, 3], [2, 1]), "steps", ValueError, r"Received shapes \(3,\) and \(2,\)"),
        (([1, 2, 2], [3, 2, 1]), "steps", ValueError, "distinct"),
        (([1, 2, 3], [3, 2, np.inf]), "steps", ValueError, "finite"),
        ((["a", "b", "c"], [3, 2, 1]), "steps", TypeError, "`curve` must hold finite numbers"),
        (([1, 2, 4], [400, 200, 100]), "examples", ValueError, "add larger batch sizes"),
        (([1, 2, 4], [4, 4, 4]), "steps", ValueError, "add smaller batch sizes"),
    ],
)
def test_bad_curves(curve, definition, error, message):
    with pytest.raises(error, match=message):
        critical_batch_size(curve, definition)
