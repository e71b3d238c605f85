"""Lanczos, density, trace and curvature along a direction, on plain matrices of known spectra."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.curvature import Estimate, curvature_along, extremal_eigenvalues, lanczos, spectral_density, trace
from tfopt.curvature.lanczos import _orthogonalize


def matrix_with(eigenvalues, seed=0):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues), len(eigenvalues))))
    matrix = (basis * eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


SPECTRA = {
    "indefinite": np.linspace(-3.0, 7.0, 60),
    "negative end is larger": np.concatenate([[-9.0], np.linspace(-0.1, 1.0, 59)]),
    "positive": np.geomspace(1e-3, 5.0, 60),
    "negative": -np.geomspace(1e-3, 5.0, 60),
    "many equal": np.repeat([-1.0, 0.0, 2.0], 20),
    "tiny": 1e-12 * np.linspace(-3.0, 7.0, 60),
    "huge": 1e12 * np.linspace(-3.0, 7.0, 60),
    "close to underflow": 1e-30 * np.linspace(-3.0, 7.0, 60),
    "close to overflow": 1e30 * np.linspace(-3.0, 7.0, 60),
    "one": np.array([-4.0]),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_with_their_bounds(name, dtype):
    spectrum = SPECTRA[name]
    matrix = matrix_with(spectrum).astype(dtype)
    ends = extremal_eigenvalues(matrix, tolerance=1e-3)
    assert ends.converged
    rounding = 100 * np.finfo(dtype).eps * ends.spectral_radius
    for value, bound, vector, true in (
        (ends.lambda_min, ends.lambda_min_bound, ends.vector_min, spectrum.min()),
        (ends.lambda_max, ends.lambda_max_bound, ends.vector_max, spectrum.max()),
    ):
        assert abs(value - true) <= bound + rounding
        assert bound <= 1e-3 * max(abs(value), 1e-3 * ends.spectral_radius)
        wide, direction = matrix.astype("float64"), vector.astype("float64")
        np.testing.assert_allclose(np.linalg.norm(wide @ direction - value * direction), bound, atol=rounding)
    assert ends.lambda_min >= spectrum.min() - rounding
    assert ends.lambda_max <= spectrum.max() + rounding
    assert ends.spectral_radius == pytest.approx(np.abs(spectrum).max(), rel=1e-3)


def outlier(num_rows, dtype, bulk, end):
    diagonal = (np.random.default_rng(0).random(num_rows) * bulk).astype(dtype)
    diagonal[0] = end
    multiply = lambda vector: diagonal * np.asarray(vector).reshape(-1)  # noqa: E731
    return scipy.sparse.linalg.LinearOperator((num_rows, num_rows), multiply, dtype=dtype), diagonal


def test_a_small_bulk_in_float32_is_not_taken_for_rounding():
    operator, diagonal = outlier(100_000, np.float32, -2e-4, 1.0)
    ends = extremal_eigenvalues(operator, 60, tolerance=0.1)
    assert abs(ends.lambda_min - diagonal.min()) <= ends.lambda_min_bound
    assert ends.lambda_max_bound > 0
    assert abs(ends.lambda_max - 1.0) <= ends.lambda_max_bound
    assert len(lanczos(operator, 20).diagonal) == 20


def test_an_end_that_the_first_vector_hardly_contains_is_found():
    operator, _ = outlier(200_000, np.float64, 1e-3, -5.0)
    assert extremal_eigenvalues(operator).lambda_min == pytest.approx(-5.0, rel=1e-3)


def test_a_budget_that_does_not_do_is_said():
    ends = extremal_eigenvalues(matrix_with(np.geomspace(1e-6, 1.0, 60)), num_matvecs=4, tolerance=1e-6)
    assert (ends.num_matvecs, ends.converged) == (4, False)
    assert ends.lambda_min_bound > 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_no_more_products_than_scipy(seed):
    spectrum = np.concatenate([np.random.default_rng(seed).exponential(0.01, 490), [-0.3, -0.2, 1.0, 1.5, 2.0, 3.0]])
    matrix = matrix_with(spectrum)
    count = 0

    def multiply(vector):
        nonlocal count
        count += 1
        return matrix @ vector

    operator = scipy.sparse.linalg.LinearOperator(matrix.shape, multiply, dtype="float64")
    scipy.sparse.linalg.eigsh(operator, k=2, which="BE", tol=0.01, return_eigenvectors=False)
    ends = extremal_eigenvalues(matrix, tolerance=0.01)
    assert ends.converged
    assert ends.num_matvecs <= count


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_lanczos_is_a_factorization(size, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, size))
    matrix = matrix + matrix.T
    result = lanczos(matrix, num_matvecs=max(1, size // 2), seed=seed)
    basis, count = result.basis, len(result.diagonal)
    np.testing.assert_allclose(basis @ basis.T, np.eye(count), atol=1e-12)
    tridiagonal = np.diag(result.diagonal) + np.diag(result.off_diagonal, 1) + np.diag(result.off_diagonal, -1)
    rest = matrix @ basis.T - basis.T @ tridiagonal
    np.testing.assert_allclose(rest[:, :-1], 0.0, atol=1e-10 * np.abs(matrix).max())
    assert np.linalg.norm(rest[:, -1]) == pytest.approx(result.residual, abs=1e-9 * np.abs(matrix).max())


class RaisesTheFlag(np.ndarray):
    """As OpenBLAS's kernel for rows of five float32 does in one process of some hundreds."""

    def __matmul__(self, other):
        np.subtract(np.inf, np.inf)
        return np.asarray(self) @ np.asarray(other)


