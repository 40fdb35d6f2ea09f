"""An audit from end to end: what it returns, what it writes, that it resumes and does not hang on workers."""

import dataclasses
import json
import math

import numpy as np
import pytest
from safetensors.torch import load_file
from small_trees import write_trees

from controls import audit_run, budgets, commands
from controls.__main__ import main
from controls.audit import audit, paid
from controls.audit_json import axis_from, axis_json, feature_json, outcome_from, outcome_json
from controls.axes import TRAINED, WITHIN, Axis, above, below
from controls.axis_causal import Effort
from controls.budgets import Spending
from controls.finders import Labels, Principal
from controls.judging import Budget
from controls.outcomes import Outcome
from controls.registry import control, controls, find
from controls.settling import needed, settle, times
from controls.verdict import Evidence, judge
from toolkit.errors import UserError
from toolkit.language import load_model

HOOK = "blocks.2.hook_resid_post"
SMALL = Spending(700, 400, 60, Budget(99, 39, 2, Effort(4, 8, 4, 39, 2)), 19, 0, 0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_trees(tmp_path_factory.mktemp("trees") / "small.conllu.gz")


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def found(model, source):
    further = ["labels.shift", "finders.untrained"]
    finders = [Labels.of("upos=VERB"), Principal(1)]
    return audit(finders, model, source, hook=HOOK, budget=SMALL, further=further, quiet=True)


def test_an_audit_is_a_table_a_frame_and_every_null(found):
    assert [one.evidence.feature for one in found] == ["upos=VERB", "pca:1"]
    table = str(found)
    assert "upos=VERB" in table
    assert "2 features at alpha 0.05" in table
    frame = found.frame()
    assert list(frame.index) == ["upos=VERB", "pca:1"]
    assert list(frame["finder"]) == ["labels", "pca"]
    assert (frame["W_low"] <= frame["W"]).all()
    names = [outcome.control for outcome in found["upos=VERB"].evidence.outcomes]
    assert {"labels.documents", "weights.init", "weights.spectrum", "interventions.steer", "labels.shift"} <= set(names)
    assert all(np.isfinite(o.null).all() for one in found for o in one.evidence.outcomes)
    assert found.notes[-1].startswith("not asked: finders.untrained")
    assert sum(found.counts.values()) == 2
    with pytest.raises(UserError, match="did you mean 'upos=VERB'"):
        found["upos=VERBS"]


def test_a_label_that_is_a_function_of_the_word_is_inherited(found):
    assert found["upos=VERB"].place.startswith("inherited")
    assert found["upos=VERB"].evidence.token.settled == "absent"


def test_two_null_networks_cannot_settle_what_they_are_asked_and_say_so():
    ranked = Outcome("weights.init", "f", "r", 0.9, np.zeros(2))
    (one,) = judge([evidence(Axis(0.9, 0.01, 1 / 3, 1.0, between=TRAINED, outcomes=(ranked,)), PRESENT)])
    assert one.verdict == "undecided"
    assert settle(one, rows=700) == "W: 39 null draws at least, there were 2"


@pytest.fixture
def small_budget(monkeypatch):
    monkeypatch.setitem(budgets.BUDGETS, "quick", SMALL)
    monkeypatch.setattr(audit_run, "paid", lambda bought: ["labels.iid"])
    monkeypatch.setattr(audit_run, "check_draws", lambda alpha, bought: None)  # two null networks can rank nothing
    audit_run.ground.cache_clear()


def job(source, **changed):
    given = {"model": "tiny-gpt2", "hook": HOOK, "corpus": source, "labels": ("upos=VERB", "Number=Plur")}
    return audit_run.Job(**{**given, "budget": "quick", "seed": 3, **changed})


@pytest.mark.usefixtures("small_budget")
def test_a_killed_audit_goes_on_to_the_same_numbers(source, tmp_path, monkeypatch):
    whole = audit_run.run(job(source), out=str(tmp_path / "a"), workers=1, quiet=True)
    ground, asked = audit_run.ground, []

    def interrupted(settings, cell, seed):
        asked.append(cell)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return ground(*settings)[0].measure(cell)

    monkeypatch.setattr(audit_run, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audit_run.run(job(source), out=str(tmp_path / "b"), workers=1, quiet=True)
    first = len(asked)
    again = audit_run.run(job(source), out=str(tmp_path / "b"), workers=1, quiet=True, resume=True)
    total = len(list(asked)) - first + 4
    assert total == 1 + 1 + 2 * 2 + 2 + 2  # trained, control, networks, labels, causes: none computed twice
    results = [json.loads((one.folder / "result.json").read_text()) for one in (whole, again)]
    assert results[0]["metrics"]["features"] == results[1]["metrics"]["features"]
    kept = [load_file(one.folder / "tensors.safetensors") for one in (whole, again)]
    assert kept[0].keys() == kept[1].keys()
    assert all((kept[0][name] == kept[1][name]).all() for name in kept[0])
    assert whole.page.name == "report.html"
    assert {path.name for path in whole.folder.iterdir()} >= {"result.json", "tensors.safetensors", "report.html"}
    assert not list(whole.folder.glob("activations*"))


def flags_of(source, out):
    return ["--hook", HOOK, "--corpus", source, "--budget", "quick", "--out", str(out)]


@pytest.mark.usefixtures("small_budget")
def test_bad_input_is_one_line_and_leaves_nothing(source, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("UD_TREEBANK", raising=False)
    base = ["audit", *flags_of(source, tmp_path / "runs"), "--quiet"]
    cases = {
        "did you mean 'VERB'": ["--labels", "upos=VERBB"],
        "did you mean 'blocks.2.hook_resid_post'": ["--labels", "upos=VERB", "--hook", "blocks.2.hook_resid_pst"],
        "nothing to judge": [],
        "no SAE at": ["--sae", str(tmp_path / "none")],
        "--latents 0:2 without --sae": ["--labels", "upos=VERB", "--latents", "0:2"],
        "the hook has 1 to 128 directions": ["--pca", "129"],
        "did you mean 'quick'": ["--labels", "upos=VERB", "--budget", "quik"],
        "alpha must lie between 0 and 1": ["--labels", "upos=VERB", "--alpha", "2"],
        "unknown flag '--label'": ["--label", "upos=VERB"],
        "named twice": ["--labels", "upos=VERB,upos=VERB"],
        "--workers must be at least 1": ["--labels", "upos=VERB", "--workers", "0"],
    }
    for line, flags in cases.items():
        assert main([*base, *flags]) == 2, line
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1
    assert main(["audit", "--hook", HOOK, "--labels", "ud:upos=VERB"]) == 2
    assert "UD_TREEBANK" in capsys.readouterr().err
    assert main(["run", "weights.spectrun", *base[1:], "--labels", "upos=VERB"][:-2]) == 2
    capsys.readouterr()
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert left == []


def test_an_error_rate_that_no_rank_can_reach_says_how_many_draws_it_takes(source):
    with pytest.raises(UserError, match=r"alpha 0.01 needs 199 null networks of each kind and the budget has 39"):
        job(source, alpha=0.01, budget="quick")
    none = dataclasses.replace(SMALL, verdict=dataclasses.replace(SMALL.verdict, null_seeds=0))
    with pytest.raises(UserError, match="fewer than two null networks"):
        audit(Labels.of("upos=VERB"), "tiny-gpt2", source, hook=HOOK, budget=none)


@pytest.mark.parametrize(
    ("labels", "given", "corpus"),
    [(("relation=nsubj:pass",), "F", "F"), (("ud:relation=nsubj:pass",), "F", "F"),
     (("nltk:sentence_polarity:category=pos",), "", "nltk:sentence_polarity"), ((), "F", "F"), (("a=b",), "", "")],
)  # fmt: skip
def test_labels_say_which_corpus_they_are_of(labels, given, corpus):
    assert commands.corpus_of(labels, given) == corpus


def test_labels_of_one_corpus_and_another_are_refused():
    with pytest.raises(UserError, match="leave one of them out"):
        commands.corpus_of(("nltk:brown:tag=NN",), "nltk:treebank")
    with pytest.raises(UserError, match="several corpora"):
        commands.corpus_of(("nltk:brown:tag=NN", "ud:upos=VERB"), "")
    assert commands.split("ud:relation=nsubj:pass") == ("ud", "relation", "nsubj:pass")


@pytest.mark.usefixtures("small_budget")
def test_one_control_by_itself_says_what_it_tests(source, tmp_path, capsys):
    flags = [*flags_of(source, tmp_path), "--labels", "ud:upos=VERB"]
    assert main(["run", "labels.iid", *flags, "--draws", "59"]) == 0
    said = capsys.readouterr().out
    assert "null: " in said
    assert "survived" in said
    (result,) = tmp_path.glob("control-labels.iid/*/result.json")
    (outcome,) = json.loads(result.read_text())["metrics"]["outcomes"]
    assert outcome["draws"] == 59
    assert outcome["p"] == pytest.approx(1 / 60)
    assert main(["run", "labels.iidd", *flags]) == 2
    assert "did you mean 'labels.iid'" in capsys.readouterr().err
    assert main(["run", "finders.stability", *flags]) == 2
    assert "--sae or --pca" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if list(p.iterdir())] == ["control-labels.iid"]


def test_every_control_of_the_specification_is_registered(capsys):
    wanted = [
        *(f"labels.{kind}" for kind in ("type-task", "iid", "documents", "within-token", "shift", "code-length")),
        *(f"inputs.{kind}" for kind in ("unigram", "bigram", "shuffled", "gaussian", "ranks", "sparse")),
        *(f"weights.{kind}" for kind in ("init", "gaussian", "gaussian-kept", "shuffled", "cascade")),
        *(f"weights.spectrum{side}" for side in ("", "-left", "-right", "-products")),
        *(f"finders.{kind}" for kind in ("untrained", "random-decoder", "random-decoder-covariance")),
        *(f"finders.{kind}" for kind in ("frozen-encoder", "pca", "random-directions", "stability")),
        *(f"perturbations.{kind}" for kind in ("isotropic", "covariance", "real", "latent-swap", "sphere")),
        *(f"interventions.{kind}" for kind in ("ablate", "steer", "family", "erasure")),
        "labels.probe-search",
        "training.noise-property",
    ]
    assert set(wanted) <= set(controls())
    assert all(one.null for one in controls().values())
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in wanted)
    assert not set(paid(SMALL)) & {"labels.documents", "weights.init"}  # the axes have them
    assert not any(find(name).dear for name in paid(SMALL))  # a budget without dear draws
    with pytest.raises(ValueError, match="registered twice"):
        control("labels.iid", null="again")(lambda case: [])


def test_outcomes_rank_and_know_their_floor():
    larger = Outcome("a", "f", "r", 1.0, np.zeros(39))
    assert larger.p == pytest.approx(1 / 40)
    assert larger.survived(0.025) is True
    assert dataclasses.replace(larger, null=np.zeros(38)).survived(0.025) is None
    assert dataclasses.replace(larger, larger=False).p == 1.0
    assert dataclasses.replace(larger, observed=0.0).survived(0.05) is False  # ties are no better
    with pytest.raises(UserError, match="no null draws"):
        Outcome("a", "f", "r", 1.0, np.zeros(0))


def test_axes_and_outcomes_survive_their_files():
    outcome = Outcome("a", "f", "r", 0.1, np.array([0.3, 0.1 + 0.2]), note="n")
    axis = Axis(math.nan, math.inf, 1.0, 0.5, "why", WITHIN, (outcome,))
    back = axis_from(json.loads(json.dumps(axis_json(axis))))
    assert math.isnan(back.effect)
    assert (back.error, back.p, back.p_absent, back.why, back.between) == (math.inf, 1.0, 0.5, "why", WITHIN)
    assert (back.outcomes[0].null == outcome.null).all()
    assert outcome_from(outcome_json(outcome)).note == "n"


def evidence(training, causal, token=None, p_found=0.001):
    return Evidence("f", 0.5, 0.6, 0.01, p_found, token, training, causal)


PRESENT, ABSENT = Axis(0.9, 0.01, 1e-6, 1.0, between=TRAINED), Axis(0.0, 0.01, 1.0, 1e-6, between=TRAINED)


def test_places_of_the_table_and_what_would_settle_them():
    places = {}
    for w in (PRESENT, ABSENT):
        for c in (PRESENT, ABSENT):
            (one,) = judge([evidence(w, c)])
            places[one.verdict] = one.place
            assert settle(one, rows=100) == ""
    assert places == {"model": "computed / used", "unread": "computed / unread", "inherited": "inherited / used",
                      "dataset": "inherited / unread"}  # fmt: skip
    between = Axis(0.5, 0.01, 1.0, 1.0, between=TRAINED)
    (open_one,) = judge([evidence(between, PRESENT)])
    assert open_one.place == "open / used"
    assert settle(open_one, rows=100) == "W: no number of rows: 0.50 lies between absent (0.25) and present (0.75)"
    (lost,) = judge([evidence(PRESENT, PRESENT, p_found=0.4)])
    assert lost.place == "open / open"
    assert "rows, if r is" in settle(lost, rows=100)
    assert feature_json(open_one, "labels", rows=100)["settle"].startswith("W: no number")


def test_rows_said_to_settle_an_axis_do():
    """With so many times the documents the standard error falls by the root, and the test passes: just."""
    for effect in (0.85, 0.1):
        p = above(effect, 0.2, TRAINED.high)
        axis = Axis(effect, 0.2, p, 0.3, between=TRAINED)
        grown = axis.error / times(axis, 0.025) ** 0.5
        if effect > TRAINED.high:
            assert effect - 1.96 * grown == pytest.approx(TRAINED.high, abs=1e-3)
        else:
            assert below(effect, grown * 0.999, TRAINED, level=0.025) <= 0.0251
            assert below(effect, grown * 1.05, TRAINED, level=0.025) > 0.025
        assert "about" in needed(axis, 0.025, 1000)
    for worst_way in (Axis(0.9, 0.01, 0.6, 1.0, between=TRAINED), Axis(0.1, 0.01, 1.0, 0.66, between=TRAINED)):
        assert "no number of rows: asked in another way" in needed(worst_way, 0.025, 1000)
    beaten = Axis(0.9, 0.01, 0.3, 1.0, between=TRAINED, outcomes=(Outcome("weights.init", "f", "r", 0.1, np.ones(99)),))
    assert "weights.init does as well" in needed(beaten, 0.025, 1000)
