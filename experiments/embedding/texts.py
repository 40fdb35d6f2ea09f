"""Text to train on, as tokens of a model: whole documents of a corpus, or a planted language where none is given."""

from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.corpora import documents
from toolkit.errors import require
from toolkit.pretrain_data import TokenData, joined
from toolkit.pretrain_folder import load_start

PLANTED_VOCABULARY = 257
"""Tokens of the planted language; 0 ends a text."""
_CLASSES = 8


class Given(Protocol):
    """The settings that decide which text."""

    @property
    def model(self) -> str:
        """tiny-gpt2 or a folder, whose tokenizer is taken; empty: the planted language."""

    @property
    def corpus(self) -> str:
        """As toolkit.corpora.documents takes it."""


@dataclass(frozen=True)
class Text:
    """Two streams of tokens that share no document."""

    train: Int[Tensor, " tokens"]
    """To train on."""
    held_out: Int[Tensor, " others"]
    """To measure on."""
    tokenizer: Any
    """Whose tokens these are."""
    vocabulary: int
    """How many different ones there may be."""

    def data(self, train: Tensor | None = None, validation: Tensor | None = None) -> TokenData:
        """As toolkit.pretraining takes it, with other streams where they are given."""
        streams = (self.train if train is None else train, self.held_out if validation is None else validation)
        return TokenData(*streams, self.tokenizer, (), 2)


def read(settings: Given, train: int, held_out: int, seed: int) -> Text:
    """So many tokens of text for each stream, of documents drawn at random.

    Raises:
        UserError: the corpus or the tokenizer cannot be read, or there is too little text.
    """
    if not settings.model:
        tokens = planted_language(train + held_out, seed)
        return Text(tokens[:train], tokens[train:], SimpleNamespace(eos_token_id=0), PLANTED_VOCABULARY)
    start, tokenizer = loaded(settings.model)
    streams = _parts(settings.corpus, tokenizer, (train, held_out), seed)
    return Text(streams[0], streams[1], tokenizer, start.config.vocab_size)


@lru_cache(maxsize=1)
def loaded(model: str) -> tuple[Any, Any]:
    """A model and its tokenizer, read once in a process; not to be changed."""
    return load_start(model)


def _parts(source: str, tokenizer: Any, lengths: tuple[int, ...], seed: int) -> list[Tensor]:
    """Streams of so many tokens from documents in random order; the last document of each stream is cut."""
    found = documents(source)
    order = iter(np.random.default_rng([seed, 31]).permutation(len(found)).tolist())
    parts, have = [], 0
    for length in lengths:
        taken: list[Tensor] = []
        while sum(map(len, taken)) < length:
            at = next(order, None)
            require(
                at is not None,
                f"{source} has too little text: {sum(lengths):,} tokens are needed in streams that share no document, "
                f"and its {len(found):,} documents gave {have:,}",
            )
            taken.append(joined([found[at or 0].text], tokenizer)[:-1])
            have += len(taken[-1])
        parts.append(torch.cat(taken)[:length])
    return parts


def planted_language(tokens: int, seed: int) -> Int[Tensor, " tokens"]:
    """A Markov chain: the next token depends on the class of the last; in each of 8 classes Zipf's law holds.

    So all that a token's row needs to hold is its class, and how frequent it is there. The language is always the same,
    the seed decides what is said in it.
    """
    draw = np.random.default_rng([seed, 32])
    steps = class_transitions().cumsum(1)
    uniform, classes = draw.random(tokens), np.zeros(tokens, np.int64)
    for at in range(1, tokens):
        classes[at] = min(_CLASSES - 1, int(np.searchsorted(steps[classes[at - 1]], uniform[at])))
    weights = _zipf()
    places = draw.choice(len(weights), size=tokens, p=weights)
    return torch.from_numpy(1 + classes + _CLASSES * places)


def class_transitions() -> Float[np.ndarray, "classes classes"]:
    """Probability of each class after each class, in the planted language."""
    return np.random.default_rng(33).dirichlet(np.full(_CLASSES, 0.2), _CLASSES)


def _zipf() -> Float[np.ndarray, " places"]:
    weights = 1 / np.arange(1.0, (PLANTED_VOCABULARY - 1) // _CLASSES + 1)
    return weights / weights.sum()
