"""Masses along a spectrum, against eigen-decompositions."""

import numpy as np
import pytest

from tfopt.planning.spectral_measure import Bins, SpectralMeasure, newton_step, run_lanczos, without_negatives


def spectral_measure(matrix, vector, num_matvecs):
    return SpectralMeasure.from_lanczos(run_lanczos(matrix, vector, num_matvecs), vector @ vector)


def make_matrix(eigenvalues, seed=0):
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))[0]
    return (vectors * eigenvalues) @ vectors.T, vectors


def test_masses_are_squared_projections():
    eigenvalues = np.array([0.01, 0.1, 1.0, 3.0])
    matrix, vectors = make_matrix(np.repeat(eigenvalues, 3))
    vector = np.random.default_rng(1).standard_normal(12)
    found = spectral_measure(matrix, vector, 4)
    # As many points as there are distinct eigenvalues.
    np.testing.assert_allclose(found.nodes, eigenvalues, rtol=1e-8)
    np.testing.assert_allclose(found.masses, ((vectors.T @ vector) ** 2).reshape(4, 3).sum(axis=1), rtol=1e-8)


def test_few_products_still_give_the_moments():
    matrix, _ = make_matrix(np.geomspace(1e-4, 1.0, 200))
    vector = np.random.default_rng(2).standard_normal(200)
    found = spectral_measure(matrix, vector, 6)
    for power in range(12):  # exact up to 2 m - 1
        expected = vector @ np.linalg.matrix_power(matrix, power) @ vector
        assert found.masses @ found.nodes**power == pytest.approx(expected, rel=1e-9)


def test_newton_steps_go_to_the_minimum():
    matrix, _ = make_matrix(np.geomspace(0.1, 1.0, 8))
    vector = np.random.default_rng(3).standard_normal(8)
    length = np.linalg.norm(vector)
    step = newton_step(run_lanczos(matrix, vector, 8), length, 1e-6)
    np.testing.assert_allclose(matrix @ step, -vector, atol=1e-8)
    # What is flat is left out: a step along the five largest alone.
    short = newton_step(run_lanczos(matrix, vector, 8), length, 0.3)
    assert np.linalg.norm(short) < np.linalg.norm(step)


def test_iterations_end_when_told():
    matrix, _ = make_matrix(np.geomspace(1e-4, 1.0, 50))
    seen = []
    result = run_lanczos(matrix, np.ones(50), 40, lambda count: seen.append(count) or count >= 7)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    assert len(result.diagonal) == 7


def test_moments_leave_out_what_is_flat():
    measure = SpectralMeasure(np.array([-1.0, 1e-9, 0.5, 2.0]), np.array([5.0, 5.0, 1.0, 3.0]))
    assert measure.moment(-1, 1e-6) == 0.5**-1 + 3.0 / 2.0
    assert measure.moment(0, 1e-6) == 4.0


def test_the_zero_vector_has_no_mass():
    found = spectral_measure(np.eye(3), np.zeros(3), 3)
    assert len(found.nodes) == len(found.masses) == 0


def test_bins_keep_masses_and_stand_at_their_mean():
    first = SpectralMeasure(np.array([-0.5, 1e-9, 0.011, 0.0111, 1.0]), np.array([1.0, 2.0, 3.0, 3.0, 4.0]))
    second = SpectralMeasure(np.array([0.0112, 0.2]), np.array([1.0, 1.0]))
    bins = Bins.around([first, second], 12, 1e-6)
    assert bins.curvature[-1] == 1.0  # the largest of all is not rounded out of its bin
    below, masses = bins.fill(first)
    assert below == 3.0
    np.testing.assert_array_equal(masses, [6.0, 0.0, 4.0])
    np.testing.assert_array_equal(bins.fill(second)[1], [1.0, 1.0, 0.0])
    # Each measure has the same say: shares 6/13 of the first, 1/2 of the second.
    expected = (6 / 13 * 0.01105 + 0.5 * 0.0112) / (6 / 13 + 0.5)
    assert bins.curvature[0] == pytest.approx(expected, rel=1e-12)


def test_a_spectrum_without_positive_curvature_is_refused():
    with pytest.raises(ValueError, match="`loss` must curve upwards along some direction of `model`"):
        Bins.around([SpectralMeasure(np.array([-1.0, 0.0]), np.ones(2))], 10, 1e-6)


def test_negative_parts_are_taken_from_their_neighbours():
    np.testing.assert_allclose(without_negatives(np.array([1.0, 2.0, 0.0, 3.0])), [1.0, 2.0, 0.0, 3.0])
    # Running sums from the end, 4, 3, 5: the first two are 3.5 on average.
    np.testing.assert_allclose(without_negatives(np.array([2.0, -1.0, 4.0])), [1.5, 0.0, 3.5])
    np.testing.assert_array_equal(without_negatives(np.array([-1.0, -2.0])), [0.0, 0.0])
    rng = np.random.default_rng(0)
    truth = np.geomspace(1e-3, 1.0, 30)
    sums = [without_negatives(truth + 0.1 * rng.standard_normal(30)).sum() for _ in range(200)]
    clipped = [np.maximum(truth + 0.1 * rng.standard_normal(30), 0.0).sum() for _ in range(200)]
    assert abs(np.mean(sums) / truth.sum() - 1) < 0.5 * abs(np.mean(clipped) / truth.sum() - 1)
