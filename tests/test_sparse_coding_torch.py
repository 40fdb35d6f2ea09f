"""Sparse coding on torch against the CPU's solvers, known solutions, certificates and a linear program.

On the CPU's torch, where nothing but the device differs; the CUDA run itself is the last test.
"""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import linprog

from toolkit import homotopy_torch, pursuit_torch, sparse_coding, sparse_coding_torch
from toolkit.atoms_torch import as_atoms
from toolkit.certificates import equality_gaps, fuchs, lasso_gaps
from toolkit.errors import UserError
from toolkit.pursuit import OMP, BasisPursuit, Lasso
from toolkit.sparse_coding_torch import basis_pursuit_codes, lasso_codes, omp_codes

NAMES = ("random", "coherent", "twins", "deficient", "few")
TYPES = (np.float64, np.float32)
ROUNDING = {np.float64: 1e-9, np.float32: 1e-4}
"""Bar on differences of rows rebuilt by OMP; rows have norm 3.5 and the dictionaries' supports condition up to 1e4."""


def unit(A):
    return A / np.linalg.norm(A, axis=1, keepdims=True)


def dictionary(name, d=12):
    rng = np.random.default_rng(7)
    if name == "random":
        return unit(rng.normal(size=(40, d)))
    if name == "coherent":
        return unit(0.3 * rng.normal(size=(40, d)) + 1)
    if name == "twins":
        return np.repeat(unit(rng.normal(size=(20, d))), 2, axis=0)
    if name == "deficient":
        return rng.normal(size=(40, 5)) @ rng.normal(size=(5, d))
    return rng.normal(size=(6, d))


def rows_for(D, dtype, count=30):
    """Gaussian rows, a zero row, an atom itself, a combination of two."""
    X = np.random.default_rng(8).normal(size=(count, D.shape[1]))
    X[3], X[4], X[5] = 0, 2 * D[2], D[1] - 3 * D[3]
    return X.astype(dtype)


@pytest.fixture
def alone(monkeypatch):
    """No row is left to the CPU's solvers."""
    monkeypatch.setattr(sparse_coding_torch, "sparse_coding", None)


def support(codes, name):
    """Which atoms are in use, a twin standing for its pair."""
    used = codes.toarray() != 0
    return used.reshape(len(used), -1, 2).any(2) if name == "twins" else used


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_omp_finds_the_supports_of_the_cpu(name, dtype, positive):
    D = dictionary(name)
    X = rows_for(D, dtype)
    for k in sorted({1, 4, min(15, len(D))}):  # 15 atoms are more than the 12 dimensions
        ours = omp_codes(X, D, k, positive=positive, device="cpu").codes
        theirs = sparse_coding.omp_codes(X, D, k, positive=positive).codes
        assert ours.dtype == dtype
        assert (support(ours, name) == support(theirs, name)).all(), k
        assert abs((ours - theirs) @ D).max() < ROUNDING[dtype]
        assert not positive or (ours.data > 0).all()


def test_omp_is_the_textbooks():
    D = dictionary("random")
    X = rows_for(D, np.float64)
    codes = omp_codes(X, D, 5, device="cpu").codes.toarray()
    for x, code in zip(X, codes, strict=True):
        chosen, residual, z = [], x, np.empty(0)
        while len(chosen) < 5 and np.linalg.norm(residual) > 1e-9:
            chosen.append(int(np.abs(D @ residual).argmax()))
            z = np.linalg.lstsq(D[chosen].T, x)[0]
            residual = x - D[chosen].T @ z
        assert set(np.flatnonzero(code)) == set(chosen)
        np.testing.assert_allclose(code[chosen], z, atol=1e-10)


def test_non_negative_omp_lets_atoms_leave_and_meets_the_optimality_conditions():
    D = dictionary("coherent")
    X = rows_for(D, np.float64)
    codes = omp_codes(X, D, 6, positive=True, device="cpu").codes.toarray()
    on = codes > 0
    products = (X - codes @ D) @ D.T
    assert abs(products[on]).max() < 1e-10
    plain = omp_codes(X, D, 6, device="cpu").codes.toarray()
    assert (plain < 0).any()


