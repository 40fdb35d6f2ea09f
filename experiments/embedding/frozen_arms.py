"""The arms of E6: one model, one text, one order, and embeddings that are learned, or frozen in different ways."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.embedding.learning_curve import LearningCurve
from experiments.embedding.texts import Text
from toolkit.devices import resolve
from toolkit.pretrain_config import PretrainConfig
from toolkit.pretraining import initial_model, pretrain
from toolkit.random_rows import frozen_rows


def trained_arms(settings: Any, text: Text, seed: int) -> dict[str, Tensor]:
    """Each arm's validation losses as `curve.ARM`, its last training loss, and what its embedding looks like.

    Frozen random rows have the norms of the rows that the learned arm ends with, token by token: at the small norms
    that rows start with, the output, which is tied to them, could not be sure of anything (arm "small").
    """
    config, frozen = settings.training(text), settings.training(text, freeze_embedding="random")
    found, rows = _trained(settings, text, config, "learned", seed, model=_learned(settings, config, seed))
    norms = rows.norm(dim=1)
    found |= _trained(settings, text, config, "good", seed, model=frozen_at(initial_model(config, seed=seed), rows))[0]
    found |= _trained(settings, text, frozen, "random", seed, norms=norms)[0]
    found |= _trained(settings, text, replace(frozen, cosine_bound=1.0), "unbounded", seed, norms=norms)[0]
    found |= _trained(settings, text, frozen, "small", seed)[0]
    start = untied(initial_model(config, seed=seed))
    found |= _trained(
        settings, text, config, "untied", seed, model=frozen_at(start, frozen_rows(norms, frozen, seed=seed))
    )[0]
    return found


def frozen_at(model: Any, rows: Tensor) -> Any:
    """Give a model these rows for its embedding, not to be trained."""
    table = model.get_input_embeddings().weight
    table.data = rows.clone()
    table.requires_grad_(False)
    return model


def untied(model: Any) -> Any:
    """Give a model an output matrix of its own, which starts as the embedding does."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def _learned(settings: Any, config: PretrainConfig, seed: int) -> Any:
    start = initial_model(config, seed=seed)
    if settings.learn:
        return start
    table = start.get_input_embeddings().weight.data
    return frozen_at(start, frozen_rows(table, config, seed=seed + 1000))


def _trained(
    settings: Any, text: Text, config: PretrainConfig, arm: str, seed: int, **how: Any
) -> tuple[dict[str, Tensor], Tensor]:
    curve = LearningCurve(text.held_out, config, settings.every, resolve(settings.device))
    watch: Any = {"keep": curve.keep, "progress": curve.progress}
    done = pretrain(text.data(), config, seed=seed, device=curve.device, **watch, **how)
    rows = done.model.get_input_embeddings().weight.detach()
    unit = torch.nn.functional.normalize(rows)
    largest = max((part @ unit.T).abs().topk(2).values[:, 1].max() for part in unit.split(1024))
    seen = {"train": done.losses[-len(done.losses) // 10 :].mean(), "norm": rows.norm(dim=1).mean(), "cosine": largest}
    seen["curve"] = torch.tensor(curve.losses)
    return {f"{name}.{arm}": value for name, value in seen.items()}, rows
