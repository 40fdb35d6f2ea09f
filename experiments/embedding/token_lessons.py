"""One token in running text: tokens by frequency, windows with one and text without, losses where it stands."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.embedding.texts import Text
from toolkit.errors import require

LEAST = 4
"""Occurrences that a token has in both streams at least."""
_CROWD = 3
_AT_ONCE = 4


def chosen_tokens(text: Text, bands: int, count: int, *, seed: int) -> Int[np.ndarray, "bands count"]:
    """Tokens of each band, the most frequent first: drawn among those whose frequency is nearest to the band's middle.

    Bands are even in the logarithm of the count in `text.train`; each token is in one.

    Raises:
        UserError: too few tokens occur in both streams.
    """
    counts, others = (torch.bincount(s, minlength=text.vocabulary).numpy() for s in (text.train, text.held_out))
    fit = np.flatnonzero((counts >= LEAST) & (others >= LEAST))
    fit = fit[fit != text.tokenizer.eos_token_id]
    need = _CROWD * bands * count
    require(
        len(fit) >= need,
        f"{len(fit):,} tokens occur {LEAST} times in {len(text.train):,} tokens to train on and in "
        f"{len(text.held_out):,} others, {need:,} are needed: give more text",
    )
    heights = np.log(counts[fit])
    edges = np.linspace(heights.max(), heights.min(), bands + 1)
    left = np.ones(len(fit), bool)
    found: list[np.ndarray] = []
    for middle in (edges[:-1] + edges[1:]) / 2:
        near = np.argsort(np.where(left, np.abs(heights - middle), np.inf), kind="stable")[: _CROWD * count]
        drawn = np.random.default_rng([seed, 34, len(found)]).choice(near, count, replace=False)
        left[drawn] = False
        found.append(fit[drawn])
    return np.stack(found)


def windows_with(stream: Int[Tensor, " tokens"], token: int, context: int, most: int) -> Int[Tensor, "windows length"]:
    """The first `most` windows of context + 1 tokens that hold the token."""
    cut = stream[: (len(stream) - 1) // context * context + 1].unfold(0, context + 1, context)  # (windows, context + 1)
    held = cut[(cut == token).any(1)]
    require(len(held) > 0, f"token {token} is in no whole window of {context + 1} held-out tokens: give more text")
    return held[:most].contiguous()


def without(stream: Int[Tensor, " tokens"], token: int, context: int) -> Int[Tensor, " kept"]:
    """The stream less every piece of `context` tokens that holds the token, repeated until it is as long."""
    cut = stream[: len(stream) // context * context].unfold(0, context, context)  # (pieces, context)
    kept = cut[~(cut == token).any(1)].flatten()
    require(len(kept) > 0, f"token {token} is in every piece of {context} tokens: nothing is left to train on")
    return kept.repeat(-(-len(stream) // len(kept)))[: len(stream)]


@torch.inference_mode()
def token_losses(
    model: Any, windows: Int[Tensor, "windows length"], token: int, device: str = "cpu"
) -> Float[Tensor, "2"]:
    """Mean loss, nats, where the token is the last input, and where it is the target; NaN where it never is."""
    model.to(device)
    parts = [_losses(model, part.to(device)).cpu() for part in windows.split(_AT_ONCE)]
    model.to("cpu")
    losses, inputs, targets = torch.cat(parts).flatten(), windows[:, :-1].flatten(), windows[:, 1:].flatten()
    return torch.stack([losses[at == token].mean() for at in (inputs, targets)])


def _losses(model: Any, windows: Int[Tensor, "windows length"]) -> Float[Tensor, "windows targets"]:
    logits = model(input_ids=windows[:, :-1]).logits.transpose(1, 2)  # (windows, vocabulary, targets)
    return torch.nn.functional.cross_entropy(logits, windows[:, 1:], reduction="none")
