"""Chance levels of dictionaries and directions; finders that learned something beat them, others do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_rows import DOCUMENTS, EACH, D, Independent, by_feature, gaussian_rows, rows_case, sparse_rows
from scipy.stats import binom

from controls import best_directions, finder_nulls, finders
from controls.finders import Latents, Principal, refitted
from controls.refits import overlaps
from controls.registry import find
from controls.subject import as_float
from toolkit.errors import UserError
from toolkit.metrics import fvu, random_dictionary

FIRST = np.arange(DOCUMENTS * EACH)


def test_chance_overlap_of_1024_random_directions_in_128_dimensions():
    """The design's number; sqrt(2 ln n / d) = .329 is its asymptote from above."""
    A, B = (random_dictionary(1024, 128, seed=seed) for seed in (1, 2))
    assert overlaps(A, B).mean() == pytest.approx(0.300, abs=0.003)
    assert overlaps(A, A).min() == 1
    assert overlaps(-A[:5] * 7, A).min() == 1


def test_directions_like_rows_have_their_covariance():
    X = gaussian_rows(0, last=0.1)
    drawn = finder_nulls.like_rows(X, 4000, seed=0)
    variances = drawn.square().mean(0)
    assert torch.allclose(drawn.norm(dim=1), torch.ones(4000))
    assert 5 < variances[0] / variances[8] < 15  # 10 to 1 in standard deviation from first to last, 3.4 in between
    weights = torch.linalg.eigvalsh(drawn.mT @ drawn)
    assert weights[-1] > 20 * weights[0]


def test_codes_by_pursuit_explain_all_of_rows_they_can_write_and_their_l0_is_kept():
    finder = Independent().fit(sparse_rows(1), seed=0)
    given = finder_nulls._parted(rows_case(sparse_rows(0), finder), 1)[0]
    share, live = finder_nulls.pursued(given, torch.eye(D))
    assert share == pytest.approx(1, abs=1e-9)
    assert live == D
    share, live = finder_nulls.pursued(given, torch.eye(D)[:3])
    expected = given.score.clone()
    expected[:, 3:] = 0
    assert share == pytest.approx(1 - fvu(given.score, expected), abs=1e-5)
    assert live == 3


def test_the_split_keeps_documents_whole():
    case = rows_case(sparse_rows(0), Principal(2).fit(sparse_rows(1), seed=0))
    half = finder_nulls.half_of(case).reshape(DOCUMENTS, EACH)
    assert (half == half[:, :1]).all()
    assert half.mean() == 0.5


SAE_CONTROLS = [finder_nulls.untrained, finder_nulls.frozen_encoder]
DICTIONARIES = [finder_nulls.random_decoder, finder_nulls.random_decoder_covariance]


@pytest.mark.parametrize("control", [*SAE_CONTROLS, *DICTIONARIES])
def test_a_trained_sae_beats_what_learned_nothing_and_one_without_steps_does_not(control, monkeypatch):
    monkeypatch.setattr(finders, "REFIT_STEPS", 200)
    rows = sparse_rows(1, one=True)
    sae = Latents(refitted(rows, 20, 2, seed=5)).fit(rows, seed=0)
    case = rows_case(sparse_rows(0, one=True), sae)
    (real,) = control(case)
    assert real.feature == "sae"
    assert real.p == 1 / 20
    assert real.observed > real.null.mean() + 0.05
    assert "live" in real.note
    monkeypatch.setattr(finders, "REFIT_STEPS", 1)
    assert control(rows_case(gaussian_rows(0), sae))[0].p > 1 / 20


@pytest.mark.parametrize("control", DICTIONARIES)
def test_principal_directions_beat_random_ones_only_where_variances_differ(control):
    uneven = gaussian_rows(0, last=0.05)
    (real,) = control(rows_case(uneven, Principal(3).fit(gaussian_rows(1, last=0.05), seed=0)))
    assert real.p == 1 / 20
    top = (uneven.var(0)[:3].sum() / uneven.var(0).sum()).item()
    assert real.observed == pytest.approx(top, abs=0.05)
    found = [control(rows_case(gaussian_rows(s), Principal(3).fit(gaussian_rows(9), seed=0)))[0] for s in range(8)]
    assert np.mean([one.p for one in found]) > 0.2
    assert found[0].observed == pytest.approx(3 / D, abs=0.04)


