"""Duals, patterns and the program for too many readouts: theorems, and the premises they need."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from toolkit import steering_program
from toolkit.errors import UserError
from toolkit.probes import LDAProbe
from toolkit.steering import dual_basis, haufe_patterns, mean_differences, square_root
from toolkit.steering_program import steering_vectors


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def data(rows=500, d=8, seed=1):
    """Correlated activations."""
    return draw(rows, d, seed=seed) @ draw(d, d, seed=seed + 1)


def test_the_dual_moves_each_readout_by_one_and_no_other():
    W = draw(5, 8)
    found = dual_basis(W)
    np.testing.assert_allclose(W @ found.vectors, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(found.vectors, np.linalg.pinv(W), atol=1e-12)
    # the probe's own rows, at the length that moves their own readout by one, move the others too
    own = W.T / np.square(W).sum(1)
    assert np.abs(W @ own - np.eye(5)).max() > 0.1


def test_steering_along_the_dual_leaves_the_other_readouts_of_activations_as_they_are():
    W, X = draw(5, 8), data().astype(np.float32)
    before = X @ W.T.astype(np.float32)
    moved = (X + 3 * dual_basis(W).vectors[:, 2].astype(np.float32)) @ W.T.astype(np.float32)
    np.testing.assert_allclose(moved - before, np.tile([0, 0, 3, 0, 0], (500, 1)), atol=1e-5)


def test_probe_and_steering_vectors_agree_if_and_only_if_the_rows_are_orthogonal():
    def angles(W):
        S = dual_basis(W).vectors.T
        return (W * S).sum(1) / np.linalg.norm(W, axis=1) / np.linalg.norm(S, axis=1)

    orthogonal = np.linalg.qr(draw(8, 5))[0].T * [[1], [2], [3], [4], [5]]
    np.testing.assert_allclose(angles(orthogonal), 1, atol=1e-12)
    assert (angles(draw(5, 8)) < 0.95).all()
    tilted = orthogonal.copy()
    tilted[0] += 0.1 * orthogonal[1]
    assert (angles(tilted)[:2] < 1 - 1e-4).all()
    np.testing.assert_allclose(angles(tilted)[2:], 1, atol=1e-12)


def test_the_covariance_weighted_dual_is_haufes_pattern():
    X, W = data(), draw(3, 8)
    weighted = dual_basis(W, covariance=np.cov(X.T)).vectors
    np.testing.assert_allclose(W @ weighted, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(haufe_patterns(X, X @ W.T), weighted, atol=1e-10)
    assert np.abs(weighted - dual_basis(W).vectors).max() > 0.1


def test_the_patterns_of_white_data_are_the_plain_dual():
    X = np.linalg.qr(draw(500, 8) - draw(500, 8).mean(0))[0]
    X -= X.mean(0)
    X = X @ np.linalg.inv(np.linalg.cholesky(np.cov(X.T))).T
    W = draw(3, 8)
    np.testing.assert_allclose(haufe_patterns(X, X @ W.T), dual_basis(W).vectors, atol=1e-10)


def test_the_covariance_within_classes_takes_ldas_direction_to_the_difference_of_means():
    y = np.arange(500) % 2
    X = data() + 2 * y[:, None] * draw(8, seed=5)
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    within = lda.covariance_
    np.testing.assert_allclose(within @ lda.coef_[0], mean_differences(X, y)[:, 0], atol=1e-10)
    assert np.corrcoef(lda.coef_[0], mean_differences(X, y)[:, 0])[0, 1] < 0.95


def test_the_covariance_within_three_classes_takes_the_toolkits_lda_to_the_differences_of_means():
    y = np.arange(501) % 3
    X = data(rows=501) + 2 * draw(3, 8, seed=5)[y]
    probe = LDAProbe(shrinkage=0.0).fit(X, y)
    means = np.stack([X[y == c].mean(0) for c in range(3)])
    within = np.cov((X - means[y]).T, bias=True)
    # directions compare a class with all rows, differences of means with the other rows: a factor of 1 - 1/3
    np.testing.assert_allclose(within @ probe.directions_.T, mean_differences(X, y) * (2 / 3), atol=1e-8)
    # the premise: it is the covariance within classes, and unshrunk
    assert np.abs(np.cov(X.T) @ probe.directions_.T - mean_differences(X, y) * (2 / 3)).max() > 0.1
    shrunk = LDAProbe(shrinkage=0.5).fit(X, y).directions_
    assert np.abs(within @ shrunk.T - mean_differences(X, y) * (2 / 3)).max() > 0.1


def test_differences_of_means_by_hand():
    X, y = np.array([[0.0, 0], [2, 0], [0, 3], [0, 5], [8, 8]]), np.array(["a", "a", "b", "b", "c"])
    np.testing.assert_allclose(mean_differences(X, y).T, [[1 - 8 / 3, -16 / 3], [-10 / 3, 4 - 8 / 3], [7.5, 6]])
    np.testing.assert_allclose(mean_differences(X[:4], y[:4]), [[-1], [4]])


def test_with_more_readouts_than_dimensions_the_pseudo_inverse_moves_them_by_d_over_m_on_average():
    W = draw(12, 8)
    assert np.diag(W @ np.linalg.pinv(W)).mean() == pytest.approx(8 / 12, abs=1e-12)
    flat = draw(12, 5) @ draw(5, 8)  # the premise: full rank
    assert np.diag(flat @ np.linalg.pinv(flat)).mean() == pytest.approx(5 / 12, abs=1e-12)
    with pytest.raises(UserError, match="12 rows in 8 dimensions"):
        dual_basis(W)


def test_independent_rows_without_leakage_give_the_dual():
    W, sigma = draw(5, 8), np.cov(data().T)
    for covariance in (None, sigma):
        exact = dual_basis(W, covariance=covariance).vectors
        for tolerance in (0.0, None):
            found = steering_vectors(W, covariance=covariance, tolerance=tolerance)
            np.testing.assert_allclose(found.vectors, exact, atol=1e-6)
            np.testing.assert_allclose(found.least, 0)


def least_by_bisection(W, i):
    """Least leakage by asking a linear program's solver at each bound whether any vector keeps it."""
    others, low, high = np.delete(W, i, 0), 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        A = np.concatenate([others, -others])
        asked = linprog(
            np.zeros(W.shape[1]), A, np.full(len(A), middle), W[i : i + 1], [1.0], bounds=(None, None), method="highs"
        )
        low, high = (low, middle) if asked.status == 0 else (middle, high)
    return high


