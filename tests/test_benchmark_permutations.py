"""The benchmark of permutations claims a ratio only where every gradient was reached."""

import numpy as np
import pytest

from benchmarks import permutations


@pytest.fixture
def small(monkeypatch):
    for name, value in (("ROWS", 300), ("WIDTH", 20), ("PERMUTATIONS", 30), ("PEER_FITS", 2)):
        monkeypatch.setattr(permutations, name, value)
    return permutations.problem(seed=0)


def test_a_gradient_that_no_tolerance_reaches_has_no_ratio(small):
    found = permutations.until(*small, 0.0)
    assert found.seconds is None
    assert found.largest > 0
    (row,) = permutations.compared(*small, "newton-cholesky")
    assert row[4] == row[6] == permutations.NOT_REACHED


def test_the_largest_of_all_gradients_is_what_must_be_as_small(small):
    X, labels = small
    found = permutations.until(X, labels, 1e-3)
    heads = permutations.ours(X, labels, found.tolerance).heads
    coefficients = heads.coefficients[:, 0].double().numpy().T
    norms = permutations.gradient(X, labels, coefficients, heads.intercepts[:, 0].double().numpy())
    assert found.largest == pytest.approx(norms.max(), rel=1e-3)
    assert norms.max() <= 1e-3
    between = float(np.median(norms) + norms.max()) / 2
    assert permutations.until(X, labels, between).tolerance < found.tolerance


def test_permutation_null_is_timed_beside_three_fits_a_permutation(small, monkeypatch):
    seen = []
    monkeypatch.setattr(permutations, "mean_seconds", lambda call: seen.append(call()) or 2.0)
    monkeypatch.setattr(permutations, "peer", lambda X, labels, solver: (seen.append(len(X)) or 0.5, [1e-2]))
    fits, null = permutations.compared(*small, "lbfgs")
    assert [each for each in seen if isinstance(each, int)] == [300, 200]
    assert len(seen[-1].null) == 29
    assert (fits[0], fits[6]) == ("fits", f"{0.5 * 30 / 2:.0f}")
    assert (null[0], null[6]) == ("permutation_null", f"{0.5 * 3 * 30 / 2:.0f}")
