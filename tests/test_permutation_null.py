"""Nulls of probes: equal to fits one by one, uniform where nothing is there, small where something is."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from toolkit.errors import UserError
from toolkit.label_permutations import permuted_rows
from toolkit.permutation_null import permutation_null
from toolkit.probe_inputs import blind_folds, probe_rows
from toolkit.probes import LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe

PROBES = [LinearProbe(l2=0.01), LinearProbe(loss="squared", l2=0.01), LowRankProbe(1, l2=0.01, tolerance=1e-8),
          MeanDifferenceProbe(), LDAProbe(shrinkage=0.1)]  # fmt: skip


def world(signal, *, documents=30, length=6, d=5, classes=2, seed=0):
    """Rows that are alike within a document, and labels that `signal` shifts them by."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(documents), length)
    y = draw.integers(0, classes, len(groups))
    X = draw.standard_normal((documents, d))[groups] + draw.standard_normal((len(groups), d))
    X[:, 0] += signal * y
    return X, y, groups


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_all_at_once_is_one_by_one(probe, classes):
    X, y, groups = world(1.0, classes=classes)
    found = permutation_null(probe, X, y, scheme="shift", groups=groups, n=5, score="log_likelihood")
    source = permuted_rows(y, scheme="shift", groups=groups, n=5, seed=0)
    fold_of = blind_folds(probe_rows(X, y, None, groups), 3, seed=0)
    for column, score in zip([y, *y[source].T], [found.observed, *found.null], strict=True):
        total = 0.0
        for fold in range(3):
            away = fold_of == fold
            fitted = clone(probe).fit(X[~away], column[~away])
            total += fitted.predict_log_proba(X[away])[np.arange(away.sum()), column[away]].sum()
        assert score == pytest.approx(total / len(y), abs=1e-6)


def test_a_linear_probes_null_is_scikit_learns():
    X, y, _ = world(1.0)
    found = permutation_null(LinearProbe(l2=0.01), X, y, scheme="iid", n=3, score="log_likelihood")
    source = permuted_rows(y, scheme="iid", n=3, seed=0)
    fold_of = blind_folds(probe_rows(X, y), 3, seed=0)
    for column, score in zip(y[source].T, found.null, strict=True):
        total = 0.0
        for fold in range(3):
            away = fold_of == fold
            scaler = StandardScaler().fit(X[~away])
            theirs = LogisticRegression(C=1 / (0.01 * (~away).sum()), tol=1e-10, max_iter=5000)
            theirs.fit(scaler.transform(X[~away]), column[~away])
            total += theirs.predict_log_proba(scaler.transform(X[away]))[np.arange(away.sum()), column[away]].sum()
        assert score == pytest.approx(total / len(y), abs=1e-5)


def test_a_penalty_that_is_chosen_is_chosen_for_each_permutation():
    X, y, groups = world(2.0, documents=120)
    found = permutation_null(LinearProbe(), X, y, groups=groups, n=4, score="log_likelihood", scheme="documents")
    fixed = [permutation_null(LinearProbe(l2=l2), X, y, groups=groups, n=4, score="log_likelihood") for l2 in (0.01, 1)]
    assert found.observed > fixed[1].observed
    assert found.null.mean() > fixed[0].null.mean()


def test_a_planted_feature_is_found_and_a_hidden_layer_has_a_null_too():
    X, y, groups = world(2.0)
    for probe in (LinearProbe(l2=0.01), MLPProbe(4, l2=0.01, max_steps=30)):
        assert permutation_null(probe, X, y, groups=groups, n=39).p == pytest.approx(1 / 40)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["iid", "documents", "shift"])
def test_p_values_are_uniform_where_labels_say_nothing(scheme):
    found = []
    for seed in range(150):
        X, y, groups = world(0.0, seed=seed)
        null = permutation_null(MeanDifferenceProbe(), X, y, scheme=scheme, groups=groups, n=59,
                                score="log_likelihood", seed=seed)  # fmt: skip
        found.append(null.p)
    # p takes the values 1/60 ... 1; the shift to the middle of each step makes it comparable to a continuum
    assert kstest(np.array(found) - 0.5 / 60, "uniform").pvalue > 0.01


@pytest.mark.slow
def test_iid_permutations_find_too_much_where_documents_have_one_label_each():
    """The control: labels of documents, rows alike within them. Exchanging whole documents is right there."""
    rejected = {"iid": 0, "documents": 0}
    for seed in range(100):
        draw = np.random.default_rng(seed)
        groups = np.repeat(np.arange(20), 40)
        y = draw.permutation(np.arange(20) % 2)[groups]
        X = draw.standard_normal((20, 3))[groups] + 0.2 * draw.standard_normal((800, 3))
        for scheme in rejected:
            null = permutation_null(MeanDifferenceProbe(), X, y, scheme=scheme, groups=groups, n=39, seed=seed)
            rejected[scheme] += null.p <= 0.1
    # of a test that rejects in 10 of 100 at most, 18 or more have a chance of 1%
    assert rejected["documents"] < 18 <= rejected["iid"]


def test_what_makes_no_sense_is_refused_in_one_line():
    X, y, groups = world(1.0)
    for call, message in [
        (lambda: permutation_null(LinearProbe(l2=0.1), X, y, groups=groups, score="auc"), "unknown score 'auc'"),
        (lambda: permutation_null(LinearProbe(l2=0.1), X, y, n=3), "scheme='documents' needs groups"),
        (lambda: permutation_null(LinearProbe(l2=0.1), X, y[:5], groups=groups), "y has shape"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
