"""N9 on a language model: from the residual stream after one block to that after the next, at single tokens."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.network.ground import BLOCK, Ground, ground, hook_of
from experiments.network.interaction_measures import BASES, LOCAL, Pair, all_bases, quantities, squared_of
from experiments.network.networks import RANDOM, network
from experiments.network.subject import Subject
from toolkit.block_step import BlockStep
from toolkit.errors import require
from toolkit.interaction_basis import jacobians
from toolkit.language import LanguageModel

GROUPS = 4
"""Of documents that are measured, each by itself; intervals are over them."""
STEPS = 4
"""Nodes on the way from the mean to an activation."""
_STREAM = re.compile(r"blocks\.(\d+)\.hook_resid_post")


def measure_model(settings: Any, at: str, seed: int) -> dict[str, Tensor]:
    """QUANTITIES, (bases, groups of documents, quantities), of the stream after a block and after the next.

    The basis after the next block looks one block further, where there is one: at what a token does at its own
    position, earlier ones standing as they are.

    Raises:
        UserError: a hook that is not the stream after a block, or after the last one; what `ground` refuses.
    """
    subject = Subject(settings.model, settings.corpus, settings.hook, layers=settings.layers, rows=settings.rows,
                      places=settings.places)  # fmt: skip
    hooks = _hooks(subject, at)
    grounds = [ground(subject, hook, seed=seed) for hook in hooks]
    documents = grounds[0].documents
    held = np.unique(documents)
    fits = np.isin(documents, held[: 2 * len(held) // 3])
    models = grounds[0].model, network(settings.model, RANDOM, seed=seed)
    own, other = (_jacobians(grounds, model, torch.as_tensor(fits)) for model in models)
    bases = all_bases([one.learn for one in grounds], own, other, seed)
    parts = (np.flatnonzero(fits), *_grouped(documents, ~fits))
    pairs = [_pair(grounds[0], grounds[1], part, settings.nats) for part in parts]
    ranked, *squared = (squared_of(pair, bases, 0, steps=STEPS) for pair in pairs)
    found = [
        [
            quantities(pair, bases[b][0], bases[b][1], own[b], ranked=ranked[b])
            for pair, own in zip(pairs[1:], squared, strict=True)
        ]
        for b in BASES
    ]
    local = bases[LOCAL][0]
    told = torch.stack([torch.stack(each) for each in found])  # (bases, groups, quantities)
    return {"quantities": told, "kept": torch.tensor([len(local.reads), len(local.mean)])}


def _hooks(subject: Subject, at: str) -> list[str]:
    """The hook meant, the next block's, and the one after where there is one."""
    model = network(subject.model)
    hook = hook_of(subject, model, at)
    found, blocks = _STREAM.fullmatch(hook), int(model.bridge.cfg.n_layers)
    require(
        found is not None and int(found[1]) + 1 < blocks,
        f"{hook} cannot be followed to a next block: give --hook blocks.<n>.hook_resid_post, n from 0 to {blocks - 2}",
    )
    number = int(found[1])  # type: ignore[index]
    return [f"blocks.{n}.hook_resid_post" for n in range(number, min(number + 3, blocks))]


def _jacobians(grounds: Sequence[Ground], model: LanguageModel, chosen: Tensor) -> list[Tensor]:
    """Of a model's blocks between the hooks at the places chosen, at the trained model's activations."""
    found = []
    for one, following in pairwise(grounds):
        step = partial(_step(model, following, chosen), at=torch.arange(int(chosen.sum())))
        found.append(jacobians(step, one.x[chosen]))
    return found


def _step(model: LanguageModel, following: Ground, chosen: Tensor) -> BlockStep:
    """Through the block that ends at a hook, at the places chosen."""
    before = following.hook.replace("_post", "_pre")
    return BlockStep(model, before, following.hook, following.rest.tokens, following.rest.places[chosen])


def _grouped(documents: np.ndarray, measured: np.ndarray) -> list[np.ndarray]:
    """The places measured, dealt by document to GROUPS of them."""
    held = np.unique(documents[measured])
    require(len(held) >= GROUPS, f"{len(held)} documents to measure on, {GROUPS} are needed: give more text")
    return [np.flatnonzero(measured & np.isin(documents, part)) for part in np.array_split(held, GROUPS)]


def _pair(first: Ground, following: Ground, part: np.ndarray, nats: float) -> Pair:
    """The step at some places; harm is the divergence of the next token, replaced where the step leads."""
    places = torch.as_tensor(part)
    step = _step(first.model, following, places)

    def layer(rows: Tensor) -> Tensor:
        at = torch.arange(len(rows)) % len(places)
        return torch.cat([step(some, a) for some, a in zip(rows.split(BLOCK), at.split(BLOCK), strict=True)])

    def harm(reached: Tensor) -> float:
        return float(following.divergence(reached.float(), places).mean())

    return Pair(layer, step.activations, harm, nats)
