"""What a latent says for each token: its decoder row through the final norm and the unembedding."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.language import LanguageModel

STATED = (
    "The decoder row taken alone through the final norm, its bias left out, and the unembedding; the mean over tokens "
    "is taken off. What later blocks make of it is not in it."
)
_WRITTEN = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "hook_embed")
_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class LogitEffects:
    """Tokens that each decoder row speaks for and against, on the way past all later blocks."""

    raised: Int[Tensor, "latents tokens"]
    """The tokens raised most."""
    raised_by: Float[Tensor, "latents tokens"]
    """By how much: logits, for a stream that is this row and nothing else."""
    lowered: Int[Tensor, "latents tokens"]
    """The tokens lowered most."""
    lowered_by: Float[Tensor, "latents tokens"]
    """By how much."""
    kurtosis: Float[Tensor, " latents"]
    """Excess kurtosis over the vocabulary: high where few tokens have most of the effect; 0 for a Gaussian."""


def writes_to_stream(hook: str) -> bool:
    """Whether rows at a hook are, or are added to, what the unembedding reads in the end."""
    return hook.rpartition(".")[2] in _WRITTEN


@torch.no_grad()
def logit_effects(model: LanguageModel, decoder: Float[Tensor, "latents d"], count: int) -> LogitEffects:
    """Effects of decoder rows on the logits, some hundred rows at a time.

    The final norm acts on a row as if it were the whole stream: it is centred where the norm centres, brought to a
    root mean square of 1 and weighted. The norm's bias goes with the odd part, (f(w) - f(-w)) / 2.
    """
    unembedding = model.bridge.W_U.detach().float()
    rows = torch.nn.functional.normalize(decoder.to(unembedding.device).float(), dim=1) * decoder.shape[1] ** 0.5
    found = []
    for some in rows.split(max(1, _ELEMENTS // unembedding.shape[1])):
        normed = (model.bridge.ln_final(some[None]) - model.bridge.ln_final(-some[None]))[0] / 2
        effect = normed @ unembedding
        effect -= effect.mean(1, keepdim=True)
        spread = effect.square().mean(1)
        kurtosis = effect.pow(4).mean(1) / spread.square().clamp(min=1e-30) - 3
        up, down = effect.topk(count, dim=1), effect.topk(count, dim=1, largest=False)
        found.append((up.indices, up.values, down.indices, down.values, kurtosis))
    return LogitEffects(*(torch.cat(part).cpu() for part in zip(*found, strict=True)))
