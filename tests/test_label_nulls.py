"""Controls of the label: each rejects a label that is there, and none that its null could have made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, chisquare

from controls import label_nulls, label_searches
from controls.case import Case
from controls.reading import Reading
from controls.registry import find
from controls.subject import Subject
from toolkit.code_length import code_length
from toolkit.errors import UserError
from toolkit.language import load_model
from toolkit.probe_search import select_probe
from toolkit.probes import LDAProbe, LinearProbe, MeanDifferenceProbe, MLPProbe

NAMES = ("type-task", "iid", "documents", "within-token", "shift", "code-length", "probe-search")
RUN = {
    "type-task": label_nulls.type_task,
    "iid": label_nulls.iid,
    "documents": label_nulls.documents,
    "within-token": label_nulls.within_token,
    "shift": label_nulls.shift,
    "code-length": label_searches.coded,
    "probe-search": label_searches.searched,
}
LEVEL = 0.05


@pytest.fixture(scope="module")
def build():
    """A case from planted rows: the network is never run."""
    model = load_model()

    def built(X, labels, groups, tokens=None, **how):
        rows = len(X)
        places = torch.stack([torch.from_numpy(groups), torch.arange(rows) % 8], 1)
        reading = Reading(
            torch.zeros(int(groups.max()) + 1, 8, dtype=torch.long), places, groups, np.empty(0, int), "tokens", None
        )
        X = torch.as_tensor(X, dtype=torch.float32)
        subject = Subject(X, labels, groups, tokens, np.arange(1), lambda h, at: h, dict.fromkeys(labels), {})
        return Case(model, "blocks.2.hook_resid_post", reading, subject, {}, **{"draws": 99, "dear": 19, **how})

    return built


def rows_of(seed, *, documents=40, each=30, types=60, d=12):
    """A generator, documents, types by Zipf's law, and activations: the type's vector and noise."""
    rng = np.random.default_rng([seed, 7])
    share = 1 / (10 + np.arange(types))
    tokens = rng.choice(types, documents * each, p=share / share.sum())
    X = rng.standard_normal((types, d))[tokens] + 0.3 * rng.standard_normal((documents * each, d))
    return rng, np.repeat(np.arange(documents), each), tokens, X


def written(rng, X, y, length=3.0):
    """Activations with a label along a direction."""
    v = rng.standard_normal(X.shape[1])
    return X + length * np.outer(y, v / np.linalg.norm(v))


def two_labels(seed, rate=0.3, **how):
    """Rows where one label is of the context and written, the other a random function of the type."""
    rng, groups, tokens, X = rows_of(seed, **how)
    context = (rng.random(len(X)) < rate).astype(int)
    memory = (rng.random(tokens.max() + 1) < rate).astype(int)[tokens]
    return written(rng, X, context), {"context": context, "type": memory}, groups, tokens


def by_feature(outcomes):
    return {outcome.feature: outcome for outcome in outcomes}


def test_the_registry_has_them_all():
    for name in NAMES:
        found = find(f"labels.{name}")
        assert found.run is RUN[name]
        assert found.null
        assert found.dear == (name in ("code-length", "probe-search"))


@pytest.mark.parametrize("name", ["type-task", "code-length", "within-token"])
def test_a_label_of_the_context_survives_what_kills_a_label_of_the_type(build, name):
    case = build(*two_labels(0))
    found = by_feature(RUN[name](case))
    assert case.data.r(torch.from_numpy(case.subject.table).float()).min() > 0.3  # both are decodable
    assert found["context"].survived(LEVEL) is True
    assert found["type"].survived(LEVEL) is False
    assert found["context"].control == f"labels.{name}"


def test_the_search_finds_a_label_of_the_context_and_not_one_of_the_type(build, monkeypatch):
    fast = {"means": MeanDifferenceProbe(), "LDA": LDAProbe()}
    monkeypatch.setattr(label_searches, "families", lambda: fast)
    found = by_feature(RUN["probe-search"](build(*two_labels(0, documents=24))))
    assert found["context"].survived(LEVEL) is True
    assert found["type"].survived(LEVEL) is False
    assert len(found["type"].null) == 19
    assert np.abs(found["type"].null).max() < found["context"].observed


def test_the_search_finds_a_label_that_networks_alone_read(build, monkeypatch):
    """The exclusive or of two written bits, and a random function of the type beside it."""
    monkeypatch.setattr(label_searches, "STEPS", 25)
    rng, groups, tokens, X = rows_of(0, documents=24, types=200, d=8)
    bits, memory = rng.integers(2, size=(2, len(X))), rng.integers(2, size=200)[tokens]
    X = written(rng, written(rng, 0.3 * X, bits[0]), bits[1])
    case = build(X, {"xor": bits[0] ^ bits[1], "type": memory}, groups, tokens, dear=9)
    found = by_feature(RUN["probe-search"](case))
    assert found["xor"].p == 0.1
    assert found["xor"].note.startswith("MLP")
    assert found["type"].p > 0.1


def test_labels_that_types_got_at_random_are_one_more_control_task(build):
    """Sixty labels, each with its own types: no more survive than a binomial law allows."""
    p = []
    for seed in range(12):
        rng, groups, tokens, X = rows_of(seed)
        labels = {str(i): (rng.random(tokens.max() + 1) < 0.3).astype(int)[tokens] for i in range(5)}
        p += [outcome.p for outcome in RUN["type-task"](build(X, labels, groups, tokens, draws=39, seed=seed))]
    assert (np.array(p) <= 0.1).sum() <= binom.ppf(0.999, len(p), 0.1)
    assert (np.array(p) > 0.5).sum() <= binom.ppf(0.999, len(p), 0.5)


def test_memory_of_types_reaches_the_r_that_the_note_tells(build):
    """Activations that are the type, one-hot, so that a read-out is a table; each document has types of its own too."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 40)
    tokens = np.where(rng.random(2400) < 0.6, rng.integers(30, size=2400), 30 + groups)
    case = build(np.eye(90)[tokens], {"y": rng.integers(2, size=2400)}, groups, tokens)
    outcome = RUN["type-task"](case)[0]
    told = float(outcome.note.rsplit(" ", 1)[1])
    assert told == pytest.approx(np.sqrt((tokens < 30).mean()), abs=0.006)
    assert outcome.null.mean() == pytest.approx(told, abs=0.03)
    assert outcome.survived(LEVEL) is False


