"""Nulls of probes: equal to fits one by one, uniform where nothing is there, small where something is."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from toolkit import heads, held_out
from toolkit.errors import UserError
from toolkit.held_out import held_out_scores, label_blocks
from toolkit.label_permutations import permuted_rows
from toolkit.permutation_null import permutation_null
from toolkit.probe_base import GRID
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


def of_documents(seed, *, lengths, signal=0.0, documents=40):
    """Each document has one label, and its length by it: `lengths` for labels 0 and 1."""
    draw = np.random.default_rng(seed)
    label = draw.permutation(np.arange(documents) % 2)
    groups = np.repeat(np.arange(documents), np.array(lengths)[label])
    X = draw.standard_normal((documents, 5))[groups] + draw.standard_normal((len(groups), 5))
    X[:, 0] += signal * label[groups]
    return X, label[groups], groups


@pytest.mark.parametrize("score", ["accuracy", "log_likelihood"])
@pytest.mark.parametrize("lengths", [(2, 10), (5, 7)])
def test_noise_is_not_found_where_a_documents_length_tells_its_label(lengths, score):
    """Stated before looking: of 60 tests at .05, 8 or more reject with a chance below 2%; raw scores, the control."""
    how = {"n": 39, "score": score}
    found = [permutation_null(MeanDifferenceProbe(), X, y, groups=g, seed=s, **how)
             for s in range(60) for X, y, g in [of_documents(s, lengths=lengths)]]  # fmt: skip
    assert sum(f.p <= 0.05 for f in found) < 8
    raw = sum((1 + (f.null >= f.observed).sum()) / 40 <= 0.05 for f in found)
    assert raw == 60 or lengths == (5, 7)
    if lengths == (2, 10) and score == "accuracy":
        return  # no power: 5 of 6 rows are right without looking, and permutations scatter by as much as is left
    real = [permutation_null(MeanDifferenceProbe(), X, y, groups=g, seed=s, **how)
            for s in range(10) for X, y, g in [of_documents(s, lengths=lengths, signal=8.0)]]  # fmt: skip
    assert all(f.p <= 0.05 for f in real)


def test_baselines_are_what_the_base_rate_of_the_other_folds_scores():
    X, y, groups = of_documents(0, lengths=(2, 10))
    found = permutation_null(MeanDifferenceProbe(), X, y, groups=groups, n=3, score="log_likelihood")
    labels = y[np.concatenate([np.arange(len(y))[:, None], permuted_rows(y, scheme="documents", groups=groups, n=3,
                                                                         seed=0)], 1)]  # fmt: skip
    fold_of = blind_folds(probe_rows(X, y, None, groups), 3, seed=0)
    for column, base in zip(labels.T, [found.observed_baseline, *found.null_baselines], strict=True):
        share = np.array([column[fold_of != fold].mean() for fold in fold_of])
        assert base == pytest.approx(np.log(np.where(column == 1, share, 1 - share)).mean())
    X, y, groups = world(0.0)
    even = permutation_null(MeanDifferenceProbe(), X, y, scheme="iid", groups=groups, n=3)
    assert (even.observed_baseline, even.null_baselines.tolist()) == (0.0, [0.0] * 3)


@pytest.mark.parametrize("probe", [MeanDifferenceProbe(), LinearProbe(l2=0.1), LDAProbe(), LowRankProbe(1, l2=0.1)],
                         ids=str)  # fmt: skip
def test_a_rare_class_that_a_fold_lacks_is_an_escape_and_no_refusal(probe):
    X, y, groups = world(1.0, classes=2, documents=20, length=3)
    y = np.where(np.arange(len(y)) < 3, 2, y)
    found = permutation_null(probe, X, y, scheme="iid", groups=groups, n=20, score="log_likelihood")
    data = probe_rows(X, y, None, groups)
    fold_of = blind_folds(data, 3, seed=0)
    alone = fold_of == fold_of[0]  # the first document is the class
    rows = held_out_scores(probe, data, y[:, None], fold_of, score="log_likelihood")[:, 0]
    np.testing.assert_allclose(rows[:3], -np.log(3 * (1 + (~alone).sum())))
    assert found.observed == pytest.approx(rows.mean())
    assert np.isfinite(found.null).all()
    assert permutation_null(probe, X, y, scheme="iid", groups=groups, n=20).null.max() <= 1


@pytest.mark.parametrize("probe", [MLPProbe(32, l2=0.1), LinearProbe(l2=0.1), LinearProbe()], ids=str)
def test_blocks_of_columns_keep_parameters_and_logits_in_bounds(probe, monkeypatch):
    monkeypatch.setattr(held_out, "_AT_ONCE", 1 << 20)
    X = np.random.default_rng(0).standard_normal((300, 40))
    data = probe_rows(X, np.arange(300) % 2)
    blocks = list(label_blocks(probe, data, np.zeros((300, 1000), int)))
    assert sum(block.shape[1] for block in blocks) == 1000
    # by hand: 50 numbers for each of 32 * 40 + 32 + 32 + 1 or 41 parameters, or 8 for each of 300 logits
    each = {"MLPProbe": 50 * 1345, "LinearProbe": 2400 * (len(GRID) if probe.l2 is None else 1)}[type(probe).__name__]
    assert (max(block.shape[1] for block in blocks) - 1) * each <= 1 << 20
    assert len(blocks) <= -(-1000 * each // (1 << 20))


def test_a_networks_logits_are_the_same_in_blocks_of_rows(monkeypatch):
    X, y, _ = world(1.0)
    probe = MLPProbe(4, l2=0.1).fit(X, y)
    whole = probe.decision_function(X)
    monkeypatch.setattr(heads, "_ELEMENTS", 4 * 7)
    np.testing.assert_allclose(probe.decision_function(X), whole, atol=1e-12)


def test_results_can_be_compared():
    X, y, groups = world(1.0)
    one, two = (permutation_null(MeanDifferenceProbe(), X, y, groups=groups, n=3) for _ in range(2))
    assert one != two  # results are themselves, not their numbers


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
