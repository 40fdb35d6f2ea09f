"""A killed run goes on from its last checkpoint to exactly the numbers of a run that nobody killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.runs import FileCheckpoint

ROOT = Path(__file__).parents[1]

# The command with a checkpoint after every chunk of steps. It kills itself at the given save of the given stage,
# before or after the checkpoint's file is replaced, so that each test knows what was reached.
KILLED = """
import os, signal, sys
from pathlib import Path
from toolkit import runs

stage, count, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen, replace, checkpoint = [], Path.replace, runs.Run.checkpoint

def replace_or_die(path, target):
    if path.name.startswith("checkpoint_" + stage):
        seen.append(path)
    if len(seen) == count and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(path, target)
    if len(seen) == count and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = replace_or_die
runs.Run.checkpoint = lambda run, stage: checkpoint(run, stage, every=0.0)
from toolkit.sae_fit import main
sys.exit(main(sys.argv[4:]))
"""
OFTEN = """
import sys
from toolkit import runs
checkpoint = runs.Run.checkpoint
runs.Run.checkpoint = lambda run, stage: checkpoint(run, stage, every=0.0)
from toolkit.sae_fit import main
sys.exit(main(sys.argv[1:]))
"""
TMS = ("--target", "tms", "--quiet", "--instances", "3", "--toy-steps", "700", "--toy-batch", "64",
       "--steps", "330", "--batch", "64", "--dead-after", "30", "--seed", "2")  # fmt: skip


@pytest.fixture(scope="module")
def unkilled(fit, tmp_path_factory):
    """Folder of the same run left alone, by its flags; each is made once."""
    made = {}

    def run(*argv):
        if argv not in made:
            made[argv] = fit(*argv, "--out", tmp_path_factory.mktemp("unkilled"))
        return made[argv]

    return run


@pytest.fixture
def loaded(monkeypatch):
    """Steps that each checkpoint taken up held, in the order of loading; None where there was none."""
    steps, load = [], FileCheckpoint.load

    def recording(self):
        state = load(self)
        steps.append(state if state is None else len(state["history"]))
        return state

    monkeypatch.setattr(FileCheckpoint, "load", recording)
    return steps


@pytest.fixture
def embedding_flags(tiny_embedding, tmp_path_factory):
    """Rows drawn by frequency, latents dying soon: all that an embedding run keeps between steps is in use."""
    text = tmp_path_factory.getbasetemp() / "frequencies.txt"
    text.write_text("the cat sat on the mat. " * 50)
    return (*tiny_embedding, "--frequencies", str(text), "--architecture", "batchtopk", "--dead-after", "10",
            "--steps", "330")  # fmt: skip


def killed(run_command, stage, count, moment, *argv):
    ended = run_command(stage, count, moment, *argv, program=KILLED)
    assert ended.code == -signal.SIGKILL, ended.err


def unfinished(out):
    (folder,) = out.glob("*/.*.unfinished")
    assert not list(out.glob("*/*/result.json"))
    return folder


def assert_same(folder, other, result_of):
    first, second = result_of(folder), result_of(other)
    assert first["metrics"] == second["metrics"]
    assert first["config"] == second["config"]
    tensors, others = load_file(folder / "tensors.safetensors"), load_file(other / "tensors.safetensors")
    assert set(tensors) == set(others)
    assert all(torch.equal(value, others[name]) for name, value in tensors.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "count", "moment", "steps"),
    [
        ("toy", 1, "before", [None, None]),
        ("toy", 1, "after", [100, None]),
        ("toy", 4, "before", [300, None]),
        ("sae", 1, "after", [700, 50]),
        ("sae", 5, "before", [700, 200]),
        ("sae", 7, "after", [700, 330]),
    ],
)
def test_a_killed_tms_run_ends_in_the_same_numbers(
    stage, count, moment, steps, unkilled, fit, loaded, run_command, result_of, tmp_path
):
    killed(run_command, stage, count, moment, *TMS, "--out", tmp_path)
    started = unfinished(tmp_path)
    whole = unkilled(*TMS)
    loaded.clear()
    folder = fit(*TMS, "--resume", "--out", tmp_path)
    assert loaded == steps
    assert folder.name == started.name.removeprefix(".").removesuffix(".unfinished")
    assert not started.exists()
    assert_same(folder, whole, result_of)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["jumprelu", "gated", "matryoshka"])
def test_every_kind_of_state_is_taken_up(architecture, unkilled, fit, loaded, run_command, result_of, tmp_path):
    argv = (*TMS, "--architecture", architecture, "--notied", "--noresample")
    killed(run_command, "sae", 4, "after", *argv, "--out", tmp_path)
    whole = unkilled(*argv)
    loaded.clear()
    folder = fit(*argv, "--resume", "--out", tmp_path)
    assert loaded == [700, 200]
    assert_same(folder, whole, result_of)


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_numbers(unkilled, fit, run_command, result_of, tmp_path):
    for stage, count, moment in (("toy", 2, "after"), ("toy", 3, "before"), ("sae", 2, "after"), ("sae", 3, "before")):
        killed(run_command, stage, count, moment, *TMS, "--resume", "--out", tmp_path)
        unfinished(tmp_path)
    assert_same(fit(*TMS, "--resume", "--out", tmp_path), unkilled(*TMS), result_of)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["toy", "sae"])
def test_a_run_killed_from_outside_at_no_particular_moment(stage, fit, result_of, tmp_path):
    argv = (*TMS, "--toy-steps", "4000" if stage == "toy" else "200", "--steps", "200" if stage == "toy" else "4000")
    command = [sys.executable, "-c", OFTEN, *argv, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob(f"killed/*/.*.unfinished/checkpoint_{stage}.safetensors")):
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    unfinished(tmp_path / "killed")
    resumed = fit(*argv, "--resume", "--out", tmp_path / "killed")
    assert_same(resumed, fit(*argv, "--out", tmp_path / "whole"), result_of)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "moment", "steps"), [(1, "before", None), (1, "after", 50), (5, "before", 200)])
def test_a_killed_embedding_run_ends_in_the_same_numbers(
    count, moment, steps, embedding_flags, unkilled, fit, loaded, run_command, result_of, tmp_path
):
    killed(run_command, "sae", count, moment, *embedding_flags, "--out", tmp_path)
    unfinished(tmp_path)
    whole = unkilled(*embedding_flags)
    loaded.clear()
    folder = fit(*embedding_flags, "--resume", "--out", tmp_path)
    assert loaded == [steps]
    assert_same(folder, whole, result_of)


@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_resume_with_nothing_unfinished_starts_a_run(flags, request, fit, tmp_path):
    flags = (*request.getfixturevalue(flags), "--resume", "--out", tmp_path)
    assert [fit(*flags).name for _ in range(2)] == ["001", "002"]


def test_resume_with_other_settings_names_those_that_differ(tiny_tms, run_main, tmp_path):
    assert run_main(*tiny_tms, "--lr", "1e30", "--out", tmp_path).code == 2
    ended = run_main(*tiny_tms, "--lr", "0.01", "--seed", 4, "--resume", "--out", tmp_path)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "another configuration: sae.lr: 1e+30 -> 0.01; seed: 0 -> 4\n" in ended.err
    assert unfinished(tmp_path).name == ".001.unfinished"


def test_without_resume_an_unfinished_run_is_left_alone(tiny_tms, run_main, fit, tmp_path):
    assert run_main(*tiny_tms, "--lr", "1e30", "--out", tmp_path).code == 2
    assert fit(*tiny_tms, "--out", tmp_path).name == "002"
    assert (tmp_path / "tms-pentagon" / ".001.unfinished" / "run.json").is_file()


def test_a_damaged_checkpoint_stops_the_command_in_one_line(tiny_tms, run_main, tmp_path):
    assert run_main(*tiny_tms, "--lr", "1e30", "--out", tmp_path).code == 2
    kept = unfinished(tmp_path) / "checkpoint_toy.safetensors"
    kept.write_bytes(kept.read_bytes()[:-8])
    ended = run_main(*tiny_tms, "--lr", "1e30", "--resume", "--out", tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert str(kept) in ended.err
