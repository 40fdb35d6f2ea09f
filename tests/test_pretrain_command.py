"""`python -m toolkit.pretrain`: the folder it writes, its mistakes in one line, killed and resumed, two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from toolkit import pretrain_folder
from toolkit.corpora import documents
from toolkit.pretrain import main
from toolkit.pretrain_data import joined
from toolkit.pretrain_folder import checkpoint_rows
from toolkit.pretraining import validation_loss

SIZES = ("--layers", 1, "--width", 16, "--heads", 2, "--context", 16, "--vocabulary", 300, "--batch", 4,
         "--steps", 24, "--lr", 0.01, "--quiet")  # fmt: skip
PROGRAM = "import sys; from toolkit.pretrain import main; sys.exit(main())"
GRID = (0, 1, 2, 3, 6, 12, 24)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of forty short documents."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), size)) for size in draw.integers(2, 7, 200)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(" ".join(draw.choice(words, 120)) for _ in range(40)))
    return path


@pytest.fixture
def pretrain(capfd):
    """Run the command in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        capfd.readouterr()
        code = main([str(word) for word in argv])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def model(text, tmp_path_factory):
    """The folder of one training."""
    out = tmp_path_factory.mktemp("models") / "small"
    assert main([str(word) for word in ("--corpus", text, "--licences", "CC0", "--out", out, *SIZES)]) == 0
    return out


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def same_tensors(first, second):
    for name in sorted(path for path in files_of(first) if path.endswith(".safetensors")):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


# The folder