def test_the_least_leakage_is_what_bisection_over_feasible_programs_finds():
    W = draw(14, 8)
    found = steering_vectors(W)
    np.testing.assert_allclose(found.least[:, 0], found.least[:, 1], rtol=1e-9)
    np.testing.assert_allclose(found.least[:, 0], [least_by_bisection(W, i) for i in range(14)], atol=1e-6)
    assert (found.least > 0.05).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_every_vector_keeps_its_bound_and_is_proved_the_shortest(weighted):
    W = draw(14, 8)
    sigma = np.cov(data().T) if weighted else None
    tight = steering_vectors(W, covariance=sigma)
    loose = steering_vectors(W, covariance=sigma, tolerance=1.5 * tight.least.max())
    metric = np.eye(8) if sigma is None else np.linalg.inv(sigma)
    lengths = []
    for found in (tight, loose):
        np.testing.assert_allclose(np.diag(found.leakage), 1, atol=1e-12)
        assert (found.largest_leakage <= found.bound * (1 + 1e-6)).all()
        assert np.abs(found.gap).max() < 1e-5
        lengths.append(np.einsum("dm,de,em->m", found.vectors, metric, found.vectors))
    assert (lengths[1] < lengths[0]).all()


def test_without_a_binding_bound_the_probe_vector_itself_is_the_shortest():
    W = draw(14, 8)
    found = steering_vectors(W, tolerance=100.0)
    np.testing.assert_allclose(found.vectors, W.T / np.square(W).sum(1), atol=1e-6)


def test_a_readout_that_no_other_leans_on_keeps_no_leakage_beside_those_that_must():
    W = np.zeros((5, 4))
    W[:4, :3] = draw(4, 3)
    W[4, 3] = 2.0
    found = steering_vectors(W)
    assert found.least[4].max() == 0
    np.testing.assert_allclose(found.vectors[:, 4], [0, 0, 0, 0.5], atol=1e-6)
    assert (found.least[:4] > 0.01).all()


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.5, None])
def test_bounds_hold_beside_two_rows_that_are_nearly_one(tolerance):
    W = draw(6, 8)
    W[1] = W[0] + 1e-6 * draw(8, seed=3)
    found = steering_vectors(W, tolerance=tolerance)
    exact = dual_basis(W, largest=1e8).vectors
    rounding = 1e-14 * np.linalg.norm(W, axis=1).max() * np.linalg.norm(found.vectors, axis=0)
    assert (found.largest_leakage <= found.bound * (1 + 1e-6) + rounding).all()
    np.testing.assert_allclose(np.diag(found.leakage), 1, rtol=1e-9)
    assert np.abs(found.gap).max() < 1e-4
    # the other half of the pair binds alone, so 1 - bound of the dual's length is the shortest
    shorter = 1 - found.bound[:2]
    lengths = np.linalg.norm(found.vectors[:, :2], axis=0) / np.linalg.norm(exact[:, :2], axis=0)
    np.testing.assert_allclose(lengths, shorter, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e4, 1e8])
def test_the_unit_of_the_readouts_does_not_matter(scale):
    W = draw(14, 8)
    for tolerance in (2.0, 1.0, None):
        one, other = (steering_vectors(a * W, tolerance=tolerance) for a in (1.0, scale))
        np.testing.assert_allclose(scale * other.vectors, one.vectors, rtol=1e-6, atol=1e-8)
        assert np.abs(other.gap).max() < 1e-5
        np.testing.assert_allclose(other.least, one.least, rtol=1e-6)


