"""On a GPU as on the CPU, within tolerance: toy training, SAE steps and fits, harvests, interventions.

Sparse coding has its own in test_sparse_coding_torch.py, pretraining in test_pretrain.py.
"""

import numpy as np
import pytest
import torch
from test_sae_steps import gradients, no_dead, problem

from toolkit.activations import harvest
from toolkit.configs import ARCHITECTURES, SAEConfig, ToyModel, ToyTraining
from toolkit.corpora import Document
from toolkit.interventions import Add, ProjectOut, intervene
from toolkit.language import load_model
from toolkit.metrics import fvu
from toolkit.sae import fit_sae
from toolkit.sae_steps import CPU_STEPS, autograd_step
from toolkit.toy import train

HOOK = "blocks.1.hook_resid_post"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def models():
    return load_model(), load_model(device="cuda")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_of_an_sae(architecture, tied):
    config, own, x = problem(architecture, tied=tied)
    dead = no_dead(config, x)
    dead[0, :2] = True
    here, step = gradients(CPU_STEPS[architecture], own, x, config, dead)
    on_gpu = {name: value.cuda() for name, value in own.items()}
    there, again = gradients(autograd_step, on_gpu, x.cuda(), config, dead.cuda())
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=f"gradient of {name}")
    torch.testing.assert_close(again.loss.cpu(), step.loss, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.fired.cpu(), step.fired)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fit_of_an_sae(architecture):
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0)).relu()
    config = SAEConfig(architecture=architecture, width=32, k=4, sparsity=0.1, steps=200, batch=64, lr=3e-3)
    here, there = (fit_sae(x, config, device=device) for device in ("cpu", "cuda"))
    # The first steps agree to rounding; later ones grow apart as float32 lets them, and end as good.
    torch.testing.assert_close(there.history[:20].cpu(), here.history[:20], rtol=1e-2, atol=1e-4)
    assert fvu(x, there(x[None].cuda())[0].cpu()) == pytest.approx(fvu(x, here(x[None])[0]), abs=0.03)


def test_toy_models():
    model = ToyModel(features=5, hidden=2, instances=8, density=(0.05,))
    here, there = (
        train(model, ToyTraining(toy_steps=2000, toy_batch=512), seed=0, device=device) for device in ("cpu", "cuda")
    )
    # Samplers differ in their streams, so what agrees is where the training ends.
    assert there.loss.median().cpu() == pytest.approx(here.loss.median().item(), rel=0.1)
    assert (there.feature_dimensionality.cpu().mean() - here.feature_dimensionality.mean()).abs() < 0.05


def test_a_harvest(models):
    documents = [Document(f"{i}", "The president of the United States met the congress. " * (i + 1)) for i in range(4)]
    here, there = (harvest(model, documents, [HOOK]) for model in models)
    assert (here.tokens == there.tokens).all()
    ours, theirs = (np.asarray(found.rows(HOOK), dtype=np.float32) for found in (here, there))
    np.testing.assert_allclose(theirs, ours, rtol=2e-2, atol=1e-2)  # both rounded to float16


@pytest.mark.parametrize("name", ["add", "project"])
def test_interventions(name, models):
    direction = torch.randn(models[0].d_model, generator=torch.Generator().manual_seed(0))
    change = {"add": Add(HOOK, direction, scale=2.0), "project": ProjectOut(HOOK, direction[None])}
    tokens = models[0].tokenizer("The president met the congress.", return_tensors="pt").input_ids
    here, there = (
        intervene(model, tokens.to(on), change[name]) for model, on in zip(models, ("cpu", "cuda"), strict=True)
    )
    assert here.mean_kl > 1e-4
    assert there.mean_kl == pytest.approx(here.mean_kl, rel=1e-2)
    assert there.mean_loss == pytest.approx(here.mean_loss, rel=1e-3)