def test_the_folder_holds_what_it_should(model):
    whole = {f"checkpoints/step_{step}/{name}" for step in (0, 3) for name in ("config.json", "model.safetensors")}
    assert files_of(model) == whole | {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "training.json",
        "embeddings.safetensors",
    }  # fmt: skip
    assert not model.with_name("small.unfinished").exists()
    assert set(load_file(model / "embeddings.safetensors")) == {"step_1", "step_2", "step_6", "step_12", "step_24"}
    stored = load_file(model / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert "lm_head.weight" not in stored


def test_the_record_says_how_it_was_made(model, result_of):
    record = json.loads((model / "training.json").read_text())
    assert tuple(record["validation"]["steps"]) == GRID
    assert record["final"]["nats"] == record["validation"]["nats"][-1]
    assert len(record["train_loss"]) == record["steps"] == 24
    assert record["corpora"] == [{"name": "stories.txt", "licence": "CC0"}]
    assert record["documents"]["all"] == 40
    assert record["baselines"]["bigram"] < record["baselines"]["unigram"]
    assert record["config"]["lr"] == 0.01
    card = (model / "README.md").read_text()
    for shown in ("stories.txt | CC0", f"{record['final']['nats']:.4f}", f"{record['baselines']['bigram']:.4f}"):
        assert shown in card
    assert "--resume" not in card


def test_nothing_in_it_tells_of_this_machine(model, text):
    for name in files_of(model):
        content = (model / name).read_bytes()
        assert str(text.parent).encode() not in content
        assert str(model.parent).encode() not in content


def test_the_stored_model_has_the_loss_it_claims(model, text):
    record = json.loads((model / "training.json").read_text())
    found = GPT2LMHeadModel.from_pretrained(model)
    assert found.dtype == torch.float32
    held = [d.text for d in documents(text) if d.name in record["documents"]["names_held_out"]]
    tokens = joined(held, AutoTokenizer.from_pretrained(model))
    assert len(tokens) == record["tokens"]["validation"]
    assert validation_loss(found, tokens, context=16) == pytest.approx(record["final"]["nats_as_float16"], abs=1e-6)


def test_checkpoints_are_read_by_step(model):
    found = checkpoint_rows(model)
    assert tuple(found) == GRID
    assert {rows.dtype for rows in found.values()} == {torch.float32}
    first = GPT2LMHeadModel.from_pretrained(model / "checkpoints" / "step_0")
    last = GPT2LMHeadModel.from_pretrained(model)
    assert torch.equal(found[0], first.transformer.wte.weight)
    assert torch.equal(found[24], last.transformer.wte.weight)
    assert not torch.equal(found[12], found[24])


# Other ways to train


def test_a_frozen_embedding_stays_in_every_checkpoint(pretrain, text, tmp_path, model):
    code, _, _ = pretrain("--corpus", text, "--out", tmp_path / "frozen", "--freeze-embedding", "random", *SIZES,
                          "--norms-from", model)  # fmt: skip
    assert code == 0
    rows = checkpoint_rows(tmp_path / "frozen")
    assert all(torch.equal(rows[0], each) for each in rows.values())
    assert torch.allclose(rows[0].norm(dim=1), checkpoint_rows(model)[24].norm(dim=1), rtol=2e-3)


def test_one_row_is_drawn_anew_and_trained_alone(pretrain, text, tmp_path, model):
    words = ("--corpus", text, "--out", tmp_path / "row", "--from", model, "--randomise-rows", 7, 9, "--train", "rows",
             "--steps", 10, "--batch", 4, "--quiet")  # fmt: skip
    assert pretrain(*words)[0] == 0
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "row" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"transformer.wte.weight"}
    moved = (before["transformer.wte.weight"] != after["transformer.wte.weight"]).any(1)
    assert moved.nonzero().flatten().tolist() == [7, 9]
    rows = checkpoint_rows(tmp_path / "row")
    assert torch.allclose(rows[0].norm(dim=1), checkpoint_rows(model)[24].norm(dim=1), rtol=2e-3)
    assert (rows[0][7] != rows[10][7]).all()
    assert json.loads((tmp_path / "row" / "training.json").read_text())["start"]["from"] == "small"
    card = (tmp_path / "row" / "README.md").read_text()
    assert "Trained on from `small`. Rows drawn anew before: 7, 9, and nothing else was trained." in card


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "new"], "--corpus is missing"),
        (["--corpus", "TEXT"], "--out is missing"),
        (["--corpus", "TEXT", "--out", "OLD"], "exists: choose another folder"),
        (["--corpus", "none.txt", "--out", "new"], "none.txt"),
        (["--corpus", "TEXT", "--out", "new", "--wdth", "3"], "unknown flag '--wdth': did you mean '--width'?"),
        (["--corpus", "TEXT", "--out", "new", "--width", "17"], "width=17 is not divisible by heads=2"),
        (["--corpus", "TEXT", "--out", "new", "--context", "5000"], "the corpus is too small"),
        (["--corpus", "TEXT", "--out", "new", "--vocabulary", "60000"], "too large for this corpus"),
        (["--corpus", "TEXT", "--out", "new", "--lr", "1e30"], "diverged: its loss is not finite"),
        (["--corpus", "TEXT", "--out", "new", "--from", "nowhere"], "no model at nowhere"),
        (["--corpus", "TEXT", "--out", "new", "--from", "OLD", "--width", "32"], "whose width is 16"),
        (["--corpus", "TEXT", "--out", "new", "--norms-from", "OLD"], "belongs to --freeze-embedding random"),
        (["--corpus", "TEXT", "--out", "new", "--from", "OLD", "--randomise-rows", "999"], "outside the vocabulary"),
        (["--corpus", "TEXT", "--out", "new", "--freeze-embedding", "random", "--cosine-bound", "0.2"], "within reach"),
    ],
)
def test_a_mistake_is_one_line(pretrain, text, model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"TEXT": text, "OLD": model}
    code, out, err = pretrain(*SIZES, *(places.get(word, word) for word in words))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "new.unfinished").exists() == ("diverged" in message)


def test_a_start_that_is_no_gpt2_or_is_damaged_is_one_line(pretrain, text, model, tmp_path):
    for name, spoil, message in (
        (
            "other",
            lambda at: _rewritten(at / "config.json", '"gpt2"', '"llama"'),
            ": expected a GPT-2, whose training goes on",
        ),
        ("cut", lambda at: os.truncate(at / "model.safetensors", 100), "is corrupt or truncated"),
        ("ends", lambda at: _rewritten(at / "tokenizer.json", "<|endoftext|>", "<|end|>"), "has no <|endoftext|>"),
        ("broken", lambda at: (at / "tokenizer.json").write_text("{"), "tokenizer.json is damaged"),
        ("half", lambda at: (at / "tokenizer.json").write_bytes(b'{"\xc4'), "tokenizer.json is damaged"),
    ):
        spoil(Path(shutil.copytree(model, tmp_path / name)))
        code, _, err = pretrain("--corpus", text, "--out", tmp_path / "new", "--from", tmp_path / name, "--steps", 2)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
        assert "cannot read the model" not in err
        assert not list(tmp_path.glob("new*"))


