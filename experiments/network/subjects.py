"""What directions are taken from, and text to try them on where none is given: SAEs, and what a model says itself."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.reading import Reading
from toolkit.errors import require
from toolkit.language import LanguageModel
from toolkit.metrics import fvu
from toolkit.sae import SAE, LoadedSAE, SAEConfig, fit_sae, load_sae

if TYPE_CHECKING:
    from experiments.network.subject import Subject

BATCH = 2048
"""Rows in each step of an SAE's training."""
SOME = 1024
"""Rows on which an SAE that is named is tried."""


def sae_at(
    settings: "Subject", model: LanguageModel, hook: str, rows: Float[Tensor, "rows d"], *, seed: int
) -> SAE | LoadedSAE:
    """The SAE that settings name, or one trained on rows of the hook.

    Raises:
        UserError: it cannot be read, reads rows of another width, was trained on another hook, or explains nothing.
    """
    if not settings.sae:
        return trained(rows, width=settings.width, k=settings.k, steps=settings.steps, seed=seed)
    check_hook(settings.sae, hook)
    sae = _read(settings.sae)
    d = sae.W_dec.shape[2]
    holds = f"and {hook} of {model.name} holds {rows.shape[1]}"
    require(d == rows.shape[1], f"the SAE {settings.sae} reads rows of {d} numbers, {holds}: it is another's")
    left = fvu(rows[:SOME], sae(rows[None, :SOME])[0])
    what = f"the SAE {settings.sae} leaves {left:.2g} of the variance of {hook} of {model.name}: it explains nothing"
    require(left < 1, f"{what}, so it is another model's, or of weights that were processed otherwise")
    return sae


def trained(rows: Float[Tensor, "rows d"], *, width: int, k: int, steps: int, seed: int) -> SAE:
    """A TopK SAE on rows, their mean and scale folded in."""
    mean = rows.mean(0)
    scale = float((rows - mean).square().sum(1).mean().clamp(min=1e-30).rsqrt()) * rows.shape[1] ** 0.5
    config = SAEConfig(architecture="topk", width=width, k=k, steps=steps, batch=BATCH)
    return fit_sae((rows - mean) * scale, config, seed=seed).unscaled(mean, scale)


def check_hook(source: str, hook: str) -> None:
    """Refuse an SAE of another hook, by its own word.

    Raises:
        UserError: it says that it was trained elsewhere.
    """
    own = _read(source).metadata.get("hook_name")
    require(own in (None, "", hook), f"the SAE {source} was trained on {own}, and this is {hook}: --hook {own}")


def own_hook(source: str) -> str:
    """The hook that an SAE says it was trained on.

    Raises:
        UserError: it does not say.
    """
    own = _read(source).metadata.get("hook_name")
    require(bool(own), f"the SAE {source} does not say which hook it was trained on: give --hook")
    return str(own)


def processing(source: str) -> tuple[str, ...]:
    """What an SAE says was done to the weights of its model, by names of `load_model`'s options."""
    return tuple(_read(source).processing)


@lru_cache(maxsize=1)
def _read(source: str) -> LoadedSAE:
    return load_sae(source)


@torch.no_grad()
def said(model: LanguageModel, *, rows: int, context: int, seed: int) -> Reading:
    """Sequences drawn from a model, each a document: text of its own distribution."""
    context = min(context, model.context)
    count = max(2, -(-rows // (context - 1)))
    generator = torch.Generator().manual_seed(seed)
    begin = model.tokenizer.bos_token_id if model.tokenizer is not None else None
    first = torch.randint(model.vocabulary, (count, 1), generator=generator)
    tokens = first if begin is None else torch.full_like(first, begin)
    network, kept = model.bridge.original_model, None
    for _ in range(context - 1):
        out = network(tokens[:, -1:], past_key_values=kept, use_cache=True)
        kept = out.past_key_values
        drawn = torch.multinomial(out.logits[:, -1].softmax(1), 1, generator=generator)
        tokens = torch.cat([tokens, drawn], 1)
    sequence, position = torch.meshgrid(torch.arange(count), torch.arange(context), indexing="ij")
    places = torch.stack([sequence.flatten(), position.flatten()], 1)  # (count * context, 2)
    return Reading(tokens, places, places[:, 0].numpy(), np.array([], int), "tokens", None)
