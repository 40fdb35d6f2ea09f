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


@pytest.mark.slow
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
        for source in drawn(shuffle, case):
            seen.append(source)
            yield source

    monkeypatch.setattr(label_nulls, "_drawn", recorded)
    for seed in (0, 1):
        case = build(X, {"y": (rows % 3 == 0).astype(int)}, groups, tokens, draws=5, seed=seed)
        for name in ("iid", "within-token", "shift"):
            RUN[name](case)
    iid, within, shift, *others = seen
    for source, other in zip((iid, within, shift), others, strict=True):
        assert (np.sort(source, 0) == rows[:, None]).all()
        assert (source != other).any()
    assert (tokens[within] == tokens[:, None]).all()
    assert (groups[shift] == groups[:, None]).all()
    assert not (tokens[iid] == tokens[:, None]).all()


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


def test_the_search_tries_linear_probes_and_networks_of_several_widths():
    probes = label_searches.families().values()
    assert len({probe.hidden for probe in probes if isinstance(probe, MLPProbe)}) > 1
    assert any(isinstance(probe, LDAProbe | LinearProbe) for probe in probes)


def test_a_search_takes_two_thousand_rows_at_most(build, monkeypatch):
    X, labels, groups, tokens = two_labels(2, documents=30, each=100)
    seen = []

    def spied(X, *args):
        seen.append(len(X))
        raise UserError("far enough")

    monkeypatch.setattr(label_searches, "_search", spied)
    for rows, taken in ((4000, 2000), (700, 700)):
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


@pytest.mark.parametrize("name", [name for name in NAMES if name != "probe-search"])
def test_the_seed_decides_all(build, name):
    given = two_labels(0, documents=20, each=20)
    first, again, other = (RUN[name](build(*given, seed=seed, draws=19, dear=3))[0] for seed in (1, 1, 2))
    assert (first.null == again.null).all()
    assert (first.null != other.null).any()
