"""N2: the toy world is what it says, the theory behind its bars holds, words and expected effects are right."""

import numpy as np
import pytest
import torch

from experiments.network.steering import Settings
from experiments.network.steering_families import DUAL, FAMILIES, LABELS, LOOSE, PROBE, WEIGHTED, families
from experiments.network.steering_report import KINDS, TOY_FAMILIES, _claimed, _p, over_documents
from experiments.network.steering_words import next_word_effects, word_ground
from experiments.network.steering_world import ATTRIBUTES, steering_world
from toolkit.errors import UserError
from toolkit.interventions import record, run
from toolkit.language import load_model
from toolkit.steering import dual_basis

SIZE = {"correlation": 0.6, "overlap": 0.5, "others": 6, "noise": 0.2}


def world(rows=500, relu=False, seed=0, **changed):
    return steering_world(rows=rows, relu=relu, seed=seed, **(SIZE | changed))


@pytest.mark.parametrize("relu", [False, True])
def test_switching_an_attribute_moves_its_own_output_and_no_other(relu):
    found = world(relu=relu)
    own = np.diag(found.effects)
    np.testing.assert_allclose(found.effects, np.eye(ATTRIBUTES, found.effects.shape[1]) * own[:, None], atol=1e-12)
    assert (own > 0.4).all()
    if not relu:
        np.testing.assert_allclose(own, 1, atol=1e-12)
    cosines = (found.written.T @ found.written)[np.triu_indices(ATTRIBUTES, 1)]
    assert sorted(set(cosines.round(9))) == [0, 0.5]  # three pairs overlap
    correlations = np.corrcoef(world(rows=20_000).labels.T)[np.triu_indices(ATTRIBUTES, 1)]
    np.testing.assert_allclose(correlations, 0.39, atol=0.04)


def test_rows_are_what_is_written_and_new_seeds_are_new_worlds():
    found = world(noise=0.0, others=0)
    np.testing.assert_allclose(found.rows.numpy(), found.labels @ found.written.T, atol=1e-12)
    assert torch.equal(found.rows, world(noise=0.0, others=0).rows)
    assert np.abs(found.written - world(seed=1).written).max() > 0.1


def population(others=True, noise=0.2):
    """A, labels' covariance, that of the rest, and the rows' of least squares, by the formulas of the docstring."""
    found = world(rows=50_000, seed=3)
    A, C = found.written, np.cov(found.labels.T)
    B = np.linalg.pinv(found.reads)[:, ATTRIBUTES:]
    N = noise**2 * np.eye(len(A)) + (B @ B.T if others else 0)
    sigma = A @ C @ A.T + N
    return A, C, N, sigma, C @ A.T @ np.linalg.inv(sigma)


def outside(S, A):
    """Share of each column's squared length outside the span of A."""
    q = np.linalg.qr(A)[0]
    return 1 - np.square(q.T @ S).sum(0) / np.square(S).sum(0)


def test_least_squares_rows_and_their_duals_are_what_the_theory_says():
    A, C, N, sigma, W = population()
    G = np.linalg.inv(A.T @ np.linalg.inv(N) @ A)
    np.testing.assert_allclose(W, C @ np.linalg.inv(C + G) @ G @ A.T @ np.linalg.inv(N), atol=1e-9)
    weighted = dual_basis(W, covariance=sigma).vectors
    np.testing.assert_allclose(weighted, A @ (np.eye(ATTRIBUTES) + G @ np.linalg.inv(C)), atol=1e-9)
    np.testing.assert_allclose(weighted, A @ np.linalg.inv(W @ A), atol=1e-9)
    # the labels' own covariance in place of the readings' turns the same formula into the truth
    np.testing.assert_allclose(sigma @ W.T @ np.linalg.inv(C), A, atol=1e-9)
    assert outside(weighted, A).max() < 1e-9
    assert outside(dual_basis(W).vectors, A).min() > 0.05


def test_without_other_features_plain_and_weighted_dual_are_one():
    A, _, _, sigma, W = population(others=False)
    np.testing.assert_allclose(dual_basis(W).vectors, dual_basis(W, covariance=sigma).vectors, atol=1e-9)
    assert outside(dual_basis(W).vectors, A).max() < 1e-9


def test_logistic_probes_have_duals_of_the_same_kind():
    found = world(rows=20_000)
    given = families(found.rows.numpy(), found.labels, groups=None, l2=1e-4, seed=0)
    assert tuple(given) == FAMILIES
    assert outside(given[WEIGHTED], found.written).mean() < 0.02
    assert outside(given[LABELS], found.written).mean() < 0.02
    assert outside(given[DUAL], found.written).mean() > 0.05


