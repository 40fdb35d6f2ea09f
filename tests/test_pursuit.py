"""Sparse codes against other solvers: scikit-learn's OMP and LARS, celer, skglm, HiGHS, Lawson and Hanson's NNLS."""

import warnings

import numpy as np
import pytest
from scipy.optimize import linprog, nnls
from sklearn.linear_model import Lasso, lars_path, orthogonal_mp_gram

from toolkit import homotopy, lasso_kernels
from toolkit.certificates import equality_gaps, lasso_gaps
from toolkit.phase_transition import phase_transition
from toolkit.sparse_coding import basis_pursuit_codes, lasso_codes, omp_codes

D, N = 16, 40


def atoms(kind, *, n=N, d=D, seed=0):
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(n, d))
    if kind == "coherent":
        A = rng.normal(size=d) + 0.1 * A
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    return A * 10 ** rng.uniform(-1, 1, (n, 1)) if kind == "unequal" else A


def rows(count=30, *, d=D, seed=1):
    return np.random.default_rng(seed).normal(size=(count, d))


def peak(X, A, positive=False):
    """The alpha from which every code is empty."""
    products = X @ A.T
    return float((products if positive else np.abs(products)).max())


def objective(X, Z, A, alpha):
    return np.square(X - Z @ A).sum(1) / 2 + alpha * np.abs(Z).sum(1)


def supports(Z):
    return [np.flatnonzero(z).tolist() for z in np.asarray(Z)]


def least_l1(x, A, positive=False):
    """Basis pursuit's minimum by HiGHS; None where x is outside the span or cone."""
    columns = A.T if positive else np.hstack([A.T, -A.T])
    found = linprog(np.ones(columns.shape[1]), A_eq=columns, b_eq=x, method="highs")
    return found.fun if found.status == 0 else None


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_matching_pursuit_has_scikit_learns_supports(kind, dtype, k):
    A, X = atoms(kind).astype(dtype), rows().astype(dtype)
    exact, right = A.astype(np.float64), X.astype(np.float64)
    expected = orthogonal_mp_gram(exact @ exact.T, exact @ right.T, n_nonzero_coefs=k).reshape(N, -1).T
    found = omp_codes(X, A, k).codes
    assert found.dtype == dtype
    assert supports(found.toarray()) == supports(expected)
    bar = 1e-8 if dtype == np.float64 else 5e-3
    np.testing.assert_allclose(found.toarray(), expected, rtol=bar, atol=bar * np.abs(expected).max())


