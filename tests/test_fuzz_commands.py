"""Command lines of every kind: an exit code that is documented, one line for a mistake, nothing left behind."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from fuzzing import NAMES, assert_one_line, fuzz
from hypothesis import given
from hypothesis import strategies as st

import controls.__main__
import experiments.__main__
import toolkit.pretrain
import toolkit.sae_fit
from controls import audit_run, calibrate, one_control
from controls.worlds import open_world
from experiments import registry, running
from experiments.checks import at_least
from toolkit import fit_activations, fit_embedding, fit_tms, pretrain_job

COMMANDS = {
    "sae_fit": toolkit.sae_fit.main,
    "pretrain": toolkit.pretrain.main,
    "controls": controls.__main__.main,
    "experiments": experiments.__main__.main,
}
NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "0.5",
    "1e-9",
    "nan",
    "inf",
    "-inf",
    "1e400",
    str(2**31),
    str(10**30),
    "1_0",
    "٣",
    "²",
]
SAID = [
    "upos=VERB",
    "upos",
    "ud:upos=VERB",
    "nltk:x:tag=NN",
    "a:b=c",
    "seeds=2",
    "seeds=x",
    "model=x",
    "sparsities=0.5",
]
SAID += [
    "True",
    "no",
    "tms",
    "embedding",
    "activations",
    "pentagon",
    "geometry",
    "read-and-idle",
    "smoke",
    "paper",
    "1 2",
]
SAID += ["json:JSONDecoder", "os:path", "os:", ":x", "..:x", "controls.worlds:World", "toolkit.configs:ToyModel"]
PATHS = [
    "nowhere",
    "./nowhere/else",
    "file.txt",
    "file.txt/below",
    "folder",
    "name with spaces",
    "naïve ☃",
    "nltk:",
    "hf:",
]
PATHS += ["nltk:nothing", "tiny-gpt2", "release:id", "empty.conllu", "broken.csv", "~", "."]
VALUES = st.sampled_from([*NUMBERS, *SAID, *PATHS, *NAMES]) | st.text(max_size=5)
WORDS = [
    "run",
    "list",
    "audit",
    "calibrate",
    "report",
    "all",
    "toy/*",
    "pentagon",
    "embedding/*",
    "weights.spectrum",
    "[",
    "--",
]


STARTS = {
    "sae_fit": [[], *(["--target", target] for target in ("tms", "embedding", "gpt2-embedding", "activations"))],
    "pretrain": [[], ["--corpus", "file.txt", "--out", "new"]],
    "controls": [
        ["list"],
        ["run", "weights.spectrum"],
        ["calibrate"],
        ["audit", "--hook", "blocks.0.hook_resid_post", "--corpus", "file.txt", "--pca", "2"],
        ["audit", "--hook", "blocks.0.hook_resid_post", "--corpus", "file.txt", "--labels", "upos=VERB"],
    ],
    "experiments": [["list"], ["report"], ["run"], ["run", "pentagon"], ["run", "attribution", "--scale", "smoke"]],
}
"""What a command line begins with, so that the rest of it is looked at."""


class Job(Exception):
    """What would have been computed."""


def refuse(*_, **__):
    raise Job


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with a few files, where no job does anything and nothing is fetched."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.txt").write_text("one two three")
    (tmp_path / "empty.conllu").write_text("")
    (tmp_path / "broken.csv").write_bytes(b"text,label\n\xff\xfe,1")
    for module in (fit_tms, fit_embedding, fit_activations):
        monkeypatch.setattr(module, "fit", refuse)
    for module, name in ((pretrain_job, "work"), (audit_run, "run"), (one_control, "run")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(calibrate, "calibrate", lambda job, **_: refuse(open_world(job.world)))
    passed = registry.Outcome("So.", (at_least("c", torch.ones(2), 1),))
    monkeypatch.setattr(running, "run", lambda *_: running.Finished(Path("nowhere"), passed, 0.0))
    return tmp_path


def call(command, argv):
    """(exit code, standard output, standard error); code None where the job would have begun."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = COMMANDS[command](argv)
        except SystemExit as stop:
            code = stop.code
        except Job:
            code = None
    return code, out.getvalue(), err.getvalue()


@cache
def flags_of(command):
    """Every flag of a command and of what stands below it, as its own help has them."""
    pages = [call(command, [*start[:1], "--help"] if command != "sae_fit" else ["--help"]) for start in STARTS[command]]
    assert all(code == 0 for code, _, _ in pages)
    return sorted({flag for _, page, _ in pages for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", page)})


def test_the_flags_are_found():
    found = {command: flags_of(command) for command in COMMANDS}
    assert {"--architecture", "--toy-lr", "--held-out", "--forward-batch", "--resume"} < set(found["sae_fit"])
    assert {"--randomise-rows", "--from", "--keep-models"} < set(found["pretrain"])
    assert {"--latents", "--power", "--draws", "--cluster"} < set(found["controls"])
    assert {"--set", "--scale", "--to"} < set(found["experiments"])


@st.composite
def command_lines(draw, command):
    """Flags of the command, some of them misspelt, with values that may be anything."""
    flags = st.sampled_from(flags_of(command))
    parts = st.one_of(
        st.tuples(flags, VALUES),
        st.builds("{}={}".format, flags, VALUES).map(lambda word: (word,)),
        flags.map(lambda flag: (flag,)),
        flags.map(lambda flag: (flag[:-1],)),
        st.tuples(VALUES | st.sampled_from(WORDS)),
    )
    start = draw(st.sampled_from([*STARTS[command], *STARTS[command], [], ["rnu"]]))
    return [*start, *(word for part in draw(st.lists(parts, max_size=3)) for word in part)]


@pytest.mark.parametrize("command", COMMANDS)
@given(data=st.data())
@fuzz
def test_a_command_line_starts_a_job_or_is_refused_in_one_line(command, data, place):
    argv, before = data.draw(command_lines(command)), sorted(place.rglob("*"))
    code, out, err = call(command, argv)
    assert code in (0, 1, 2, None)
    if code == 2:
        assert_one_line(err.removesuffix("\n"))
        assert out == ""
    assert sorted(place.rglob("*")) == before
