"""The command's mistakes: exit code 2, one line that says what to do, and nothing left behind."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolkit.commands import exit_code
from toolkit.configs import ARCHITECTURES, ToyModel
from toolkit.errors import UserError

LINE = re.compile(r"error: .+\n")
LIMITED = """
import resource, sys
from toolkit.sae_fit import main
import toolkit.fit_tms, toolkit.fit_embedding
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def assert_refused(ended, *parts, left_in=None):
    """One line on standard error that holds every part, exit code 2, and no file below `left_in`."""
    assert ended.code == 2, ended.err
    assert LINE.fullmatch(ended.err), ended.err
    assert ended.out == ""
    for part in parts:
        assert part in ended.err
    if left_in is not None and left_in.exists():
        assert [path for path in left_in.rglob("*") if not path.is_dir() or path.name.startswith(".")] == []


@pytest.fixture
def out(tmp_path):
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("", ["--target is missing", "tms, embedding, gpt2-embedding, activations"]),
        ("--target", ["--target"]),
        ("--target tsm", ["unknown target 'tsm'", "did you mean 'tms'"]),
        ("--target=embeding", ["unknown target 'embeding'", "did you mean 'embedding'"]),
        ("--target tms --target embeding", ["did you mean 'embedding'"]),
        ("--target embedding --preset pentagon", ["--preset", "--target tms"]),
        ("--target gpt2-embedding --model other", ["gpt2-embedding", "--model other"]),
        *[(f"--target tms {flag}", [flag.split()[0], "--target embedding"])
          for flag in ("--model gpt2", "--held-out 0.1", "--centre", "--nocentre", "--unit-norm", "--frequencies a")],
        *[(f"--target embedding {flag}", [re.split("[ =]", flag)[0], "--target tms"])
          for flag in ("--features 5", "--density 0.1", "--toy-steps 3", "--toy-lr=0.1", "--output relu")],
    ],
)  # fmt: skip
def test_a_target_that_is_wrong_or_does_not_take_a_flag(words, parts, run_main, out):
    assert_refused(run_main("--out", out, *words.split()), *parts, left_in=out)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--preset pentgon", ["unknown preset 'pentgon'", "did you mean 'pentagon'"]),
        ("--architecture topkk", ["unknown architecture 'topkk'", "did you mean 'topk'"]),
        ("--output sigmoid", ["unknown output 'sigmoid'", "relu, linear"]),
        ("--hidden-activation rleu", ["hidden-activation", "did you mean 'relu'"]),
        ("--wdith 3", ["--wdith", "did you mean '--width'"]),
        ("--wdith=3", ["--wdith", "did you mean '--width'"]),
        ("--toy-step 3", ["did you mean '--toy-steps'"]),
        ("--feat 3", ["unknown flag '--feat'"]),
        ("surplus", ["surplus", "flag"]),
        ("--features abc", ["--features", "abc"]),
        ("--features 2.5", ["--features", "2.5"]),
        ("--features", ["--features"]),
        ("--tied perhaps", ["--tied", "perhaps"]),
        ("--k 20", ["k=20", "width=10"]),
        ("--k 1.5", ["k=1.5", "whole number"]),
        ("--architecture batchtopk --k 0.001 --batch 10", ["k=0.001", "batch of 10"]),
        ("--architecture matryoshka --width 1", ["width", "1"]),
        *[(f"--density {value}", ["density", value]) for value in ("0", "1.5", "nan", "inf", "-0.1")],
        ("--density 0.1 0.2 0.3 --instances 2", ["3 densities", "instances=2"]),
        ("--density", ["density"]),
        *[(f"--{name} {value}", [name.replace("-", "_"), value])
          for name in ("features", "hidden", "instances", "toy-steps", "toy-batch", "width", "k", "steps", "batch",
                       "dead-after") for value in ("0", "-4")],
        *[(f"--{name} {value}", [name.replace("-", "_"), value])
          for name in ("lr", "toy-lr", "importance", "bandwidth", "sparsity") for value in ("nan", "inf", "-1")],
        ("--seed -1", ["seed", "-1"]),
        ("--seed 1.5", ["--seed", "1.5"]),
        ("--device tpu", ["unknown device 'tpu'", "cpu"]),
    ],
)  # fmt: skip
def test_a_setting_that_is_wrong(words, parts, run_main, out):
    assert_refused(run_main("--target", "tms", "--out", out, *words.split()), *parts, left_in=out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_cuda_where_there_is_none(flags, request, run_main, out):
    ended = run_main(*request.getfixturevalue(flags), "--device", "cuda", "--out", out)
    assert_refused(ended, "--device cuda", "--device cpu", left_in=out)


@pytest.mark.parametrize("importance", ["1e30", "1e-30"])
def test_an_importance_beyond_single_precision_is_no_crash(importance, tiny_tms, run_main, out):
    ended = run_main(*tiny_tms, "--importance", importance, "--out", out)
    assert ended.code == 0 or LINE.fullmatch(ended.err)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--held-out 1", ["held_out", "1"]),
        ("--held-out -0.1", ["held_out"]),
        ("--held-out nan", ["held_out", "nan"]),
        ("--held-out 0.9999", ["held_out=0.9999", "tokens"]),
        ("--frequencies /nowhere/text.txt", ["/nowhere/text.txt", ".txt"]),
        ("--frequencies", ["--frequencies"]),
        ("--k 33", ["k=33", "width=32"]),
    ],
)
def test_an_embedding_setting_that_is_wrong(words, parts, tiny_embedding, run_main, out):
    assert_refused(run_main(*tiny_embedding, "--out", out, *words.split()), *parts, left_in=out)


