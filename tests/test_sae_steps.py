"""The hand-written CPU steps against torch's derivative of the definition, and both against sae-lens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from toolkit import sae_kernels as kernels
from toolkit.configs import ARCHITECTURES, SAEConfig
from toolkit.sae_losses import batch_topk, levels, row_topk
from toolkit.sae_steps import CPU_STEPS, Buffers, autograd_step
from toolkit.sae_training import clip_by_instance, initial_parameters, with_encoder


def problem(architecture: str, *, instances=2, batch=64, d=7, width=20, k=3, tied=False, seed=0):
    config = SAEConfig(architecture=architecture, width=width, k=k, tied=tied, sparsity=0.3, batch=batch)
    generator = torch.Generator().manual_seed(seed)
    own = initial_parameters(config, d=d, instances=instances, seed=seed)
    for value in own.values():
        value += 0.2 * torch.randn(value.shape, generator=generator)
    if architecture == "jumprelu":
        own["threshold"].abs_()
    x = torch.randn(instances, batch, d, generator=generator)
    return config, own, x


def gradients(step, own, x, config, dead) -> tuple[dict[str, Tensor], object]:
    written = {name: torch.full_like(value, torch.nan) for name, value in own.items()}
    return written, step(with_encoder(own), written, x, config, dead, Buffers())


def no_dead(config: SAEConfig, x: Tensor) -> Tensor:
    return torch.zeros(len(x), config.width, dtype=torch.bool)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cpu_step_has_the_gradients_of_the_definition(architecture: str, tied: bool) -> None:
    config, own, x = problem(architecture, tied=tied)
    x[:, :20] = 0  # rows alike: ties that batch-wise choices have to break
    dead = no_dead(config, x)
    dead[0, :2] = True
    dead[1, ::2] = True
    for mask in (no_dead(config, x), dead):
        expected, reference = gradients(autograd_step, own, x, config, mask)
        found, step = gradients(CPU_STEPS[architecture], own, x, config, mask)
        for name in own:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=f"gradient of {name}")
        torch.testing.assert_close(step.loss, reference.loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(step.error, reference.error, rtol=1e-5, atol=1e-5)
        assert torch.equal(step.fired, reference.fired)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_dead_latents_get_a_gradient_only_through_the_auxiliary_loss(architecture: str) -> None:
    config, own, x = problem(architecture, k=1)
    own["b_enc"][:, 5] = -100.0
    dead = no_dead(config, x)
    silent, _ = gradients(CPU_STEPS[architecture], own, x, config, dead)
    assert torch.all(silent["W_dec"][:, 5] == 0)
    dead[:, 5] = True
    revived, _ = gradients(CPU_STEPS[architecture], own, x, config, dead)
    assert torch.all(revived["W_dec"][:, 5].abs().sum(-1) > 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_definition_has_the_loss_and_gradients_of_sae_lens(architecture: str) -> None:
    config, own, x = problem(architecture, instances=1)
    theirs = sae_lens_class(config, x.shape[-1])
    load(theirs, own)
    output = theirs.training_forward_pass(step_input(x[0], config))
    output.loss.backward()
    for step in (autograd_step, CPU_STEPS[architecture]):
        found, done = gradients(step, own, x, config, no_dead(config, x))
        assert done.loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
        for name, value in sae_lens_gradients(theirs, config).items():
            torch.testing.assert_close(found[name][0], value, rtol=1e-4, atol=1e-5, msg=f"gradient of {name}")


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_auxiliary_loss_is_that_of_sae_lens(architecture: str) -> None:
    config, own, x = problem(architecture, instances=1, d=12)
    dead = torch.zeros(1, config.width, dtype=torch.bool)
    for count in (3, 11):  # fewer and more dead latents than d / 2 may speak in a row
        dead[:, :count] = True
        theirs = sae_lens_class(config, x.shape[-1])
        load(theirs, own)
        output = theirs.training_forward_pass(step_input(x[0], config, dead[0]))
        output.loss.backward()
        found, done = gradients(CPU_STEPS[architecture], own, x, config, dead)
        assert done.loss.item() == pytest.approx(output.loss.item(), rel=1e-5)
        for name, value in sae_lens_gradients(theirs, config).items():
            torch.testing.assert_close(found[name][0], value, rtol=1e-4, atol=1e-5, msg=f"gradient of {name}")


def sae_lens_class(config: SAEConfig, d: int):
    import sae_lens as lens

    shape = {"d_in": d, "d_sae": config.width}
    made = {
        "l1": lambda: lens.StandardTrainingSAE(lens.StandardTrainingSAEConfig(**shape, l1_coefficient=config.sparsity)),
        "topk": lambda: lens.TopKTrainingSAE(lens.TopKTrainingSAEConfig(**shape, k=int(config.k))),
        "batchtopk": lambda: lens.BatchTopKTrainingSAE(lens.BatchTopKTrainingSAEConfig(**shape, k=config.k)),
        "jumprelu": lambda: lens.JumpReLUTrainingSAE(
            lens.JumpReLUTrainingSAEConfig(**shape, l0_coefficient=config.sparsity, jumprelu_bandwidth=config.bandwidth)
        ),
        "gated": lambda: lens.GatedTrainingSAE(lens.GatedTrainingSAEConfig(**shape, l1_coefficient=config.sparsity)),
        "matryoshka": lambda: lens.MatryoshkaBatchTopKTrainingSAE(
            lens.MatryoshkaBatchTopKTrainingSAEConfig(**shape, k=config.k, matryoshka_widths=levels(config.width))
        ),
    }
    return made[config.architecture]()


NAMES = {"b_enc": "b_gate"}


def load(theirs, own: dict[str, Tensor]) -> None:
    gated = hasattr(theirs, "b_gate")
    for name, value in own.items():
        target = getattr(theirs, NAMES.get(name, name) if gated else name)
        target.data.copy_(value[0].T if name == "W_enc" else value[0])


def sae_lens_gradients(theirs, config: SAEConfig) -> dict[str, Tensor]:
    names = {NAMES["b_enc"]: "b_enc"} if config.architecture == "gated" else {}
    found = {names.get(name, name): value.grad for name, value in theirs.named_parameters()}
    return {**found, "W_enc": found["W_enc"].T}


def step_input(x: Tensor, config: SAEConfig, dead: Tensor | None = None):
    from sae_lens.saes.sae import TrainStepInput

    coefficients = {"l1": config.sparsity, "l0": config.sparsity}
    return TrainStepInput(
        sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
    )


@pytest.mark.parametrize("keep", [1, 7, 100, 320, 640])
def test_batch_selection_is_an_exact_topk(keep: int) -> None:
    pre = torch.randn(2 * 64, 10, generator=torch.Generator().manual_seed(keep))
    starts, ends = np.empty(128, np.int64), np.empty(128, np.int64)
    latents, values = np.empty(2 * keep, np.int32), np.empty(2 * keep, np.float32)
    counts = np.empty((2, 2, 2**kernels.RADIX), np.int64)
    kernels.select_in_batch(pre.numpy(), pre.numpy().view(np.int32), 64, keep, counts, starts, ends, latents, values)
    dense = torch.zeros(128, 10)
    for r in range(128):
        dense[r, latents[starts[r] : ends[r]]] = torch.from_numpy(values[starts[r] : ends[r]])
    scores = pre.view(2, 64, 10).relu()
    expected = scores * batch_topk(scores, keep)
    assert torch.equal(dense, expected.view(128, 10))


def test_batch_selection_breaks_ties_to_the_exact_budget() -> None:
    pre = torch.ones(6, 4)
    starts, ends = np.empty(6, np.int64), np.empty(6, np.int64)
    latents, values = np.empty(10, np.int32), np.empty(10, np.float32)
    counts = np.empty((1, 2, 2**kernels.RADIX), np.int64)
    kernels.select_in_batch(pre.numpy(), pre.numpy().view(np.int32), 6, 10, counts, starts, ends, latents, values)
    assert (ends - starts).sum() == 10


def test_row_selection_is_a_topk() -> None:
    pre = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    norms = torch.rand(1, 30, generator=torch.Generator().manual_seed(1)) + 0.1
    starts, ends = np.empty(50, np.int64), np.empty(50, np.int64)
    latents, values = np.empty(50 * 8, np.int32), np.empty(50 * 8, np.float32)
    kernels.select_in_rows(pre.numpy(), norms.numpy(), 50, 8, starts, ends, latents, values)
    mask = row_topk(pre * norms, 8) * (pre > 0)
    for r in range(50):
        assert set(latents[starts[r] : ends[r]]) == set(mask[r].nonzero().flatten().tolist())


def test_clipping_takes_each_instance_alone() -> None:
    large, small = torch.full((1, 4, 3), 10.0), torch.full((1, 4, 3), 1e-3)
    grads = {"W": torch.cat([large, small]), "b": torch.zeros(2, 4)}
    clip_by_instance(grads)
    assert torch.linalg.vector_norm(grads["W"][0]).item() == pytest.approx(1.0, rel=1e-4)
    torch.testing.assert_close(grads["W"][1], small[0])


def test_nested_levels_end_at_the_width_and_rise() -> None:
    for width in (2, 3, 8, 20, 2304):
        found = levels(width)
        assert found == sorted(set(found))
        assert found[-1] == width


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_broken_gradient_would_be_seen(architecture: str) -> None:
    """The positive control of the comparison above: another penalty or budget gives other gradients."""
    config, own, x = problem(architecture)
    other = replace(config, sparsity=2 * config.sparsity, k=config.k + 1)
    expected, _ = gradients(autograd_step, own, x, config, no_dead(config, x))
    found, _ = gradients(CPU_STEPS[architecture], own, x, other, no_dead(config, x))
    assert any(not torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in own)
