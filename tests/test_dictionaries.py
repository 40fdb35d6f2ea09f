"""Learned dictionaries: planted truth, the update's theorem, weights, seeds, scikit-learn as a peer, bad input."""

import numpy as np
import pytest
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.utils.estimator_checks import parametrize_with_checks

from toolkit.dictionaries import DictionaryLearner, agreement
from toolkit.dictionary_learning import merge, update
from toolkit.errors import UserError
from toolkit.pursuit import OMP, Lasso


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def planted(*, rows=3000, n=40, d=20, k=2, positive=False, seed=0, dtype=np.float64):
    """Rows made of k atoms each, and the atoms."""
    draw = np.random.default_rng(seed)
    atoms = unit(draw.standard_normal((n, d)))
    codes = np.zeros((rows, n))
    for row in codes:
        sizes = draw.uniform(0.5, 1.5, k)
        row[draw.choice(n, k, replace=False)] = sizes if positive else sizes * draw.choice([-1, 1], k)
    return (codes @ atoms).astype(dtype), atoms


@parametrize_with_checks([DictionaryLearner(), DictionaryLearner(alpha=0.1), DictionaryLearner(positive=True)])
def test_it_keeps_scikit_learns_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("positive", [False, True])
def test_a_planted_dictionary_is_found_and_structureless_rows_have_none(positive):
    X, atoms = planted(positive=positive)
    found = DictionaryLearner(40, n_nonzero=2, epochs=40, batch_size=500, positive=positive).fit(X)
    assert agreement(atoms, found.components_) > 0.98
    assert found.held_out_error_ < 0.02
    gaussian = np.random.default_rng(0).standard_normal(X.shape)
    nothing = DictionaryLearner(40, n_nonzero=2, epochs=40, batch_size=500, positive=positive).fit(gaussian)
    assert nothing.held_out_error_ > 0.4


def test_a_planted_dictionary_is_found_through_the_lasso():
    X, atoms = planted()
    found = DictionaryLearner(40, alpha=0.1, epochs=40, batch_size=500).fit(X)
    assert agreement(atoms, found.components_) > 0.97
    assert np.abs(found.transform(X[:50]) - Lasso(found.components_, alpha=0.1).transform(X[:50])).max() < 0.01


def surrogate(atoms, products, targets):
    """1/2 tr D^T A D - tr D^T B, what an update minimises atom by atom."""
    return np.sum(products * (atoms @ atoms.T)) / 2 - np.sum(targets * atoms)


def statistics(seed=0, n=150, d=12):
    draw = np.random.default_rng(seed)
    codes, X = draw.standard_normal((400, n)) * (draw.random((400, n)) < 0.1), draw.standard_normal((400, d))
    return unit(draw.standard_normal((n, d))), codes.T @ codes, codes.T @ X


def test_each_update_lowers_the_surrogate_and_ends_where_no_atom_can_improve():
    atoms, products, targets = statistics()
    values = [surrogate(atoms, products, targets)]
    for _ in range(300):
        update(atoms, products, targets)
        values.append(surrogate(atoms, products, targets))
    assert (np.diff(values) < 1e-9).all()
    assert values[1] < values[0] - 1
    assert np.linalg.norm(atoms, axis=1) == pytest.approx(1)
    gradient = targets - products @ atoms + products.diagonal()[:, None] * atoms
    assert np.sum(unit(gradient) * atoms, axis=1) == pytest.approx(1, abs=1e-3)


def test_updating_by_blocks_is_updating_one_by_one():
    atoms, products, targets = statistics()
    products[7], products[:, 7] = 0, 0
    one_by_one = atoms.copy()
    for j in range(len(one_by_one)):
        if products[j, j] > 0:
            wanted = one_by_one[j] + (targets[j] - products[j] @ one_by_one) / products[j, j]
            one_by_one[j] = wanted / np.linalg.norm(wanted)
    unused = atoms[7].copy()
    update(atoms, products, targets)
    assert np.abs(atoms - one_by_one).max() < 1e-12
    assert (atoms[7] == unused).all()