@pytest.mark.parametrize("control", SAE_CONTROLS)
def test_only_an_sae_has_an_encoder(control):
    with pytest.raises(UserError, match="give --sae"):
        control(rows_case(sparse_rows(0), Principal(2).fit(sparse_rows(1), seed=0)))


def test_real_directions_are_stable_and_random_ones_are_as_stable_as_chance():
    case = rows_case(sparse_rows(0), Independent().fit(sparse_rows(1), seed=0))
    real = finder_nulls.stability(case)
    assert all(one.p == 1 / 20 for one in real)
    assert np.mean([one.observed for one in real]) > 0.95
    none = finder_nulls.stability(rows_case(sparse_rows(0), Independent(random_dictionary(D, D, seed=3))))
    assert np.mean([one.p for one in none]) > 0.25
    assert np.mean([one.p == 1 / 20 for one in none]) < 0.35


def test_what_no_seed_changes_counts_once():
    """Principal directions of the same rows are the same; the null is one draw then, and p of chance uniform."""
    three = Principal(10).fit(gaussian_rows(0), seed=0)
    found = [three.refit(gaussian_rows(0), seed=seed) for seed in range(3)]
    assert len(finder_nulls._different(found)) == 1
    assert len(finder_nulls._different([found[0], -found[0], found[0]])) == 2
    p = []
    for seed in range(60):  # directions drawn uniformly, none of which is found
        drawn = random_dictionary(3, D, seed=seed)
        p += [one.p for one in finder_nulls.stability(rows_case(gaussian_rows(seed), Drawn(drawn)))[:1]]
    assert (np.array(p) <= 0.05).sum() <= binom.ppf(0.999, len(p), 0.05)
    assert (np.array(p) > 0.5).sum() <= binom.ppf(0.999, len(p), 0.5)


class Drawn(Principal):
    """Principal directions found again, others given."""

    def __init__(self, given):
        super().__init__(3, vectors=given, medians=torch.zeros(3))


def labelled(rows, direction, *, noise=0.0, seed=0):
    """1 where rows lie far along a direction, noise aside."""
    along = (rows @ direction) / (rows @ direction).std()
    drawn = torch.from_numpy(np.random.default_rng([seed, 4]).standard_normal(len(rows))).float()
    return (along + noise * drawn > 0).numpy().astype(int)


def test_a_label_along_little_variance_beats_principal_and_random_directions_and_one_along_much_does_not():
    """A label along (1, ..., 1) of whitened rows is along no principal direction."""
    rows = gaussian_rows(0, last=0.1)
    spread = torch.ones(D) / rows.std(0)
    labels = {"mixed": labelled(rows, spread), "first": labelled(rows, torch.eye(D)[0])}
    case = rows_case(rows, labels=labels, draws=39)
    found = by_feature(finder_nulls.pca(case))
    assert found["mixed"].p == 1 / 40
    assert found["mixed"].observed > 0.7
    assert found["first"].p > 0.05
    assert by_feature(finder_nulls.random_directions(case))["mixed"].p == 1 / 40


def test_a_label_of_nothing_beats_no_direction():
    """Over labels p is uniform or larger."""
    rows, rng = gaussian_rows(0, last=0.3), np.random.default_rng(5)
    labels = {f"coin{number}": rng.integers(0, 2, len(rows)) for number in range(40)}
    for control in (finder_nulls.random_directions, finder_nulls.pca):
        p = np.array([one.p for one in control(rows_case(rows, labels=labels))])
        assert (p <= 0.05).sum() <= 6  # of 40; Binomial(40, .05) exceeds it once in 300 times
        assert p.mean() > 0.35


