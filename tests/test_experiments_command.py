"""The experiments' command as a user types it: tables, exit codes, resuming, and every mistake in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import registry
from experiments.__main__ import duration, main
from experiments.checks import at_least
from experiments.registry import Outcome
from toolkit.errors import UserError

ROOT = Path(__file__).parents[1]
README = str(ROOT / "README.md")


@pytest.fixture
def run(capfd):
    def call(*argv):
        capfd.readouterr()
        try:
            code = main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """An experiment in the list that passes at seed 0 and fails at any other."""
    pentagon = registry.chosen(["pentagon"])[0]

    def measure(settings, cell, seed):
        import torch

        with (tmp_path / "trace").open("a") as file:
            file.write("x")
        return {"value": torch.tensor(float(seed))}

    def summarise(settings, cells, found):
        return Outcome("It is so.", tuple(at_least("seed is 0", [1 - one["value"].item()], 1) for one in found))

    experiment = replace(pentagon, name="planted", row="T98", measure=measure, summarise=summarise)
    monkeypatch.setitem(registry._ALL, "planted", experiment)
    return tmp_path / "trace"


def test_list_names_every_experiment_with_its_claim_and_times(run):
    code, out, _ = run("list")
    assert code == 0
    for experiment in registry.experiments():
        line = next(line for line in out.splitlines() if line.split()[:2] == [experiment.row, experiment.name])
        assert experiment.claim in line
        assert duration(experiment.seconds["paper"]) in line


def test_durations_as_people_say_them():
    assert [duration(s) for s in (2, 80, 100, 5400, 86400 * 3)] == ["2 s", "80 s", "1.7 min", "1.5 h", "3 d"]


def test_a_run_ends_with_a_table_a_folder_and_exit_code_0_or_1(run, planted, tmp_path):
    code, out, _ = run("run", "planted", "--scale", "smoke", "--workers", 1, "--quiet", "--out", tmp_path)
    assert code == 0
    assert "passed  seed is 0  >= 1" in out
    code, out, _ = run("run", "planted", "--scale", "smoke", "--workers", 1, "--quiet", "--seed", 1, "--out", tmp_path)
    assert code == 1
    assert "FAILED  seed is 0  >= 1" in out
    result = json.loads((tmp_path / "planted" / "002" / "result.json").read_text())
    assert [check["passed"] for check in result["checks"]] == [False] * len(result["checks"])
    assert set(result["checks"][0]) == {"claim", "expected", "measured", "low", "high", "values", "passed"}
    assert result["metrics"]["conclusion"] == "It is so."
    assert result["config"]["scale"] == "smoke"
    assert result["config"]["versions"]["feature-verdict"]


def test_several_say_how_long_they_will_take_and_how_they_ended(run, planted, tmp_path):
    many = ("run", "planted", "pentagon", "--scale", "smoke", "--workers", 1, "--quiet", "--seed", 1, "--out", tmp_path)
    code, out, _ = run(*many)
    assert code == 1
    assert out.startswith("2 at scale smoke: about ")
    assert "1 of 2 passed; failed: planted" in out


def test_paper_scale_says_its_estimate_first(run, planted, tmp_path):
    _, out, _ = run("run", "planted", "--scale", "paper", "--workers", 1, "--quiet", "--out", tmp_path)
    assert out.startswith("1 at scale paper: about ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run", "pentagno"], "unknown experiment 'pentagno': did you mean 'pentagon'?"),
        (["run", "nothing/*"], "unknown experiment 'nothing/*'"),
        (
            ["run", "pentagon", "--scale", "papper"],
            "unknown scale 'papper': did you mean 'paper'? valid: smoke, default, paper",
        ),
        (["run", "pentagon", "--wrokers", "2"], "unknown flag '--wrokers': did you mean '--workers'?"),
        (["run", "pentagon", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["run", "pentagon", "--workers", "two"], "invalid int value: 'two'"),
        (
            ["run", "outside-superposition", "--scale", "paper"],
            "outside-superposition: no model given: --model takes a folder or a hub name such as gpt2",
        ),
        (["run", "embedding/*", "--scale", "paper"], "outside-superposition: no model given"),
        (["run", "pentagon", "--model", "x"], "pentagon takes no --model, got 'x': leave it out"),
        (["run", "toy/*", "--model", "x"], "none of toy/* takes --model, got 'x'"),
        (["run", "outside-superposition", "pentagon", "--model", "x"], "pentagon takes no --model"),
        (["run", "outside-superposition", "--model", "./none"], "no model at ./none: expected a folder"),
        (
            ["run", "basis-pursuit", "--scale", "smoke", "--frequencies", "x"],
            "--frequencies at scale smoke needs --model, whose tokens it counts",
        ),
        (["run", "one-row", "--scale", "smoke", "--corpus", "x"], "--corpus at scale smoke needs --model"),
        (["run", "outside-superposition", "--frequencies", "x"], "no text file at x"),
        (["run", "one-row"], "one-row: no corpus given: --corpus takes a text file, a folder, nltk:NAME or hf:NAME"),
        (["run", "frozen-embedding", "pentagon", "--corpus", "x"], "pentagon takes no --corpus, got 'x': leave it out"),
        (["run", "toy/*", "--corpus", "x"], "none of toy/* takes --corpus, got 'x': leave it out"),
        (["run", "one-row", "--corpus", "./none.txt"], "none.txt"),
        (["run", "control-tasks"], "control-tasks: no corpus given: --corpus takes a text file"),
        (
            ["run", "control-tasks", "--corpus", README],
            f"control-tasks: {README} has no parts of speech: --corpus takes",
        ),
        (["run", "all", "--model", "x", "--frequencies", "nothing.txt"], "no text file at nothing.txt"),
        (["run", "outside-superposition", "--scale", "smoke", "--modle", "x"], "did you mean '--model'?"),
        (["run", "pentagon", "--seed", "-1"], "--seed must be a whole number"),
        (["run", "pentagon", "--hook", "x"], "pentagon takes no --hook, got 'x': leave it out"),
        (["run", "toy/*", "--sae", "x"], "none of toy/* takes --sae, got 'x': leave it out"),
        (
            ["run", "attribution", "--scale", "smoke", "--set", "widht=3"],
            "unknown setting 'widht': did you mean 'width'?",
        ),
        (["run", "pentagon", "--set", "width=3"], "unknown setting 'width'"),
        (["run", "toy/*", "--set", "positoin=3"], "unknown setting 'positoin'"),
        (["run", "network/*", "--scale", "smoke", "--set", "positoin=3"], "did you mean 'position'?"),
        (
            ["run", "attribution", "--scale", "smoke", "--set", "width=many"],
            "--set width=many: expected int, such as 256",
        ),
        (
            ["run", "attribution", "--scale", "smoke", "--set", "shuffled=perhaps"],
            "--set shuffled=perhaps: expected bool, such as False",
        ),
        (["run", "attribution", "--scale", "smoke", "--set", "width"], "--set width=: expected int"),
        (["run", "attribution", "--scale", "smoke", "--set", "k=300"], "k=300 is more than width=256"),
        (
            ["run", "attribution", "--scale", "smoke", "--sae", "x", "--hook", "a,b"],
            "one SAE stands at one hook, got a,b: name one --hook",
        ),
        (["run"], "the following arguments are required: NAME"),
        (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
        ([], "the following arguments are required: command"),
        (["report", "--out", "nowhere"], "no finished experiment in nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert words in err
    assert not list(tmp_path.iterdir())  # nothing half-written


@pytest.fixture
def started(monkeypatch):
    """What would run, with the model each is given, instead of running it."""
    import torch

    from experiments import running
    from experiments.running import Finished

    given = {}

    def note(experiment, how):
        given[experiment.name] = running.settings_of(experiment, how)
        return Finished(Path("nowhere"), Outcome("So.", (at_least("c", torch.ones(2), 1),)), 0.0)

    monkeypatch.setattr(running, "run", note)
    return given


def test_a_pattern_runs_what_can_be_run_and_says_in_one_line_what_it_leaves_out(run, started):
    code, out, _ = run("run", "all")
    names = [e.name for e in registry.experiments()]
    readers = [e.name for e in registry.experiments() if e.takes("corpus")]
    models = [e.name for e in registry.experiments() if e.takes("model")]
    assert code == 0
    assert list(started) == [name for name in names if name not in readers]
    (line,) = (line for line in out.splitlines() if "left out" in line)
    assert line.startswith(f"left out, {', '.join(readers)}: no corpus given: --corpus takes a text file")
    started.clear()
    code, out, _ = run("run", "all", "--scale", "paper")
    assert list(started) == [name for name in names if name not in models]
    (line,) = (line for line in out.splitlines() if "left out" in line)
    assert line.startswith(f"left out, {', '.join(models)}: no model given: --model takes a folder")
    started.clear()
    code, out, _ = run("run", "all", "--scale", "smoke")
    assert list(started) == names
    assert "left out" not in out


def test_a_pattern_gives_the_text_to_those_that_read_it(run, started, tmp_path):
    (tmp_path / "text.txt").write_text("a b c")
    code, out, _ = run("run", "embedding/*", "--corpus", tmp_path / "text.txt")
    assert code == 0
    assert "left out" not in out
    assert {name: getattr(settings, "corpus", None) for name, settings in started.items()} == {
        e.name: str(tmp_path / "text.txt") if e.takes("corpus") else None
        for e in registry.experiments()
        if e.group == "embedding"
    }


def test_a_pattern_gives_the_model_to_those_that_take_it(run, started, tiny_model):
    code, out, _ = run("run", "all", "--model", tiny_model)
    assert code == 0
    readers = [e.name for e in registry.experiments() if e.takes("corpus")]
    lacking = {"error-over-pretraining", *readers}
    for experiment in registry.experiments():
        if experiment.name not in lacking:
            assert getattr(started[experiment.name], "model", None) == (
                str(tiny_model) if experiment.takes("model") else None
            )
    assert set(started) == {e.name for e in registry.experiments()} - lacking
    lines = [line for line in out.splitlines() if line.startswith("left out, ")]
    assert lines[0].startswith(f"left out, error-over-pretraining: {tiny_model} has no checkpoints: expected a folder")
    assert lines[1].startswith(f"left out, {', '.join(readers)}: no corpus given")


def test_settings_are_taken_as_what_they_replace(run, started):
    sets = ("width=64", "shuffled=TRUE", "networks=trained, spectrum", "processing=fold_layer_norm")
    code, _, _ = run("run", "attribution", "--scale", "smoke", *(word for each in sets for word in ("--set", each)))
    settings = started["attribution"]
    assert code == 0
    assert (settings.width, settings.shuffled, settings.networks) == (64, True, ("trained", "spectrum"))
    assert settings.processing == ("fold_layer_norm",)
    assert settings.rows == registry.chosen(["attribution"])[0].settings("smoke").rows


@pytest.mark.parametrize(
    ("experiment", "sets", "says"),
    [
        ("attribution", ("hook=blocks.2.hook_resid_post",), "use --hook"),
        ("attribution", ("width=64", "width=32"), "--set width is given twice"),
        ("u-and", ("tasks=and",), "cannot be set so"),
        ("saes-on-toy-models", ("importances=half",), "importances=half: expected float"),
        ("saes-on-toy-models", ("large=400",), "large=400: expected 2 values, such as"),
        ("frozen-embedding", ("steps=410",), "steps=410 must be a multiple of every="),
        ("frozen-embedding", ("every=0",), "must be a multiple of every=0"),
        ("basis-pursuit", ("k=3",), "k=3 must be one of ks="),
        ("basis-pursuit", ("ks=4",), "ks must rise, two or more"),
        ("geometry-plateaus", ("seeds=5",), "seeds must be an even number, got 5"),
        ("memorisation-and-double-descent", ("samples=10,100",), "samples must hold 5"),
        ("memorisation-and-double-descent", ("decay=0",), "decay must be above 0"),
        ("correlated-features", ("densities=0.1,0.3",), "densities must hold .05 and .5"),
        ("correlated-features", ("seeds=3",), "seeds must be at least 4"),
        ("pentagon", ("importances=0.7",), "importances must hold .9 and 1"),
        ("circuits-in-superposition", ("trained_circuits=2",), "lie apart"),
        ("learning-dynamics", ("steps=100",), "steps must be at least 400"),
    ],
)
def test_settings_that_cannot_be_taken_so_are_one_line(run, experiment, sets, says):
    code, _, err = run("run", experiment, "--scale", "smoke", *(word for each in sets for word in ("--set", each)))
    assert code == 2
    assert says in err


def test_a_pattern_hands_a_setting_or_a_hook_to_those_that_take_it_and_to_no_other(run, started):
    plain = {e.name: e.settings("smoke") for e in registry.experiments()}
    code, _, _ = run("run", "network/*", "pentagon", "--scale", "smoke", "--set", "position=3")
    assert code == 2  # pentagon is asked for by its name and takes none
    code, _, _ = run(
        "run", "network/*", "pent*", "--scale", "smoke", "--set", "position=3", "--hook", "blocks.0.hook_mlp_out"
    )
    assert code == 0
    takers = {name for name in started if hasattr(plain[name], "position")}
    assert {"attribution"} < takers < set(started)
    for name, settings in started.items():
        changed = {"position": 3, "hook": "blocks.0.hook_mlp_out"}
        assert settings == replace(plain[name], **{k: v for k, v in changed.items() if hasattr(plain[name], k)})


def test_a_hook_or_an_sae_that_is_not_there_is_one_line_when_it_is_met(run, tmp_path):
    asked = ("run", "attribution", "--scale", "smoke", "--workers", 1, "--quiet", "--out", tmp_path)
    code, _, err = run(*asked, "--hook", "blocks.1.hook_resid_pots")
    assert code == 2
    assert "did you mean 'blocks.1.hook_resid_post'" in err
    code, _, err = run(*asked, "--sae", "./none")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: no SAE at ./none: expected a folder written by sae-lens")
    assert not [path for path in tmp_path.glob("attribution/.*") if path.is_dir()]


def test_a_run_of_another_model_is_not_resumed(run, tiny_model, tmp_path):
    folder = tmp_path / "outside-superposition" / ".001.unfinished"
    folder.mkdir(parents=True)
    config = {"scale": "smoke", "seed": 0, "settings": {"model": "another"}, "versions": {}}
    (folder / "run.json").write_text(json.dumps({"config": config, "started": 0.0}))
    asked = ("run", "outside-superposition", "--scale", "smoke", "--model", tiny_model, "--resume", "--out", tmp_path)
    code, _, err = run(*asked)
    assert code == 2
    assert f"settings.model: 'another' -> '{tiny_model}'" in err


def test_a_wrong_name_among_right_ones_starts_nothing(run, planted, tmp_path):
    assert run("run", "planted", "pentagno", "--out", tmp_path)[0] == 2
    assert not planted.exists()


def test_a_folder_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run("run", "pentagon", "--scale", "smoke", "--out", tmp_path / "file")
    assert code == 2
    assert "cannot write to" in err


def unfinished(folder, config):
    path = folder / "pentagon" / ".001.unfinished"
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"config": config, "started": 0.0}))


def test_a_run_of_another_version_or_scale_is_not_resumed(run, tmp_path):
    unfinished(tmp_path, {"scale": "default", "seed": 0, "settings": {}, "versions": {"torch": "1.0"}})
    code, _, err = run("run", "pentagon", "--scale", "smoke", "--resume", "--out", tmp_path)
    assert code == 2
    assert "with another configuration" in err
    assert "scale: 'default' -> 'smoke'" in err
    assert "versions.torch: '1.0' -> " in err


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    command = [sys.executable, "-m", "experiments", "run", "pentagon", "--scale", "smoke", "--workers", "1", "--quiet"]
    whole = subprocess.run([*command, "--out", str(tmp_path / "whole")], cwd=ROOT, capture_output=True, check=True)
    killed = subprocess.Popen([*command, "--out", str(tmp_path / "cut")], cwd=ROOT, stdout=subprocess.PIPE)
    folder = tmp_path / "cut" / "pentagon" / ".001.unfinished"
    while killed.poll() is None and len(list(folder.glob("checkpoint_cell_*.safetensors"))) < 2:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("checkpoint_cell_*.safetensors")}
    assert 2 <= len(kept) < 4
    again = subprocess.run(
        [*command, "--resume", "--out", str(tmp_path / "cut")], cwd=ROOT, capture_output=True, check=True
    )
    assert again.stdout.splitlines()[:8] == whole.stdout.splitlines()[:8]
    tensors = [(tmp_path / name / "pentagon" / "001" / "tensors.safetensors").read_bytes() for name in ("whole", "cut")]
    assert tensors[0] == tensors[1]


def test_help_is_quick_and_whole():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "experiments", "run", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for flag in (
        "--scale",
        "--workers",
        "--cluster",
        "--seed",
        "--resume",
        "--quiet",
        "--out",
        "--model",
        "--frequencies",
        "--corpus",
        "--hook",
        "--sae",
        "--set",
    ):
        assert flag in done.stdout
    assert " torch\n" not in done.stderr  # nothing heavy is imported for it


def test_a_mistake_found_in_a_cell_leaves_nothing_behind_unless_a_cell_was_finished(
    run, planted, tmp_path, monkeypatch
):
    whole = registry._ALL["planted"]

    def refuse(settings, cell, seed):
        if seed == 1 or cell != first:
            raise UserError("the tokenizer does not match")
        return whole.measure(settings, cell, seed)

    cells = [{"at": 0}, {"at": 1}]
    first = cells[0]
    monkeypatch.setitem(registry._ALL, "planted", replace(whole, measure=refuse, cells=lambda settings: cells))
    for seed, left in ((1, 0), (0, 1)):
        out = tmp_path / str(seed)
        code, _, err = run("run", "planted", "--workers", 1, "--quiet", "--seed", seed, "--out", out)
        assert (code, err) == (2, "error: the tokenizer does not match\n")
        assert len([path for path in out.glob("planted/.*") if path.is_dir()]) == left