def test_the_reported_errors_are_those_of_the_held_out_rows():
    X, _ = planted(rows=500)
    weights = np.random.default_rng(1).uniform(0.1, 3, len(X))
    kept = DictionaryLearner(20, n_nonzero=2, epochs=3, held_out=0.3).fit(X, sample_weight=weights)
    merged = merge(X, weights)
    order = np.random.default_rng([np.random.RandomState(0).randint(2**31 - 1, size=2)[0], 12]).permutation(500)[:150]
    rows, w = merged.X[order], merged.weights[order]
    left = np.square(rows - OMP(kept.components_, n_nonzero=2).transform(rows) @ kept.components_).sum(1)
    size = np.square(rows).sum(1)
    assert kept.held_out_error_ == pytest.approx(w @ left / (w @ size), rel=1e-6)
    assert kept.held_out_error_unweighted_ == pytest.approx(left.sum() / size.sum(), rel=1e-6)
    assert kept.history_[-1] == kept.held_out_error_
    assert kept.effective_rows_ < 350


def test_a_row_given_twice_is_a_row_of_twice_the_weight_and_one_of_weight_zero_is_absent():
    X, _ = planted(rows=300)
    X[10:] *= 2
    counts = np.random.default_rng(0).integers(0, 4, len(X))
    by_weight = DictionaryLearner(20, n_nonzero=2).fit(X, sample_weight=counts)
    by_rows = DictionaryLearner(20, n_nonzero=2).fit(np.repeat(X, counts, axis=0))
    scaled = DictionaryLearner(20, n_nonzero=2).fit(X, sample_weight=1e6 * counts)
    assert (by_weight.components_ == by_rows.components_).all()
    assert np.abs(by_weight.components_ - scaled.components_).max() < 1e-6


def test_weights_move_the_dictionary_towards_the_heavy_rows_and_leave_codes_alone():
    draw = np.random.default_rng(0)
    heavy, light = (draw.standard_normal((400, 2)) @ draw.standard_normal((2, 16)) for _ in range(2))
    X = np.concatenate([heavy, light]) + 0.05 * draw.standard_normal((800, 16))
    weights = np.repeat([1000.0, 1.0], 400)
    settings = {"n_nonzero": 1, "epochs": 20, "held_out": 0.0, "batch_size": 200}

    def errors(sample_weight):
        learner = DictionaryLearner(4, **settings).fit(X, sample_weight=sample_weight)
        codes = learner.transform(X)
        assert (codes != OMP(learner.components_, n_nonzero=1).transform(X)).nnz == 0
        left = np.square(X - codes @ learner.components_).sum(1)
        return left[:400].mean(), left[400:].mean()

    weighted, alike = errors(weights), errors(None)
    assert weighted[0] < alike[0]
    assert weighted[1] > alike[1]


def test_atoms_that_nothing_uses_are_replaced():
    X, atoms = planted(rows=2000, n=10, d=30, k=1)
    lonely = np.zeros((25, 30))
    lonely[np.arange(25), np.arange(25)] = 1e-3
    found = DictionaryLearner(25, n_nonzero=1, epochs=15, held_out=0, batch_size=500, random_state=3).fit(
        np.concatenate([X, lonely])
    )
    assert found.replaced_ > 0
    assert agreement(atoms, found.components_) > 0.999


def test_seeds_agree_on_planted_atoms_and_no_more_than_by_chance_on_noise():
    X, _ = planted()
    settings = {"n_nonzero": 2, "epochs": 30, "batch_size": 500, "n_seeds": 3}
    real = DictionaryLearner(40, **settings).fit(X)
    assert real.agreement_ > 0.97
    assert real.agreement_by_chance_ < 0.75
    noise = DictionaryLearner(40, **settings).fit(np.random.default_rng(0).standard_normal(X.shape))
    assert noise.agreement_ < real.agreement_by_chance_ + 0.15
    assert real.held_out_error_ == real.seed_errors_.min()
    assert len(set(real.seed_errors_)) == 3


def test_agreement_by_hand_and_near_its_formula_for_random_directions():
    axes = np.eye(4)
    assert agreement(axes, -axes[:2]) == 0.5
    assert agreement(axes, axes[::-1]) == 1
    draw = np.random.default_rng(0)
    a, b = unit(draw.standard_normal((1024, 128))), unit(draw.standard_normal((1024, 128)))
    assert agreement(a, b) == pytest.approx(0.300, abs=0.01)  # measured in the literature at d=128, n=1024
    assert agreement(a, b) == pytest.approx(np.sqrt(2 * np.log(1024) / 128), abs=0.04)