def test_non_negative_least_squares_says_which_atoms_are_dependent():
    D = torch.tensor(np.vstack([np.eye(3), [[1, 1, 0], [0, 0, 0]]]))  # the last one is the empty place
    c = torch.tensor([[2.0, 1, 0, 3, 0], [2, 1, 0, 3, 0], [2, -1, 0, 1, 0]])
    chosen, z = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 1, 4]]), torch.tensor([[1.0, 1, 0], [0, 0, 0], [1, 1, 0]])
    left, refitted, dependent = pursuit_torch._stay_positive(D @ D.T, c, chosen, z.double())
    assert dependent.tolist() == [True, False, False]
    assert left.tolist() == [[0, 1, 3], [0, 1, 4], [0, 4, 4]]
    np.testing.assert_allclose(refitted, [[1, 1, 0], [2, 1, 0], [2, 0, 0]], atol=1e-12)


def test_what_float32_cannot_decide_is_decided_in_float64():
    D = np.eye(6)
    X = np.array([[1, 1 + 1e-9, 0, 0, 0, 0.1], [1, 0.5, 0, 0, 0, 0.1]])
    gram, noise = torch.eye(6), torch.full((2,), 1e-6)
    found = pursuit_torch.omp(torch.tensor(X).float(), gram, 1, noise, 0 * noise, 1e-12)
    assert found.undecided.tolist() == [0]
    assert found.values.tolist() == [[0.0], [1.0]]
    steep = torch.tensor(unit(np.vstack([D[0] + 0.01 * D[1], D[0], D[2]])))  # 1e-4 of an atom outside the other's span
    c = (torch.tensor(D[:1] + 0.5 * D[1:2]) @ steep.T).float()
    for doubt, undecided in ((1e-6, [0]), (0.0, [])):
        noise = torch.tensor([doubt])
        found = pursuit_torch.omp(c.clone(), (steep @ steep.T).float(), 2, noise, 0 * noise, 1e-12)
        assert found.undecided.tolist() == undecided
    near = unit(np.vstack([D[0] + 1e-3 * D[1], D[0], D[2]])).astype(np.float32)
    row = near[:1] + near[1:2]
    ours, theirs = omp_codes(row, near, 3, device="cpu"), sparse_coding.omp_codes(row, near, 3)
    assert (support(ours.codes, "") == support(theirs.codes, "")).all()


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_lasso_is_certified_and_reaches_the_cpus_objective(name, dtype, positive, alone):
    D = dictionary(name)
    X = rows_for(D, dtype)
    atoms = D.astype(dtype)
    for alpha in (0.05, 0.5):
        solved = lasso_codes(X, D, alpha, positive=positive, device="cpu")
        theirs = sparse_coding.lasso_codes(X, D, alpha, tolerance=1e-8, positive=positive)
        ours = lasso_gaps(X, solved.codes, atoms, alpha, positive=positive)
        assert solved.codes.dtype == dtype
        assert len(solved.given_up) == 0
        assert ours.relative.max() < (1e-9 if dtype == np.float64 else 1e-4)
        objective = lasso_gaps(X, theirs.codes, atoms, alpha, positive=positive).objective
        np.testing.assert_allclose(ours.objective, objective, rtol=2e-8)
        if name in ("random", "coherent", "few"):  # elsewhere solutions are not unique
            assert abs(solved.codes - theirs.codes).max() < 1e-4


def test_on_orthonormal_atoms_the_lasso_is_a_soft_threshold_and_empty_from_the_largest_product_on(alone):
    D = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    X = rows_for(D, np.float64)
    c = X @ D.T
    codes = lasso_codes(X, D, 0.4, device="cpu").codes.toarray()
    np.testing.assert_allclose(codes, np.sign(c) * np.maximum(np.abs(c) - 0.4, 0), atol=1e-12)
    assert lasso_codes(X, D, np.abs(c).max(), device="cpu").codes.nnz == 0
    assert lasso_codes(X, D, 0.999 * np.abs(c).max(), device="cpu").codes.nnz == 1


@pytest.mark.parametrize("name", ["random", "coherent"])
def test_events_leave_no_rounding_behind(name, alone):
    D = dictionary(name, d=30)
    X = rows_for(D, np.float64)
    codes = lasso_codes(X, D, 1e-4, tolerance=1e-9, device="cpu").codes
    assert lasso_gaps(X, codes, D, 1e-4).relative.max() < 1e-10