def test_an_invalid_value_that_is_not_in_the_product_is_not_warned_of():
    matrix = np.diag(np.arange(1.0, 6.0)).astype("float32").view(RaisesTheFlag)
    assert lanczos(matrix, 5).ritz()[0] == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0], abs=1e-5)
    assert trace(matrix).value == pytest.approx(15.0)
    basis = np.eye(2, 5, dtype="float32").view(RaisesTheFlag)
    rest, length = _orthogonalize(np.ones(5, "float32"), basis)
    np.testing.assert_allclose(rest, [0, 0, 1, 1, 1])
    assert length == pytest.approx(3**0.5)


def test_no_eigenvalue_appears_twice():
    """Without re-orthogonalisation the outlier would appear again and again."""
    spectrum = np.concatenate([np.linspace(0.0, 1.0, 199), [100.0]])
    values, _, _ = lanczos(matrix_with(spectrum).astype("float32"), 80).ritz()
    assert (values > 50).sum() == 1


def test_an_invariant_space_ends_it():
    result = lanczos(np.diag([1.0, 2.0, 3.0, 4.0]), 4, start=[1.0, 1.0, 0.0, 0.0])
    assert result.residual == 0.0
    np.testing.assert_allclose(result.ritz()[0], [1.0, 2.0])
    np.testing.assert_allclose(np.abs(result.eigenvector(-1)), [0.0, 1.0, 0.0, 0.0], atol=1e-12)
    zero = extremal_eigenvalues(np.zeros((5, 5)))
    assert (zero.lambda_min, zero.lambda_max, zero.num_matvecs, zero.converged) == (0.0, 0.0, 1, True)


@pytest.mark.parametrize(
    "convert",
    [
        lambda matrix: matrix.tolist(),
        scipy.sparse.csr_array,
        scipy.sparse.linalg.aslinearoperator,
        lambda matrix: matrix.astype(int),
    ],
)
def test_matrices_of_many_kinds(convert):
    matrix = np.array([[2.0, 1.0, 0.0], [1.0, -3.0, 0.0], [0.0, 0.0, 1.0]])
    expected = np.linalg.eigvalsh(matrix)
    ends = extremal_eigenvalues(convert(matrix))
    assert [ends.lambda_min, ends.lambda_max] == pytest.approx([expected[0], expected[-1]])
    assert curvature_along(convert(matrix), np.array([0.0, 2.0, 0.0])) == pytest.approx(-3.0)


# --- density and trace


def test_density_of_a_known_spectrum():
    spectrum = np.repeat([-1.0, 0.0, 0.5, 4.0], [100, 200, 60, 40])
    found = spectral_density(matrix_with(spectrum), num_vectors=12, num_matvecs=4, seed=1)
    points = np.array([-2.0, -0.5, 0.25, 1.0, 5.0])
    share = found.cumulative(points)
    error = share.standard_error
    np.testing.assert_allclose(share.value, [0.0, 0.25, 0.75, 0.9, 1.0], atol=4 * error.max())
    assert 0 < error.max() < 0.02
    grid = np.linspace(-3, 6, 3000)
    density = found.density(grid, width=0.05).value
    assert np.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-6)
    assert abs(grid[density.argmax()]) < 0.05
    for power in (0, 1, 2, 5):
        estimate = found.moment(power)
        assert abs(estimate.value - (spectrum**power).mean()) <= 4 * estimate.standard_error + 1e-9
    assert found.size == 400


