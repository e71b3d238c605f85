"""The problem: what it checks, how it is binned, and that full matrices change nothing."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest

from tfopt.nqm import NoisyQuadratic


def test_the_standard_problem():
    problem = NoisyQuadratic.power_law()
    np.testing.assert_array_equal(problem.curvature, 1 / np.arange(1, 10_001))
    np.testing.assert_array_equal(problem.noise_variance, problem.curvature)
    assert problem.dim == 10_000
    assert problem.initial_loss == pytest.approx(4.8938, abs=1e-4)
    assert problem.initial_loss == pytest.approx(0.5 * np.sum(1 / np.arange(1, 10_001)), rel=1e-14)


def test_binning_keeps_what_it_says():
    rng = np.random.default_rng(0)
    problem = NoisyQuadratic(rng.lognormal(size=500), rng.random(500), rng.integers(1, 4, 500), rng.random(500))
    for num_bins in (1, 7, 100, 499):
        binned = problem.binned(num_bins)
        assert len(binned.curvature) <= num_bins
        assert (np.diff(binned.curvature) < 0).all()
        for name in (None, "noise_variance", "initial_second_moment"):
            before, after = (
                np.sum(one.multiplicity * one.curvature * (getattr(one, name) if name else 1))
                for one in (problem, binned)
            )
            assert after == pytest.approx(before, rel=1e-12)
        assert binned.dim == pytest.approx(problem.dim)
    assert problem.binned(500) is problem
    assert len(NoisyQuadratic.power_law(num_bins=100).curvature) == 100


def test_binning_equal_curvatures():
    problem = NoisyQuadratic(np.full(10, 0.5), np.arange(10.0)).binned(3)
    assert problem.curvature.tolist() == [0.5]
    assert problem.multiplicity.tolist() == [10.0]
    assert problem.noise_variance.tolist() == [4.5]


def test_arrays_cannot_be_changed():
    problem = NoisyQuadratic([1.0, 2.0], [3.0, 4.0], [5, 6], [7.0, 8.0])
    for one in (problem, copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        with pytest.raises(ValueError, match="read-only"):
            one.curvature[0] = 2.0
        pd.testing.assert_frame_equal(one.to_dataframe(), problem.to_dataframe())


def test_expanded_counts_directions_one_by_one():
    problem = NoisyQuadratic([2.0, 1.0], [3.0, 4.0], [1, 3], [5.0, 6.0]).expanded()
    assert problem.curvature.tolist() == [2.0, 1.0, 1.0, 1.0]
    assert problem.noise_variance.tolist() == [3.0, 4.0, 4.0, 4.0]
    assert problem.initial_second_moment.tolist() == [5.0, 6.0, 6.0, 6.0]
    with pytest.raises(ValueError, match="`multiplicity` must hold whole numbers"):
        NoisyQuadratic([1.0], [1.0], 1.5).expanded()


def test_tables_and_figures():
    problem = NoisyQuadratic([2.0, 1.0], [3.0, 4.0])
    assert problem.to_dataframe().shape == (2, 4)
    ax = problem.plot()
    assert ax.lines[0].get_ydata().tolist() == [2.0, 1.0]
    assert "2 curvatures from 1 to 2" in repr(problem)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], []), ValueError, "`curvature` must hold one or more finite numbers"),
        (([[1.0]], 1.0), ValueError, "`curvature` must be a list"),
        (([0.0], [1.0]), ValueError, "`curvature` must hold finite numbers > 0"),
        (([-1.0], [1.0]), ValueError, "`curvature` must hold finite numbers > 0. Received: curvature=-1"),
        (([np.nan], [1.0]), ValueError, "`curvature` must hold finite numbers > 0"),
        (([1.0], [-1.0]), ValueError, "`noise_variance` must hold finite numbers >= 0"),
        (([1.0], [np.inf]), ValueError, "`noise_variance`"),
        (([1.0], [1.0, 2.0]), ValueError, r"`noise_variance` must be a number or have curvature's shape \(1,\)"),
        (([1.0], [1.0], 0.0), ValueError, "`multiplicity` must hold finite numbers > 0"),
        (([1.0], [1.0], 1, -1.0), ValueError, "`initial_second_moment` must hold finite numbers >= 0"),
        (([True], [1.0]), TypeError, "`curvature` must hold finite numbers"),
        (([[1.0], [1.0, 2.0]], [1.0]), TypeError, "`curvature` must hold finite numbers"),
        ((["a"], [1.0]), TypeError, "`curvature` must hold finite numbers"),
        (([1j], [1.0]), TypeError, "`curvature` must hold finite numbers"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        NoisyQuadratic(*arguments)


def test_curvatures_that_float64_cannot_hold_are_refused_by_their_exponent():
    with pytest.raises(ValueError, match="`exponent` must be a finite number >= 0 and <= 300"):
        NoisyQuadratic.power_law(10, 400.0)
    assert NoisyQuadratic.power_law(10, 300.0).curvature[-1] == pytest.approx(1e-300)


@pytest.mark.parametrize(
    ("matrices", "error", "message"),
    [
        ((np.ones((2, 3)), np.eye(2)), ValueError, "`hessian` must be a square matrix"),
        ((np.eye(2), np.eye(3)), ValueError, r"`noise_covariance` must be a square matrix of shape \(2, 2\)"),
        ((np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2)), ValueError, "`hessian` must be symmetric"),
        ((np.diag([1.0, -1.0]), np.eye(2)), ValueError, "`hessian` must be positive definite"),
        ((np.eye(2), np.diag([1.0, -1.0])), ValueError, "`noise_covariance` must be positive semi-definite"),
        ((np.eye(2), np.eye(2), -1.0), ValueError, "`initial_second_moment`"),
        (("a", np.eye(2)), TypeError, "`hessian` must hold a matrix"),
        ((np.array([[2, 1j], [-1j, 2]]), np.eye(2)), TypeError, "`hessian` must hold a matrix of real numbers"),
    ],
)
def test_bad_matrices(matrices, error, message):
    with pytest.raises(error, match=message):
        NoisyQuadratic.from_matrices(*matrices)