def test_a_start_is_taken_where_it_is_a_solution_and_nowhere_else():
    D = dictionary("random")
    X = np.repeat(np.random.default_rng(2).normal(size=(1, 12)), 6, axis=0)
    start = lasso_codes(X, D, 0.4, device="cpu").codes.toarray()
    on = np.flatnonzero(start[0])
    start[1, on[np.abs(start[0, on]).argmax()]] = 0  # an atom that ought to be in
    start[2, np.flatnonzero(start[0] == 0)[0]] = 0.1  # one that ought not
    start[3, on[0]] *= -1
    start[4] = 0
    start[5] = 1  # more than can be independent
    atoms = as_atoms(torch.tensor(D))
    for target, taken in ((0.2, [True] + 5 * [False]), (0.5, 6 * [False])):
        top = homotopy_torch._begin(atoms, torch.tensor(X), target, False)
        begun = homotopy_torch._resume(top, atoms, torch.tensor(start), target, False)
        assert ((begun.active < atoms.n).any(1)).tolist() == taken
        assert (begun.lam < top.lam).tolist() == taken
    assert begun.lam.max() == top.lam.max()


def test_a_start_whose_coefficients_would_change_sign_is_not_taken():
    atoms, x = as_atoms(torch.eye(2)), torch.tensor([[1, 0.3]], dtype=torch.float64)
    for start, lam in (([[0.5, 1e-4]], 1.0), ([[0.75, 0.05]], 0.25)):  # at lam = .4 the second would be -.1
        begun = homotopy_torch._resume(
            homotopy_torch._begin(atoms, x, 0.2, False), atoms, torch.tensor(start), 0.2, False
        )
        assert begun.lam.item() == pytest.approx(lam)


def test_few_atoms_in_many_dimensions_go_by_the_gram_matrix(alone):
    rng = np.random.default_rng(9)
    D, X = unit(rng.normal(size=(170, 140))), rng.normal(size=(5, 140))
    assert 4 * homotopy_torch.FIRST < 140
    atoms, which = as_atoms(torch.tensor(D)), torch.tensor([[3, 170, 8], [0, 1, 2]])
    z = torch.tensor(rng.normal(size=(2, 3)))
    np.testing.assert_allclose(atoms.images(which, z), atoms.products(atoms.sums(which, z)), atol=1e-13)
    codes = lasso_codes(X, D, 2.0, device="cpu").codes
    assert 0 < np.diff(codes.indptr).max() < 24
    assert lasso_gaps(X, codes, D, 2.0).relative.max() < 1e-12


@pytest.mark.parametrize("dtype", TYPES)
def test_a_start_saves_events_and_changes_no_code(dtype, monkeypatch, alone):
    D, events = dictionary("random", d=30), []
    X = rows_for(D, dtype)
    event = homotopy_torch._event
    monkeypatch.setattr(homotopy_torch, "_event", lambda *args: (events.append(1), event(*args)))

    def solve(start):
        events.clear()
        codes = lasso_codes(X, D, 0.02, start=start, device="cpu").codes
        return codes, len(events)

    bar = 1e-9 if dtype == np.float64 else 1e-6
    cold, many = solve(None)
    warm, few = solve(lasso_codes(X, D, 0.03, device="cpu").codes)
    assert few < many / 2
    assert abs(warm - cold).max() < bar
    elsewhere = sparse.random_array(cold.shape, density=0.2, rng=np.random.default_rng(1), format="csr", dtype=dtype)
    unhelped, as_many = solve(elsewhere)
    assert as_many == many
    assert abs(unhelped - cold).max() < bar
    from_below, _ = solve(lasso_codes(X, D, 0.01, device="cpu").codes)
    assert abs(from_below - cold).max() < bar


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_basis_pursuit_reaches_the_cpus_optimum_with_a_certificate(name, dtype, alone):
    D = dictionary(name)
    X = (rows_for(D, np.float64) @ np.linalg.pinv(D) @ D).astype(dtype)  # in the atoms' span
    solved, theirs = basis_pursuit_codes(X, D, device="cpu"), sparse_coding.basis_pursuit_codes(X, D)
    atoms, bar = D.astype(dtype), 1e-8 if dtype == np.float64 else 1e-5
    ours = equality_gaps(X, solved.codes, atoms, dual=solved.dual)
    assert solved.codes.dtype == dtype
    assert len(solved.given_up) == 0
    assert np.abs(solved.dual @ atoms.astype(np.float64).T).max() < 1 + 1e-9
    assert ours.residual.max() < bar
    assert np.abs(ours.relative).max() < bar
    np.testing.assert_allclose(ours.l1, equality_gaps(X, theirs.codes, atoms, dual=theirs.dual).l1, rtol=bar)