def test_control_tasks_have_both_labels():
    """Of a label on one row in a hundred most control tasks over ten types are never on."""
    y, types = (np.arange(1000) % 100 == 0).astype(int), np.arange(1000) % 10
    tasks = label_nulls.control_tasks(y, types, 30, 0, least=3)
    assert tasks.shape == (1000, 30)
    assert all(len(np.unique(tasks[types == kind], axis=0)) == 1 for kind in range(10))
    assert (tasks.sum(0) >= 3).all()
    assert (tasks.sum(0) <= 997).all()
    with pytest.raises(UserError, match="too rare, or types too few"):
        label_nulls.control_tasks(y, np.zeros(1000, int), 30, 0, least=1)


@pytest.mark.parametrize("name", ["iid", "documents", "shift", "within-token"])
def test_permutations_reject_a_label_that_is_there_and_not_one_that_is_not(build, name):
    rng, groups, tokens, X = rows_of(1)
    y, absent = (rng.random((2, len(X))) < 0.3).astype(int)
    found = by_feature(RUN[name](build(written(rng, X, y), {"there": y, "absent": absent}, groups, tokens)))
    assert found["there"].p == 0.01
    assert found["absent"].p > LEVEL
    assert len(found["there"].null) == 99


def topical(seed, documents=30, each=20, d=6):
    """Documents with a topic in the activations, and labels that most of a document shares: independent of each
    other."""
    rng = np.random.default_rng([seed, 9])
    groups = np.repeat(np.arange(documents), each)
    X = rng.standard_normal((documents, d))[groups] + 0.5 * rng.standard_normal((documents * each, d))
    return X, {"topic": (rng.random(len(X)) < rng.choice([0.1, 0.9], documents)[groups]).astype(int)}, groups


def test_what_documents_share_fools_iid_and_p_of_documents_is_uniform(build):
    """200 seeds. Documents are exchangeable, so that p is uniform on 1/20, 2/20, ..., 1; rows are not."""
    cases = [build(*topical(seed), draws=19, seed=seed) for seed in range(200)]
    p = {name: np.array([RUN[name](case)[0].p for case in cases]) for name in ("iid", "documents")}
    counts = np.bincount(np.ceil(p["documents"] * 10 - 1e-9).astype(int) - 1, minlength=10)
    assert chisquare(counts).pvalue > 0.001
    assert (p["documents"] <= LEVEL).sum() <= binom.ppf(0.999, 200, LEVEL)
    assert (p["iid"] <= LEVEL).mean() > 0.2


def test_a_label_of_whole_documents_that_is_there_survives_documents_and_never_shift(build):
    rng, groups, tokens, X = rows_of(2)
    y = (np.arange(40) % 3 == 0).astype(int)[groups]
    case = build(written(rng, X, y), {"topic": y}, groups, tokens)
    assert RUN["documents"](case)[0].p == 0.01
    turned = RUN["shift"](case)[0]
    assert turned.p == 1
    assert turned.note == "the label varies in 0 of 40 documents"


