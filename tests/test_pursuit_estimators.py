"""OMP, Lasso and BasisPursuit as scikit-learn estimators, and the certificates they hand out."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_pursuit import D, N, atoms, peak, rows

from toolkit import homotopy, lasso_kernels
from toolkit.errors import UserError
from toolkit.pursuit import OMP, BasisPursuit, Lasso

ROOT = Path(__file__).parents[1]
KINDS = [OMP, Lasso, BasisPursuit]
every_kind = pytest.mark.parametrize("kind", KINDS)


@parametrize_with_checks([kind(positive=positive) for kind in KINDS for positive in (False, True)])
def test_scikit_learns_checks_pass(estimator, check):
    check(estimator)


@every_kind
def test_settings_are_kept_cloned_and_set(kind):
    A = atoms("random")
    coder = kind(A, positive=True)
    assert coder.get_params()["dictionary"] is A
    twin = clone(coder)
    assert twin.get_params()["positive"]
    assert twin.set_params(positive=False).positive is False
    assert coder.positive


@every_kind
def test_a_dictionary_that_was_given_needs_no_fit(kind):
    A, X = atoms("random"), rows()
    coder = kind(A)
    codes = coder.transform(X)
    assert isinstance(codes, sparse.csr_array)
    assert codes.shape == (len(X), N)
    assert abs(codes - kind(A).fit(X).transform(X)).max() == 0
    np.testing.assert_allclose(coder.inverse_transform(codes), codes @ A)
    with pytest.raises(NotFittedError):
        kind().transform(X)


@every_kind
def test_without_a_dictionary_the_fitted_rows_serve_at_norm_one(kind):
    X = rows()
    X[3] = 0
    coder = kind().fit(X)
    assert coder.components_.shape == (len(X) - 1, D)
    np.testing.assert_allclose(np.linalg.norm(coder.components_, axis=1), 1)
    assert coder.get_feature_names_out()[0] == f"{kind.__name__.lower()}0"
    with pytest.raises(UserError, match="every row of X is zero"):
        kind().fit(0 * X)


@every_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_have_the_type_of_the_rows_and_fit_a_pipeline(kind, dtype):
    X = rows().astype(dtype)
    assert kind(atoms("random")).fit_transform(X).dtype == dtype
    line = make_pipeline(StandardScaler(), kind(atoms("random").astype(dtype)))
    assert line.fit(X).transform(X).shape == (len(X), N)
    with pytest.raises(ValueError, match="sparse"):
        kind(atoms("random")).set_output(transform="pandas").fit_transform(X)


def test_a_path_is_what_separate_solves_find():
    A, X = atoms("random"), rows()
    alphas = [share * peak(X, A) for share in (0.05, 0.8, 0.2)]
    coder = Lasso(A, tol=1e-9)
    path = coder.path(X, alphas)
    assert list(path) == sorted(alphas, reverse=True)
    for alpha, codes in path.items():
        alone = Lasso(A, alpha=alpha, tol=1e-9).transform(X)
        np.testing.assert_allclose(codes.toarray(), alone.toarray(), atol=1e-4)
    with pytest.raises(UserError, match="alpha=0"):
        coder.path(X, [0.1, 0])


@every_kind
@pytest.mark.parametrize("positive", [False, True])
def test_encode_certifies_what_transform_returns(kind, positive):
    A, X = atoms("random"), np.abs(np.random.default_rng(2).normal(size=(8, N)))
    X = X @ A
    coder = kind(A, positive=positive)
    found = coder.encode(X)
    assert abs(found.codes - coder.transform(X)).max() == 0
    np.testing.assert_allclose(found.residual, np.linalg.norm(X - found.codes @ A, axis=1) / np.linalg.norm(X, axis=1))
    assert len(found.unsettled) == 0
    assert (found.gap is None) == (kind is OMP)
    assert found.gap is None or np.abs(found.gap).max() <= found.tolerance
    assert "coherence" in str(found)
    assert not positive or found.codes.data.min() > 0


@every_kind
@pytest.mark.parametrize("positive", [False, True])
def test_encode_takes_the_smallest_problems_there_are(kind, positive):
    found = kind(np.array([[2.0]]), positive=positive).encode(np.array([[1.0]]))
    assert found.codes.toarray()[0, 0] == pytest.approx(0.5, abs=0.03)
    found = kind(atoms("random"), positive=positive).encode(np.zeros((1, D)))
    assert found.codes.nnz == 0
    assert found.residual[0] == 0
    assert len(found.unsettled) == 0
    assert str(found)


@pytest.mark.parametrize("positive", [False, True])
def test_basis_pursuit_lists_rows_outside_the_span(positive):
    A = atoms("random")
    A[:, 0] = 0
    X = np.abs(np.random.default_rng(2).normal(size=(4, N))) @ A
    X[[1, 3], 0] = 1
    assert BasisPursuit(A, positive=positive).encode(X).unsettled.tolist() == [1, 3]


def test_whole_numbers_whose_events_coincide_are_encoded():
    """A wrong turn at a tie once left negative coefficients in a non-negative code."""
    rng = np.random.default_rng(0)
    A = rng.integers(-1, 2, (12, 4)).astype(float)
    A = A[A.any(1)]
    X = (rng.integers(0, 3, (40, len(A))) @ A).astype(float)
    for positive in (False, True):
        found = BasisPursuit(A, positive=positive).encode(X)
        assert len(found.unsettled) == 0
        assert np.abs(found.gap).max() <= 1e-8


def test_a_gap_that_float32_codes_cannot_show_is_reported():
    A, X = atoms("random").astype(np.float32), rows().astype(np.float32)
    found = Lasso(A, alpha=0.01 * peak(X, A), tol=1e-9).encode(X)
    assert len(found.unsettled) > 0
    assert found.unsettled.tolist() == np.flatnonzero(found.gap > 1e-9).tolist()
    assert found.gap.max() < 1e-4
    fine = Lasso(A, alpha=0.01 * peak(X, A), tol=1e-9).encode(X.astype(np.float64))
    assert len(fine.unsettled) == 0


def give_up(module, name, monkeypatch, place):
    """Let a compiled solver give up the first row of each block."""
    solve = getattr(module, name)

    def hard(*given):
        solve(*given)
        given[place][:1] = -1

    monkeypatch.setattr(module, name, hard)


@pytest.mark.parametrize("coder", [Lasso(atoms("random")), BasisPursuit(atoms("random"))], ids=["lasso", "pursuit"])
def test_a_row_given_up_for_good_is_reported(coder, monkeypatch):
    X = rows()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coder.transform(X)
    give_up(lasso_kernels, "lasso", monkeypatch, -1)
    give_up(homotopy, "follow", monkeypatch, -2)
    with pytest.warns(ConvergenceWarning, match=r"1 rows are above tolerance, first \[0\]; `encode` says"):
        codes = coder.transform(X)
    assert codes[[0]].nnz == 0
    assert codes[[1]].nnz > 0
    found = coder.encode(X)
    assert found.unsettled.tolist() == [0]
    assert "1 rows above" in str(found)


@pytest.mark.parametrize(
    ("coder", "message"),
    [
        (OMP(atoms("random"), n_nonzero=0), "n_nonzero=0 for 40 atoms: expected a whole number from 1 to 40"),
        (OMP(atoms("random"), n_nonzero=41), "n_nonzero=41"),
        (OMP(atoms("random"), n_nonzero=1.5), "n_nonzero=1.5"),
        (Lasso(atoms("random"), alpha=0), "alpha=0: expected a finite number above 0"),
        (Lasso(atoms("random"), alpha=np.nan), "alpha=nan"),
        (Lasso(atoms("random"), alpha=np.inf), "alpha=inf"),
        (Lasso(atoms("random"), tol=0), "tol=0"),
        (Lasso(atoms("random"), tol=1.5), "tol=1.5"),
        (BasisPursuit(atoms("random"), tol=-1e-3), "tol=-0.001"),
        (OMP(atoms("random", d=D + 1)), "X has 16 columns and the dictionary's atoms have 17"),
        (OMP(atoms("random")[0]), "dictionary has shape"),
        (OMP(np.zeros((3, D))), "atom 0 of the dictionary is zero"),
        (OMP(atoms("random") * np.nan), "dictionary holds NaN or infinity, first in row 0"),
        *((kind(atoms("random"), device="tpu"), "device='tpu': expected 'cpu' or 'cuda'") for kind in KINDS),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(coder, message):
    for call in (coder.fit, coder.transform, coder.encode):
        with pytest.raises(UserError, match=message) as error:
            call(rows())
        assert "\n" not in str(error.value)


STREAM = """
import resource
import numpy as np
from toolkit.pursuit import OMP, Lasso
rng = np.random.default_rng(0)
A = rng.normal(size=(2048, 128)).astype(np.float32)
A /= np.linalg.norm(A, axis=1, keepdims=True)
X = rng.normal(size=(20_000, 128)).astype(np.float32)
OMP(A, n_nonzero=8).transform(X[:200]), Lasso(A, alpha=2.0, tol=1e-2).transform(X[:200])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
OMP(A, n_nonzero=8).transform(X), Lasso(A, alpha=2.0, tol=1e-2).transform(X)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_memory_stays_at_a_block_beside_rows_atoms_and_codes():
    """A block is 64 MiB, its scratch as much again for the lasso; dense codes would take 164 MB."""
    done = subprocess.run([sys.executable, "-c", STREAM], check=True, cwd=ROOT, capture_output=True, text=True)
    assert float(done.stdout) < 150


def test_a_path_takes_numbers_in_any_form_and_refuses_what_is_none():
    solver = Lasso(np.eye(3), alpha=0.1)
    assert list(solver.path(np.ones((2, 3)), torch.tensor([0.25, 0.5]))) == [0.5, 0.25]
    assert list(solver.path(np.ones((2, 3)), 0.5)) == [0.5]
    with pytest.raises(UserError, match="alphas must hold real numbers"):
        solver.path(np.ones((2, 3)), [0.1, "x"])