def weights(edit):
    """Rewrite the model's tensors after `edit` has changed them."""

    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def put(value, row):
    return weights(lambda tensors: tensors["transformer.wte.weight"][row].fill_(value))


def shard(index):
    def damage(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(index)

    return damage


def header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:8] + b"\xff" * 60 + path.read_bytes()[68:])


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def resized(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_embd": 32}))


TWO = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
DAMAGES = {
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), ["has no weights"]),
    "no-config": (lambda folder: (folder / "config.json").unlink(), ["no config.json"]),
    "broken-config": (lambda folder: (folder / "config.json").write_text("{"), ["config"]),
    "another-size": (resized, ["cannot read the model"]),
    "truncated": (truncated, ["model.safetensors", "corrupt or truncated"]),
    "empty-file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), ["corrupt or truncated"]),
    "header": (header, ["model.safetensors", "corrupt or truncated"]),
    "missing-shard": (shard(TWO), ["model-00002-of-00002.safetensors"]),
    "broken-index": (shard("{"), ["model.safetensors.index.json"]),
    "empty-index": (shard("{}"), ["model.safetensors.index.json"]),
    "no-embedding": (weights(lambda tensors: tensors.pop("transformer.wte.weight")), ["wte.weight"]),
    "nan": (put(float("nan"), 7), ["NaN", "row 7"]),
    "infinite": (put(float("-inf"), 11), ["infinity", "row 11"]),
    "all-alike": (put(1.0, slice(None)), ["the same", "nothing to fit"]),
}


def test_a_hub_name_that_cannot_be_reached_is_one_line_without_the_offline_switch(run_command, out):
    words = ("--target", "embedding", "--model", "no-such-owner/no-such-model", "--out", out)
    nowhere = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    ended = run_command(*words, environment=nowhere)
    assert_refused(ended, "no-such-owner/no-such-model", "neither a folder", "save_pretrained", left_in=out)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_folder(damage, tiny_model, tiny_embedding, run_main, tmp_path, out):
    spoil, parts = DAMAGES[damage]
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spoil(folder)
    assert_refused(run_main(*tiny_embedding, "--model", folder, "--out", out), str(folder), *parts, left_in=out)