def test_a_choice_too_close_for_float32_is_made_in_float64():
    """Rows moved to where their two largest correlations are equal, up to the rounding to float32."""
    A, X = atoms("random"), rows(100)
    first, second = np.argsort(-np.abs(X @ A.T), axis=1)[:, :2].T
    signs = np.sign((X @ A.T)[np.arange(100), [first, second]])[:, :, None]  # (2, rows, 1)
    between = signs[0] * A[first] - signs[1] * A[second]
    X -= (X * between).sum(1, keepdims=True) / np.square(between).sum(1, keepdims=True) * between
    A, X = A.astype(np.float32), X.astype(np.float32)
    exact = np.abs(X.astype(np.float64) @ A.T.astype(np.float64))
    assert supports(omp_codes(X, A, 1).codes.toarray()) == exact.argmax(1)[:, None].tolist()


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
def test_non_negative_matching_pursuit_leaves_residuals_that_no_atom_of_the_code_improves(kind):
    A, X = atoms(kind), rows()
    Z = omp_codes(X, A, 4, positive=True).codes.toarray()
    correlation = (X - Z @ A) @ A.T  # (rows, n)
    assert (Z >= 0).all()
    assert ((Z > 0).sum(1) <= 4).all()
    np.testing.assert_allclose(correlation[Z > 0], 0, atol=1e-9 * peak(X, A))
    for x, z, left in zip(X, Z, correlation, strict=True):
        if z.any():
            np.testing.assert_allclose(nnls(A[z > 0].T, x)[0], z[z > 0], rtol=1e-7)
        assert (z > 0).sum() == 4 or left.max() <= 1e-9 * peak(X, A)
    single = omp_codes(X, A, 1, positive=True).codes.toarray()
    assert supports(single) == [[int((A @ x).argmax())] if (A @ x).max() > 0 else [] for x in X]


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
def test_non_negative_matching_pursuit_of_all_atoms_is_non_negative_least_squares(kind):
    A, X = atoms(kind), rows(10)
    found = np.linalg.norm(X - omp_codes(X, A, N, positive=True).codes @ A, axis=1)
    np.testing.assert_allclose(found, [nnls(A.T, x)[1] for x in X], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_the_lassos_objective_is_that_of_lars(kind, share):
    A, X = atoms(kind), rows(10)
    alpha = share * peak(X, A)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = [lars_path(A.T, x, alpha_min=alpha / D, method="lasso")[2][:, -1] for x in X]
    found = objective(X, lasso_codes(X, A, alpha, tolerance=1e-7).codes.toarray(), A, alpha)
    np.testing.assert_allclose(found, objective(X, np.array(paths), A, alpha), rtol=1e-6)


@pytest.mark.parametrize("peer", ["celer", pytest.param("skglm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["random", "coherent"])
def test_the_lassos_objective_is_that_of_another_working_set_solver(peer, kind):
    solver = pytest.importorskip(peer)
    A, X = atoms(kind), rows(3)
    alpha = 0.1 * peak(X, A)
    model = solver.Lasso(alpha=alpha / D, tol=1e-9, fit_intercept=False, max_iter=1000)
    expected = objective(X, np.array([model.fit(np.asfortranarray(A.T), x).coef_ for x in X]), A, alpha)
    found = objective(X, lasso_codes(X, A, alpha, tolerance=1e-7).codes.toarray(), A, alpha)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
def test_the_non_negative_lassos_objective_is_that_of_coordinate_descent(kind):
    """Not that of LARS, whose `positive` misses the optimum at small alpha, as scikit-learn says."""
    A, X = atoms(kind), rows(10)
    alpha = 0.1 * peak(X, A)
    model = Lasso(alpha=alpha / D, positive=True, fit_intercept=False, tol=1e-10, max_iter=100_000)
    expected = objective(X, np.array([model.fit(A.T, x).coef_ for x in X]), A, alpha)
    found = lasso_codes(X, A, alpha, tolerance=1e-7, positive=True).codes.toarray()
    assert (found >= 0).all()
    np.testing.assert_allclose(objective(X, found, A, alpha), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-8])
def test_every_lasso_code_has_the_gap_that_was_asked_for(kind, positive, share, tolerance):
    A, X = atoms(kind), rows()
    alpha = share * peak(X, A, positive)
    solved = lasso_codes(X, A, alpha, tolerance=tolerance, positive=positive)
    assert len(solved.given_up) == 0
    assert lasso_gaps(X, solved.codes, A, alpha, positive=positive).relative.max() <= tolerance


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("positive", [False, True])
def test_float32_codes_have_the_gap_that_was_asked_for_where_their_rounding_allows_it(tolerance, positive):
    A, X = atoms("random").astype(np.float32), rows().astype(np.float32)
    alpha = 0.2 * peak(X, A, positive)
    codes = lasso_codes(X, A, alpha, tolerance=tolerance, positive=positive).codes
    assert codes.dtype == np.float32
    assert lasso_gaps(X, codes, A, alpha, positive=positive).relative.max() <= tolerance


@pytest.mark.parametrize("kind", ["random", "coherent", "unequal"])
@pytest.mark.parametrize("positive", [False, True])
def test_basis_pursuit_reaches_the_linear_programs_minimum(kind, positive):
    A = atoms(kind)
    Z = np.random.default_rng(2).normal(size=(12, N))
    X = (np.abs(Z) if positive else Z) @ A
    solved = basis_pursuit_codes(X, A, positive=positive)
    gaps = equality_gaps(X, solved.codes, A, dual=solved.dual, positive=positive)
    assert np.abs(gaps.relative).max() <= 1e-8
    assert gaps.residual.max() <= 1e-8
    np.testing.assert_allclose(gaps.l1, [least_l1(x, A, positive) for x in X], rtol=1e-6)


def test_basis_pursuits_codes_are_fitted_to_the_atoms_themselves():
    """The path lengthens atoms by 1e-10 against ties; nothing of that is left in the code or in its dual point."""
    A, X = atoms("random"), rows(10)
    found = basis_pursuit_codes(X, A)
    gaps = equality_gaps(X, found.codes, A, dual=found.dual)
    assert gaps.residual.max() < 1e-12
    assert np.abs(gaps.relative).max() < 1e-12


@pytest.mark.parametrize("positive", [False, True])
def test_basis_pursuit_settles_the_ties_of_small_whole_numbers(positive):
    """Events that coincide are where a path can take a wrong turn."""
    rng, feasible = np.random.default_rng(0), 0
    for _ in range(100):
        d, n = rng.integers(1, 6), rng.integers(1, 10)
        A = rng.integers(-1, 2, (n, d)).astype(float)
        A = np.vstack([A[A.any(1)], np.ones((1, d))])
        X = rng.integers(-2, 3, (4, d)).astype(float)
        solved = basis_pursuit_codes(X, A, positive=positive)
        Z = solved.codes.toarray()
        assert len(solved.given_up) == 0
        assert not positive or (Z >= 0).all()
        for x, z in zip(X, Z, strict=True):
            least = least_l1(x, A, positive)
            if least is not None:
                feasible += 1
                np.testing.assert_allclose(z @ A, x, atol=1e-9)
                np.testing.assert_allclose(np.abs(z).sum(), least, rtol=1e-7, atol=1e-9)
    assert feasible > 100


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize(("share", "recovered"), [(0.6, 1), (1.6, 0)])
def test_basis_pursuit_recovers_planted_codes_below_the_phase_transition_and_none_above(positive, share, recovered):
    n, d, count = 200, 100, 10
    A, rng = atoms("random", n=n, d=d), np.random.default_rng(3)
    k, Z = round(share * phase_transition(n, d, positive=positive)), np.zeros((count, n))
    for z in Z:
        sizes = rng.normal(size=k)
        z[rng.choice(n, k, replace=False)] = np.abs(sizes) if positive else sizes
    found = basis_pursuit_codes(Z @ A, A, positive=positive).codes.toarray()
    same = np.abs(found - Z).max(1) <= 1e-6
    assert same.mean() == recovered


def test_rows_the_working_sets_give_up_go_to_the_homotopy(monkeypatch):
    A, X = atoms("random"), rows(5)
    alpha = 0.1 * peak(X, A)
    solve, expected = lasso_kernels.lasso, lasso_codes(X, A, alpha, tolerance=1e-8).codes.toarray()

    def hard(*given):
        solve(*given)
        given[-1][1:3] = -1

    monkeypatch.setattr(lasso_kernels, "lasso", hard)
    solved = lasso_codes(X, A, alpha, tolerance=1e-8)
    assert len(solved.given_up) == 0
    np.testing.assert_allclose(solved.codes.toarray(), expected, atol=1e-6)
    assert lasso_gaps(X, solved.codes, A, alpha).relative[1:3].max() <= 1e-9

    follow = homotopy.follow

    def harder(*given):
        follow(*given)
        given[-2][1] = -1

    monkeypatch.setattr(homotopy, "follow", harder)
    solved = lasso_codes(X, A, alpha, tolerance=1e-8)
    assert solved.given_up.tolist() == [2]
    np.testing.assert_allclose(solved.codes.toarray()[[0, 1, 3, 4]], expected[[0, 1, 3, 4]], atol=1e-6)
    assert solved.codes[[2]].nnz == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_two_coefficients_that_reach_zero_at_once_leave_numbers(dtype):
    """Whole numbers, so that the second one stands at 0 exactly and wants to stay there."""
    D = np.array([[16, 0, 0], [0, 16, 0], [4, 4, 3]], dtype)
    found = omp_codes(np.array([[4, 4, 3]], dtype), D, 3, positive=True).codes
    np.testing.assert_allclose(found.toarray(), [[0, 0, 1]], atol=1e-5)
