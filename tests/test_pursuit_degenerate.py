"""Sparse codes at the edges of their domain, and what must not depend on how a problem is written down."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pursuit import D, N, atoms, objective, peak, rows, supports

from toolkit.certificates import equality_gaps, lasso_gaps
from toolkit.errors import UserError
from toolkit.sparse_coding import basis_pursuit_codes, lasso_codes, omp_codes

SOLVERS = {
    "omp": lambda X, A, *, positive=False, scale=1.0: omp_codes(X, A, min(4, len(A)), positive=positive),
    "lasso": lambda X, A, *, positive=False, scale=1.0: lasso_codes(
        X, A, 0.3 * scale, tolerance=1e-9 if X.dtype == np.float64 else 1e-4, positive=positive
    ),
    "basis pursuit": lambda X, A, *, positive=False, scale=1.0: basis_pursuit_codes(X, A, positive=positive),
}
every_solver = pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
either_sign = pytest.mark.parametrize("positive", [False, True])


def dense(solved):
    assert len(solved.given_up) == 0
    return solved.codes.toarray()


def close(found, expected, bar=1e-6):
    np.testing.assert_allclose(found, expected, rtol=0, atol=bar * max(np.abs(expected).max(), 1e-300))


@every_solver
@either_sign
def test_a_zero_row_has_an_empty_code_and_leaves_the_others_alone(solve, positive):
    A, X = atoms("random"), rows(3)
    X[1] = 0
    codes = dense(solve(X, A, positive=positive))
    assert not codes[1].any()
    close(codes[[0, 2]], dense(solve(X[[0, 2]], A, positive=positive)))


@every_solver
@either_sign
def test_one_atom_one_row_and_one_dimension(solve, positive):
    assert dense(solve(np.array([[2.0]]), np.array([[4.0]]), positive=positive))[0, 0] == pytest.approx(0.5, abs=0.02)
    code = dense(solve(np.array([[-2.0]]), np.array([[4.0]]), positive=positive))[0, 0]
    assert code == (0 if positive else pytest.approx(-0.5, abs=0.02))
    assert dense(solve(np.array([[3.0]]), np.array([[1.0], [-2.0], [3.0]]), positive=positive))[0, 2] > 0.9


@every_solver
@either_sign
def test_twins_serve_as_one_atom_would(solve, positive):
    A, X = atoms("random"), rows(8)
    single, double = dense(solve(X, A, positive=positive)), dense(solve(X, np.vstack([A, A]), positive=positive))
    close(double[:, :N] + double[:, N:], single)


@either_sign
def test_a_row_that_is_an_atom_is_that_atom(positive):
    A = atoms("random")
    for solve in (SOLVERS["omp"], SOLVERS["basis pursuit"]):
        close(dense(solve(3 * A, A, positive=positive)), 3 * np.eye(N), 1e-9)


def test_matching_pursuit_ends_where_atoms_or_the_residual_do():
    A, X = atoms("random"), rows(5)
    full = dense(omp_codes(X, A, N))  # k = n, above d
    assert ((full != 0).sum(1) == D).all()
    close(full @ A, X, 1e-9)
    low = atoms("random", d=3) @ np.random.default_rng(0).normal(size=(3, D))  # rank 3
    assert ((dense(omp_codes(X, low, 10)) != 0).sum(1) <= 3).all()
    exact = np.zeros((1, N))
    exact[0, [2, 30]] = 1, -2
    assert supports(dense(omp_codes(exact @ A, A, 9))) == [[2, 30]]
    assert supports(dense(omp_codes((exact @ A).astype(np.float32), A, 2))) == [[2, 30]]


@either_sign
def test_the_lasso_is_empty_from_the_largest_correlation_on_and_not_just_below(positive):
    A, X = atoms("unequal"), rows(1)
    top = peak(X, A, positive)
    for alpha in (top, 1.5 * top, 1e9 * top):
        assert not dense(lasso_codes(X, A, alpha, positive=positive)).any()
    below = dense(lasso_codes(X, A, 0.999 * top, tolerance=1e-9, positive=positive))
    at = int((A @ X[0] if positive else np.abs(A @ X[0])).argmax())
    assert supports(below) == [[at]]
    assert abs(below[0, at]) == pytest.approx(0.001 * top / (A[at] @ A[at]), rel=1e-3)


@either_sign
def test_basis_pursuit_outside_the_span_comes_as_near_as_any_code(positive):
    A = atoms("random")
    A[:, 0] = 0
    X = np.abs(rows(4)) if positive else rows(4)
    solved = basis_pursuit_codes(X, A, positive=positive)
    gaps = equality_gaps(X, solved.codes, A, dual=solved.dual, positive=positive)
    assert gaps.residual.min() > 1e-3
    inside = solved.codes @ A
    again = basis_pursuit_codes(inside, A, positive=positive)
    np.testing.assert_allclose(abs(again.codes).sum(1), abs(solved.codes).sum(1), rtol=1e-7)
    correlation = (X - inside) @ A.T  # (rows, n)
    assert (correlation if positive else np.abs(correlation)).max() < 1e-9


@either_sign
def test_a_dictionary_of_low_rank_is_solved_to_its_gap(positive):
    for seed in range(40):
        check_low_rank(np.random.default_rng(seed), positive)


def check_low_rank(rng, positive):
    d, n = rng.integers(3, 24), rng.integers(2, 60)
    rank = rng.integers(1, d)
    A = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    X = np.abs(rng.normal(size=(6, n))) @ A
    solved = basis_pursuit_codes(X, A, positive=positive)
    gaps = equality_gaps(X, solved.codes, A, dual=solved.dual, positive=positive)
    assert max(np.abs(gaps.relative).max(), gaps.residual.max()) <= 1e-8
    codes = lasso_codes(X, A, 0.01 * peak(X, A), tolerance=1e-8, positive=positive).codes
    assert lasso_gaps(X, codes, A, 0.01 * peak(X, A), positive=positive).relative.max() <= 1e-8


@every_solver
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_of_rows_and_atoms_does_not_matter(solve, dtype):
    A, X = atoms("random").astype(dtype), rows().astype(dtype)
    sizes = (1e-8, 1e8) if dtype == np.float64 else (1e-3, 1e3)
    one = dense(solve(X, A))
    for size in sizes:
        c, bar = dtype(size), 1e-6 if dtype == np.float64 else 2e-2
        close(dense(solve(c * X, A, scale=size)) / c, one, bar)
        close(dense(solve(X, c * A, scale=size)) * c, one, bar)


@every_solver
@either_sign
def test_rows_of_very_different_norms_are_solved_each_on_its_own(solve, positive):
    A, X = atoms("random"), rows(6)
    X *= 10.0 ** np.array([-8, -4, 0, 0, 2, 4])[:, None]
    together = dense(solve(X, A, positive=positive))
    for x, z in zip(X, together, strict=True):
        close(z, dense(solve(x[None], A, positive=positive))[0])


def problem(seed):
    rng = np.random.default_rng(seed)
    d, n = rng.integers(2, 12), rng.integers(2, 30)
    A = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, (n, 1))
    return A, rng.normal(size=(3, n)) @ A, rng


seeds = given(seed=st.integers(0, 2**32 - 1), positive=st.booleans())
quick = settings(max_examples=25, deadline=None)


@every_solver
@quick
@seeds
def test_codes_follow_scale_order_signs_and_rotation(solve, seed, positive):
    A, X, rng = problem(seed)
    Z = dense(solve(X, A, positive=positive))
    close(dense(solve(7 * X, A, positive=positive, scale=7.0)), 7 * Z)
    order = rng.permutation(len(A))
    close(dense(solve(X, A[order], positive=positive)), Z[:, order])
    turn = np.linalg.qr(rng.normal(size=(A.shape[1], A.shape[1])))[0]
    close(dense(solve(X @ turn, A @ turn, positive=positive)), Z)
    close(np.vstack([dense(solve(x[None], A, positive=positive)) for x in X]), Z)
    if not positive:
        flip = rng.choice([-1.0, 1.0], len(A))
        close(dense(solve(X, A * flip[:, None])), Z * flip)


@quick
@seeds
def test_a_warm_start_ends_where_a_cold_one_does(seed, positive):
    A, X, rng = problem(seed)
    alpha = float(rng.uniform(0.02, 0.5)) * peak(X, A)
    start = lasso_codes(X, A, 2 * alpha, positive=positive).codes
    cold = lasso_codes(X, A, alpha, tolerance=1e-8, positive=positive)
    warm = lasso_codes(X, A, alpha, tolerance=1e-8, positive=positive, start=start)
    values = [objective(X, dense(found), A, alpha) for found in (cold, warm)]
    np.testing.assert_allclose(values[0], values[1], rtol=2e-8)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda X, A: omp_codes(X, A, 0), "n_nonzero=0 for 40 atoms: expected a whole number from 1 to 40"),
        (lambda X, A: omp_codes(X, A, N + 1), "n_nonzero=41 for 40 atoms"),
        (lambda X, A: lasso_codes(X, A, 0), "alpha=0: expected a finite number above 0"),
        (lambda X, A: lasso_codes(X, A, -1), "alpha=-1"),
        (lambda X, A: lasso_codes(X, A, np.nan), "alpha=nan"),
        (lambda X, A: lasso_codes(X, A, 1.0, tolerance=0), "tol=0: expected a relative gap between 0 and 1"),
        (lambda X, A: lasso_codes(X, A, 1.0, tolerance=1), "tol=1"),
        (lambda X, A: lasso_codes(X, A, 1.0, tolerance=np.nan), "tol=nan"),
        (lambda X, A: basis_pursuit_codes(X[0], A), r"X has shape \(16,\): expected \(rows, d\)"),
        (lambda X, A: basis_pursuit_codes(X[:0], A), r"X has shape \(0, 16\)"),
        (lambda X, A: basis_pursuit_codes(X[:, 1:], A), "X has 15 columns and the dictionary's atoms have 16"),
        (lambda X, A: basis_pursuit_codes(X, A[0]), r"dictionary has shape \(16,\)"),
        (lambda X, A: basis_pursuit_codes(X, np.vstack([A[:3], 0 * A[:1]])), "atom 3 of the dictionary is zero"),
        (lambda X, A: basis_pursuit_codes(np.where(X[2, 3] == X, np.nan, X), A), "X holds NaN or infinity.* row 2"),
        (lambda X, A: basis_pursuit_codes(X, np.where(A[5, 0] == A, np.inf, A)), "dictionary holds NaN.* row 5"),
        (lambda X, A: basis_pursuit_codes(X.astype(np.float32), 1e300 * A), "dictionary as float32 holds NaN"),
        (lambda X, A: basis_pursuit_codes(X.astype(complex), A), "X holds complex128: expected real numbers"),
    ],
)
def test_bad_input_is_refused_in_one_line(solve, message):
    with pytest.raises(UserError, match=message) as error:
        solve(rows(4), atoms("random"))
    assert "\n" not in str(error.value)