def test_frequencies_of_a_model_without_a_tokenizer(tiny_model, tiny_embedding, run_main, tmp_path, out):
    folder = shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "a.txt").write_text("the cat sat on the mat")
    ended = run_main(*tiny_embedding, "--model", folder, "--frequencies", tmp_path / "a.txt", "--out", out)
    assert_refused(ended, "--frequencies", "tokenizer", left_in=out)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("no-such-model", ["no-such-model", "neither a folder", "go online"]),
        ("nobody/no-such-model", ["nobody/no-such-model", "neither a folder"]),
        ("/nowhere/model", ["no model at /nowhere/model"]),
        ("./nowhere", ["no model at ./nowhere"]),
        (__file__, ["no model at", "test_command_errors.py"]),
        ("", ["model", "empty"]),
    ],
)
def test_a_model_that_cannot_be_had(model, parts, tiny_embedding, run_main, out):
    assert_refused(run_main(*tiny_embedding, f"--model={model}", "--out", out), *parts, left_in=out)


@pytest.mark.slow
def test_a_process_of_its_own_says_no_more_than_the_line(tiny_model, run_command, tmp_path, out):
    put(float("nan"), 3)(shutil.copytree(tiny_model, tmp_path / "nan"))
    resized(shutil.copytree(tiny_model, tmp_path / "resized"))
    empty = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": str(tmp_path / "home")}
    for words, part in (
        (["--target", "gpt2-embedding"], "'gpt2'"),
        (["--target", "embedding", "--model", tmp_path / "nan"], "row 3"),
        (["--target", "embedding", "--model", tmp_path / "resized"], "cannot read the model"),
        (["--target", "tms", "--wdith", "3"], "--width"),
    ):
        assert_refused(run_command(*words, "--out", out, environment=empty), part, left_in=out)


@pytest.mark.parametrize("below", ["", "deeper/still"])
@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_an_out_that_is_a_file(flags, below, request, run_main, tmp_path):
    (tmp_path / "file").write_text("kept")
    ended = run_main(*request.getfixturevalue(flags), "--out", tmp_path / "file" / below)
    assert_refused(ended, "cannot write to", str(tmp_path / "file"), "--out")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_a_disk_that_is_full_when_the_run_opens(flags, request, run_command, out):
    ended = run_command(300, *request.getfixturevalue(flags), "--out", out, program=LIMITED)
    assert_refused(ended, "cannot write to", str(out), left_in=out)


@pytest.mark.slow
@pytest.mark.parametrize("room", [1000, 15000], ids=["checkpoint", "figure"])
@pytest.mark.parametrize("flags", ["tiny_tms", "tiny_embedding"])
def test_a_disk_that_fills_up_later_and_is_emptied(flags, room, request, run_command, run_main, out):
    argv = (*request.getfixturevalue(flags), "--out", out)
    ended = run_command(room, *argv, program=LIMITED)
    assert_refused(ended, "cannot write to", str(out), "--resume")
    assert not list(out.glob("*/*/result.json"))
    assert run_main(*argv, "--resume").code == 0
    assert [path.parent.name for path in out.glob("*/*/result.json")] == ["001"]


@pytest.mark.parametrize("flag", ["--lr", "--toy-lr"])
def test_divergence_names_its_step_and_keeps_the_folder(flag, tiny_tms, run_main, out):
    ended = run_main(*tiny_tms, flag, "1e30", "--out", out)
    assert_refused(ended, "diverged", "smaller learning rate")
    assert re.search(r"at step \d+", ended.err)
    assert [path.name for path in (out / "tms-pentagon").iterdir()] == [".001.unfinished"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_says_so_when_it_diverges(architecture, tiny_embedding, run_main, out):
    ended = run_main(*tiny_embedding, "--architecture", architecture, "--lr", "1e30", "--out", out)
    assert_refused(ended, "diverged", "at step")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("9 GB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory\nframe #0"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_one_line(error, capsys):
    def action():
        raise error

    assert exit_code(action, less="lower them", kept="") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: not enough memory for these sizes (")
    assert err.endswith("): lower them\n")
    assert err.count("\n") == 1


def test_other_errors_of_torch_keep_their_traceback():
    def action():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        exit_code(action, less="", kept="")


def test_an_importance_whose_powers_are_too_large_is_named():
    with pytest.raises(UserError, match=r"importance=1.5 to the power 399 is more than 1e\+38: bring it nearer to 1"):
        ToyModel(features=400, hidden=30, importance=1.5)
