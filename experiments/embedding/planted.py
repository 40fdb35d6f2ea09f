"""A planted embedding with texts for its tokens, in place of a model where none is given."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolkit.planted_embedding import PlantedEmbedding, Planting, plant

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
PLANTING = Planting(tokens=2560, clusters=6, clustered=240, family=6, circles=(7, 12, 10), pairs=(160, 160))
"""Six groups of tokens that look alike, days, months and digits in circles, two relations between pairs."""


@dataclass(frozen=True)
class PlantedTokens:
    """Rows and texts, with the truth about them."""

    rows: Tensor
    """(tokens, d) float32."""
    texts: tuple[str, ...]
    """As a tokenizer would give them."""
    weights: Tensor
    """Zipf's law; groups that look alike are alike in frequency too."""
    truth: PlantedEmbedding
    """What was planted."""


def planted_tokens(seed: int) -> PlantedTokens:
    """A planted embedding whose days, months, digits, word pairs and groups are called so."""
    truth = plant(PLANTING, seed=seed)
    texts = [(" " if at % 3 else "") + _word(at) for at in range(PLANTING.tokens)]
    for write, members in zip(_GROUPS, truth.clusters, strict=True):
        for at in members.tolist():
            texts[at] = write(at)
    for names, members in zip((DAYS, MONTHS, range(10)), truth.circles, strict=True):
        for name, at in zip(names, members.tolist(), strict=True):
            texts[at] = f" {name}"
    for relation, form in zip(truth.pairs, (_word, _capitalised), strict=True):
        for first, second in relation.tolist():
            texts[first], texts[second] = f" {_word(first)}", form(first)
    return PlantedTokens(truth.rows, tuple(texts), _weights(truth), truth)


def _weights(truth: PlantedEmbedding) -> Tensor:
    rank = torch.randperm(len(truth.rows), generator=torch.Generator().manual_seed(0)) + len(truth.rows)
    for at, members in enumerate(truth.clusters):
        rank[members] = at * len(members) + torch.arange(len(members))
    zipf = 1 / (1.0 + rank.argsort().argsort())
    return zipf / zipf.sum()


def _word(at: int) -> str:
    """Five letters, other ones for each token: 7,919 is prime to 26."""
    code = (at * 7919 + 12345) % 26**5
    return "".join(chr(97 + code // 26**place % 26) for place in range(5))


def _capitalised(at: int) -> str:
    return f" {_word(at).capitalize()}"


_GROUPS: tuple[Callable[[int], str], ...] = (
    lambda at: f"{1000 + at}",
    lambda at: "".join("!?.,;:-"[at // 7**place % 7] for place in range(5)),
    lambda at: _word(at).upper(),
    lambda at: f" {_word(at).upper()}",
    lambda at: f" {_word(at)}{_word(at)[::-1]}",
    lambda at: f"{_word(at)}{_word(at)[::-1]}",
)
"""How the tokens of each group look: digits, punctuation, capitals with and without a space, long words likewise."""
