"""Probes: scikit-learn's conventions, its estimators as oracles, theorems on directions, and what is refused."""

import numpy as np
import pytest
import sklearn
import torch
from scipy.linalg import sqrtm
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from toolkit.errors import UserError
from toolkit.logistic import design, fit_logistic
from toolkit.probe_base import GRID
from toolkit.probe_inputs import folds, probe_rows
from toolkit.probes import LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe
from toolkit.steering import mean_differences

IRIS, CANCER = load_iris(return_X_y=True), load_breast_cancer(return_X_y=True)
EVERY = [LinearProbe(l2=0.01), LinearProbe(loss="squared", l2=0.01), LowRankProbe(l2=0.01),
         MLPProbe(8, l2=0.01), MeanDifferenceProbe(), LDAProbe()]  # fmt: skip
UNEQUAL = "check_sample_weight_equivalence_on_dense_data"


def expected_failures(estimator):
    if isinstance(estimator, MLPProbe):
        return {UNEQUAL: "equal objectives, but rounding sends L-BFGS to another of many minima"}
    if isinstance(estimator, LinearProbe) and estimator.l2 is None:
        return {UNEQUAL: "a penalty cannot be cross-validated where a class has fewer distinct rows than folds"}
    if isinstance(estimator, LinearProbe) and estimator.loss == "squared":
        return {"check_class_weight_classifiers": "class weights are for the logistic loss"}
    return {}