def drifting(seed, documents=20, each=60, d=4):
    """Activations and a label that change slowly round each document, independent of each other."""
    rng = np.random.default_rng([seed, 11])

    def smooth(columns):
        noise = np.fft.rfft(rng.standard_normal((documents, each, columns)), axis=1)
        noise[:, 4:] = 0
        return np.fft.irfft(noise, each, axis=1).reshape(documents * each, columns)

    X = smooth(d)
    return X, {"run": (smooth(1)[:, 0] > 0).astype(int)}, np.repeat(np.arange(documents), each)


def test_runs_inside_documents_fool_iid_and_not_shift(build):
    cases = [build(*drifting(seed), draws=19, seed=seed) for seed in range(100)]
    p = {name: np.array([RUN[name](case)[0].p for case in cases]) for name in ("iid", "shift")}
    assert (p["shift"] <= LEVEL).sum() <= binom.ppf(0.999, 100, LEVEL)
    assert (p["shift"] > 0.5).sum() <= binom.ppf(0.999, 100, 0.5)
    assert (p["iid"] <= LEVEL).mean() > 0.15


def test_a_type_label_with_rows_flipped_at_random_is_found_but_not_within_types(build):
    rng, groups, tokens, X = rows_of(3)
    y = (rng.random(60) < 0.4).astype(int)[tokens] ^ (rng.random(len(X)) < 0.2)
    case = build(X, {"y": y}, groups, tokens)
    assert RUN["documents"](case)[0].p == 0.01
    assert RUN["within-token"](case)[0].p > LEVEL
    settled = build(X, {"y": (np.arange(60) % 2)[tokens]}, groups, tokens)
    assert RUN["within-token"](settled)[0].p == 1
    assert RUN["within-token"](settled)[0].note == "the type settles it"


def test_permutations_in_blocks_are_the_draws_asked_for(build, monkeypatch):
    """Several blocks of draws are as many draws, none of them twice."""
    monkeypatch.setattr(label_nulls, "AT_ONCE", 8)
    rng, groups, tokens, X = rows_of(4, documents=20, each=10)
    y = (rng.random(200) < 0.3).astype(int)
    found = {name: RUN[name](build(X, {"y": y}, groups, tokens, draws=21))[0].null for name in RUN if "-" not in name}
    assert {name: len(np.unique(null)) for name, null in found.items()} == dict.fromkeys(found, 21)


def test_labels_stay_where_their_null_keeps_them_and_seeds_move_them(build, monkeypatch):
    """The rows that labels come from, as each control scores them."""
    _, groups, tokens, X = rows_of(4, documents=20, each=10)
    rows, seen, drawn = np.arange(200), [], label_nulls._drawn

    def recorded(shuffle, case):
        for dealt in drawn(shuffle, case):
            seen.append(dealt)
            yield dealt

    monkeypatch.setattr(label_nulls, "_drawn", recorded)
    for seed in (0, 1):
        case = build(X, {"y": (rows % 3 == 0).astype(int)}, groups, tokens, draws=5, seed=seed)
        for name in ("iid", "within-token", "shift"):
            RUN[name](case)
    iid, shift = (seen[place](rows) for place in (0, 2))
    for place, source in ((0, iid), (2, shift)):
        assert (np.sort(source, 0) == rows[:, None]).all()
        assert (source != seen[3 + place](rows)).any()
    assert (groups[shift] == groups[:, None]).all()
    assert not (tokens[iid] == tokens[:, None]).all()
    kept, moved = (np.stack([seen[place](one)[row] for row, one in enumerate(np.eye(200))]) for place in (1, 4))
    assert (np.sign(kept) != np.sign(moved)).any()
    for document in range(20):  # all its labels change their sign or none; types that stand alone are 0 throughout
        signs = np.sign(kept[groups == document])
        assert (np.abs(signs).max(0) == 1).all()
        assert (signs.max(0) * signs.min(0) >= 0).all()
    whole = seen[1](rows.astype(np.float32))
    np.testing.assert_allclose([whole[tokens == one].mean(0) for one in np.unique(tokens)], 0, atol=1e-4)


