"""SAEs by the names of their public release, as the hub's cache on this machine has them: no network is asked."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.network import subjects
from experiments.network.ground import ground
from experiments.network.sae_errors import SMOKE
from toolkit.metrics import fvu
from toolkit.sae import load_sae
from toolkit.weight_processing import CENTRE_WRITING

RELEASE, REPO = "gpt2-small-res-jb", "models--jbloom--GPT2-Small-SAEs-Reformatted"
HOOK = "blocks.1.hook_resid_pre"


def put(cache, rows):
    """A release's SAE in the layout of the hub's cache, its configuration in the release's old words."""
    made = subjects.trained(rows, width=96, k=8, steps=300, seed=0)
    home = cache / REPO / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    made.save(home / HOOK)
    weights = load_file(home / HOOK / "sae_weights.safetensors")
    old = {
        "model_name": "gpt2-small",
        "hook_point": HOOK,
        "hook_point_layer": 1,
        "hook_point_head_index": None,
        "dataset_path": "Skylion007/openwebtext",
        "context_size": 128,
        "d_in": rows.shape[1],
        "d_sae": 96,
        "dtype": "torch.float32",
        "device": "mps",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 8},
        "prepend_bos": True,
        "normalize_activations": False,
    }
    (home / HOOK / "cfg.json").write_text(json.dumps(old))
    save_file({"sparsity": torch.zeros(96)}, home / HOOK / "sparsity.safetensors")
    (cache / REPO / "refs").mkdir(parents=True)
    (cache / REPO / "refs" / "main").write_text(home.name)
    return weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_release_is_read_by_name_with_what_its_list_says_of_the_model(cache):
    rows = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    weights = put(cache, rows)
    sae = load_sae(f"{RELEASE}:{HOOK}")
    assert torch.equal(sae.W_dec[0], weights["W_dec"])
    assert (sae.architecture, sae.metadata["hook_name"], sae.metadata["model_name"]) == ("topk", HOOK, "gpt2-small")
    assert sae.processing == {"centre_writing_weights": True}
    before = torch.relu((rows - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
    wanted = before.where(before >= before.topk(8).values[:, -1:], 0)
    torch.testing.assert_close(sae.encode(rows[None])[0], wanted, rtol=1e-4, atol=1e-5)


def test_an_experiment_takes_a_release_by_name_of_that_hook(tmp_path, run_command):
    centred = ground(replace(SMOKE, hook=HOOK, processing=(CENTRE_WRITING,)), HOOK)  # rows and places of the command
    put(tmp_path / "hub", centred.learn)
    sae = load_sae(str(next((tmp_path / "hub").glob(f"*/snapshots/*/{HOOK}"))))
    program = "import sys; from experiments.__main__ import main; sys.exit(main())"
    command = f"run network/sae-errors --scale smoke --sae {RELEASE}:{HOOK} --workers 1 --quiet --out".split()
    offline = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = run_command(*command, tmp_path / "runs", program=program, environment=offline)
    assert "Traceback" not in done.err
    (path,) = (tmp_path / "runs").glob("sae-errors/*/result.json")
    told = json.loads(path.read_text())["metrics"][f"trained, {HOOK}"]
    assert told["unexplained"] == pytest.approx(fvu(centred.x, sae(centred.x[None])[0]), rel=1e-3)
    assert told["unexplained"] != pytest.approx(fvu(centred.x, centred.rebuilt(centred.x)), rel=0.1)  # one trained here