def test_quadrature_is_exact_for_each_probe():
    """m products integrate polynomials of degree 2 m - 1 exactly: v'A^k v."""
    matrix = matrix_with(np.linspace(-1.0, 2.0, 30))
    found = spectral_density(matrix, num_vectors=1, num_matvecs=4, seed=3)
    vector = np.random.default_rng([3, 0]).standard_normal(30)
    vector /= np.linalg.norm(vector)
    for power in range(8):
        assert found.moment(power).value == pytest.approx(vector @ np.linalg.matrix_power(matrix, power) @ vector)
    assert np.isnan(found.moment(1).standard_error)


def test_density_is_drawn():
    ax = spectral_density(matrix_with(np.linspace(-1.0, 2.0, 30)), num_vectors=2, num_matvecs=10).plot()
    (line,) = ax.get_lines()
    x, y = line.get_data()
    assert x.min() < -1.0 < 2.0 < x.max()
    assert (y > 0).all()
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("eigenvalue", "density", "log")
    assert spectral_density(3.0 * np.eye(4)).plot().get_lines()


def test_trace_with_its_standard_error():
    matrix = matrix_with(np.linspace(-1.0, 3.0, 80))
    estimates = [trace(matrix, 25, seed=seed) for seed in range(40)]
    errors = np.array([estimate.value - np.trace(matrix) for estimate in estimates])
    claimed = np.array([estimate.standard_error for estimate in estimates])
    true = np.sqrt(2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2)) / 25)
    assert abs(errors.mean()) < 4 * true / np.sqrt(40)
    assert errors.std() == pytest.approx(true, rel=0.4)
    assert claimed.mean() == pytest.approx(true, rel=0.15)
    assert np.isnan(trace(matrix, 1).standard_error)
    assert Estimate.from_draws([1.0, 4.0]).standard_error == pytest.approx(1.5)  # the sample's deviation is 3 / sqrt(2)


# --- errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: extremal_eigenvalues("matrix"), TypeError, "`operator` must be a CurvatureOperator, an Objective, a"),
        (
            lambda: extremal_eigenvalues(np.ones((2, 3))),
            ValueError,
            r"a square matrix. Received: shape \(2, 3\)",
        ),
        (lambda: extremal_eigenvalues(np.ones((0, 0))), ValueError, "must be a square matrix"),
        (lambda: extremal_eigenvalues([[1.0, 2.0], [0.0, 1.0]]), ValueError, "must be symmetric.*its transpose by 2"),
        (lambda: extremal_eigenvalues([[np.nan]]), ValueError, "must be finite"),
        (lambda: trace(scipy.sparse.csr_array([[0.0, 1.0], [0.0, 0.0]])), ValueError, "must be symmetric"),
        (lambda: trace(scipy.sparse.csr_array([[np.inf]])), ValueError, "must be finite"),
        (lambda: extremal_eigenvalues(np.eye(2) * 1j), ValueError, "must be real"),
        (lambda: extremal_eigenvalues(np.eye(2), num_matvecs=0), ValueError, "`num_matvecs` must be an integer >= 1"),
        (lambda: extremal_eigenvalues(np.eye(2), tolerance=0.0), ValueError, "`tolerance` must be"),
        (lambda: extremal_eigenvalues(np.eye(2), seed=-1), ValueError, "`seed` must be an integer >= 0"),
        (
            lambda: lanczos(np.eye(2), 2, start=[1.0]),
            ValueError,
            r"`start` must have 2 entries. Received: shape",
        ),
        (lambda: lanczos(np.eye(2), 2, start=[0.0, 0.0]), ValueError, "`start` must be finite and not zero"),
        (lambda: trace(np.eye(2), num_matvecs=0), ValueError, "`num_matvecs` must be an integer >= 1"),
        (lambda: spectral_density(np.eye(2), num_vectors=0), ValueError, "`num_vectors` must be an integer >= 1"),
        (lambda: spectral_density(np.eye(2)).density([0.0], width=0.0), ValueError, "`width` must be"),
        (lambda: spectral_density(np.eye(2)).moment(-1), ValueError, "`power` must be an integer >= 0"),
        (lambda: curvature_along(np.eye(2), [1.0]), ValueError, "`direction` must have 2 entries"),
        (lambda: curvature_along(np.eye(2), [0.0, 0.0]), ValueError, "`direction` must be finite and not zero"),
        (lambda: curvature_along(np.eye(2), [np.inf, 0.0]), ValueError, "`direction` must be finite and not zero"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_product_that_is_not_finite():
    operator = scipy.sparse.linalg.LinearOperator((2, 2), lambda v: v * np.inf, dtype="float64")
    with pytest.raises(ValueError, match="product of `operator` and a vector must be finite"):
        extremal_eigenvalues(operator)