@pytest.mark.parametrize(
    ("least", "verdicts"),
    [
        ({DUAL: 0.1}, ["holds", "holds", "holds"]),
        ({PROBE: 0.1}, ["does not hold"] * 3),
        ({LABELS: 0.1, DUAL: 0.2}, ["holds", "holds", "does not hold"]),
        ({LABELS: 0.1, WEIGHTED: 0.15, DUAL: 0.3}, ["holds", "holds", "does not hold"]),
        ({LOOSE: 0.1, WEIGHTED: 0.15, PROBE: 0.3}, ["does not hold"] * 3),
        ({}, ["is not settled"] * 3),
    ],
)
def test_it_is_said_among_which_families_the_dual_has_the_smallest_off_target_effect(least, verdicts):
    noise = 1e-3 * torch.randn(20, len(TOY_FAMILIES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean(0)
    shares = noise + torch.tensor([least.get(family, 0.5) for family in TOY_FAMILIES], dtype=torch.float64)
    said = _claimed(dict.fromkeys(KINDS.values(), shares))
    for part, verdict in zip(said.split("among ")[1:], verdicts, strict=True):
        assert f"it {verdict} in the linear network (" in part
        assert f"and {verdict} in the ReLU network (" in part
    assert [part.split(" it ")[0] for part in said.split("among ")[1:]][::2] == [
        "directions made from the probes alone", "all families"]  # fmt: skip


def test_intervals_by_document_are_wider_than_by_place_where_documents_differ():
    draw = np.random.default_rng(0)
    documents = torch.as_tensor(np.repeat(np.arange(40), 10))
    level = np.repeat(draw.standard_normal(40), 10)
    values, ones = torch.as_tensor(level)[None], torch.ones(1, 400)
    found = over_documents(values, ones, documents)
    assert found.mean == pytest.approx(level.mean())
    half = 1.96 * level[::10].std(ddof=1) / np.sqrt(40)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.15)
    alone = over_documents(values, ones, torch.arange(400))
    assert alone.high - alone.low < 0.5 * (found.high - found.low)


def test_a_vector_that_cannot_move_the_outputs_has_no_p():
    null, observed = torch.tensor([[0.1, 0.2, 0.9], [0.1, 0.2, 0.9]]), torch.tensor([0.5, torch.nan])
    p = _p(null, observed)
    assert p[0] == 0.5
    assert p[1].isnan()


TREES = "\n\n".join(
    f"# newdoc id = {i}\n# text = {' '.join(words)}\n"
    + "\n".join(
        f"{n}\t{w}\t{w}\t{'NOUN' if w in ('cat', 'mat') else 'VERB' if w == 'sat' else 'DET'}\t_\t"
        f"{'Number=Plur' if (w, i % 3) == ('mat', 1) else '_'}\t0\troot\t_\t_"
        for n, w in enumerate(words, start=1)
    )
    for i, words in enumerate(
        [["the", "cat", "sat"], ["a", "mat", "sat", "the", "mat", "cat"], ["cat", "the", "mat"]] * 12
    )
)


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_model):
    path = tmp_path_factory.mktemp("trees") / "a.conllu"
    path.write_text(TREES + "\n\n")
    names = ("upos=NOUN", "upos=VERB", "Number=Plur")
    return Settings(model=str(tiny_model), corpus=str(path), attributes=names, block=0, places=10)


def test_words_stand_at_their_last_token_and_know_what_came_next(words):
    found = word_ground(words, 0)
    model, rest = load_model(words.model), found.downstream
    tokens, places = rest.tokens, rest.places
    assert len(places) == len(found.next_tokens) == len(found.documents) == 10
    for (sentence, position), came in zip(places.tolist(), found.next_tokens.tolist(), strict=True):
        text = model.tokenizer.decode(tokens[sentence, : position + 1], skip_special_tokens=True)
        assert text.split()[-1] in ("the", "a", "cat", "sat", "mat")
        assert tokens[sentence, position + 1] == came
        assert model.tokenizer.decode([came]).startswith(" ")  # a word follows: the one before was read to its end
    rows = record(model, tokens, [rest.hook])[rest.hook]
    torch.testing.assert_close(rest.activations, rows[places[:, 0], places[:, 1]])


def test_expected_effects_are_the_slopes_of_all_attributes_at_once(words):
    from experiments.network import steering_words as module

    model = load_model(words.model)
    read = module._read(model, module.read_labelled(words.corpus), words, 0)
    logs = run(model, read.tokens).log_softmax(2)[read.places[:, 0], read.places[:, 1]].double().numpy()
    design = np.column_stack([np.ones(len(logs)), read.labels])
    slopes = np.linalg.lstsq(design, logs, rcond=None)[0][1:]
    np.testing.assert_allclose(module._effects(model, read), slopes, atol=1e-4)
    assert read.labels.mean(0).min() > 0


def test_directions_of_words_are_steered_by_family(words):
    found = word_ground(words, 0)
    effects = next_word_effects(found, {DUAL: found.directions[DUAL]}, nats=1e-5, random=3, seed=0)
    np.testing.assert_allclose(effects.divergence.mean(2), 1e-5, rtol=0.0101)
    assert effects.loss.shape == (1, 3, 10)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [("upos=NOON", "unknown label of upos 'NOON': did you mean 'NOUN'"), ("tag=NN", "unknown layer 'tag'")],
)
def test_an_attribute_that_the_corpus_lacks_is_named(words, attribute, message):
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        word_ground(replace(words, attributes=("upos=VERB", attribute)), 0)
