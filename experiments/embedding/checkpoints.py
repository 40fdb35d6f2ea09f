"""A model's embedding over its pretraining: a folder's checkpoints, those of known runs on the hub, planted ones."""

import re
from dataclasses import replace
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor

from controls import weights as nulls
from experiments.embedding.data import Vocabulary, vocabulary
from toolkit.language import EMBEDDINGS, load_embedding
from toolkit.model_files import model_folder
from toolkit.pretrain_folder import checkpoint_rows

PLANTED = (0, 35, 70, 100)
"""The planted checkpoints: how much of the rows' variance is sparse, in percent."""
_RUNS = {
    r"EleutherAI/pythia-.*": ("step{}", (0, 1, 8, 64, 512, 1000, 2000, 4000, 8000, 16000, 32000, 64000, 143000)),
    r"stanford-crfm/.*-gpt2-.*": (
        "checkpoint-{}", (0, 10, 50, 100, 400, 1000, 2000, 4000, 10000, 40000, 100000, 400000)
    ),
}  # fmt: skip
"""Runs on the hub whose checkpoints are revisions: the form of those names, and the steps taken of the many."""


def steps(model: str) -> tuple[int, ...]:
    """The steps whose embeddings can be had, in rising order; none for a model without checkpoints."""
    if not model:
        return PLANTED
    folder = model_folder(model)
    if folder is not None:
        return tuple(_kept(str(folder))) if (folder / EMBEDDINGS).is_file() else ()
    return next((each for pattern, (_, each) in _RUNS.items() if re.fullmatch(pattern, model)), ())


def lacking(model: str) -> str:
    """What a model without checkpoints is to have instead, in one line; empty for one that has some."""
    if steps(model):
        return ""
    return (
        f"{model} has no checkpoints: expected a folder that toolkit.pretrain wrote, or a run whose checkpoints are on "
        "the hub, such as EleutherAI/pythia-160m or stanford-crfm/alias-gpt2-small-x21"
    )


def vocabulary_at(settings: Any, step: int, seed: int) -> Vocabulary:
    """The vocabulary with its rows as they were at a step, or the null that the settings name of those.

    Raises:
        UserError: the model or its checkpoint cannot be read.
    """
    tokens = vocabulary(replace(settings, null=""), seed)
    rows = _read(settings.model, step)[tokens.ids] if settings.model else _planted(tokens.rows, step, seed)
    return replace(tokens, rows=getattr(nulls, settings.null)(rows, seed=seed) if settings.null else rows)


def _planted(rows: Float[Tensor, "tokens d"], step: int, seed: int) -> Float[Tensor, "tokens d"]:
    """A Gaussian cloud on its way to the planted rows; mean and covariance stay what they are."""
    share, mean = step / 100, rows.mean(0)
    noise = nulls.covariance_matched(rows, seed=seed + 3000) - mean
    return mean + share**0.5 * (rows - mean) + (1 - share) ** 0.5 * noise


def _read(model: str, step: int) -> Float[Tensor, "tokens d"]:
    folder = model_folder(model)
    if folder is not None:
        return _kept(str(folder))[step]
    form = next(form for pattern, (form, _) in _RUNS.items() if re.fullmatch(pattern, model))
    return _fetched(model, form.format(step))


@lru_cache(maxsize=2)
def _kept(folder: str) -> dict[int, Float[Tensor, "tokens d"]]:
    return checkpoint_rows(folder)


@lru_cache(maxsize=1)
def _fetched(model: str, revision: str) -> Float[Tensor, "tokens d"]:
    return load_embedding(model, revision).rows
