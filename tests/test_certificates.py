"""What is claimed about sparse codes, against theorems, linear programming, scikit-learn and brute force."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.integrate import quad
from scipy.linalg import hadamard
from scipy.optimize import linprog, minimize_scalar
from scipy.stats import norm, ortho_group
from sklearn.linear_model import Lasso, orthogonal_mp

from toolkit.certificates import equality_gaps, exact_recovery, fuchs, lasso_gaps
from toolkit.coherence import coherence, row_blocks
from toolkit.errors import UserError
from toolkit.phase_transition import phase_transition

SIGNS = pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
seeds = st.integers(0, 2**32 - 1)


def draw(seed, *, rows=6, n=30, d=20, k=4, positive=False, unit=True):
    """A Gaussian dictionary (n, d), codes (rows, n) with k random entries a row, and X = Z D exactly."""
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((n, d))
    D = D / np.linalg.norm(D, axis=1, keepdims=True) if unit else D * rng.uniform(0.3, 3, (n, 1))
    Z = np.zeros((rows, n))
    for row in Z:
        row[rng.choice(n, k, replace=False)] = rng.choice([1.0] if positive else [-1.0, 1.0], k) * rng.uniform(
            0.5, 2, k
        )
    return Z @ D, sparse.csr_array(Z), D


def solve_lasso(X, D, alpha, *, positive):
    """Another solver's minima; scikit-learn divides the squared error by the number of samples, here d."""
    model = Lasso(alpha / X.shape[1], fit_intercept=False, positive=positive, tol=1e-14, max_iter=100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tolerance that cannot be reached is meant to be
        return sparse.csr_array(np.stack([model.fit(D.T, x).coef_ for x in X]))


def solve_equality(x, D, *, positive):
    """Basis pursuit by linear programming: the code and its dual point."""
    A = D.T if positive else np.hstack([D.T, -D.T])
    done = linprog(np.ones(A.shape[1]), A_eq=A, b_eq=x, bounds=(0, None), method="highs")
    assert done.status == 0
    n = len(D)
    return (done.x if positive else done.x[:n] - done.x[n:]), done.eqlin.marginals


def naive_lasso(x, z, D, alpha, positive):
    """P, P - D(theta) and the margin of one row, as the definitions read."""
    r = x - D.T @ z
    along = D @ r if positive else np.abs(D @ r)
    theta = r / max(alpha, along.max())
    P = r @ r / 2 + alpha * np.abs(z).sum()
    dual = x @ x / 2 - ((x - alpha * theta) ** 2).sum() / 2
    return P, P - dual, max(along[z == 0].max(initial=0) / alpha, 0)


def naive_support(z, D, positive):
    """Fuchs' and Tropp's coefficients of one row through the pseudo-inverse."""
    on = z != 0
    inverse = np.linalg.pinv(D[on].T)  # (k, d)
    along = D[~on] @ (inverse.T @ np.sign(z[on]))
    return (along if positive else np.abs(along)).max(initial=0), np.abs(inverse @ D[~on].T).sum(0).max(initial=0)


# ---- the lasso's gap


@SIGNS
@settings(max_examples=40, deadline=None)
@given(seed=seeds, alpha=st.floats(1e-3, 10))
def test_the_lasso_gap_is_the_difference_of_the_two_problems_and_never_negative(positive, seed, alpha):
    _, Z, D = draw(seed, positive=positive, unit=False)
    X = np.random.default_rng(seed + 1).standard_normal((Z.shape[0], D.shape[1]))
    gaps = lasso_gaps(X, Z, D, alpha, positive=positive)
    expected = np.array([naive_lasso(x, z, D, alpha, positive) for x, z in zip(X, Z.toarray(), strict=True)])
    found = np.stack([gaps.objective, gaps.absolute, gaps.margin], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(gaps.relative, gaps.absolute / gaps.objective, rtol=1e-12)
    assert (gaps.absolute >= 0).all()


@SIGNS
@pytest.mark.parametrize("share", [0.02, 0.3])
def test_the_lasso_gap_bounds_the_distance_to_another_solvers_minimum_and_closes_there(positive, share):
    X = np.random.default_rng(1).standard_normal((8, 20))
    _, guess, D = draw(0, rows=8, positive=positive, unit=False)
    alpha = share * np.abs(X @ D.T).max()
    best = solve_lasso(X, D, alpha, positive=positive)
    at_best, at_guess = (lasso_gaps(X, Z, D, alpha, positive=positive) for Z in (best, guess))
    assert at_best.relative.max() < 1e-9
    assert at_best.margin.max() < 1 + 1e-6
    assert (at_guess.objective - at_best.objective <= at_guess.absolute * (1 + 1e-9)).all()
    assert at_guess.relative.min() > 0.01


def test_the_positive_gap_is_another_than_the_signed_one():
    X = np.random.default_rng(1).standard_normal((8, 20))
    _, _, D = draw(0)
    best = solve_lasso(X, D, 0.3, positive=True)
    assert lasso_gaps(X, best, D, 0.3, positive=True).relative.max() < 1e-9
    assert lasso_gaps(X, best, D, 0.3).relative.max() > 0.01


@SIGNS
@settings(max_examples=25, deadline=None)
@given(seed=seeds, c=st.floats(0.01, 100), alpha=st.floats(0.01, 3))
def test_what_the_lasso_gap_does_under_scale_order_and_rotation(positive, seed, c, alpha):
    _, Z, D = draw(seed, positive=positive, unit=False)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((Z.shape[0], D.shape[1]))
    plain = lasso_gaps(X, Z, D, alpha, positive=positive)
    order, Q = rng.permutation(len(D)), ortho_group.rvs(D.shape[1], random_state=rng)
    variants = [
        (c * X, c * Z, D, c * alpha, c * c),
        (X, Z[:, order], D[order], alpha, 1),
        (X @ Q, Z, D @ Q, alpha, 1),
    ]
    for *given_, factor in variants:
        other = lasso_gaps(*given_, positive=positive)
        np.testing.assert_allclose(other.objective, factor * plain.objective, rtol=1e-9)
        np.testing.assert_allclose(other.absolute, factor * plain.absolute, rtol=1e-7)
        np.testing.assert_allclose(other.relative, plain.relative, rtol=1e-7)
        np.testing.assert_allclose(other.margin, plain.margin, rtol=1e-9)


def test_the_lasso_gap_on_an_orthonormal_dictionary_by_hand():
    gaps = lasso_gaps(np.array([[3.0, 0.5]] * 3), sparse.csr_array([[2.0, 0], [3.0, 0.5], [0, 0]]), np.eye(2), 1.0)
    np.testing.assert_allclose(gaps.objective, [0.5 + 0.125 + 2, 3.5, 4.625])
    # Soft thresholding; r = 0; and theta = x / 3, whose dual value is (9.25 - 4 - 1/9) / 2.
    np.testing.assert_allclose(gaps.absolute, [0, 3.5, 4.625 - (9.25 - 4 - 1 / 9) / 2], atol=1e-15)
    np.testing.assert_allclose(gaps.margin, [0.5, 0, 3])


@SIGNS
def test_rows_of_zeros_and_codes_of_zeros(positive):
    D = np.eye(3)
    gaps = lasso_gaps(np.array([[0.0, 0, 0], [0.2, 0, 0]]), sparse.csr_array((2, 3)), D, 0.5, positive=positive)
    np.testing.assert_array_equal(gaps.absolute, 0)
    np.testing.assert_array_equal(gaps.relative, 0)
    np.testing.assert_allclose(gaps.margin, [0, 0.4])
    equal = equality_gaps(np.array([[0.0, 0, 0], [1, 0, 0]]), sparse.csr_array((2, 3)), D, positive=positive)
    np.testing.assert_array_equal([equal.residual, equal.l1, equal.absolute, equal.relative], [[0, 1]] + [[0, 0]] * 3)
    wrong = equality_gaps(np.zeros((1, 3)), sparse.csr_array([[1.0, 0, 0]]), D, positive=positive)
    assert wrong.residual[0] == np.inf
    for X in (np.zeros((0, 3)), np.zeros((0, 3), np.float32)):
        assert lasso_gaps(X, sparse.csr_array((0, 3)), D, 1).absolute.shape == (0,)
        assert fuchs(sparse.csr_array((0, 3)), D).shape == exact_recovery(sparse.csr_array((0, 3)), D).shape == (0,)


# ---- the equality-constrained gap


@SIGNS
def test_the_equality_gap_closes_at_the_linear_programs_solution_and_bounds_the_way_there(positive):
    X, planted, D = draw(3, rows=12, n=40, k=16, positive=positive, unit=False)
    solved = [solve_equality(x, D, positive=positive) for x in X]
    codes = np.array([np.where(np.abs(z) < 1e-9, 0, z) for z, _ in solved])
    dual = np.array([nu for _, nu in solved])
    for scale in (1, 5):  # a dual point that is not feasible is scaled until it is
        best = equality_gaps(X, sparse.csr_array(codes), D, dual=scale * dual, positive=positive)
        assert best.residual.max() < 1e-7
        assert np.abs(best.relative).max() < 1e-7
    square = (codes != 0).sum(1) == 20  # a vertex with d atoms has one dual point only, and it needs no solver
    assert square.sum() >= 3
    own = equality_gaps(X[square], sparse.csr_array(codes[square]), D, positive=positive)
    np.testing.assert_allclose(own.relative, 0, atol=1e-6)
    guess = equality_gaps(X, planted, D, positive=positive)
    above = guess.l1 - best.l1
    assert above.max() > 0.01 * guess.l1.max()
    assert (above <= guess.absolute + 1e-7).all()
    np.testing.assert_allclose(guess.residual, 0, atol=1e-12)


@SIGNS
@settings(max_examples=40, deadline=None)
@given(seed=seeds, k=st.integers(1, 30))
def test_the_equality_gap_of_a_feasible_code_is_never_negative(positive, seed, k):
    X, Z, D = draw(seed, k=k, positive=positive, unit=False)  # beyond k=20 the support is dependent
    dual = np.random.default_rng(seed).standard_normal(X.shape)
    for nu in (None, dual, 100 * dual):
        gaps = equality_gaps(X, Z, D, dual=nu, positive=positive)
        assert (gaps.absolute >= -1e-9 * gaps.l1).all()
        np.testing.assert_allclose(gaps.relative, gaps.absolute / gaps.l1, rtol=1e-12)


def test_an_infeasible_code_can_undercut_the_minimum_by_no_more_than_stated():
    X, Z, D = draw(5)
    dual = np.array([solve_equality(x, D, positive=False)[1] for x in X])
    gaps = equality_gaps(X, 0.9 * Z, D, dual=dual)
    np.testing.assert_allclose(gaps.residual, 0.1)
    assert gaps.absolute.max() < 0
    assert (gaps.absolute >= -0.1 * np.linalg.norm(X, axis=1) * np.linalg.norm(dual, axis=1)).all()


def test_the_smallest_dual_point_of_dependent_atoms_is_still_a_bound():
    D = np.array([[1.0, 0], [1, 0], [0, 1]])
    gaps = equality_gaps(np.array([[2.0, 0], [0, 0]]), sparse.csr_array([[1.0, 1, 0], [1, -1, 0]]), D)
    np.testing.assert_allclose(gaps.absolute, [0, 2], atol=1e-14)  # shared by twins: optimal; cancelling twins: not


# ---- uniqueness and exact recovery


@SIGNS
@pytest.mark.parametrize("k", [1, 3, 12])
def test_both_coefficients_agree_with_the_pseudo_inverse(positive, k):
    _, Z, D = draw(7, rows=40, n=150, k=k, positive=positive, unit=False)
    expected = np.array([naive_support(z, D, positive) for z in Z.toarray()])
    np.testing.assert_allclose(fuchs(Z, D, positive=positive), expected[:, 0], rtol=1e-9)
    np.testing.assert_allclose(exact_recovery(Z, D), expected[:, 1], rtol=1e-9)


def test_supports_of_many_sizes_stand_side_by_side():
    _, _, D = draw(0, n=70)
    sizes = [0, 1, 20, 0, 7, 21, 70, 3, *range(20), 0]
    Z = np.zeros((len(sizes), 70))
    for row, size in zip(Z, sizes, strict=True):
        row[np.random.default_rng(size).permutation(70)[:size]] = 1
    beyond = np.array(sizes) > 20
    for found, column in ((fuchs(sparse.csr_array(Z), D), 0), (exact_recovery(sparse.csr_array(Z), D), 1)):
        assert np.isinf(found[beyond]).all()
        expected = [naive_support(z, D, False)[column] for z in Z[~beyond]]
        np.testing.assert_allclose(found[~beyond], expected, rtol=1e-8)


@SIGNS
@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, 12))
def test_exact_recovery_is_never_below_fuchs_and_neither_sees_order_or_rotation(positive, seed, k):
    _, Z, D = draw(seed, k=k, positive=positive, unit=False)
    rng = np.random.default_rng(seed)
    one, every = fuchs(Z, D, positive=positive), exact_recovery(Z, D)
    assert (one <= every * (1 + 1e-9)).all()
    order, Q = rng.permutation(len(D)), ortho_group.rvs(D.shape[1], random_state=rng)
    for codes, atoms in ((Z[:, order], D[order]), (Z, D @ Q), (3 * Z, 2 * D)):
        np.testing.assert_allclose(fuchs(codes, atoms, positive=positive), one, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(exact_recovery(codes, atoms), every, rtol=1e-7)


@SIGNS
def test_below_one_fuchs_proves_the_planted_code_the_solution_and_far_above_it_is_not(positive):
    X, Z, D = draw(11, rows=120, k=4, positive=positive, unit=False)
    proved = fuchs(Z, D, positive=positive) < 1 - 1e-9
    assert proved.sum() >= 10
    assert equality_gaps(X, Z, D, positive=positive).relative[proved].max() < 1e-12
    for x, z in zip(X[proved], Z.toarray()[proved], strict=True):
        np.testing.assert_allclose(solve_equality(x, D, positive=positive)[0], z, atol=1e-8)
    X, Z, D = draw(11, rows=40, k=19, positive=positive, unit=False)  # beyond the phase transition
    failed = fuchs(Z, D, positive=positive) > 3
    assert failed.sum() >= 10
    assert equality_gaps(X, Z, D, positive=positive).relative[failed].min() > 0.01
    shorter = [
        np.abs(solve_equality(x, D, positive=positive)[0]).sum() < np.abs(z).sum() * (1 - 1e-6)
        for x, z in zip(X[failed], Z.toarray()[failed], strict=True)
    ]
    assert np.mean(shorter) > 0.9


@pytest.mark.parametrize(("unit", "k"), [(True, 3), (False, 2)], ids=["unit norms", "any norms"])
def test_below_one_exact_recovery_lets_orthogonal_matching_pursuit_find_the_support(unit, k):
    X, Z, D = draw(13, rows=300, k=k, unit=unit)
    proved = exact_recovery(Z, D) < 1 - 1e-9
    assert 50 < proved.sum() < 250
    found = np.array([orthogonal_mp(D.T, x, n_nonzero_coefs=k) for x in X]) != 0
    right = (found == (Z.toarray() != 0)).all(1)
    assert right[proved].all()
    assert not right[~proved].all()


def test_on_independent_atoms_nothing_is_left_to_doubt():
    Z = sparse.csr_array([[1.0, -1, 0], [1, 1, 1], [0, 0, 0]])
    for D in (np.eye(3), ortho_group.rvs(3, random_state=0) * 4):
        np.testing.assert_allclose(fuchs(Z, D), 0, atol=1e-13)
        np.testing.assert_allclose(exact_recovery(Z, D), 0, atol=1e-13)


def test_both_coefficients_by_hand():
    D = np.array([[1.0, 0], [0, 1], [0.6, 0.8], [0.3, -0.4]])
    Z = sparse.csr_array([[2.0, 3, 0, 0], [2, -3, 0, 0], [5, 0, 0, 0]])
    np.testing.assert_allclose(fuchs(Z, D), [1.4, 0.7, 0.6])
    np.testing.assert_allclose(exact_recovery(Z, D), [1.4, 1.4, 0.6])
    np.testing.assert_allclose(fuchs(sparse.csr_array([[0.0, 0, 0, 1.0]]), D), [1.6])  # -d_2 . nu, nu = (1.2, -1.6)
    # Over z >= 0 only products above 0 count: d_0 . nu = 1.2 is the largest, and of (-1, 0) none is.
    np.testing.assert_allclose(fuchs(sparse.csr_array([[0.0, 0, 0, 1.0]]), D, positive=True), [1.2])
    assert fuchs(sparse.csr_array([[1.0, 0]]), np.array([[1.0, 0], [-1, 0]]), positive=True) < 1e-14


@SIGNS
@settings(max_examples=60, deadline=None)
@given(seed=seeds, k=st.integers(1, 20))
def test_rounding_never_turns_a_twin_into_a_proof(positive, seed, k):
    _, Z, D = draw(seed, k=k, positive=positive, unit=False)
    Z = sparse.csr_array(np.hstack([Z.toarray(), np.zeros((6, 30))]))
    twins = np.random.default_rng(seed).choice([0.3, 0.7, 1.0], (30, 1)) * D
    alone = np.abs(twins - D).max(1) == 0
    covered = (Z.toarray()[:, :30] != 0) @ alone
    for found in (fuchs(Z, np.vstack([D, twins]), positive=positive), exact_recovery(Z, np.vstack([D, twins]))):
        assert (found[covered] >= 1).all()


def test_dependent_supports_prove_nothing_and_a_twin_off_the_support_is_on_the_edge():
    D = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    Z = sparse.csr_array([[1.0, 1, 0, 0, 0], [1, 0, 1, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    for found in (fuchs(Z, D), exact_recovery(Z, D)):
        assert np.isinf(found[:4]).all()
        assert 1 <= found[4] < 1 + 1e-12
    near = np.array([[1.0, 0], [1, 1e-6], [1, 1e-4]])
    assert np.isinf(fuchs(sparse.csr_array([[1.0, 1, 0]]), near)).all()
    assert np.isfinite(fuchs(sparse.csr_array([[1.0, 0, 1]]), near)).all()


# ---- inputs


def test_stored_zeros_duplicates_and_order_are_no_part_of_a_code():
    X, Z, D = draw(2, rows=1)
    plain = Z.toarray()[0]
    on = np.flatnonzero(plain)[::-1]
    data = np.concatenate([plain[on] / 2, plain[on] / 2, [0.0]])
    indices = np.concatenate([on, on, [np.flatnonzero(plain == 0)[0]]])
    for kind in (sparse.csr_array, sparse.csr_matrix):
        messy = kind((data, indices, [0, len(data)]), shape=Z.shape)
        kept = messy.data.copy()
        for f in (fuchs, exact_recovery, lambda A, D: lasso_gaps(X, A, D, 0.1).margin):
            np.testing.assert_allclose(f(messy, D), f(Z, D), rtol=1e-12)
        np.testing.assert_array_equal(messy.data, kept)  # the caller's matrix is left as it was
        assert messy.nnz == len(data)


def test_float32_is_computed_with_in_float64():
    X, Z, D = (a.astype(np.float32) for a in draw(4))
    wide = [a.astype(np.float64) for a in (X, Z, D)]
    for narrow_, wide_ in zip(
        (lasso_gaps(X, Z, D, 0.1).absolute, equality_gaps(X, Z, D, dual=X).absolute, fuchs(Z, D)),
        (lasso_gaps(*wide, 0.1).absolute, equality_gaps(*wide, dual=wide[0]).absolute, fuchs(*wide[1:])),
        strict=True,
    ):
        assert narrow_.dtype == np.float64
        np.testing.assert_allclose(narrow_, wide_, rtol=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    X, Z, D = draw(6, rows=11)
    whole = lasso_gaps(X, Z, D, 0.1), equality_gaps(X, Z, D), coherence(D)
    monkeypatch.setattr("toolkit.coherence._BLOCK", 4 * len(D))
    assert len(list(row_blocks(11, len(D)))) == 3
    parts = lasso_gaps(X, Z, D, 0.1), equality_gaps(X, Z, D), coherence(D)
    np.testing.assert_allclose(parts[0].absolute, whole[0].absolute, rtol=1e-12)
    np.testing.assert_allclose(parts[1].absolute, whole[1].absolute, rtol=1e-9, atol=1e-14)
    assert parts[2].pair == whole[2].pair


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda X, Z, D: lasso_gaps(X, Z, D, 0.0), "alpha=0.0"),
        (lambda X, Z, D: lasso_gaps(X, Z, D, np.nan), "alpha=nan"),
        (lambda X, Z, D: lasso_gaps(X[1:], Z, D, 1.0), r"X has shape \(5, 20\): expected \(6, 20\)"),
        (lambda X, Z, D: lasso_gaps(X * np.nan, Z, D, 1.0), "X has values that are not finite"),
        (lambda X, Z, D: lasso_gaps(X, Z, D, 1.0, positive=True), "negative entries"),
        (lambda X, Z, D: equality_gaps(X, Z, D, dual=X[:, 1:]), r"dual has shape \(6, 19\)"),
        (lambda X, Z, D: fuchs(Z[:, 1:], D), r"Z has shape \(6, 29\) and D \(30, 20\)"),
        (lambda X, Z, D: fuchs(Z * np.inf, D), "Z has values"),
        (lambda X, Z, D: fuchs(Z, D, positive=True), "negative entries"),
        (lambda X, Z, D: exact_recovery(Z, D * np.inf), "D has values"),
        (lambda X, Z, D: exact_recovery(Z, D[0]), "D has shape"),
        (lambda X, Z, D: coherence(D[:1]), "D has 1 atom"),
        (lambda X, Z, D: coherence(np.vstack([D, 0 * D[:1]])), "atom 30 of D is zero"),
        (lambda X, Z, D: phase_transition(0, 1), "n=0"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_mistake_is_named(call, message):
    with pytest.raises(UserError, match=message):
        call(*draw(0))


# ---- coherence


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_coherence_is_the_largest_cosine_and_sees_neither_norms_nor_signs(seed):
    _, _, D = draw(seed, unit=False)
    unit = D / np.linalg.norm(D, axis=1, keepdims=True)
    cosines = np.abs(unit @ unit.T) - 2 * np.eye(len(D))
    found = coherence(D)
    np.testing.assert_allclose(found.mu, cosines.max(), rtol=1e-12)
    assert set(found.pair) == set(np.unravel_index(cosines.argmax(), cosines.shape))
    assert coherence(-3 * D).pair == found.pair
    assert found.mu >= np.sqrt((30 - 20) / (20 * 29))  # Welch's bound


@pytest.mark.parametrize(
    ("D", "mu", "guaranteed"),
    [
        (np.eye(5), 0, 5),
        (ortho_group.rvs(6, random_state=0), 0, 6),
        (np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]), 1 / 3, 1),  # (1 + 3)/2 = 2: not below itself
        (np.vstack([np.eye(4), hadamard(4)]), 1 / 2, 1),
        (np.vstack([np.eye(16), hadamard(16)]), 1 / 4, 2),
        (np.array([[1.0, 2], [3, 1], [-2, -4]]), 1, 0),
    ],
)
def test_coherence_of_known_frames(D, mu, guaranteed):
    found = coherence(D)
    np.testing.assert_allclose(found.mu, mu, atol=1e-12)
    assert found.guaranteed == guaranteed


def test_rounding_never_adds_an_atom_to_what_coherence_guarantees():
    pair = np.array([[1.0, 0, 0], [1, np.sqrt(8), 0]])  # a cosine of 1/3: on the edge of guaranteeing two
    turned = [coherence(pair @ ortho_group.rvs(3, random_state=seed)) for seed in range(50)]
    assert min(found.mu for found in turned) < 1 / 3  # rounded down somewhere
    assert {found.guaranteed for found in turned} == {1}


def test_coherence_says_in_words_how_little_it_says():
    assert coherence(np.vstack([np.eye(16), hadamard(16)])).sentence == (
        "coherence 0.25 vouches for codes of at most 2 atoms; about longer codes it says nothing"
    )
    assert "at most 1 atom;" in coherence(np.vstack([np.eye(4), hadamard(4)])).sentence
    assert "no code at all: atoms 0 and 2 are parallel" in coherence(np.array([[1.0, 2], [3, 1], [-2, -4]])).sentence


def test_what_coherence_guarantees_exact_recovery_confirms_and_far_more_beside():
    D = np.vstack([np.eye(64), hadamard(64) / 8])
    found = coherence(D)
    assert found.guaranteed == 4
    rng = np.random.default_rng(0)

    def below_one(k):
        Z = np.zeros((200, 128))
        for row in Z:
            row[rng.choice(128, k, replace=False)] = 1
        return exact_recovery(sparse.csr_array(Z), D) < 1, fuchs(sparse.csr_array(Z), D) < 1

    assert below_one(4)[0].all()
    assert not below_one(12)[0].all()
    assert below_one(7)[1].mean() > 0.9


# ---- the phase transition


def psi(rho, *, positive):
    """The statistical dimension per entry, by numerical integration and minimisation."""
    sides = 1 if positive else 2

    def distance(t):
        tail = quad(lambda u: (u - t) ** 2 * norm.pdf(u), t, t + 12)[0]
        return rho * (1 + t * t) + (1 - rho) * sides * tail

    return minimize_scalar(distance, bounds=(0, 10), method="bounded", options={"xatol": 1e-9}).fun


@SIGNS
@pytest.mark.parametrize("delta", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_phase_transition_inverts_the_statistical_dimension(positive, delta):
    k = phase_transition(10_000, round(10_000 * delta), positive=positive)
    np.testing.assert_allclose(psi(k / 10_000, positive=positive), delta, rtol=1e-6)


def test_the_phase_transition_at_half_is_donoho_and_tanners():
    assert abs(phase_transition(1000, 500) / 500 - 0.385) < 0.001
    assert abs(phase_transition(1000, 500, positive=True) / 500 - 0.558) < 0.001


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_the_phase_transition_at_its_ends(n):
    assert phase_transition(n, n) == phase_transition(n, n + 5, positive=True) == n
    ks = [phase_transition(n, d, positive=positive) for positive in (False, True) for d in range(1, n + 1)]
    signed, positive = np.split(np.array(ks), 2)
    assert (np.diff(signed) > 0).all()
    assert (signed <= positive).all()
    assert ((signed > 0) & (positive <= np.arange(1, n + 1))).all()


@SIGNS
def test_linear_programs_succeed_well_below_the_phase_transition_and_fail_well_above(positive):
    n, d = 80, 40
    k = phase_transition(n, d, positive=positive)
    rate = {}
    for share in (0.6, 1.4):
        # Fresh measurements for each code: the theorem is about random ones.
        pairs = [draw(100 + i, rows=1, n=n, d=d, k=round(share * k), positive=positive) for i in range(10)]
        rate[share] = np.mean(
            [np.allclose(solve_equality(X[0], D, positive=positive)[0], Z.toarray()[0], atol=1e-6) for X, Z, D in pairs]
        )
    assert rate[0.6] >= 0.9
    assert rate[1.4] <= 0.1
