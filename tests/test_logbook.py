"""Losses on the way to TensorBoard or Weights & Biases: what arrives, and that nothing does unless asked."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from toolkit import logbook
from toolkit.configs import RunConfig
from toolkit.errors import UserError
from toolkit.pretrain import main as pretrain
from toolkit.sae import SAEConfig, fit_sae

SMALL = SAEConfig(width=16, k=2, steps=120, batch=32)


def scalars(folder):
    """What TensorBoard itself reads in a folder: (step, value) by name."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra 'logging'"
    )
    read = event_accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


class Wandb(ModuleType):
    """Weights & Biases without its network."""

    def __init__(self):
        super().__init__("wandb")
        self.begun, self.told, self.finished = [], [], 0

    def init(self, **settings):
        self.begun.append(settings)
        return self

    def log(self, told, *, step):
        self.told.append((step, told))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_watch_is_told_the_error_of_the_steps_since_it_was_last_told():
    told = []
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    watched = fit_sae(x, SMALL, watch=lambda step, numbers: told.append((step, numbers)))
    assert [step for step, _ in told] == [50, 100, 120]
    for (step, numbers), first in zip(told, (0, 50, 100), strict=True):
        assert numbers["squared_error"] == pytest.approx(watched.history[first:step].mean().item())
        assert 0 <= numbers["share_dead"] <= 1
    assert told[0][1]["learning_rate"] > told[-1][1]["learning_rate"] > 0
    alone = fit_sae(x, SMALL)
    assert all(torch.equal(alone.parameters[name], value) for name, value in watched.parameters.items())


def test_nothing_is_logged_unless_asked(fit, tiny_embedding, tmp_path, wandb):
    folder = fit(*tiny_embedding, "--out", tmp_path)
    assert RunConfig().log == "none"
    assert wandb.begun == []
    assert not (folder / "tensorboard").exists()


def test_tensorboard_reads_the_losses_of_a_run(fit, tiny_embedding, tmp_path):
    found = fit(*tiny_embedding, "--out", tmp_path, "--log", "tensorboard")
    told = scalars(found / "tensorboard")
    assert set(told) == {"squared_error", "share_dead", "learning_rate"}
    assert [step for step, _ in told["squared_error"]] == [50, 100, 120]
    assert told["squared_error"][0][1] > told["squared_error"][-1][1] > 0
    plain = load_file(fit(*tiny_embedding, "--out", tmp_path / "plain") / "tensors.safetensors")
    logged = load_file(found / "tensors.safetensors")
    assert all(torch.equal(logged[name], value) for name, value in plain.items())


def test_wandb_is_told_the_same_with_the_settings(fit, tiny_tms, tmp_path, wandb):
    folder = fit(*tiny_tms, "--out", tmp_path, "--log", "wandb")
    (begun,) = wandb.begun
    assert begun["project"] == "feature-verdict"
    assert begun["name"] == "tms-pentagon"
    assert begun["config"] == json.loads((folder / "result.json").read_text())["config"]
    assert [step for step, _ in wandb.told] == [50, 100, 120]
    assert wandb.finished == 1


def test_wandb_that_cannot_begin_is_one_line(run_main, tiny_tms, tmp_path, wandb, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    ended = run_main(*tiny_tms, "--out", tmp_path, "--log", "wandb")
    assert ended.code == 2
    assert ended.err == "error: --log wandb: api_key not configured (no-tty); wandb login, or WANDB_MODE=offline\n"


@pytest.mark.parametrize("log", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_one_line_before_anything_is_done(log, run_main, tiny_tms, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, log, raising=False)
    there = importlib.util.find_spec
    monkeypatch.setattr(logbook, "find_spec", lambda name: None if name == log else there(name))
    ended = run_main(*tiny_tms, "--out", tmp_path, "--log", log)
    assert ended.code == 2
    assert ended.err == f"error: --log {log}: it is not installed; pip install 'feature-verdict[logging]'\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_log_names_the_nearest(run_main, tiny_tms):
    ended = run_main(*tiny_tms, "--log", "tensorbord")
    assert ended.code == 2
    assert "did you mean 'tensorboard'" in ended.err
    with pytest.raises(UserError, match="tensorboard"):
        RunConfig(log="tensorbord")


@pytest.mark.slow
def test_pretraining_tells_its_losses(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for name in range(30):
        (text / f"{name}.txt").write_text(f"The president met the congress of the states, said number {name}. " * 12)
    words = ["--layers", "1", "--width", "16", "--heads", "2", "--context", "16", "--vocabulary", "300",
             "--batch", "4", "--steps", "24", "--checkpoints", "2", "--quiet", "--device", "cpu"]  # fmt: skip
    assert pretrain(["--corpus", str(text), "--out", str(tmp_path / "m"), "--log", "tensorboard", *words]) == 0
    told = scalars(tmp_path / "m" / "tensorboard")
    record = json.loads((tmp_path / "m" / "training.json").read_text())
    losses = record["train_loss"]
    assert [step for step, _ in told["loss"]] == [10, 20]
    assert told["loss"][1][1] == pytest.approx(sum(losses[10:20]) / 10, abs=1e-3)
    assert told["validation_loss"] == [
        (step, pytest.approx(nats))
        for step, nats in zip(record["validation"]["steps"], record["validation"]["nats"], strict=True)
    ]
