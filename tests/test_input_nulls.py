"""Surrogates keep what they say and lose the rest, random text has its statistics; what is real survives them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_rows import D, Independent, atoms, by_feature, gaussian_rows, rows_case, sparse_rows
from scipy.stats import kurtosis

from controls import finders, input_nulls, random_text, refits, surrogates
from controls.case import Case, activations_at
from controls.finders import Labels, Latents, Principal, refitted
from controls.reading import Reading
from controls.subject import Subject
from toolkit.errors import UserError
from toolkit.language import load_model


def rng(seed=0):
    return np.random.default_rng(seed)


def covariance(X):
    return np.cov(X.double().numpy(), rowvar=False)


@pytest.mark.parametrize("rows", [800, 40, D, 10])
def test_rotated_rows_have_exactly_the_mean_and_covariance(rows):
    X = sparse_rows(0)[:rows] + 3
    Z = surrogates.rotated(X, rng())
    assert torch.allclose(Z.mean(0), X.mean(0), atol=1e-5)
    assert np.allclose(covariance(Z), covariance(X), atol=1e-5)
    assert not torch.allclose(Z, X, atol=0.1)


def test_rotated_rows_lose_what_is_not_gaussian():
    X = sparse_rows(0)
    assert kurtosis(X).mean() > 0.3
    assert abs(kurtosis(surrogates.rotated(X, rng())).mean()) < 0.15


def test_rotated_rows_are_exchangeable():
    """Without its signs made uniform, QR would put the first row on one side always."""
    X = gaussian_rows(0)[:8, :2]
    first = np.array([surrogates.rotated(X, rng([seed, 7]))[0, 0] - X[:, 0].mean() for seed in range(200)])
    assert 70 < (first > 0).sum() < 130


def test_for_gaussian_rows_a_test_against_rotated_ones_is_exact():
    """Ranks of the real statistic among four rotated ones are uniform; rows few, where resampling would not be."""
    ranks = []
    for seed in range(150):
        X = torch.from_numpy(rng([seed, 5]).standard_normal((8, 3)) @ np.diag([1, 2, 5])).float()
        null = [kurtosis(surrogates.rotated(X, rng([seed, 6, draw]))).sum() for draw in range(4)]
        ranks.append(int((np.array(null) >= kurtosis(X).sum()).sum()))
    counts = np.bincount(ranks, minlength=5)
    assert ((counts - 30) ** 2 / 30).sum() < 18.5  # chi-squared, 4 degrees of freedom, p = .001


def test_rank_matched_rows_have_exactly_the_marginals_and_nearly_the_covariance():
    X = sparse_rows(0)
    Z = surrogates.rank_matched(X, rng())
    assert torch.allclose(Z.sort(0).values, X.sort(0).values, rtol=0, atol=1e-6)
    assert np.linalg.norm(covariance(Z) - covariance(X)) < 0.02 * np.linalg.norm(covariance(X))


def test_rank_matched_rows_lose_directions_that_are_not_axes():
    X = sparse_rows(0)
    Z = surrogates.rank_matched(X, rng())
    codes, lost = (kurtosis((rows - rows.mean(0)) @ torch.linalg.inv(atoms())).mean() for rows in (X, Z))
    assert codes > 3
    assert lost < codes / 5


def test_rows_of_a_random_dictionary_have_the_same_codes_and_covariance():
    X = sparse_rows(0) + 1
    given = surrogates.coded(Independent(atoms()), X)
    drawn = surrogates.random_sparse(replace(given, rest=0 * given.rest), rng())
    assert torch.allclose(drawn.rows.mean(0), X.mean(0), atol=1e-4)
    assert np.allclose(covariance(drawn.rows), covariance(X), atol=1e-3)
    codes = (drawn.rows - drawn.rows.mean(0)).double() @ torch.linalg.inv(drawn.atoms.double())
    real = given.codes.toarray()
    assert np.allclose(np.sort(codes.numpy(), 0), np.sort(real - real.mean(0), 0), atol=2e-3)
    assert not np.allclose(codes.numpy(), real - real.mean(0), atol=0.5)


def test_rows_of_a_random_dictionary_are_as_sparse_as_an_sae_has_them(monkeypatch):
    monkeypatch.setattr(finders, "REFIT_STEPS", 50)
    X = sparse_rows(0)
    given = surrogates.coded(Latents(refitted(X, 24, 3, seed=1)), X)
    dealt = surrogates._dealt(given.codes, rng())
    assert dealt.nnz == given.codes.nnz
    assert np.array_equal(np.sort(dealt.toarray(), 0), np.sort(given.codes.toarray(), 0))
    assert not np.array_equal(dealt.toarray(), given.codes.toarray())
    drawn = surrogates.random_sparse(given, rng())
    assert drawn.atoms.shape == (24, D)
    assert np.allclose(covariance(drawn.rows), covariance(X), atol=1e-4)


@pytest.mark.parametrize("control", [input_nulls.gaussian, input_nulls.ranks, input_nulls.sparse])
def test_sparse_directions_survive_surrogates_and_those_of_gaussian_rows_do_not(control):
    finder = Independent().fit(sparse_rows(1), seed=1)
    real = control(rows_case(sparse_rows(0), finder))
    assert np.mean([one.p == 0.1 for one in real]) > 0.9
    finder = Independent().fit(gaussian_rows(1), seed=1)
    none = control(rows_case(gaussian_rows(0), finder))
    assert np.mean([one.p <= 0.1 for one in none]) < 0.35
    assert np.mean([one.p for one in none]) > 0.35


def test_principal_directions_never_survive_gaussian_rows():
    """They need second moments alone, and these are kept: each null is the observed value itself."""
    finder = Principal(3).fit(sparse_rows(1), seed=0)
    for outcome in input_nulls.gaussian(rows_case(sparse_rows(0), finder)):
        assert outcome.p == 1
        assert np.allclose(outcome.null, outcome.observed, atol=2e-4)


def test_latents_of_sparse_rows_survive_gaussian_ones(monkeypatch):
    monkeypatch.setattr(finders, "REFIT_STEPS", 300)
    rows = sparse_rows(1, one=True)
    sae = Latents(refitted(rows, 16, 1, seed=5), count=20).fit(rows, seed=0)
    found = input_nulls.gaussian(rows_case(sparse_rows(0, one=True), sae, dear=4))
    assert np.mean([one.observed for one in found]) > np.mean([one.null.mean() for one in found]) + 0.1
    assert np.mean([one.p == 0.2 for one in found]) > 0.6


@pytest.mark.slow
def test_an_sae_of_gaussian_rows_does_not_survive_gaussian_rows(monkeypatch):
    monkeypatch.setattr(finders, "REFIT_STEPS", 300)
    sae = Latents(refitted(gaussian_rows(1), 20, 2, seed=5), count=20).fit(gaussian_rows(1), seed=0)
    found = input_nulls.gaussian(rows_case(gaussian_rows(0), sae, dear=4))
    assert np.mean([one.p for one in found]) > 0.4


def test_refits_have_the_l0_of_the_real_rows_whatever_they_are_given(monkeypatch):
    given, rows = [], sparse_rows(0)
    monkeypatch.setattr(finders, "REFIT_STEPS", 1)
    sae = Latents(refitted(rows, 24, 2, seed=0), count=3).fit(rows, seed=0)
    case = rows_case(rows, sae, dear=3)
    monkeypatch.setattr(Latents, "mean_l0", lambda self, X: 3 if torch.equal(X, rows) else 5)
    monkeypatch.setattr(
        refits, "refitted", lambda X, width, k, *, seed: given.append(k) or refitted(X, width, k, seed=seed)
    )
    input_nulls.gaussian(case)
    input_nulls.sparse(case)
    assert given == 8 * [3]


def test_surrogates_are_for_finders_without_labels():
    case = rows_case(gaussian_rows(0), labels={"x": np.arange(800) % 2})
    with pytest.raises(UserError, match="give --sae or --pca"):
        input_nulls.gaussian(case)


# Random text. Documents of two sequences each; ids 1 to 20; what follows a token is one of four.

LENGTH, TYPES = 12, 20


def reading(*, documents=40, unit="words", seed=0):
    draw = rng([seed, 3])
    follows = 1 + np.stack([rng([4, n]).permutation(TYPES) for n in range(4)], 1)[np.arange(-1, TYPES)]
    tokens = np.zeros((2 * documents, LENGTH + 1), int)
    for position in range(1, LENGTH + 1):
        tokens[:, position] = follows[tokens[:, position - 1], draw.integers(0, 4, len(tokens))]
    tokens[1::2, 8:] = 0  # every other sequence is short
    ends = np.where(np.arange(len(tokens)) % 2, 7, LENGTH)
    places = [(s, p) for s, end in enumerate(ends) for p in range(2, end + 1, 1) if unit != "texts" or p == end]
    rows = torch.tensor(places)
    return Reading(torch.from_numpy(tokens), rows, rows[:, 0].numpy() // 2, np.arange(len(rows)), unit, None)


DRAWS = [random_text.unigram, random_text.bigram, random_text.shuffled]


@pytest.mark.parametrize("draw", DRAWS)
def test_rows_of_random_text_bear_labels_of_their_own_type(draw):
    given = reading()
    text = draw(given, rng())
    types = text.tokens[text.rows[:, 0], text.rows[:, 1]].numpy()
    assert np.array_equal(types, given.ids[text.bearers])
    assert np.array_equal(np.bincount(text.groups), np.bincount(given.groups))
    assert np.array_equal(text.rows[:, 0].numpy() // 2, text.groups)
    assert len(np.unique(text.rows.numpy(), axis=0)) == len(text.rows)


@pytest.mark.parametrize("draw", DRAWS)
def test_the_beginning_and_the_padding_stay(draw):
    given = reading()
    text = draw(given, rng())
    still = ~random_text.live(given)
    assert np.array_equal(text.tokens.numpy()[still], given.tokens.numpy()[still])
    assert (text.tokens.numpy() != given.tokens.numpy()).mean() > 0.4


def pairs(tokens, live):
    found = np.zeros((TYPES + 1, TYPES + 1))
    np.add.at(found, (tokens[:, :-1][live[:, 1:]], tokens[:, 1:][live[:, 1:]]), 1)
    return found


def test_unigram_text_has_the_frequencies_and_bigram_text_the_pairs():
    given = reading(documents=2000)
    live, tokens = random_text.live(given), given.tokens.numpy()
    real = pairs(tokens, live)
    one, two = (pairs(draw(given, rng()).tokens.numpy(), live) for draw in DRAWS[:2])
    error = np.sqrt(real.sum(0) + 1)
    assert np.abs((one.sum(0) - real.sum(0)) / error).max() < 5
    assert np.abs((two - real)[real > 0] / np.sqrt(2 * real[real > 0])).max() < 5  # in expectation, draw by draw
    assert two[real == 0].sum() == 0
    assert one[real == 0].sum() > 0.5 * one.sum()


def test_shuffled_text_has_the_same_tokens_and_labels_in_each_document():
    given = reading()
    text = random_text.shuffled(given, rng())
    assert np.array_equal(text.bearers, np.arange(len(given.rows)))
    for document in range(40):
        here = [rows[2 * document : 2 * document + 2].flatten().sort().values for rows in (given.tokens, text.tokens)]
        assert torch.equal(*here)


def test_labelled_texts_are_shuffled_each_in_itself_and_keep_their_rows():
    given = reading(unit="texts")
    text = random_text.shuffled(given, rng())
    assert torch.equal(text.tokens.sort(1).values, given.tokens.sort(1).values)
    assert torch.equal(text.rows, given.rows)


@pytest.fixture(scope="module")
def model():
    return load_model()


def text_case(model, hook, labels, given, *found):
    given = replace(given, tokens=given.tokens * 7 + 50)
    X = activations_at(model, hook, given.tokens, given.rows)
    families, columns = dict.fromkeys(labels, "labels"), dict(labels)
    for finder in found:
        here = finder.fit(X, seed=0).labels(given, X)
        families, columns = families | dict.fromkeys(here, finder.family), columns | here
    known = {"labels": Labels(tuple(labels))} | {one.family: one.fit(X, seed=0) for one in found}
    targets = dict.fromkeys(columns)
    subject = Subject(
        X, columns, given.groups, given.ids, np.arange(0), lambda x, at: x, targets, {}, families=families
    )
    return Case(model, hook, given, subject, known, draws=9, dear=4)


@pytest.mark.parametrize("control", [input_nulls.unigram, input_nulls.bigram, input_nulls.shuffled])
def test_what_the_context_tells_survives_random_text_and_what_the_type_tells_does_not(model, control):
    given = reading()
    before = given.tokens[given.rows[:, 0], given.rows[:, 1] - 1].numpy()
    labels = {"type": (given.ids % 2).astype(int), "context": (before % 2).astype(int)}
    deep = by_feature(control(text_case(model, "blocks.2.hook_resid_post", labels, given)))
    assert deep["context"].p == 0.2
    assert deep["context"].null.max() < deep["context"].observed - 0.1
    shallow = by_feature(control(text_case(model, "hook_embed", labels, given)))
    assert shallow["type"].observed > 0.9
    assert np.allclose(shallow["type"].null, shallow["type"].observed, atol=0.03)


def test_unigram_text_takes_directions_away_that_only_contexts_make(model):
    """PCA of embeddings is the same in shuffled text; deep inside it is not."""
    given = reading()
    labels = {"type": (given.ids % 2).astype(int)}
    shallow = by_feature(input_nulls.shuffled(text_case(model, "hook_embed", labels, given, Principal(1))))
    assert shallow["pca:1"].null.min() > 0.99
    deep = by_feature(input_nulls.unigram(text_case(model, "blocks.3.hook_resid_post", labels, given, Principal(1))))
    assert deep["pca:1"].p == 0.2
    assert deep["pca:1"].null.max() < deep["pca:1"].observed - 0.001


def test_labels_of_whole_texts_take_shuffled_text_only(model):
    given = reading(unit="texts")
    labels = {"long": (given.rows[:, 1].numpy() > 7).astype(int)}
    case = text_case(model, "hook_embed", labels, given)
    with pytest.raises(UserError, match="texts are labelled as wholes"):
        input_nulls.unigram(case)
    assert len(input_nulls.shuffled(case)) == 1
