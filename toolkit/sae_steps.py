"""One training step of a batch of SAEs: loss and hand-written gradients for the CPU.

`l1_step`, `jumprelu_step` and `gated_step` are dense products with what autograd repeats taken out; `topk_step`
does one dense product and touches only active entries after it; `autograd_step` differentiates the definition,
for any architecture on any device. All give the gradients of `sae_losses.LOSSES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numba
import numpy as np
import torch
from torch import Tensor

from toolkit import sae_kernels as kernels
from toolkit.configs import SAEConfig
from toolkit.processes import world
from toolkit.sae_losses import LOSSES, Parameters, batch_keep, levels


@dataclass(frozen=True)
class Step:
    """What one step computed, beside the gradients it wrote."""

    error: Tensor
    """(I,) squared reconstruction error, summed over d and meaned over the batch."""
    loss: Tensor
    """(I,) the whole objective."""
    fired: Tensor
    """(I, w) bool: active on some row of the batch."""


@dataclass(frozen=True)
class Buffers:
    """Scratch memory kept between steps, so that nothing large is allocated in the loop."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """By name."""

    def get(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        """An uninitialised array of this shape, the same one at each call."""
        if name not in self.arrays or self.arrays[name].shape != shape:
            self.arrays[name] = np.empty(shape, dtype)
        return self.arrays[name]

    def tensor(self, name: str, *shape: int) -> Tensor:
        """The same as a float32 tensor."""
        return torch.from_numpy(self.get(name, shape, np.float32))


StepFunction = Callable[[Parameters, Parameters, Tensor, SAEConfig, Tensor, Buffers], Step]


def autograd_step(p: Parameters, grads: Parameters, x: Tensor, config: SAEConfig, dead: Tensor, _: Buffers) -> Step:
    """Any architecture, any device: torch differentiates the definition."""
    leaves = {name: p[name].detach().requires_grad_() for name in grads}
    losses = LOSSES[config.architecture]({"W_enc": leaves["W_dec"], **leaves}, x, config, dead)
    losses.total.sum().backward()
    for name, leaf in leaves.items():
        grads[name].copy_(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
    return Step(losses.error.detach(), losses.total.detach(), losses.fired > 0)


def _encode(p: Parameters, centred: Tensor, bias: Tensor, buffers: Buffers) -> Tensor:
    """(I, B, d) @ (I, d, w) + bias -> (I, B, w), in kept memory."""
    out = buffers.tensor("pre", *centred.shape[:2], bias.shape[-1])
    return torch.baddbmm(bias[:, None], centred, p["W_enc"].mT, out=out)


def _output_error(p: Parameters, x: Tensor, latents: Tensor, buffers: Buffers, name: str) -> tuple[Tensor, Tensor]:
    """Gradient 2 / B (x' - x) of the mean squared error at the output, (I, B, d), and that error, (I,)."""
    out = buffers.tensor(name, *x.shape)
    torch.baddbmm(p["b_dec"][:, None], latents, p["W_dec"], out=out).sub_(x)
    error = torch.linalg.vector_norm(out.flatten(1), dim=1).square() / x.shape[1]
    return out.mul_(2 / x.shape[1]), error


def _write(p: Parameters, grads: Parameters, centred: Tensor, d_pre: Tensor, d_decoder: Tensor, d_out: Tensor) -> None:
    """The gradients every dense architecture shares.

    Args:
        d_pre: (I, B, w) at the encoder's product. d_decoder: (I, w, d). d_out: (I, d) at the output, summed over rows.
    """
    d_encoder = torch.bmm(d_pre.mT, centred)  # (I, w, B) @ (I, B, d) -> (I, w, d)
    _write_sums(p, grads, d_encoder, d_pre.sum(1), d_decoder, d_out)


def _write_sums(p: Parameters, grads: Parameters, d_enc: Tensor, d_bias: Tensor, d_dec: Tensor, d_out: Tensor) -> None:
    """b_dec is added to the output and subtracted from the input; a tied matrix sums both its roles."""
    through_input = torch.bmm(d_bias[:, None], p["W_enc"])[:, 0]  # (I, 1, w) @ (I, w, d) -> (I, d)
    torch.sub(d_out, through_input, out=grads["b_dec"])
    if "W_enc" in grads:
        grads["W_enc"].copy_(d_enc)
        grads["W_dec"].copy_(d_dec)
    else:
        torch.add(d_enc, d_dec, out=grads["W_dec"])


def l1_step(p: Parameters, grads: Parameters, x: Tensor, config: SAEConfig, dead: Tensor, buffers: Buffers) -> Step:
    """ReLU with a norm-weighted L1 penalty: five products where autograd takes six."""
    centred = x - p["b_dec"][:, None]
    latents = _encode(p, centred, p["b_enc"], buffers).relu_()
    norms = p["W_dec"].norm(dim=-1)
    gradient, error = _output_error(p, x, latents, buffers, "gradient")
    mass = latents.mean(1)
    d_decoder = torch.bmm(latents.mT, gradient)  # (I, w, B) @ (I, B, d)
    d_decoder.addcmul_((config.sparsity * mass / norms)[..., None], p["W_dec"])
    # The penalty's share of d_pre rides along as the product's additive term.
    d_pre = buffers.tensor("d_pre", *latents.shape)
    torch.baddbmm((config.sparsity / x.shape[1] * norms)[:, None], gradient, p["W_dec"].mT, out=d_pre)
    kernels.mask_by_positive(d_pre.flatten(0, 1).numpy(), latents.flatten(0, 1).numpy())
    grads["b_enc"].copy_(d_pre.sum(1))
    _write(p, grads, centred, d_pre, d_decoder, gradient.sum(1))
    return Step(error, error + config.sparsity * (mass * norms).sum(-1), mass > 0)


def jumprelu_step(
    p: Parameters, grads: Parameters, x: Tensor, config: SAEConfig, dead: Tensor, buffers: Buffers
) -> Step:
    """Thresholded latents with an L0 penalty; the straight-through sums are made in the pass that masks."""
    batch = x.shape[1]
    centred = x - p["b_dec"][:, None]
    pre = _encode(p, centred, p["b_enc"], buffers)
    latents = buffers.tensor("latents", *pre.shape)
    counts = torch.zeros_like(p["threshold"])
    threshold, flat = p["threshold"].numpy(), pre.flatten(0, 1).numpy()
    kernels.jump(flat, threshold, batch, latents.flatten(0, 1).numpy(), counts.numpy())
    gradient, error = _output_error(p, x, latents, buffers, "gradient")
    d_decoder = torch.bmm(latents.mT, gradient)
    d_pre = torch.bmm(gradient, p["W_dec"].mT, out=latents)
    kernels.jump_backward(
        flat,
        threshold,
        batch,
        config.bandwidth,
        config.sparsity,
        d_pre.flatten(0, 1).numpy(),
        grads["threshold"].numpy(),
    )
    grads["b_enc"].copy_(d_pre.sum(1))
    _write(p, grads, centred, d_pre, d_decoder, gradient.sum(1))
    return Step(error, error + config.sparsity * counts.sum(-1) / batch, counts > 0)


def gated_step(p: Parameters, grads: Parameters, x: Tensor, config: SAEConfig, dead: Tensor, buffers: Buffers) -> Step:
    """Gate and magnitude share one encoder product; both their gradients go back through one more."""
    batch = x.shape[1]
    centred = x - p["b_dec"][:, None]
    open_gate = _encode(p, centred, p["b_enc"], buffers)
    latents, d_latents, d_gate = (buffers.tensor(name, *open_gate.shape) for name in ("latents", "d_latents", "d_gate"))
    scale = p["r_mag"].exp()
    flat = [value.flatten(0, 1).numpy() for value in (open_gate, latents, d_gate, d_latents)]
    kernels.gate(flat[0], scale.numpy(), p["b_enc"].numpy(), p["b_mag"].numpy(), batch, flat[1])
    gradient, error = _output_error(p, x, latents, buffers, "gradient")
    via_gate, gate_error = _output_error(p, x, open_gate, buffers, "via_gate")
    norms, mass = p["W_dec"].norm(dim=-1), open_gate.mean(1)
    d_decoder = torch.bmm(latents.mT, gradient).baddbmm_(open_gate.mT, via_gate)
    d_decoder.addcmul_((config.sparsity * mass / norms)[..., None], p["W_dec"])
    torch.baddbmm((config.sparsity / batch * norms)[:, None], via_gate, p["W_dec"].mT, out=d_gate)
    torch.bmm(gradient, p["W_dec"].mT, out=d_latents)
    sums = buffers.tensor("sums", 4, *scale.shape)
    kernels.gate_backward(flat[0], flat[1], scale.numpy(), p["b_mag"].numpy(), batch, *flat[2:], sums.numpy())
    for name, total in zip(("b_enc", "b_mag", "r_mag"), sums, strict=False):
        grads[name].copy_(total)
    _write(p, grads, centred, d_gate, d_decoder, (gradient + via_gate).sum(1))
    return Step(error, error + gate_error + config.sparsity * (mass * norms).sum(-1), sums[3] > 0)


def topk_step(p: Parameters, grads: Parameters, x: Tensor, config: SAEConfig, dead: Tensor, buffers: Buffers) -> Step:
    """A hard budget of active latents: one dense product, the rest touches k latents a row."""
    instances, batch, d = x.shape
    width, rows = config.width, instances * batch
    centred = x - p["b_dec"][:, None]
    pre = _encode(p, centred, p["b_enc"], buffers)
    code = _select(p, pre, config, buffers)
    level = _level_of(config)
    errors = buffers.get("errors", (rows, int(level[-1]) + 1, d), np.float32)
    d_values = buffers.get("d_values", code[3].shape, np.float32)
    losses = buffers.get("losses", (rows, 2), np.float32)
    decoder = p["W_dec"].flatten(0, 1).numpy()
    flat_x = x.flatten(0, 1).numpy()
    kernels.decode_rows(flat_x, batch, *code, decoder, p["b_dec"].numpy(), level, errors, d_values, losses)
    latent_starts = buffers.get("latent_starts", (instances * width + 1,), np.int64)
    entries, entry_rows = (buffers.get(name, code[3].shape, np.int64) for name in ("entries", "entry_rows"))
    kernels.group_by_latent(batch, width, *code[:3], latent_starts, entries, entry_rows)
    d_encoder, d_decoder = (buffers.tensor(name, instances, width, d) for name in ("d_encoder", "d_decoder"))
    kernels.accumulate(
        centred.flatten(0, 1).numpy(), code[3], d_values, errors, level, latent_starts, entries, entry_rows,
        d_encoder.flatten(0, 1).numpy(), grads["b_enc"].flatten().numpy(), d_decoder.flatten(0, 1).numpy(),
    )  # fmt: skip
    totals = torch.from_numpy(losses).view(instances, batch, 2).mean(1)  # (rows, 2) -> (I, 2)
    d_out = torch.from_numpy(errors[:, 0]).view(instances, batch, d).sum(1)
    extra = _dead_gradients(p, pre, centred, errors, dead, d_encoder, grads["b_enc"], d_decoder)
    _write_sums(p, grads, d_encoder, grads["b_enc"], d_decoder, d_out)
    fired = torch.from_numpy(np.diff(latent_starts) > 0).view(instances, width)
    return Step(totals[:, 1], totals[:, 0] + extra, fired)


def _select(p: Parameters, pre: Tensor, config: SAEConfig, buffers: Buffers) -> tuple[np.ndarray, ...]:
    """The sparse code of a batch: row starts, row ends, latents, values."""
    instances, batch, _ = pre.shape
    rows = instances * batch
    starts, ends = (buffers.get(name, (rows,), np.int64) for name in ("starts", "ends"))
    shared = 1 if config.architecture == "topk" else world()
    most = min(int(config.k * (batch * shared)), batch * config.width)
    latents = buffers.get("indices", (instances * most,), np.int32)
    values = buffers.get("values", (instances * most,), np.float32)
    norms = p["W_dec"].norm(dim=-1)
    flat = pre.flatten(0, 1).numpy()
    if config.architecture == "topk":
        kernels.select_in_rows(flat, norms.numpy(), batch, int(config.k), starts, ends, latents, values)
    else:
        scores = torch.mul(pre, norms[:, None], out=buffers.tensor("scores", *pre.shape))
        counts = buffers.get("counts", (instances, numba.get_num_threads(), 2**kernels.RADIX), np.int64)
        bits = scores.flatten(0, 1).numpy().view(np.int32)
        kernels.select_in_batch(flat, bits, batch, batch_keep(scores, config.k), counts, starts, ends, latents, values)
    return starts, ends, latents, values


def _level_of(config: SAEConfig) -> np.ndarray:
    """The nested dictionary each latent joins first, (w,); all 0 where nothing is nested."""
    edges = levels(config.width) if config.architecture == "matryoshka" else [config.width]
    return np.searchsorted(edges, np.arange(config.width), side="right").astype(np.int64)


def _dead_gradients(
    p: Parameters, pre: Tensor, centred: Tensor, errors: np.ndarray, dead: Tensor,
    d_encoder: Tensor, d_bias: Tensor, d_decoder: Tensor,
) -> Tensor:  # fmt: skip
    """Add the dead latents' auxiliary loss and gradients, on their columns alone; returns the loss, (I,)."""
    instances, batch, d = centred.shape
    extra = torch.zeros(instances)
    limit = max(d // 2, 1)
    widest = torch.from_numpy(errors[:, -1]).view(instances, batch, d)
    for i in dead.any(-1).nonzero().flatten().tolist():
        columns = dead[i].nonzero().flatten()
        values = pre[i][:, columns]
        if len(columns) > limit:
            scores = values * p["W_dec"][i, columns].norm(dim=-1)
            values = values * torch.zeros_like(values).scatter_(1, scores.topk(limit, dim=1).indices, 1.0)
        weight = min(len(columns) / limit, 1.0)
        # errors hold 2 / B (x' - x), so the residual x - x' is -B/2 times that.
        difference = torch.addmm(widest[i] * (batch / 2), values, p["W_dec"][i, columns])
        extra[i] = weight * difference.square().sum() / batch
        difference.mul_(2 * weight / batch)
        d_values = (difference @ p["W_dec"][i, columns].mT).mul_(values != 0)
        d_decoder[i, columns] += values.mT @ difference
        d_encoder[i, columns] += d_values.mT @ centred[i]
        d_bias[i, columns] += d_values.sum(0)
    return extra


CPU_STEPS: dict[str, StepFunction] = {
    "l1": l1_step,
    "topk": topk_step,
    "batchtopk": topk_step,
    "jumprelu": jumprelu_step,
    "gated": gated_step,
    "matryoshka": topk_step,
}


def step_function(config: SAEConfig, device: torch.device) -> StepFunction:
    """The fastest step for an architecture on a device."""
    return CPU_STEPS[config.architecture] if device.type == "cpu" else autograd_step
