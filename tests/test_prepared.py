"""An audit made ready: rows, labels, the rest and nulls are what the model itself gives; bad input is one line."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from small_trees import write_trees

from controls import audit_run, budgets
from controls.axis_causal import Effort
from controls.budgets import BUDGETS, Rates, Spending, duration, measured, spending, told
from controls.case import activations_at
from controls.finders import Labels, Latents, Principal, ReadOuts, ranges
from controls.judging import Budget
from controls.model_weights import drawn_anew
from controls.prepared import ACTIVATIONS, MANY_DOCUMENTS, by_probability, chosen_places, prepare, processing
from controls.reading import Reading, read
from toolkit.errors import UserError
from toolkit.interventions import record, run
from toolkit.language import load_model
from toolkit.sae import SAEConfig, fit_sae, load_sae

HOOK = "blocks.2.hook_resid_post"
SMALL = Spending(900, 500, 60, Budget(99, 39, 2, Effort(4, 8, 4, 39, 2)), 19, 0, 0)


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("trees") / "small.conllu.gz")


@pytest.fixture(scope="module")
def case(model, source):
    finders = [Labels.of("upos=VERB", "Number=Plur"), Principal(2)]
    return prepare(model, HOOK, finders, source, SMALL, seed=1).case


def test_rows_are_the_models_and_labels_those_of_its_words(case, model):
    rest = case.subject.downstream
    sequence, position = rest.places[7]
    values = record(model, rest.tokens[sequence : sequence + 1, : position + 1], [HOOK])[HOOK]
    row = case.subject.activations[case.subject.places[7]]
    torch.testing.assert_close(row, values[0, position], atol=1e-3, rtol=1e-3)
    words = [case.reading.labelled.words[item] for item in case.reading.items]
    verbs = np.array([word in ("sees", "takes", "finds", "likes", "calls") for word in words])
    assert np.array_equal(case.subject.labels["upos=VERB"], verbs.astype(int))
    assert case.subject.labels["Number=Plur"].sum() == sum(word.endswith("s") and not v
                                                           for word, v in zip(words, verbs, strict=True))  # fmt: skip


@pytest.mark.parametrize("damage", ["flipped", "cut short", "none"])
def test_kept_activations_that_were_damaged_are_taken_anew(damage, case, model, source, tmp_path):
    finders = [Labels.of("upos=VERB", "Number=Plur"), Principal(2)]
    prepare(model, HOOK, finders, source, SMALL, seed=1, kept=tmp_path)
    file = tmp_path / ACTIVATIONS
    raw = bytearray(file.read_bytes())
    if damage == "flipped":
        raw[-100] ^= 64
    if damage != "none":
        file.write_bytes(raw[:-7] if damage == "cut short" else raw)
    before = file.stat().st_mtime_ns
    again = prepare(model, HOOK, finders, source, SMALL, seed=1, kept=tmp_path).case
    assert torch.equal(again.subject.activations, case.subject.activations)
    assert (file.stat().st_mtime_ns != before) == (damage != "none")


def test_the_rest_is_the_models_own(case, model):
    rest, at = case.subject.downstream, torch.tensor([0, 5, 40])
    logits = run(model, rest.tokens).log_softmax(2)
    expected = logits[rest.places[at, 0], rest.places[at, 1]]
    found = rest(case.subject.activations[torch.from_numpy(case.subject.places)[at]], at)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_nulls_are_other_networks_on_the_same_tokens(case):
    init, rows = case.subject.nulls["init"], case.subject.null_rows
    assert init(3).shape == (len(rows), 128)
    assert torch.equal(init(3), init(3))
    assert not torch.allclose(init(3), init(4))
    trained = case.subject.activations[torch.from_numpy(rows)]
    assert not torch.allclose(case.subject.nulls["spectrum"](3), trained)
    assert len(np.unique(case.subject.groups[rows])) >= 20  # whole documents
    for group in np.unique(case.subject.groups[rows]):
        assert np.isin(np.flatnonzero(case.subject.groups == group), rows).all()


def test_what_chooses_features_is_not_judged(model, source):
    """Principal directions come from documents that are left out, and their labels from medians of those."""
    whole = read(model, source, ["upos=VERB"], rows=990, per_document=990 // MANY_DOCUMENTS, seed=1)
    case = prepare(model, HOOK, [Labels.of("upos=VERB"), Principal(2)], source, SMALL, seed=1).case
    judged = {tuple(case.reading.tokens[s].tolist()) for s in case.reading.rows[:, 0]}
    left = len({int(g) for g in whole.groups}) - (int(case.subject.groups.max()) + 1)
    assert left >= 3
    assert judged < {tuple(whole.tokens[s].tolist()) for s in whole.rows[:, 0]}
    assert 0.3 < case.subject.labels["pca:1"].mean() < 0.7
    assert case.subject.families == {"upos=VERB": "labels", "pca:1": "pca", "pca:2": "pca"}
    assert case.subject.fellows(1) == [2]


def test_activations_do_not_hang_on_what_they_are_read_beside(model, source):
    reading = read(model, source, ["upos=VERB"], rows=300, seed=0)
    together = activations_at(model, HOOK, reading.tokens, reading.rows)
    some = reading.part(np.arange(40, 60))
    alone = activations_at(model, HOOK, some.tokens, some.rows)
    torch.testing.assert_close(together[40:60], alone, atol=1e-4, rtol=1e-4)
    assert np.array_equal(some.ids, reading.ids[40:60])


def test_rare_features_have_places_where_they_are_on():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 50)
    Y = np.stack([rng.random(3000) < 0.01, rng.random(3000) < 0.5], 1).astype(int)
    at = chosen_places(Y, groups, 200, seed=0)
    assert len(at) == 200 == len(set(at.tolist()))
    assert Y[at, 0].sum() >= 0.9 * Y[:, 0].sum()  # a random choice would have two
    assert 60 <= Y[at, 1].sum() <= 140


def test_weights_of_outputs_make_squares_twice_a_divergence():
    torch.manual_seed(0)
    p = torch.randn(1, 50).double().log_softmax(1)
    q = (p + 0.01 * torch.randn(1, 50)).log_softmax(1)
    kl = float((p.exp() * (p - q)).sum())
    assert float(((q - p) * by_probability(p)).square().sum()) == pytest.approx(2 * kl, rel=0.05)


def test_latents_that_are_on_often_are_chosen_and_dead_ones_left_out(model, source):
    reading = read(model, source, ["upos=VERB"], rows=600, seed=3)
    rows = activations_at(model, HOOK, reading.tokens, reading.rows)
    sae = fit_sae(rows, SAEConfig(architecture="topk", width=64, k=4, steps=200, batch=256), seed=0)
    chosen = Latents(sae, count=5).fit(rows, seed=0)
    assert len(chosen.which) == 5
    rates = [y.mean() for y in chosen.labels(None, rows).values()]
    assert all(0.01 <= rate <= 0.99 for rate in rates)
    assert chosen.directions().shape == (5, 128)
    prepared = prepare(model, HOOK, [Latents(sae, tuple(range(64)))], source, SMALL, seed=0)
    assert "left out" in prepared.notes[0]
    with pytest.raises(UserError, match=r"reads rows of 128 numbers and the hook holds 384.*another hook"):
        Latents(sae, (1,)).fit(torch.zeros(5, 384), seed=0)
    with pytest.raises(UserError, match="latent 64 is not there: the SAE has 0 to 63"):
        Latents(sae, (3, 64)).fit(rows, seed=0)


def test_latents_are_judged_on_their_models_weights_and_a_model_loaded_otherwise_is_noted(model, source, tmp_path):
    reading = read(model, source, ["upos=VERB"], rows=600, seed=3)
    rows = activations_at(model, HOOK, reading.tokens, reading.rows)
    rows = rows - rows.mean(1, keepdim=True)
    config = SAEConfig(architecture="topk", width=64, k=4, steps=200, batch=256)
    said = {"model_from_pretrained_kwargs": {"center_writing_weights": True, "fold_ln": False}}
    replace(fit_sae(rows, config), metadata=said).save(tmp_path)
    finders = [Latents(load_sae(str(tmp_path)), (0, 1, 2))]
    assert processing(finders) == {"centre_writing_weights": True}
    assert processing([Principal(2), Labels.of("upos=VERB")]) == {}
    wanted = "the SAE's model had centre_writing_weights, this one has not: load it so"
    assert wanted in prepare(model, HOOK, finders, source, SMALL, seed=0).notes
    job = audit_run.Job("tiny-gpt2", HOOK, source, sae=str(tmp_path), latents="0:3", budget="quick")
    centred = audit_run.ground.__wrapped__(job, "")[1]
    assert wanted not in centred.notes
    folded = load_model(fold_layer_norm=True, centre_writing_weights=True)
    other = "this model has fold_layer_norm, the SAE's had not: load it so"
    assert [note for note in prepare(folded, HOOK, finders, source, SMALL, seed=0).notes if "load it" in note] == [
        other
    ]
    assert centred.case.subject.activations.mean(1).abs().max() < 1e-5
    assert drawn_anew(centred.case.model, "init", seed=0).processing == ("centre_writing_weights",)


@pytest.mark.parametrize(
    ("label", "line"),
    [("upos=VERBB", "unknown value of upos 'VERBB': did you mean 'VERB'"), ("uposs=VERB", "unknown layer"),
     ("VERB", "expected LAYER=VALUE")],
)  # fmt: skip
def test_labels_that_are_not_there_are_one_line(label, line, model, source):
    with pytest.raises(UserError, match=line):
        prepare(model, HOOK, [Labels.of(label)], source, SMALL, seed=0)


def test_an_unknown_hook_is_refused_with_the_nearest(model, source):
    with pytest.raises(UserError, match="did you mean"):
        prepare(model, "blocks.2.hook_resid_pots", [Labels.of("upos=VERB")], source, SMALL, seed=0)


def test_too_few_documents_say_how_many_are_needed(model, tmp_path):
    few = write_trees(tmp_path / "few.conllu.gz", documents=12)
    with pytest.raises(UserError, match=r"12 documents.*need 20"):
        prepare(model, HOOK, [Labels.of("upos=VERB")], few, SMALL, seed=0)


def test_a_label_that_never_occurs_is_one_line(model, source):
    never = ReadOuts((("never", lambda rows: np.zeros(len(rows), int)),))
    with pytest.raises(UserError, match=r"'never' never occurs"):
        prepare(model, HOOK, [Labels.of("upos=VERB"), never], source, SMALL, seed=0)
    wrong = ReadOuts((("score", lambda rows: rows[:, 0]),))
    with pytest.raises(UserError, match="expected 0 or 1"):
        prepare(model, HOOK, [Labels.of("upos=VERB"), wrong], source, SMALL, seed=0)


def test_ranges_of_latents():
    assert ranges("0:3,8, 2") == (0, 1, 2, 8)
    for bad in ("3:1", "a", "", "1:", "-2"):
        with pytest.raises(UserError, match="expected numbers and ranges"):
            ranges(bad)


def test_a_larger_budget_is_told_by_its_own_rows_unless_the_text_ends():
    rates = Rates(rows=1000.0, draw=1.0, rest=1000.0, width=64)
    sizes = {"features": 5, "workers": 2, "alpha": 0.05}
    standard = duration(rates.seconds(BUDGETS["standard"], available=100_000, **sizes))
    assert f"standard {standard}" in told(rates, "quick", available=3_960, **sizes)
    short = duration(rates.seconds(BUDGETS["standard"], available=1_000, **sizes))
    assert f"standard {short}" in told(rates, "quick", available=1_000, **sizes)


def test_rows_a_second_count_all_that_is_read_for_a_row(model, monkeypatch):
    """Ends of texts: a window of 64 tokens each, of which eight are timed; words: 40 of one window."""
    seconds = count()
    monkeypatch.setattr(budgets.time, "perf_counter", lambda: next(seconds))
    tokens = torch.ones(40, 64, dtype=torch.long)
    nobody = np.zeros(40, np.int64)
    dense = torch.stack([torch.zeros(40, dtype=torch.long), torch.arange(1, 41)], 1)
    ends = torch.stack([torch.arange(40), torch.full((40,), 63)], 1)
    found = [
        measured(model, HOOK, Reading(read, rows, nobody, nobody[:0], unit, None)).rows
        for read, rows, unit in ((tokens, ends, "texts"), (tokens[:1], dense, "words"))
    ]
    assert found == [8.0, 40.0]


def test_budgets_grow_and_unknown_ones_are_refused():
    rows = [one.rows for one in BUDGETS.values()]
    assert rows == sorted(rows)
    assert all(one.verdict.null_seeds >= 39 for one in BUDGETS.values())  # a rank can pass 2.5%
    with pytest.raises(UserError, match="did you mean 'standard'"):
        spending("standart")
    assert [duration(s) for s in (3, 600, 9000)] == ["3 s", "10 min", "2.5 h"]


def test_long_documents_are_read_in_part_so_that_there_are_many(model, tmp_path):
    """Thirty documents of 400 words: a budget of 1,200 rows has a part of each, not three of them."""
    rng = np.random.default_rng(0)
    words = ["the", "dog", "sees", "a", "house", "and", "takes", "it"]
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(" ".join(rng.choice(words, 400)))
    long = Spending(1200, 600, 60, Budget(99, 39, 2, Effort(4, 8, 4, 39, 2)), 19, 0, 0)
    case = prepare(model, HOOK, [Principal(1)], str(tmp_path), long, seed=0).case
    assert int(case.subject.groups.max()) + 1 == 27  # three were what the direction was fitted on
    assert len(np.unique(case.subject.groups[case.some])) >= 20
    assert len(case.some) <= case.rows + 30