def test_rows_of_unlike_lengths_keep_the_bounds_in_their_own_units():
    W = draw(6, 8) * np.array([[1e-3], [1e-2], [1], [10], [1e2], [1e3]])
    found = steering_vectors(W, tolerance=0.1)
    assert (found.largest_leakage <= 0.1 * (1 + 1e-6)).all()
    assert np.abs(found.gap).max() < 1e-5
    lengths = np.linalg.norm(found.vectors, axis=0)
    assert (lengths <= np.linalg.norm(dual_basis(W).vectors, axis=0) * (1 + 1e-9)).all()


def test_what_the_solver_leaves_unfinished_is_mended_or_refused(monkeypatch):
    W = draw(14, 8)
    exact = steering_vectors(W, tolerance=1.0)

    solved = steering_program._solved

    def stalled(own, others, bounds):
        """Half way, with multipliers that prove little."""
        u, lift = solved(own, others, bounds)
        return u + 0.2 * draw(8), 0.5 * lift

    monkeypatch.setattr(steering_program, "_solved", stalled)
    mended = steering_vectors(W, tolerance=1.0)
    np.testing.assert_allclose(mended.vectors, exact.vectors, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(steering_program, "_GUESSES", 0)
    with pytest.raises(UserError, match="row 0 of W: no vector could be proved to keep its bound"):
        steering_vectors(W, tolerance=1.0)


def test_results_compare_by_identity():
    for found in (dual_basis(draw(3, 8)), steering_vectors(draw(3, 8))):
        assert found == found
        assert found != dual_basis(draw(3, 8))
        assert len({found}) == 1


def test_tensors_with_gradients_and_of_half_precision_are_taken():
    W, X = torch.tensor(draw(3, 8), requires_grad=True), torch.tensor(data(), requires_grad=True)
    plain, rows, y = W.detach().numpy(), X.detach().numpy(), np.arange(500) % 2
    sigma = X.mT @ X / 500
    np.testing.assert_array_equal(dual_basis(W).vectors, dual_basis(plain).vectors)
    weighted = dual_basis(plain, covariance=sigma.detach().numpy()).vectors
    np.testing.assert_array_equal(dual_basis(W, covariance=sigma).vectors, weighted)
    np.testing.assert_array_equal(steering_vectors(W).vectors, steering_vectors(plain).vectors)
    np.testing.assert_allclose(haufe_patterns(X, X @ W.mT), haufe_patterns(rows, rows @ plain.T), atol=1e-12)
    np.testing.assert_array_equal(mean_differences(X, torch.tensor(y)), mean_differences(rows, y))
    half = W.bfloat16()
    np.testing.assert_array_equal(dual_basis(half).vectors, dual_basis(half.detach().float().numpy()).vectors)


def test_a_ridge_takes_nearly_dependent_rows_that_are_refused_without():
    W = draw(3, 8)
    W[2] = W[1] + 1e-9 * draw(8, seed=3)
    with pytest.raises(UserError, match="nearly dependent"):
        dual_basis(W)
    found = dual_basis(W, ridge=1e-3)
    assert found.condition > 1e8
    assert np.abs(found.vectors).max() < 10
    np.testing.assert_allclose((W @ found.vectors)[0, 0], 1, atol=0.01)


def test_the_square_root_of_a_covariance_squares_to_it_even_where_it_is_singular():
    sigma = np.cov(data(rows=5).T)
    np.testing.assert_allclose(square_root(sigma, 8) @ square_root(sigma, 8), sigma, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dual_basis(np.zeros((2, 4))), "row 0 of W reads nothing"),
        (lambda: dual_basis(draw(2, 4), ridge=-1.0), "ridge=-1.0"),
        (lambda: dual_basis(np.full((2, 4), np.nan)), "W holds NaN"),
        (lambda: dual_basis(draw(2, 4), covariance=np.eye(3)), "expected \\(4, 4\\)"),
        (lambda: dual_basis(draw(2, 2), covariance=np.array([[1.0, 2], [0, 1]])), "not symmetric"),
        (lambda: dual_basis(draw(2, 2), covariance=-np.eye(2)), "not positive semi-definite"),
        (lambda: dual_basis(np.eye(2), covariance=np.diag([1.0, 0])), "row 1 of W reads nothing"),
        (lambda: steering_vectors(draw(14, 8), tolerance=0.01), "its least leakage is"),
        (lambda: steering_vectors(draw(14, 8), tolerance=-1.0), "tolerance=-1.0"),
        (lambda: haufe_patterns(draw(9, 4), draw(8, 2)), "9 rows and the readouts 8"),
        (lambda: haufe_patterns(draw(9, 4), np.ones((9, 1))), "readout 0 is constant"),
        (lambda: haufe_patterns(draw(9, 4), draw(9, 1)[:, [0, 0]]), "depend on one another"),
        (lambda: mean_differences(draw(9, 4), np.zeros(9)), "one class only"),
        (lambda: mean_differences(draw(9, 4), np.zeros(8)), "one label for each of 9 rows"),
        (lambda: mean_differences(draw(9, 4), np.array([0.0, 1, np.nan] * 3)), "y lacks a label for row 2"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