@pytest.mark.parametrize("name", ["coherent", "deficient", "few"])
def test_positive_basis_pursuit_in_and_outside_the_cone(name, alone):
    D = dictionary(name)
    inside = np.random.default_rng(3).exponential(size=(10, len(D))) @ D
    solved = basis_pursuit_codes(inside, D, positive=True, device="cpu")
    found = equality_gaps(inside, solved.codes, D, dual=solved.dual, positive=True)
    assert found.residual.max() < 1e-9
    assert np.abs(found.relative).max() < 1e-8
    for x, l1 in zip(inside, found.l1, strict=True):
        assert l1 == pytest.approx(linprog(np.ones(len(D)), A_eq=D.T, b_eq=x).fun, rel=1e-7)
    outside = rows_for(D, np.float64)
    ours, theirs = (
        basis_pursuit_codes(outside, D, positive=True, device="cpu"),
        sparse_coding.basis_pursuit_codes(outside, D, positive=True),
    )
    rebuilt = ours.codes @ D
    assert np.abs(rebuilt - outside).max() > 0.5
    np.testing.assert_allclose(rebuilt, theirs.codes @ D, atol=1e-8)
    np.testing.assert_allclose(ours.codes.sum(1), theirs.codes.sum(1), rtol=1e-7, atol=1e-9)


