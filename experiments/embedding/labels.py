"""Labels that a token's text and frequency give, with no parser: class, capitalisation, space, length, frequency."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from experiments.embedding.data import Vocabulary
from toolkit.errors import unknown

LENGTHS = ("0-1", "2-3", "4-5", "6-8", "9+")
BANDS = ("most frequent fifth", "second", "third", "fourth", "rarest fifth")


@dataclass(frozen=True)
class Labels:
    """One label for each token."""

    names: tuple[str, ...]
    """What the numbers mean."""
    codes: Int[Tensor, " tokens"]
    """Index into `names`."""


def labels(kind: str, tokens: Vocabulary) -> Labels:
    """Label every token.

    Args:
        kind: one of KINDS. "frequency" goes by the weights; without them by the token's number, since tokenizers
            number their merges from the most frequent on.

    Raises:
        UserError: no such kind.
    """
    if kind == "frequency":
        order = torch.arange(len(tokens.rows)) if tokens.weights is None else tokens.weights.argsort(descending=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        return Labels(BANDS, rank * len(BANDS) // len(order))
    if kind not in _BY_TEXT:
        raise unknown("kind of label", kind, KINDS)
    name, names = _BY_TEXT[kind]
    return Labels(names, torch.tensor([names.index(name(text)) for text in tokens.texts]))


def names_of(kind: str) -> tuple[str, ...]:
    """What the numbers of a kind's labels mean."""
    return BANDS if kind == "frequency" else _BY_TEXT[kind][1]


def _class(text: str) -> str:
    bare = text.strip()
    if not bare:
        return "blank"
    if not bare.isprintable() or "�" in bare:
        return "part of a character"
    if bare.isalpha():
        return "letters"
    if bare.isdigit():
        return "digits"
    return "mixed" if any(c.isalnum() for c in bare) else "punctuation"


def _case(text: str) -> str:
    cased = [c for c in text if c.isupper() or c.islower()]
    if not cased:
        return "no case"
    if all(c.islower() for c in cased):
        return "lower"
    if all(c.isupper() for c in cased):
        return "UPPER"
    return "Capitalised" if cased[0].isupper() and all(c.islower() for c in cased[1:]) else "mIxed"


def _space(text: str) -> str:
    return "space before" if text.startswith(" ") else "no space"


def _length(text: str) -> str:
    return LENGTHS[sum(len(text.strip()) > limit for limit in (1, 3, 5, 8))]


_BY_TEXT: dict[str, tuple[Callable[[str], str], tuple[str, ...]]] = {
    "class": (_class, ("letters", "digits", "punctuation", "mixed", "part of a character", "blank")),
    "capitalisation": (_case, ("lower", "Capitalised", "UPPER", "mIxed", "no case")),
    "leading space": (_space, ("space before", "no space")),
    "length": (_length, LENGTHS),
}
KINDS = (*_BY_TEXT, "frequency")
