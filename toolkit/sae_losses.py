"""The six SAE architectures: what each computes and minimises, in plain differentiable torch.

Tensors carry an instance axis: x (I, B, d), W_enc and W_dec (I, w, d) with one row a latent, biases (I, w) and
(I, d). This file is the definition: CUDA trains with it, and the compiled CPU steps and sae-lens's training
classes are tested against it. All follow sae-lens 6.54's objectives (squared error summed over d, meaned over B).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.configs import SAEConfig
from toolkit.processes import kept_here, world

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Losses:
    """Loss of each instance and the latents' activations of one batch."""

    total: Float[Tensor, " instances"]
    """What is minimised."""
    error: Float[Tensor, " instances"]
    """Squared reconstruction error, summed over d and meaned over the batch."""
    fired: Float[Tensor, "instances width"]
    """Share of the batch's rows on which each latent is active."""


class _Step(torch.autograd.Function):
    """1[x > threshold] with a rectangle for the derivative in the threshold (Rajamanoharan et al. 2024b, eq. 11)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = bandwidth
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        x, threshold = ctx.saved_tensors
        window = ((x - threshold).abs() < ctx.bandwidth / 2).to(x.dtype)
        return None, -(window * gradients[0]).sum(-2, keepdim=True) / ctx.bandwidth, None


def pre_activations(p: Parameters, x: Tensor) -> Tensor:
    """(x - b_dec) W_enc^T + b_enc, (I, B, w)."""
    # (I, B, d) @ (I, d, w) -> (I, B, w)
    return torch.baddbmm(p["b_enc"][:, None], x - p["b_dec"][:, None], p["W_enc"].mT)


def reconstruct(p: Parameters, latents: Tensor) -> Tensor:
    """Latents (I, B, w) back to inputs (I, B, d)."""
    return torch.baddbmm(p["b_dec"][:, None], latents, p["W_dec"])


def encode(p: Parameters, x: Tensor, config: SAEConfig) -> Tensor:
    """Latents (I, B, w) of a finished SAE with unit decoder rows; batch-wise choices have become a threshold."""
    pre = pre_activations(p, x)
    if config.architecture == "topk":
        return pre.relu() * row_topk(pre, int(config.k))
    if config.architecture == "gated":
        magnitude = (pre - p["b_enc"][:, None]) * p["r_mag"].exp()[:, None] + p["b_mag"][:, None]
        return (pre > 0) * magnitude.relu()
    return pre.relu() * (pre > p["threshold"][:, None]) if "threshold" in p else pre.relu()


def row_topk(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest entries of each row."""
    return torch.zeros_like(scores).scatter_(-1, scores.topk(k, dim=-1).indices, 1.0)