def test_basis_pursuit_recovers_codes_that_fuchs_condition_vouches_for_and_not_all_others():
    D, rng = unit(np.random.default_rng(4).normal(size=(60, 30))), np.random.default_rng(5)
    planted = np.zeros((60, 60))
    for row in range(60):
        planted[row, rng.choice(60, 1 + row // 4, replace=False)] = rng.choice([-1.0, 1.0], 1 + row // 4)
    vouched = fuchs(sparse.csr_array(planted), D) < 1
    found = basis_pursuit_codes(planted @ D, D, device="cpu").codes.toarray()
    right = np.abs(found - planted).max(1) < 1e-9
    assert vouched.sum() >= 10
    assert right[vouched].all()
    assert not right.all()


def test_supports_longer_than_the_first_room(alone):
    rng = np.random.default_rng(6)
    D, X = unit(rng.normal(size=(150, 70))), rng.normal(size=(5, 70))
    solved = basis_pursuit_codes(X, D, device="cpu")
    assert np.diff(solved.codes.indptr).min() > 2 * homotopy_torch.FIRST
    assert np.abs(equality_gaps(X, solved.codes, D, dual=solved.dual).relative).max() < 1e-8


def test_batches_and_single_rows_give_the_same(monkeypatch):
    D = dictionary("random")
    X = rows_for(D, np.float32)
    solvers = (
        lambda X: omp_codes(X, D, 5, device="cpu"),
        lambda X: omp_codes(X, D, 5, positive=True, device="cpu"),
        lambda X: lasso_codes(X, D, 0.3, start=start[: len(X)], device="cpu"),
        lambda X: basis_pursuit_codes(X, D, device="cpu"),
    )
    start = lasso_codes(X, D, 0.4, device="cpu").codes
    whole = [solve(X) for solve in solvers]
    monkeypatch.setattr(sparse_coding_torch, "MEMORY", 1)
    assert len(sparse_coding_torch._batches(30, 10, "cpu")) == 30
    for solve, one in zip(solvers, whole, strict=True):
        apart, first = solve(X), solve(X[:1])
        assert abs(apart.codes - one.codes).max() < 1e-5
        assert abs(first.codes - one.codes[:1]).max() < 1e-5
        assert one.dual is None or np.abs(apart.dual - one.dual).max() < 1e-9


def test_rows_that_fail_their_certificate_are_solved_on_the_cpu(monkeypatch):
    D, seen = dictionary("random"), []
    X = rows_for(D, np.float64)
    lasso, pursuit = lasso_codes(X, D, 0.1, device="cpu"), basis_pursuit_codes(X, D, device="cpu")
    for name in ("lasso_codes", "basis_pursuit_codes"):
        original = getattr(sparse_coding, name)

        def spied(X, *args, original=original, **kwargs):
            seen.append(X)
            return original(X, *args, **kwargs)

        monkeypatch.setattr(sparse_coding, name, spied)
    for name in ("_lasso_gap", "_pursuit_error"):
        monkeypatch.setattr(sparse_coding_torch, name, lambda x, *_: torch.where(x[:, 0] > 0, torch.nan, 0.0))
    monkeypatch.setattr(sparse_coding_torch, "MEMORY", 7 * (48 * 12**2 + 200 * 40))  # seven rows a batch
    again_lasso, again_pursuit = lasso_codes(X, D, 0.1, device="cpu"), basis_pursuit_codes(X, D, device="cpu")
    assert all((rows == X[X[:, 0] > 0]).all() for rows in seen)
    assert len(seen) == 2
    assert 0 < abs(again_lasso.codes - lasso.codes).max() < 0.01
    assert abs(again_pursuit.codes - pursuit.codes).max() < 1e-9
    assert np.abs(again_pursuit.dual - pursuit.dual).max() < 1e-8


def test_rows_that_take_too_many_events_are_solved_on_the_cpu(monkeypatch):
    rng = np.random.default_rng(6)
    D, X = unit(rng.normal(size=(150, 70))), rng.normal(size=(6, 70))
    X[:3] = D[:3]
    monkeypatch.setattr(homotopy_torch, "EVENTS", -1)  # 30 are left
    atoms = as_atoms(torch.tensor(D))
    arrived, given_up = homotopy_torch.follow(atoms, torch.tensor(X), 0.0, positive=False)
    assert torch.cat([part.row for part in arrived]).tolist() == [0, 1, 2]
    assert given_up.tolist() == [3, 4, 5]
    solved = basis_pursuit_codes(X, D, device="cpu")
    assert np.abs(equality_gaps(X, solved.codes, D, dual=solved.dual).relative).max() < 1e-8
    assert len(solved.given_up) == 0


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (lambda X, D: omp_codes(X, D, 0, device="cpu"), "n_nonzero=0 for 6 atoms"),
        (lambda X, D: omp_codes(X[:, :3], D, 2, device="cpu"), "X has 3 columns and the dictionary's atoms have 12"),
        (lambda X, D: lasso_codes(X, D, 0.0, device="cpu"), "alpha=0.0: expected a finite number above 0"),
        (lambda X, D: lasso_codes(X, D, 0.1, tolerance=2, device="cpu"), "tol=2: expected"),
        (lambda X, D: lasso_codes(X * np.nan, D, 0.1, device="cpu"), "X holds NaN or infinity, first in row 0"),
        (lambda X, D: basis_pursuit_codes(X, 0 * D, device="cpu"), "atom 0 of the dictionary is zero"),
    ],
)
def test_a_mistake_is_one_line(solve, message):
    D = dictionary("few")
    with pytest.raises(UserError, match=message) as caught:
        solve(rows_for(D, np.float64), D)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("coder", [OMP, Lasso, BasisPursuit])
def test_cuda_without_a_device_is_one_line(coder):
    D = dictionary("few")
    with pytest.raises(UserError, match="torch sees no CUDA device here") as caught:
        coder(D, device="cuda").transform(rows_for(D, np.float64))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_cuda_gives_what_the_cpu_gives(name, dtype, positive):
    D = dictionary(name)
    X = rows_for(D, dtype)
    here = omp_codes(X, D, 5, positive=positive).codes
    there = omp_codes(X, D, 5, positive=positive, device="cpu").codes
    assert (support(here, name) == support(there, name)).all()
    assert abs((here - there) @ D).max() < ROUNDING[dtype]
    found = lasso_codes(X, D, 0.1, positive=positive)
    assert lasso_gaps(X, found.codes, D.astype(dtype), 0.1, positive=positive).relative.max() < 1e-4
    ours, theirs = (basis_pursuit_codes(X, D, positive=positive, device=on) for on in ("cuda", "cpu"))
    np.testing.assert_allclose(ours.codes @ D, theirs.codes @ D, atol=1e-5)
    np.testing.assert_allclose(abs(ours.codes).sum(1), abs(theirs.codes).sum(1), rtol=1e-5, atol=1e-6)
