"""The command on small runs: what it writes is whole, repeatable, and says the same to every reader."""

import ast
import re
import sys
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from toolkit import configs, sae_fit
from toolkit.configs import ARCHITECTURES
from toolkit.flags import flag_of

CLASSES = (
    sae_fit.TargetConfig,
    configs.ToyModel,
    configs.ToyTraining,
    configs.SAEConfig,
    configs.EmbeddingConfig,
    configs.ActivationsConfig,
    configs.RunConfig,
)
TOP_LEVEL = {"name", "config", "seeds", "versions", "commit", "dirty", "started", "seconds", "metrics", "checks"}
SCORED = ("signed_mcc", "signed_mcc_chance", "recovered", "represented", "fvu", "fvu_held_out", "l0", "dead")


def vanishing(text):
    """Text without the white space at which help is wrapped."""
    return re.sub(r"\s+", "", text)


def documented(cls):
    """Field -> the docstring that follows it in the source."""
    source = ast.parse(Path(sys.modules[cls.__module__].__file__).read_text())
    body = next(node.body for node in source.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    found = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            found[node.target.id] = after.value.value
    return found


def test_help_shows_every_field_with_its_docstring(run_main):
    shown = run_main("--help")
    assert (shown.code, shown.err) == (0, "")
    for cls in CLASSES:
        docs = documented(cls)
        assert set(docs) == {field.name for field in fields(cls)}
        for name, text in docs.items():
            assert f"{flag_of(name)} " in shown.out
            assert vanishing(text) in vanishing(shown.out), name


@pytest.mark.parametrize("target", [(), ("--target", "tms"), ("--target", "embedding")])
def test_help_does_not_wait_for_heavy_imports(run_command, target):
    program = """
import sys
from toolkit.sae_fit import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *sorted({"torch", "numba", "numpy", "sae_lens", "transformers", "matplotlib"} & set(sys.modules)))
"""
    shown = run_command(*target, "--help", program=program)
    assert shown.code == 0
    assert shown.out.splitlines()[-1] == "loaded:"


def test_a_tms_result_carries_its_settings_and_every_score(tms_run, result_of):
    result = result_of(tms_run)
    assert set(result) == TOP_LEVEL
    assert result["name"] == "tms-pentagon"
    assert result["config"]["sae"]["steps"] == 120
    assert result["config"]["toy"]["density"] == [0.05]
    assert result["seeds"] == [0]
    assert result["checks"] == []
    assert result["seconds"] > 0
    for name in SCORED:
        values = result["metrics"][name]
        assert len(values) == 3, name
        best = min if name in ("fvu", "fvu_held_out", "l0", "dead") else max
        assert result["metrics"][f"{name}_best"] == best(values)
        assert result["metrics"][f"{name}_median"] == median(values)
    assert result["metrics"]["saved_instance"] == max(range(3), key=result["metrics"]["signed_mcc"].__getitem__)


@pytest.mark.parametrize("run", ["tms_run", "embedding_run"])
def test_figures_are_there_and_parse(run, request):
    figures = {path.name: ElementTree.parse(path).getroot() for path in request.getfixturevalue(run).glob("*.svg")}
    expected = {"tms_run": {"toy.svg", "sae.svg", "training.svg"}, "embedding_run": {"training.svg", "density.svg"}}[
        run
    ]
    assert set(figures) == expected
    assert all(root.tag.endswith("}svg") and len(list(root.iter())) > 20 for root in figures.values())


@pytest.mark.parametrize("run", ["tms_run", "embedding_run"])
def test_a_finished_folder_holds_no_trace_of_the_work(run, request):
    folder = request.getfixturevalue(run)
    assert folder.name == "001"
    assert [path.name for path in folder.parent.iterdir()] == ["001"]
    assert not [*folder.rglob("checkpoint_*"), *folder.rglob("*.tmp")]


def test_the_saved_sae_is_the_best_instance_of_the_tensors(tms_run, result_of):
    tensors, saved = load_file(tms_run / "tensors.safetensors"), SAE.load_from_disk(tms_run / "sae")
    assert tensors["toy.W"].shape == (3, 2, 5)
    best = result_of(tms_run)["metrics"]["saved_instance"]
    torch.testing.assert_close(saved.W_dec.data, tensors["sae.W_dec"][best])


@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(flags, request, fit, result_of, tmp_path):
    flags = (*request.getfixturevalue(flags), "--out", tmp_path)
    first, again, other = (result_of(fit(*flags, "--seed", seed)) for seed in (5, 5, 6))
    assert first["metrics"] == again["metrics"]
    assert first["metrics"]["fvu"] != other["metrics"]["fvu"]
    assert [run["seeds"] for run in (first, again, other)] == [[5], [5], [6]]


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_runs_on_toy_models(architecture, hidden, tiny_tms, fit, result_of, tmp_path, recwarn):
    folder = fit(*tiny_tms, "--architecture", architecture, "--hidden", hidden, "--out", tmp_path)
    result = result_of(folder)
    assert result["config"]["sae"]["architecture"] == architecture
    assert all(value is not None and value >= 0 for value in result["metrics"]["fvu"])
    assert SAE.load_from_disk(folder / "sae").cfg.d_in == hidden
    assert [str(warned.message) for warned in recwarn if "toolkit" in Path(warned.filename).parts] == []


def test_an_instance_without_a_represented_feature_is_never_the_best(tiny_tms, fit, result_of, tmp_path):
    # The weights stay where they start, and with this seed the first instance's are all short.
    folder = fit(*tiny_tms, "--toy-steps", 1, "--toy-lr", 1e-9, "--seed", 10, "--out", tmp_path)
    scores = result_of(folder)["metrics"]
    assert scores["represented"][0] == 0
    assert max(scores["represented"]) > 0
    assert scores["signed_mcc"][0] is None
    known = [value for value in scores["signed_mcc"] if value is not None]
    assert scores["signed_mcc_best"] == max(known)
    assert scores["signed_mcc_median"] == median(known)
    assert scores["saved_instance"] == scores["signed_mcc"].index(max(known))


@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_quiet_leaves_the_table_and_takes_the_bars(flags, request, run_main, tmp_path):
    flags = request.getfixturevalue(flags)
    quiet = run_main(*flags, "--out", tmp_path)
    loud = run_main(*(flag for flag in flags if flag != "--quiet"), "--out", tmp_path)
    assert (quiet.code, quiet.err) == (0, "")
    assert re.search(r"SAEs?: 100%.*120/120", loud.err)
    table, written = quiet.out.rsplit("written: ", 1)
    assert table == loud.out.rsplit("written: ", 1)[0]
    assert written.strip() == str(next(tmp_path.glob("*/001")))


def test_an_interrupt_says_how_to_go_on(tiny_tms, run_main, monkeypatch, tmp_path):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("toolkit.fit_tms.fit", interrupted)
    ended = run_main(*tiny_tms, "--out", tmp_path)
    assert ended.code == 130
    assert ended.err.count("\n") == 1
    assert "--resume" in ended.err


@pytest.mark.slow
def test_a_terminal_that_knows_no_unicode_gets_the_table_too(tiny_embedding, run_command, tmp_path):
    ended = run_command(*tiny_embedding, "--out", tmp_path, environment={"PYTHONIOENCODING": "ascii"})
    assert (ended.code, ended.err) == (0, "")
    assert "written: " in ended.out