def batch_topk(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` largest entries of each instance's batch (Bussmann et al. 2024)."""
    flat = scores.flatten(1)  # (I, B, w) -> (I, B * w)
    return torch.zeros_like(flat).scatter_(-1, flat.topk(keep).indices, 1.0).view_as(scores)


def batch_keep(scores: Tensor, k: float) -> int:
    """How many of these scores, (I, B, w), one of each instance's batch may keep: k a row over all processes' rows."""
    keep = int(k * (scores.shape[1] * world()))  # in this order as one process would round
    return kept_here(scores.relu().flatten(), keep) if world() > 1 else keep  # what is negative never is on


def levels(width: int) -> list[int]:
    """Widths of the nested dictionaries of a matryoshka SAE: eighth, quarter, half and whole."""
    return sorted({max(width // 8, 1), max(width // 4, 1), max(width // 2, 1), width})


def _squared_error(x: Tensor, recovered: Tensor) -> Tensor:
    return (recovered - x).pow(2).sum(-1).mean(-1)


def _share_active(latents: Tensor) -> Tensor:
    return (latents > 0).float().mean(1)


def l1_loss(p: Parameters, x: Tensor, config: SAEConfig, dead: Tensor) -> Losses:
    """ReLU latents with an L1 penalty weighted by the decoder norms (Bricken et al. 2023; Conerly et al. 2024)."""
    latents = pre_activations(p, x).relu()
    error = _squared_error(x, reconstruct(p, latents))
    penalty = (latents * p["W_dec"].norm(dim=-1)[:, None]).sum(-1).mean(-1)
    return Losses(error + config.sparsity * penalty, error, _share_active(latents))


def jumprelu_loss(p: Parameters, x: Tensor, config: SAEConfig, dead: Tensor) -> Losses:
    """Thresholded latents with an L0 penalty, both trained straight through (Rajamanoharan et al. 2024b)."""
    pre = pre_activations(p, x)
    threshold = p["threshold"][:, None]
    gate = _Step.apply(pre, threshold, config.bandwidth)
    # d/d threshold of pre * 1[pre > threshold] is -threshold/bandwidth in the window, so the gate's gradient
    # is scaled by the threshold there, not by pre.
    latents = pre * gate.detach() + threshold.detach() * (gate - gate.detach())
    error = _squared_error(x, reconstruct(p, latents))
    return Losses(error + config.sparsity * gate.sum(-1).mean(-1), error, _share_active(latents))


def gated_loss(p: Parameters, x: Tensor, config: SAEConfig, dead: Tensor) -> Losses:
    """A gate that decides which latents are on and a magnitude for how much (Rajamanoharan et al. 2024a)."""
    gate = pre_activations(p, x)
    scale = p["r_mag"].exp()[:, None]
    magnitude = (gate - p["b_enc"][:, None]) * scale + p["b_mag"][:, None]
    latents = (gate > 0) * magnitude.relu()
    open_gate = gate.relu()
    error = _squared_error(x, reconstruct(p, latents))
    penalty = (open_gate * p["W_dec"].norm(dim=-1)[:, None]).sum(-1).mean(-1)
    auxiliary = _squared_error(x, reconstruct(p, open_gate))
    return Losses(error + config.sparsity * penalty + auxiliary, error, _share_active(latents))


def topk_loss(p: Parameters, x: Tensor, config: SAEConfig, dead: Tensor) -> Losses:
    """The k largest pre-activations, compared by what they write (Gao et al. 2024), and a loss for dead latents.

    Selection compares pre-activation times decoder norm; the norm cancels in the reconstruction. topk chooses
    in each row, batchtopk and matryoshka over the batch; matryoshka adds the error of every nested prefix
    (Bussmann et al. 2025).
    """
    pre = pre_activations(p, x)
    scores = (pre * p["W_dec"].norm(dim=-1)[:, None]).detach()
    if config.architecture == "topk":
        mask = row_topk(scores, int(config.k))
    else:
        mask = batch_topk(scores.relu(), batch_keep(scores, config.k))
    latents = pre.relu() * mask
    recovered = reconstruct(p, latents)
    error = _squared_error(x, recovered)
    total = error + dead_loss(p, pre, scores, (x - recovered).detach(), dead)
    if config.architecture == "matryoshka":
        for prefix in levels(config.width)[:-1]:
            # (I, B, prefix) @ (I, prefix, d) -> (I, B, d)
            inner = torch.baddbmm(p["b_dec"][:, None], latents[..., :prefix], p["W_dec"][:, :prefix])
            total = total + _squared_error(x, inner)
    return Losses(total, error, _share_active(latents))


def dead_loss(p: Parameters, pre: Tensor, scores: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    """Dead latents are asked to explain the residual: the best d/2 of them in each row (Gao et al. 2024, A.2).

    Args:
        dead: (I, w) bool. Instances without dead latents contribute zero.
    """
    count = dead.sum(-1)
    if not bool(count.any()):
        return residual.new_zeros(residual.shape[0])
    limit = max(residual.shape[-1] // 2, 1)
    mask = dead[:, None] & _top_dead(scores, dead, min(limit, int(count.max())))
    # (I, B, w) @ (I, w, d) -> (I, B, d)
    explained = torch.bmm(pre * mask, p["W_dec"])
    weight = (count / limit).clamp(max=1.0)
    return weight * (explained - residual).pow(2).sum(-1).mean(-1) * (count > 0)


def _top_dead(scores: Tensor, dead: Tensor, k: int) -> Tensor:
    return row_topk(scores.masked_fill(~dead[:, None], -torch.inf), k) > 0


LossFunction = Callable[[Parameters, Tensor, SAEConfig, Tensor], Losses]
LOSSES: dict[str, LossFunction] = {
    "l1": l1_loss,
    "topk": topk_loss,
    "batchtopk": topk_loss,
    "jumprelu": jumprelu_loss,
    "gated": gated_loss,
    "matryoshka": topk_loss,
}