def _rewritten(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_full_disk_is_one_line_and_can_be_resumed(pretrain, text, tmp_path, model, monkeypatch):
    words = ("--corpus", text, "--licences", "CC0", "--out", tmp_path / "full", *SIZES)
    save = pretrain_folder._save

    def full(tensors, path):
        if "step_6" in path.name:
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(pretrain_folder, "_save", full)
    code, _, err = pretrain(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert "No space left on device; make room and use --resume" in err
    assert not (tmp_path / "full").exists()
    monkeypatch.undo()
    code, _, err = pretrain(*words)
    assert "holds a training that was stopped: go on with --resume" in err
    code, _, err = pretrain(*words, "--resume", "--lr", 0.02)
    assert "model.lr: 0.01 -> 0.02" in err
    assert pretrain(*words, "--resume")[0] == 0
    assert "seconds since the last --resume on" in (tmp_path / "full" / "README.md").read_text()
    same_tensors(model, tmp_path / "full")


# In processes of their own


def test_help_is_light(run_command):
    program = (
        "import sys; from toolkit.pretrain import settings_from\n"
        "try: settings_from(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'transformers', 'numba') if m in sys.modules])"
    )
    ended = run_command(program=program)
    assert ended.out.strip().endswith("[]")
    assert "--freeze-embedding" in ended.out


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_tensors(text, tmp_path, run_command):
    words = [str(w) for w in ("--corpus", text, *SIZES, "--steps", 600, "--resume")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program = "import toolkit.pretrain_folder as f; f._EVERY = 0.0\n" + PROGRAM
    assert run_command(*words, "--out", whole, program=program).code == 0
    process = subprocess.Popen([sys.executable, "-c", program, *words, "--out", str(killed)], stderr=subprocess.DEVNULL)
    wait_for(killed.with_name("killed.unfinished") / "checkpoints" / "step_150.safetensors")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    state = load_file(killed.with_name("killed.unfinished") / "checkpoint_training.safetensors")
    assert 0 < len(state["history"]) < 600
    assert run_command(*words, "--out", killed, program=program).code == 0
    same_tensors(whole, killed)
    assert not killed.with_name("killed.unfinished").exists()


@pytest.mark.slow
def test_interrupted_and_resumed_gives_the_same_tensors(text, tmp_path, run_command, model):
    words = [str(w) for w in ("--corpus", text, *SIZES, "--licences", "CC0", "--out", tmp_path / "again")]
    program = (
        "import os, signal, toolkit.pretrain_folder as f; f._EVERY = 0.0; save = f._save\n"
        "def stop(tensors, path):\n    save(tensors, path)\n"
        "    if 'step_6' in path.name: os.kill(os.getpid(), signal.SIGINT)\n"
        "f._save = stop\n" + PROGRAM
    )
    ended = run_command(*words, program=program)
    assert ended.code == 130
    assert ended.err.strip() == "interrupted: the same command with --resume goes on from the last checkpoint"
    assert run_command(*words, "--resume", program=PROGRAM).code == 0
    same_tensors(model, tmp_path / "again")


@pytest.mark.slow
def test_two_processes_train_as_one(text, tmp_path, model):
    words = [str(w) for w in ("--corpus", text, *SIZES, "--licences", "CC0", "--out", tmp_path / "two")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "toolkit.pretrain", *words], check=False, capture_output=True, text=True,
        cwd=pretrain_folder.SHIPPED.parents[1], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (model, tmp_path / "two"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=2e-4)
    assert two["validation"]["nats"] == pytest.approx(one["validation"]["nats"], abs=2e-5)


def wait_for(path, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)
