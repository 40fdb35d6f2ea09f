"""What experiments on an embedding work on: rows, the texts of its tokens, frequencies, a held-out part."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls import weights as nulls
from toolkit import corpora
from toolkit.errors import require, unknown
from toolkit.language import Embedding, load_embedding

NULLS = ("covariance_matched", "columns_shuffled", "entries_shuffled", "gaussian", "step_zero", "spectrum_matched")
HELD_OUT = 0.2
_PADDING = 127


class Given(Protocol):
    """The settings that decide what is worked on."""

    @property
    def model(self) -> str:
        """Hub name or folder; empty: a planted embedding."""

    @property
    def null(self) -> str:
        """One of NULLS, taken in place of the embedding itself; empty: the embedding."""


@dataclass(frozen=True)
class Vocabulary:
    """An embedding and what is known of its tokens."""

    rows: Float[Tensor, "tokens d"]
    """One float32 row a token."""
    texts: tuple[str, ...]
    """Each token's text, with its leading space; empty where they were not asked for."""
    weights: Float[Tensor, " tokens"] | None
    """Probability of each token, or None where no text was given to count in; a planted embedding has its own."""
    train: Int[Tensor, " kept"]
    """Tokens to fit on, in rising order."""
    held_out: Int[Tensor, " others"]
    """The other fifth."""
    left_out: int
    """Rows of the embedding that no token of the tokenizer stands for, such as padding; they are not in `rows`."""
    ids: Int[Tensor, " tokens"]
    """Where each token stands in the embedding."""


def vocabulary(settings: Given, seed: int, *, texts: bool = True) -> Vocabulary:
    """The embedding that settings name, loaded once in a process, or a planted one where they name none.

    Where `settings` has `frequencies`, a text file, its tokens are counted for the weights. Without `texts` a model
    needs no tokenizer, unless frequencies are asked for.

    Raises:
        UserError: the model or the text cannot be read, its tokenizer does not fit the embedding, or there is none.
    """
    if settings.null and settings.null not in NULLS:
        raise unknown("null", settings.null, NULLS)
    return _vocabulary(settings.model, getattr(settings, "frequencies", ""), settings.null, seed, texts)


@lru_cache(maxsize=2)
def _vocabulary(model: str, frequencies: str, null: str, seed: int, texts: bool) -> Vocabulary:
    if null:
        whole = _vocabulary(model, frequencies, "", seed, texts)
        return replace(whole, rows=getattr(nulls, null)(whole.rows, seed=seed))
    if not model:
        from experiments.embedding.planted import planted_tokens

        planted = planted_tokens(seed)
        count = len(planted.rows)
        return Vocabulary(
            planted.rows, planted.texts, planted.weights, *_split(count, seed), left_out=0, ids=torch.arange(count)
        )
    embedding = _embedding(model)
    rows, weights = embedding.rows, None
    known = _known(embedding) if texts or frequencies else torch.arange(len(rows))
    if frequencies:
        counted = corpora.unigram(corpora.read_text(frequencies), embedding.tokenizer, len(rows))[known]
        weights = counted / counted.sum()
    shown = _texts(embedding.tokenizer, known.tolist()) if texts else ()
    parts = _split(len(known), seed)
    return Vocabulary(rows[known], shown, weights, *parts, left_out=len(rows) - len(known), ids=known)


@lru_cache(maxsize=1)
def _embedding(model: str) -> Embedding:
    return load_embedding(model)


def _split(tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    order = torch.from_numpy(np.random.default_rng([seed, 4]).permutation(tokens))
    held_out = round(HELD_OUT * tokens)
    return order[held_out:].sort().values, order[:held_out].sort().values


def _known(embedding: Embedding) -> Tensor:
    """The rows that tokens stand for: all but a little padding, or the tokenizer is another model's."""
    tokenizer, rows = embedding.tokenizer, len(embedding.rows)
    require(tokenizer is not None, f"{embedding.name} has no tokenizer, and the texts of its tokens are needed")
    ids = sorted(set(tokenizer.get_vocab().values()))
    told = f"the tokenizer of {embedding.name} does not fit its embedding of {rows:,} rows"
    require(bool(ids) and ids[-1] < rows, f"{told}: it has tokens up to number {ids[-1] if ids else 'none':,}")
    spare = max(_PADDING, rows // 50)  # phi-2 pads the most of those we know: 905 of 51,200 rows
    require(rows - len(ids) <= spare, f"{told}: it knows {len(ids):,} of them; at most {spare:,} may be padding")
    return torch.tensor(ids)


def _texts(tokenizer: Any, ids: list[int]) -> tuple[str, ...]:
    decoded = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    # SentencePiece drops the space that begins a text, and so that of a token decoded alone.
    return tuple(
        " " + text if piece.startswith("▁") and not text.startswith(" ") else text
        for text, piece in zip(decoded, pieces, strict=True)
    )