def test_draws_are_fewer_at_a_time_where_rows_are_many(build, monkeypatch):
    rng, groups, tokens, X = rows_of(4, documents=20, each=10)
    case = build(X, {"y": (rng.random(200) < 0.3).astype(int)}, groups, tokens, draws=21)
    monkeypatch.setattr(label_nulls, "INDICES", 200 * 5)
    assert label_nulls._blocks(case) == [5, 4, 4, 4, 4]
    assert len(np.unique(RUN["type-task"](case)[0].null)) > 15
    monkeypatch.setattr(label_nulls, "INDICES", 1)
    assert label_nulls._blocks(case) == [1] * 21


def by_type_and_topic(seed, rate=None, documents=40, each=20, types=40, d=12):
    """Activations of type and document; a label of the document, or of a rate whatever the rows: of none of these."""
    rng = np.random.default_rng([seed, 13])
    tokens = np.minimum(rng.zipf(1.5, documents * each), types) - 1
    groups = np.repeat(np.arange(documents), each)
    X = rng.standard_normal((types, d))[tokens] + rng.standard_normal((documents, d))[groups]
    X += 0.5 * rng.standard_normal(X.shape)
    y = (rng.random(documents) < 0.5)[groups] if rate is None else rng.random(len(X)) < rate
    return X, {"y": y.astype(int)}, groups, tokens


@pytest.mark.parametrize("rate", [None, 0.03])
def test_what_documents_share_does_not_fool_within_token(build, rate):
    """Documents are the unit: p is about uniform, where exchanging rows of a type rejected in half of the trials."""
    p = np.array([
        RUN["within-token"](build(*by_type_and_topic(seed, rate), draws=19, seed=seed))[0].p for seed in range(120)
    ])  # fmt: skip
    assert (p <= LEVEL).sum() <= binom.ppf(0.999, len(p), LEVEL)
    assert (p <= 0.5).sum() <= binom.ppf(0.999, len(p), 0.5)
    assert (p > 0.5).sum() <= binom.ppf(0.999, len(p), 0.5)


def test_code_lengths_are_those_of_the_online_code_and_batches_change_none(build, monkeypatch):
    case = build(*two_labels(1, documents=24, each=20), dear=3)
    outcomes = by_feature(RUN["code-length"](case))
    some, y = case.some, case.subject.labels["type"][case.some]
    alone = code_length(
        LinearProbe(l2=0.01), case.subject.activations.numpy()[some], y, groups=case.subject.groups[some]
    )
    rate = y.mean()
    entropy = -rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate)
    assert outcomes["type"].observed == pytest.approx(alone.bits / len(y) / entropy, rel=1e-4)
    assert not outcomes["type"].larger
    monkeypatch.setattr(label_searches, "TOGETHER", 3)
    again = by_feature(RUN["code-length"](case))
    for name, outcome in outcomes.items():
        np.testing.assert_allclose(again[name].null, outcome.null, rtol=1e-4)


def test_an_absent_label_costs_its_entropy_or_more(build):
    rng, groups, tokens, X = rows_of(5)
    found = RUN["code-length"](build(X, {"y": rng.integers(2, size=len(X))}, groups, tokens))[0]
    assert found.observed > 0.99
    assert found.survived(LEVEL) is False


def test_the_search_tries_linear_probes_and_a_network():
    probes = label_searches.families().values()
    assert any(isinstance(probe, MLPProbe) for probe in probes)
    assert any(isinstance(probe, LDAProbe | LinearProbe) for probe in probes)


def test_each_label_is_searched_for_as_alone(build, monkeypatch):
    """All labels, draws and tasks in one go, against `select_probe` on one label with the same folds and tasks."""
    fast = {"means": MeanDifferenceProbe(), "LDA": LDAProbe(), "linear": LinearProbe(l2=0.1)}
    monkeypatch.setattr(label_searches, "families", lambda: fast)
    case = build(*two_labels(3, documents=24), dear=3)
    some, found = case.some, by_feature(RUN["probe-search"](case))
    for name, outcome in found.items():
        alone = select_probe(
            case.subject.activations.numpy()[some],
            case.subject.labels[name][some],
            tokens=case.subject.tokens[some],
            groups=case.subject.groups[some],
            candidates=fast,
            tasks=label_searches.TASKS,
            parts=label_searches.PARTS,
            seed=label_nulls.number(0, label_nulls.TRIES),
            quiet=True,
        )
        assert outcome.observed == pytest.approx(alone.value, abs=1e-9)
        assert outcome.note.startswith(f"{alone.winner} wins, accuracy {alone.accuracy:.3f}")
        assert len(outcome.null) == 3