@parametrize_with_checks([LinearProbe(folds=2), *EVERY], expected_failed_checks=expected_failures)
def test_scikit_learns_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.parametrize("data", [IRIS, CANCER], ids=["iris", "cancer"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_linear_probe_is_scikit_learns_logistic_regression_on_standardised_columns(data, class_weight):
    X, y = data
    weights = np.random.default_rng(0).uniform(0.5, 2, len(X))
    scaler = StandardScaler().fit(X, sample_weight=weights)
    probe = LinearProbe(l2=0.01, class_weight=class_weight).fit(X, y, sample_weight=weights)
    # scikit-learn sums over rows, we average: C = 1 / (sum of weights * l2)
    theirs = LogisticRegression(C=1 / (weights.sum() * 0.01), tol=1e-10, max_iter=10_000, class_weight=class_weight)
    theirs.fit(scaler.transform(X), y, sample_weight=weights)
    np.testing.assert_allclose(probe.predict_proba(X), theirs.predict_proba(scaler.transform(X)), atol=1e-5)
    np.testing.assert_allclose(probe.directions_, theirs.coef_ / scaler.scale_, rtol=1e-3, atol=1e-4)


def test_class_weights_by_label_are_weights_of_their_rows():
    X, y = CANCER
    by_class = LinearProbe(l2=0.01, class_weight={0: 3.0}, standardise=False)
    rows = LinearProbe(l2=0.01 / np.where(y == 0, 3.0, 1.0).mean(), standardise=False)
    X = StandardScaler().fit_transform(X)
    rows.fit(X, y, sample_weight=np.where(y == 0, 3.0, 1.0))
    np.testing.assert_allclose(by_class.fit(X, y).directions_, rows.directions_, atol=1e-6)


def test_least_squares_is_scikit_learns_ridge_classifier():
    X, y = CANCER
    Z = StandardScaler().fit_transform(X)
    theirs = RidgeClassifier(alpha=0.01 * len(X)).fit(Z, y)
    ours = LinearProbe(loss="squared", l2=0.01).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(Z), atol=1e-8)


@pytest.mark.parametrize("data", [IRIS, CANCER], ids=["iris", "cancer"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.9])
def test_the_discriminant_is_scikit_learns(data, shrinkage):
    X, y = data
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(X, y)
    # it shrinks each class's covariance towards a multiple of the identity in standardised columns of that class, so
    # only without shrinkage the two are the same; with it we compare to the formula
    ours = LDAProbe(shrinkage=shrinkage).fit(X, y)
    if shrinkage == 0:
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    means = np.stack([X[y == c].mean(0) for c in np.unique(y)])
    within = (X - means[y]).T @ (X - means[y]) / len(X)
    mixed = (1 - shrinkage) * within + shrinkage * np.trace(within) / X.shape[1] * np.eye(X.shape[1])
    between = means[1:] - means[:1]
    directions = ours.directions_ if len(means) == 2 else ours.directions_[1:] - ours.directions_[:1]
    np.testing.assert_allclose(directions, np.linalg.solve(mixed, between.T).T, rtol=1e-5, atol=1e-8)


def test_full_shrinkage_leaves_the_difference_of_means():
    X, y = CANCER
    one = MeanDifferenceProbe().fit(X, y).directions_[0]
    two = mean_differences(X, y)[:, 0]
    np.testing.assert_allclose(one / np.linalg.norm(one), two / np.linalg.norm(two), atol=1e-10)


def test_regressions_on_the_same_rows_are_those_fitted_one_by_one():
    X, y = CANCER
    rows = design(torch.from_numpy(StandardScaler().fit_transform(X)))
    draw = np.random.default_rng(0)
    labels = torch.from_numpy(np.stack([y, *(draw.permutation(y) for _ in range(4))], 1))
    l2 = torch.tensor([0.01, 0.1, 1.0, 0.001, 0.01], dtype=torch.float64)
    together = fit_logistic(rows, labels, classes=2, l2=l2, tolerance=1e-10)
    for i in range(5):
        alone = fit_logistic(rows, labels[:, i : i + 1], classes=2, l2=l2[i : i + 1], tolerance=1e-10)
        torch.testing.assert_close(together.heads.coefficients[i], alone.heads.coefficients[0], atol=1e-7, rtol=0)


def test_the_reported_gradient_is_that_of_the_objective():
    X, y = CANCER
    Z = torch.from_numpy(StandardScaler().fit_transform(X))
    found = fit_logistic(
        design(Z), torch.from_numpy(y)[:, None], classes=2, l2=torch.tensor([0.01]).double(), tolerance=1e-3
    )
    w, b = found.heads.coefficients[0, 0], found.heads.intercepts[0, 0]
    residual = torch.sigmoid(Z @ w + b) - torch.from_numpy(y)
    slope = (Z.mT @ residual / len(Z) + 0.01 * w) @ design(Z).basis
    assert found.gradient.item() == pytest.approx(max(slope.abs().max().item(), abs(residual.mean().item())), rel=1e-6)


def digits_like(classes=6, d=12, rows=600, rank=5, seed=0):
    """Classes whose means span `rank` dimensions."""
    draw = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    means = draw.standard_normal((classes, rank)) @ draw.standard_normal((rank, d))
    return means[y] + 1.5 * draw.standard_normal((rows, d)), y


def test_a_low_rank_probe_has_its_rank_and_rebuilds_less_than_the_full_one():
    X, y = digits_like()
    losses = []
    for rank in (1, 2, 3, 5):
        probe = LowRankProbe(rank, l2=0.01).fit(X, y)
        contrasts = probe.directions_ - probe.directions_.mean(0)
        assert np.linalg.matrix_rank(probe.directions_, tol=1e-6) <= max(rank, 1) or rank == 5
        assert np.linalg.matrix_rank(contrasts, tol=1e-6) <= rank
        standard = probe.directions_ * X.std(0)
        losses.append(-probe.predict_log_proba(X)[range(600), y].mean() + 0.005 * np.square(standard).sum())
    assert (np.diff(losses) < -1e-3).all()
    np.testing.assert_allclose(
        LowRankProbe(5, l2=0.01).fit(X, y).directions_, LinearProbe(l2=0.01).fit(X, y).directions_
    )


def test_a_hidden_layer_learns_what_no_line_parts():
    draw = np.random.default_rng(0)
    X = draw.standard_normal((800, 4))
    y = (X[:, 0] * X[:, 1] > 0).astype(int)
    held = slice(600, None)
    assert MLPProbe(16, l2=1e-3).fit(X[:600], y[:600]).score(X[held], y[held]) > 0.9
    assert LinearProbe(l2=1e-3).fit(X[:600], y[:600]).score(X[held], y[held]) < 0.65


def test_a_networks_directions_are_its_mean_gradients():
    X, y = IRIS
    probe = MLPProbe(8, l2=0.01).fit(X, y)
    step = 1e-6
    slopes = [(probe.decision_function(X + step * e) - probe.decision_function(X - step * e)).mean(0) / (2 * step)
              for e in np.eye(4)]  # fmt: skip
    np.testing.assert_allclose(probe.directions_, np.stack(slopes, 1), rtol=1e-2, atol=1e-2)


def test_directions_read_raw_activations_and_whitened_ones_read_white_activations():
    X, y = CANCER
    probe = LinearProbe(l2=0.01).fit(X, y)
    slope = (probe.decision_function(X + 2.0 * np.eye(30)[4]) - probe.decision_function(X)) / 2
    np.testing.assert_allclose(slope, probe.directions_[0, 4])
    scores = probe.decision_function(X)
    assert np.linalg.norm(probe.whitened_directions_) == pytest.approx(scores.std())


@pytest.mark.parametrize("probe", [LinearProbe(l2=0.01), LinearProbe(l2=0.01, standardise=False), LDAProbe()], ids=str)
def test_whitened_directions_are_directions_times_the_root_of_the_covariance(probe):
    draw = np.random.default_rng(0)
    mixed = draw.standard_normal((6, 6)) * np.array([0.1, 1, 3, 10, 0.3, 2])
    X, y = draw.standard_normal((500, 6)) @ mixed, draw.integers(0, 3, 500)
    weights = draw.uniform(0.5, 2, 500) if isinstance(probe, LinearProbe) else np.ones(500)
    probe = clone(probe).fit(X, y, sample_weight=weights)
    wanted = probe.directions_ @ sqrtm(np.cov(X.T, aweights=weights, ddof=0)).real
    np.testing.assert_allclose(probe.whitened_directions_, wanted, rtol=1e-6, atol=1e-9)
    correlation = probe.directions_ * X.std(0) @ sqrtm(np.corrcoef(X.T)).real
    assert np.abs(probe.whitened_directions_ - correlation).max() > 0.01 * np.abs(wanted).max()  # the control


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("probe", [LDAProbe(), LDAProbe(shrinkage=0.01), MeanDifferenceProbe()], ids=str)
def test_discriminants_part_classes_with_next_to_no_variance_within(probe, spread, dtype):
    draw = np.random.default_rng(0)
    y = np.arange(600) % 30
    X = (draw.standard_normal((30, 64))[y] + spread * draw.standard_normal((600, 64))).astype(dtype)
    fitted = clone(probe).fit(X, y)
    assert fitted.score(X, y) == 1
    assert np.abs(fitted.directions_).max() < 1e15


def test_three_points_of_three_classes_are_parted_and_a_covariance_of_zero_has_no_inverse():
    X, y = np.float32([[0.0], [1.0], [5.0]]), np.array([0, 1, 2])
    np.testing.assert_array_equal(MeanDifferenceProbe().fit(X, y).predict(X), y)
    with pytest.raises(UserError, match="shrinkage=0, but rows of a class are all alike"):
        LDAProbe(shrinkage=0.0).fit(np.repeat(X, 4, 0), np.repeat(y, 4))


def fingerprints(seed=0):
    """Rows that tell their document, which has a label of its own: folds that mix documents mislead."""
    draw = np.random.default_rng(seed)
    groups = np.repeat(np.arange(40), 6)
    X = draw.standard_normal((40, 40))[groups] + 0.3 * draw.standard_normal((240, 40))
    return X, np.repeat(draw.permutation(np.arange(40) % 2), 6), groups


def test_documents_reach_the_choice_of_a_penalty_in_cross_validation_only_where_they_are_passed_on():
    """What the docstring of Probe says."""
    X, y, groups = fingerprints()
    how = {"groups": groups, "cv": GroupKFold(2), "return_estimator": True}
    alone = cross_validate(LinearProbe(), X, y, **how)["estimator"]
    passed = cross_validate(LinearProbe(), X, y, **how, params={"groups": groups})["estimator"]
    assert max(probe.l2_ for probe in alone) < 0.1  # by rows, a fingerprint is all it takes
    assert min(probe.l2_ for probe in passed) >= 1
    with sklearn.config_context(enable_metadata_routing=True):
        probe = LinearProbe().set_fit_request(groups=True)
        routed = cross_validate(probe, X, y, cv=GroupKFold(2), return_estimator=True, params={"groups": groups})
        assert [p.l2_ for p in routed["estimator"]] == [p.l2_ for p in passed]
        search = GridSearchCV(probe, {"standardise": [True]}, cv=GroupKFold(2)).fit(X, y, groups=groups)
        assert search.best_estimator_.l2_ >= 1


def test_noise_in_more_columns_than_rows_gets_the_largest_penalty_and_is_hardly_worse_than_nothing():
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((80, 200)), np.arange(80) % 2
    probe = LinearProbe().fit(X, y)
    assert probe.l2_ == 10.0
    assert probe.l2_losses_.min() < np.log(2) + 0.02


@pytest.mark.parametrize("classes", [2, 3])
def test_least_squares_chooses_its_penalty_by_squared_error(classes):
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((60, 20)), np.arange(60) % classes
    X[:, 0] += y
    probe = LinearProbe(loss="squared").fit(X, y)
    fold_of, losses = folds(probe_rows(X, y), 3, seed=0), []
    for l2 in GRID:
        lost = 0.0
        for fold in range(3):
            away = fold_of == fold
            scores = LinearProbe(loss="squared", l2=l2).fit(X[~away], y[~away]).decision_function(X[away])
            targets = 2.0 * (y[away] if classes == 2 else y[away, None] == np.arange(3)) - 1
            lost += 0.5 * np.square(scores - targets).sum()
        losses.append(lost / 60)
    np.testing.assert_allclose(probe.l2_losses_, losses)
    assert probe.l2_ == GRID[int(np.argmin(losses))]


def test_torch_tensors_and_strings_for_labels_are_taken():
    X, y = IRIS
    names = np.array(["a", "b", "c"])[y]
    probe = LinearProbe(l2=0.01).fit(torch.from_numpy(X), names)
    np.testing.assert_array_equal(probe.predict(torch.from_numpy(X)), LinearProbe(l2=0.01).fit(X, names).predict(X))
    assert probe.classes_.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(LinearProbe(l2=0.01).fit(X, torch.from_numpy(y)).classes_, [0, 1, 2])


def test_probes_work_in_pipelines_searches_and_cross_validation_by_document():
    X, y = CANCER
    documents = np.arange(len(X)) // 10
    scores = cross_val_score(LinearProbe(l2=0.01), X, y, groups=documents, cv=GroupKFold(4))
    assert scores.min() > 0.9
    assert make_pipeline(StandardScaler(), LDAProbe()).fit(X, y).score(X, y) > 0.9
    search = GridSearchCV(LowRankProbe(l2=0.1), {"l2": [1e-3, 10.0]}, cv=3).fit(X, y)
    assert search.best_params_ == {"l2": 1e-3}
    assert clone(MLPProbe(5)).get_params()["hidden"] == 5
    with pytest.raises(NotFittedError):
        LinearProbe().predict(X)


def test_the_penalty_is_chosen_by_documents_that_stay_together():
    draw = np.random.default_rng(0)
    documents = np.repeat(np.arange(40), 10)
    labels = np.repeat(draw.permutation(np.arange(40) % 2), 10)
    # a fingerprint of each document, which says nothing of the label in another
    X = draw.standard_normal((40, 60))[documents] + 0.3 * draw.standard_normal((400, 60))
    by_document = LinearProbe().fit(X, labels, groups=documents)
    by_row = LinearProbe().fit(X, labels)
    assert by_document.l2_ == GRID[-1]
    assert by_document.l2_losses_.min() > 0.6
    assert by_row.l2_ < 0.1
    assert by_row.l2_losses_.min() < 0.1


def test_folds_keep_documents_whole_and_classes_even():
    draw = np.random.default_rng(0)
    documents, y = np.repeat(np.arange(30), 10), draw.integers(0, 3, 300)
    data = probe_rows(draw.standard_normal((300, 2)), y, groups=documents)
    found = folds(data, 3, seed=0)
    assert all(len(set(found[documents == d])) == 1 for d in range(30))
    table = np.array([np.bincount(y[found == f], minlength=3) for f in range(3)])
    assert table.min() > 20
    np.testing.assert_array_equal(found, folds(data, 3, seed=0))


X0, Y0 = np.random.default_rng(0).standard_normal((12, 3)), np.arange(12) % 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LinearProbe().fit(X0, np.zeros(12)), "y holds one class only"),
        (lambda: LinearProbe().fit(X0, [0] * 10 + [1, 1]), "y: class .*1.* has 2 members, fewer than folds=3"),
        (lambda: LinearProbe().fit(X0, Y0, groups=[0] * 6 + [1] * 6), "groups holds 2 documents, fewer than folds=3"),
        (lambda: LinearProbe().fit(X0, [0] * 8 + [1] * 4, groups=[0, 1, 2, 3] * 2 + [4] * 4), "all of class"),
        (lambda: LinearProbe().fit(X0, Y0, groups=[None, *range(11)]), "groups lacks a document for row 0"),
        (lambda: LinearProbe().fit(X0, Y0, groups=[*np.arange(11.0), np.nan]), "groups lacks a document for row 11"),
        (lambda: LinearProbe().fit(X0, Y0, groups=np.arange(11)), "groups has shape \\(11,\\)"),
        (lambda: LinearProbe().fit(X0, Y0[:11]), "y has shape \\(11,\\)"),
        (lambda: LinearProbe().fit(np.where(X0 > 1, np.nan, X0), Y0), "X holds NaN or infinity"),
        (lambda: LinearProbe(l2=0.0).fit(np.hstack([X0] * 5), Y0), "l2=0 with 12 rows in 15 dimensions"),
        (lambda: LinearProbe(l2=-1.0).fit(X0, Y0), "l2=-1.0"),
        (lambda: LinearProbe(folds=1).fit(X0, Y0), "folds=1"),
        (lambda: LinearProbe(loss="hinge", l2=0.1).fit(X0, Y0), "unknown loss 'hinge'"),
        (lambda: LinearProbe(l2=0.1, class_weight={7: 2.0}).fit(X0, Y0), "unknown class in class_weight '7'"),
        (lambda: LinearProbe(loss="squared", l2=0.1, class_weight="balanced").fit(X0, Y0), "class_weight is for"),
        (lambda: LDAProbe(shrinkage=1.5).fit(X0, Y0), "shrinkage=1.5"),
        (lambda: LowRankProbe(0, l2=0.1).fit(X0, Y0), "rank=0"),
        (lambda: MLPProbe(0, l2=0.1).fit(X0, Y0), "hidden=0"),
        (lambda: LinearProbe().fit(X0, Y0, sample_weight=-np.ones(12)), "sample_weight must be finite"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_that_names_the_argument(call, message):
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("probe", EVERY, ids=str)
def test_a_constant_column_is_taken_and_read_with_weight_zero_or_none(probe):
    X, y = CANCER
    X = np.hstack([X, np.full((len(X), 1), 7.0)])
    with np.errstate(all="raise", under="ignore"):
        fitted = clone(probe).fit(X, y)
    assert np.isfinite(fitted.directions_).all()
    assert abs(fitted.directions_[0, -1]) < 1e-6 or isinstance(probe, MLPProbe)
