"""Every experiment at its smallest scale: its checks pass, and fail once its effect is taken away."""

import ast
from dataclasses import fields, replace
from pathlib import Path

import pytest

from experiments import registry
from experiments.running import How, compute
from toolkit.errors import UserError
from toolkit.runs import plain

ALL = registry.experiments()
ROWS = [
    *(f"T{i}" for i in range(1, 13)),
    *(f"C{i}" for i in range(1, 8)),
    "U1",
    "U2",
    "U3",
    "S1",
    "S2",
    *(f"E{i}" for i in range(1, 8)),
    *(f"N{i}" for i in range(1, 11)),
]
PLANTED_ONLY = "N10"
"""Stands among the networks and is about none that anybody trained on text."""


def smoke(experiment, settings, folder, **how):
    return compute(experiment, settings, How(quiet=True, **how), folder)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ALL, ids=lambda e: e.name)
def test_every_check_passes_at_smoke_scale(experiment, tmp_path):
    outcome = smoke(experiment, experiment.scales["smoke"], tmp_path)
    assert outcome.checks
    assert [check for check in outcome.checks if not check.passed] == []
    assert outcome.figures
    assert outcome.conclusion.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ALL, ids=lambda e: e.name)
def test_checks_fail_once_the_effect_is_taken_away(experiment, tmp_path):
    assert experiment.broken != experiment.scales["smoke"]
    outcome = smoke(experiment, experiment.broken, tmp_path)
    assert not all(check.passed for check in outcome.checks)


def test_every_row_of_the_list_has_its_experiment_in_order():
    assert [experiment.row for experiment in ALL] == ROWS


@pytest.mark.parametrize("experiment", ALL, ids=lambda e: e.name)
def test_an_experiment_is_one_short_file_without_a_training_loop_of_its_own(experiment):
    path = Path(registry.__file__).parent / experiment.group / (experiment.measure.__module__.split(".")[-1] + ".py")
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 120
    called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
    assert called & {"backward", "grad", "Adam", "adam", "SGD", "zero_grad"} == set()


@pytest.mark.parametrize("experiment", ALL, ids=lambda e: e.name)
def test_an_experiment_says_what_it_asks_and_what_stands_beside_it(experiment):
    assert experiment.question.endswith("?")
    assert experiment.controls
    assert all((experiment.claim, experiment.source))
    for settings in (*experiment.scales.values(), experiment.broken):
        assert experiment.cells(settings)
        assert all(plain(dict(cell)) == dict(cell) for cell in experiment.cells(settings))
        assert all(name.islower() for name in (field.name for field in fields(settings)))


def test_a_name_or_a_row_that_is_taken_is_refused():
    pentagon, phases = (registry.chosen([name])[0] for name in ("pentagon", "phase-diagram"))
    for twin in (replace(pentagon, row="T99"), replace(phases, name="another")):
        with pytest.raises(ValueError, match="names and rows of their own"):
            registry.register(twin)
    assert [e.name for e in registry.experiments()] == [e.name for e in ALL]
    with pytest.raises(ValueError, match="settings must be given for"):
        replace(pentagon, scales={"smoke": pentagon.scales["smoke"]})


def test_only_experiments_on_a_model_take_one_planted_at_smoke_scale_and_shipped_at_default():
    for experiment in ALL:
        is_of_models = experiment.group in ("embedding", "network") and experiment.row != PLANTED_ONLY
        assert experiment.takes("model") == is_of_models
        assert [experiment.needs_model(scale) for scale in registry.SCALES] == [False, False, experiment.takes("model")]
        if experiment.takes("model"):
            models = {scale: settings.model for scale, settings in experiment.scales.items()}
            assert models == {"smoke": "", "default": "tiny-gpt2", "paper": ""}
            assert experiment.broken.model == ""


def test_only_what_reads_text_takes_a_corpus_and_writes_its_own_at_smoke_scale_unless_a_model_is_to_read_it():
    readers = [e for e in ALL if e.takes("corpus")]
    assert [e.row for e in readers] == ["E6", "E7", *(f"N{i}" for i in range(1, 10))]
    for experiment in readers:
        assert [experiment.needs_corpus(scale, "") for scale in registry.SCALES] == [False, True, True]
        assert experiment.needs_corpus("smoke", "tiny-gpt2")
        assert {settings.corpus for settings in (*experiment.scales.values(), experiment.broken)} == {""}
    assert not any(e.needs_corpus("default", "tiny-gpt2") for e in ALL if e not in readers)


def test_names_and_patterns():
    assert [e.row for e in registry.chosen(["phase-diagram", "pentagon", "T*gon", "pent*"][:2])] == ["T2", "T3"]
    assert registry.chosen(["all"]) == registry.chosen(["toy/*", "embedding/*", "network/*"]) == ALL
    assert {e.group for e in registry.chosen(["embedding/*"])} == {"embedding"}
    assert registry.place("S2") < registry.place("E1") < registry.place("E4") < registry.place("N1")
    assert [e.name for e in registry.chosen(["toy/pent*", "pentagon"])] == ["pentagon"]
    with pytest.raises(UserError, match="unknown experiment 'pentagno': did you mean 'pentagon'"):
        registry.chosen(["pentagno"])
    with pytest.raises(UserError, match="unknown scale 'papr': did you mean 'paper'"):
        ALL[0].settings("papr")