def test_a_direction_without_variance_but_for_rounding_is_no_opponent():
    """Rows of rank 4 in D dimensions, in single precision: what is left over goes with any label by chance."""
    rows = gaussian_rows(0)[:, :4] @ gaussian_rows(3)[:4]
    Y = as_float(np.random.default_rng(0).integers(0, 2, (len(rows), 30)))
    learn = best_directions.half(rows, Y, FIRST // EACH)
    vectors = torch.linalg.eigh(learn.covariance).eigenvectors.mT
    assert (learn.r(vectors)[:-4] == 0).all()
    assert (learn.r(7 * vectors)[:-4] == 0).all()
    assert (learn.r(1e-5 * vectors)[-4:] != 0).all()
    exact = np.corrcoef((rows @ vectors[-1].float()).numpy(), Y[:, 0].numpy())[0, 1]
    assert learn.r(vectors)[-1, 0].item() == pytest.approx(exact, abs=1e-4)


def test_rows_that_span_few_dimensions_are_read_with_the_ridge_of_these():
    """The median variance of all dimensions would be 0."""
    few, unit = gaussian_rows(0, last=0.001)[:, :5], torch.nn.functional.normalize
    padded = torch.nn.functional.pad(few, (0, D - 5))
    y = labelled(few, torch.tensor([1.0, 0.0, 2.0, 0.0, 5.0]), noise=1.0)
    case = rows_case(padded, labels={"y": y}, draws=39)
    (contest,) = best_directions.contests(case)
    covariance, cross = contest.learn.covariance[:5, :5], contest.learn.cross[:5]
    ridge = 0.01 * torch.linalg.eigvalsh(covariance).median()
    expected = torch.linalg.solve(covariance + ridge * torch.eye(5), cross).mT
    assert torch.allclose(unit(contest.own, dim=1)[:, :5], unit(expected, dim=1), atol=1e-6)
    assert contest.own[0, 5:].abs().max() == 0


def test_few_documents_are_not_drawn_with_replacement():
    """One row of each of eighteen, and half of these."""
    rows = gaussian_rows(0)
    case = rows_case(rows, labels={"y": labelled(rows, torch.eye(D)[2])})
    with pytest.raises(UserError, match="9 documents in the half that is scored are too few to draw from, and 10"):
        finder_nulls.pca(replace(case, rows=18))


def test_what_trains_a_dictionary_is_dear():
    names = [f"finders.{name}" for name in ("untrained", "frozen-encoder", "random-decoder", "stability")]
    assert all(find(name).dear for name in [*names, "finders.random-decoder-covariance"])
    assert not find("finders.pca").dear


def test_the_best_direction_is_chosen_and_turned_on_one_half_only():
    rows = gaussian_rows(0)
    Y = torch.stack([(rows[:, 3] < 0).float(), (rows[:, 5] > 0).float()], 1)
    learn = best_directions.half(rows, Y, FIRST // EACH)
    chosen = best_directions.best(torch.eye(D).double(), learn)
    assert torch.equal(chosen[0], -torch.eye(D).double()[3])
    assert torch.equal(chosen[1], torch.eye(D).double()[5])
    r = learn.r(chosen)[0, 0]
    assert r == pytest.approx(np.corrcoef(-rows[:, 3], Y[:, 0])[0, 1], abs=1e-6)


def test_directions_are_counted_and_principal_features_are_not_put_against_themselves(monkeypatch):
    monkeypatch.setattr(finders, "REFIT_STEPS", 1)
    sae = Latents(refitted(sparse_rows(1), 24, 2, seed=5))
    assert best_directions.count_of(sae, D) == 24
    principal = Principal(3).fit(sparse_rows(1), seed=0)
    assert best_directions.count_of(principal, D) == 3
    with pytest.raises(UserError, match="principal direction itself"):
        finder_nulls.pca(rows_case(sparse_rows(0), principal))
    assert len(finder_nulls.random_directions(rows_case(sparse_rows(0), principal))) == 3