def test_a_draw_of_the_search_is_scored_as_the_label_is(monkeypatch):
    """The same columns in another order give the same values in that order: neither is told from the other."""
    monkeypatch.setattr(label_searches, "STEPS", 10)
    rng, groups, _, X = rows_of(6, documents=12, each=20)
    label, *draws, first, second = rng.integers(2, size=(6, 240))
    tasks, order = np.stack([first, second], 1), [2, 0, 3, 1]
    columns = np.stack([label, *draws], 1)
    values = [
        next(label_searches.searches(X, [some], [tasks], groups, seed=1)).values
        for some in (columns, columns[:, order])
    ]
    np.testing.assert_allclose(values[0][order], values[1], atol=0.01)


def test_searched_labels_that_types_got_at_random_are_one_more_draw(build, monkeypatch):
    monkeypatch.setattr(label_searches, "families", lambda: {"means": MeanDifferenceProbe(), "LDA": LDAProbe()})
    p = []
    for seed in range(10):
        rng, groups, tokens, X = rows_of(seed, documents=20, each=20)
        labels = {str(i): (rng.random(tokens.max() + 1) < 0.4).astype(int)[tokens] for i in range(6)}
        p += [outcome.p for outcome in RUN["probe-search"](build(X, labels, groups, tokens, dear=9, seed=seed))]
    assert (np.array(p) <= 0.1).sum() <= binom.ppf(0.999, len(p), 0.1)
    assert (np.array(p) > 0.5).sum() <= binom.ppf(0.999, len(p), 0.5)


def test_a_search_takes_a_thousand_rows_at_most_of_many_documents(build, monkeypatch):
    X, labels, groups, tokens = two_labels(2, documents=30, each=100)
    seen = []

    def spied(X, columns, tasks, groups, **how):
        seen.append((len(X), len(np.unique(groups))))
        raise UserError("far enough")

    monkeypatch.setattr(label_searches, "searches", spied)
    for rows, taken in ((4000, (1000, 20)), (700, (700, 20))):
        with pytest.raises(UserError, match="far enough"):
            RUN["probe-search"](build(X, labels, groups, tokens, rows=rows))
        assert seen.pop() == taken


@pytest.mark.parametrize("name", ["type-task", "within-token", "code-length", "probe-search"])
def test_rows_without_types_are_told(build, name):
    X, labels, groups, _ = two_labels(0, documents=20, each=5)
    with pytest.raises(UserError, match="no token types"):
        RUN[name](build(X, labels, groups))


@pytest.mark.parametrize("name", ["code-length", "probe-search"])
def test_a_label_too_rare_for_the_rows_taken_is_named(build, name):
    X, labels, groups, tokens = two_labels(0, documents=20, each=20)
    case = build(X, labels, groups, tokens, rows=100)
    outside = np.flatnonzero(~np.isin(np.arange(400), case.some))[0]
    rare = {"rare": (np.arange(400) == outside).astype(int)}
    with pytest.raises(UserError, match=r"label 'rare': the rarer of 0 and 1 has 0 of the 100 rows"):
        RUN[name](replace(case, subject=replace(case.subject, labels=rare)))


@pytest.mark.parametrize("name", ["type-task", "code-length", "probe-search"])
def test_a_rare_label_is_left_out_with_a_note_and_the_others_are_judged(build, name, monkeypatch):
    monkeypatch.setattr(label_searches, "families", lambda: {"means": MeanDifferenceProbe()})
    X, labels, groups, tokens = two_labels(0, documents=20, each=20)
    once = {"once": (np.arange(400) == 7).astype(int)}
    monkeypatch.setattr(label_nulls, "TRIES", 1)  # of a row in 400 most control tasks have none
    found = RUN[name](build(X, labels | once, groups, tokens, draws=19, dear=3))
    assert [outcome.feature for outcome in found] == ["context", "type"]
    assert all("hence left out: 'once'" in outcome.note for outcome in found)
    assert "left out" not in RUN[name](build(X, labels, groups, tokens, draws=19, dear=3))[0].note


def test_a_note_names_few_of_many_labels_left_out():
    def refuse(y):
        if not y.any():
            raise UserError("none")
        return 1

    given = {"one": np.ones(2, int)} | {str(number): np.zeros(2, int) for number in range(5)}
    assert label_nulls.of_each(given, refuse) == (
        {"one": 1},
        "too rare in the rows taken, hence left out: '0', '1', '2' and 2 more",
    )


@pytest.mark.parametrize("name", [name for name in NAMES if name != "probe-search"])
def test_the_seed_decides_all(build, name):
    given = two_labels(0, documents=20, each=20)
    first, again, other = (RUN[name](build(*given, seed=seed, draws=19, dear=3))[0] for seed in (1, 1, 2))
    assert (first.null == again.null).all()
    assert (first.null != other.null).any()