def test_chance_follows_the_rows_covariance():
    draw = np.random.default_rng(0)
    flat = draw.standard_normal((2000, 3)) @ draw.standard_normal((3, 40)) + 0.01 * draw.standard_normal((2000, 40))
    learner = DictionaryLearner(30, n_nonzero=2, epochs=5).fit(flat)
    assert learner.agreement_by_chance_ > 0.9
    assert np.isnan(learner.agreement_)


def test_the_same_seed_gives_the_same_dictionary_and_types_are_kept():
    X, _ = planted(dtype=np.float32)
    first, again, other = (
        DictionaryLearner(40, n_nonzero=2, epochs=2, random_state=seed).fit(X).components_ for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert agreement(first, other) < 0.99
    assert first.dtype == np.float32
    assert DictionaryLearner(40, epochs=1).fit(X).transform(X).dtype == np.float32


def test_held_out_objective_is_no_worse_than_scikit_learns():
    X, _ = planted(rows=2400, n=60, d=30, k=4)
    X += 0.1 * np.random.default_rng(1).standard_normal(X.shape)
    train, held_out = X[:2000], X[2000:]
    theirs = MiniBatchDictionaryLearning(60, alpha=0.3, max_iter=10, batch_size=200, fit_algorithm="cd", random_state=0)
    ours = DictionaryLearner(60, alpha=0.3, epochs=10, batch_size=200, held_out=0.0)

    def objective(atoms):
        codes = Lasso(atoms, alpha=0.3).transform(held_out)
        return (np.square(held_out - codes @ atoms).sum(1) / 2 + 0.3 * np.abs(codes).sum(1)).mean()

    assert objective(ours.fit(train).components_) < 1.002 * objective(theirs.fit(train).components_)


X3 = np.random.default_rng(0).standard_normal((30, 5))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"X": np.where(X3 > 2, np.nan, X3)}, "X holds NaN or infinity, first in row"),
        ({}, {"X": np.where(X3 > 2, np.inf, X3)}, "X holds NaN or infinity, first in row"),
        ({}, {"X": 0 * X3}, "every row to train on is zero"),
        ({"n_components": 25}, {}, "25 atoms for 24 different training rows"),
        ({"n_components": 6}, {"X": np.repeat(X3[:3], 10, 0)}, "6 atoms for 2 different training rows"),
        ({"n_components": 4, "n_nonzero": 5}, {}, "n_nonzero=5 for 4 atoms"),
        ({"n_components": 0}, {}, "n_components=0: expected a whole number of at least 1"),
        ({"epochs": 0}, {}, "epochs=0: expected a whole number of at least 1"),
        ({"n_components": 2.5}, {}, "n_components=2.5: expected a whole number"),
        ({"held_out": 0.999}, {}, "held_out=0.999 leaves no row to train on"),
        ({"held_out": 1.0}, {}, "held_out=1.0: expected a share"),
        ({"n_nonzero": 1, "alpha": 0.1}, {}, "n_nonzero=1 codes by OMP and alpha=0.1 by the lasso: give one"),
        ({"alpha": 0.0}, {}, "alpha=0.0: expected a finite number above 0"),
        ({"device": "gpu"}, {}, "device='gpu': expected 'cpu' or 'cuda'"),
        ({}, {"sample_weight": -np.ones(30)}, r"sample_weight\[0\]=-1: expected weights that are not negative"),
        ({}, {"sample_weight": np.zeros(30)}, "sample_weight sums to zero"),
        ({}, {"sample_weight": np.full(30, np.nan)}, "sample_weight holds NaN or infinity"),
        ({}, {"sample_weight": np.ones(29)}, r"sample_weight has shape \(29,\) for 30 rows"),
    ],
)
def test_a_mistake_is_one_clear_line(settings, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        DictionaryLearner(**settings).fit(**{"X": X3, **arguments})
    assert "\n" not in str(error.value)


def test_rows_that_differ_in_the_sign_of_a_zero_are_one():
    assert len(merge(np.array([[0.0, 1.0], [-0.0, 1.0]]), np.ones(2)).X) == 1
