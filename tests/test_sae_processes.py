"""SAEs on activations under torchrun: two processes give the numbers of one that sees whole batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from toolkit.configs import SAEConfig
from toolkit.errors import UserError
from toolkit.processes import joined_processes
from toolkit.sae_losses import batch_keep
from toolkit.sae_training import check_shares

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

pytestmark = pytest.mark.slow


TRAIN = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from toolkit.configs import SAEConfig
from toolkit.processes import joined_processes, rank
from toolkit.sae import fit_sae
settings = eval(sys.argv[2])
x = torch.randn(512, 12, generator=torch.Generator().manual_seed(0)).relu()
with joined_processes("cpu"):
    sae = fit_sae(x, SAEConfig(width=48, steps=150, batch=64, lr=3e-3, dead_after=20, **settings))
    save_file({**sae.parameters, "history": sae.history}, f"{sys.argv[1]}-{rank()}.safetensors")
alive = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in alive if "gloo" in name], "the group's threads outlive it"
"""


def ended(*words):
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [str(word) for word in words], check=False, cwd=ROOT, env=settings, capture_output=True, text=True
    )


def trained(program, out, settings, alone):
    done = ended(*([sys.executable] if alone else TORCHRUN), program, out, repr(settings))
    assert done.returncode == 0, done.stderr
    return [load_file(f"{out}-{i}.safetensors") for i in range(1 if alone else 2)]


@pytest.mark.parametrize(
    "settings",
    [
        {"architecture": "topk", "k": 4},
        {"architecture": "topk", "k": 2, "resample": True},
        {"architecture": "l1", "sparsity": 0.1, "tied": True},
        {"architecture": "jumprelu", "sparsity": 0.1},
        {"architecture": "gated", "sparsity": 0.1},
        {"architecture": "batchtopk", "k": 3.5},
        {"architecture": "matryoshka", "k": 4},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_two_processes_train_as_one(settings, tmp_path):
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    (alone,) = trained(program, tmp_path / "one", settings, True)
    first, second = trained(program, tmp_path / "two", settings, False)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], value, rtol=2e-3, atol=2e-4), name
    assert alone["history"][-1] < 0.7 * alone["history"][0]  # it has learnt something


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    text = tmp_path_factory.mktemp("text")
    for name in range(20):
        (text / f"{name}.txt").write_text(f"The president met the congress of the states, said number {name}. " * 12)
    return ["-m", "toolkit.sae_fit", "--target", "activations", "--hook", "blocks.1.hook_resid_post", "--corpus", text,
            "--width", 128, "--k", 8, "--steps", 60, "--batch", 128, "--device", "cpu", "--quiet"]  # fmt: skip


def test_the_command_under_torchrun_writes_one_folder_with_the_numbers_of_one_process(words, tmp_path):
    found = []
    for how, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = ended(*start, *words, "--out", tmp_path / how)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written: ") == 1
        (result,) = (tmp_path / how).glob("activations-*/*/result.json")
        found.append(json.loads(result.read_text())["metrics"])
        assert not list((tmp_path / how).glob("activations-*/.*"))
    one, two = found
    assert two["fvu_held_out"] == pytest.approx(one["fvu_held_out"], rel=1e-3)
    assert two["l0"] == pytest.approx(one["l0"], rel=1e-3)


def test_a_batch_that_processes_cannot_share_is_one_line(words, tmp_path):
    done = ended(*TORCHRUN, *words, "--batch", "129", "--out", tmp_path)
    said = "2 processes cannot share batch=129 evenly"
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        next(line for line in done.stderr.splitlines() if said in line)
    ]
    assert not list(tmp_path.rglob("*.json"))


def test_processes_together_keep_what_one_would(monkeypatch):
    """4.35 times 100, times 3, is 1,304.99… in floating point."""
    monkeypatch.setattr("toolkit.sae_losses.world", lambda: 3)
    monkeypatch.setattr("toolkit.sae_losses.kept_here", lambda scores, keep: keep)
    assert batch_keep(torch.zeros(1, 100, 8), 4.35) == int(4.35 * 300) == 1305


def test_several_saes_that_choose_over_batches_are_for_one_process(monkeypatch):
    monkeypatch.setattr("toolkit.sae_training.world", lambda: 2)
    check_shares(SAEConfig(architecture="topk"), instances=3)
    check_shares(SAEConfig(architecture="batchtopk"), instances=1)
    with pytest.raises(UserError, match="2 processes train one batchtopk SAE at a time, not 3: start them without"):
        check_shares(SAEConfig(architecture="batchtopk"), instances=3)


def test_other_targets_are_for_one_process(monkeypatch, capfd):
    from toolkit.sae_fit import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["--target", "tms"]) == 2
    assert "--target tms is for one process: start it without torchrun" in capfd.readouterr().err


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="torch sees 1: give torchrun --nproc-per-node 1"), joined_processes("cuda"):
        pass
