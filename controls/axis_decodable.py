"""D and W: is the label in the activations, beyond what its token tells, and beyond what null networks show?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.axes import SHARE, Axis, above, below, unasked
from controls.decoding import FOLDS, Folded, deal, folded, spread
from controls.subject import Subject, as_float, halves
from toolkit.label_permutations import permuted_rows

DRAWS = 200
"""Resamplings of documents behind each standard error."""


@dataclass(frozen=True)
class Decoded:
    """What all features score, and their nulls."""

    r: Float[Tensor, " features"]
    """Held-out correlations."""
    error: Float[Tensor, " features"]
    """Their standard errors."""
    documents: Float[Tensor, "permutations features"]
    """r with documents' labels exchanged."""
    tokens: Float[Tensor, "permutations features"] | None
    """r with labels exchanged within each token type."""

    @property
    def p_found(self) -> Float[Tensor, " features"]:
        """Of labels that have nothing to do with the activations."""
        return ranks(self.r, self.documents)


def decode(subject: Subject, *, permutations: int, seed: int) -> tuple[Decoded, Folded]:
    """Score all labels, and as many permutations of them in each scheme."""
    Y = subject.table
    data = folded(subject.activations, deal(halves(subject.groups, FOLDS, seed=seed)))
    r = data.r(as_float(Y))
    error = spread(data.scores(as_float(Y)), as_float(Y), subject.groups, draws=DRAWS, seed=seed)
    by_document = _permuted(data, Y, "documents", subject, permutations, seed)
    by_token = None if subject.tokens is None else _permuted(data, Y, "tokens", subject, permutations, seed)
    return Decoded(r, error, by_document, by_token), data


def _permuted(
    data: Folded, Y: np.ndarray, scheme: str, subject: Subject, n: int, seed: int
) -> Float[Tensor, "permutations features"]:
    """r of every column under the same permutations; labels of whole documents are exchanged as such."""
    found = torch.empty(n, Y.shape[1], dtype=torch.float64)
    whole = np.array([_of_documents(y, subject.groups) for y in Y.T]) & (scheme == "documents")
    for columns in (np.flatnonzero(whole), np.flatnonzero(~whole)):
        if len(columns) == 0:
            continue
        some = Y[:, columns]
        source = permuted_rows(some[:, 0], scheme=scheme, groups=subject.groups, tokens=subject.tokens, n=n, seed=seed)
        for at, column in zip(columns, some.T, strict=True):
            found[:, at] = data.r(as_float(column[source]))
    return found


def _of_documents(y: np.ndarray, groups: np.ndarray) -> bool:
    held = np.bincount(groups, y) / np.bincount(groups)
    return bool(((held == 0) | (held == 1)).all())


def ranks(observed: Float[Tensor, " features"], null: Float[Tensor, "draws features"]) -> Float[Tensor, " features"]:
    """(1 + number of nulls at least as high) / (1 + number of nulls)."""
    return (1 + (null >= observed - 1e-9).sum(0)) / (1 + len(null))


def beyond_token(decoded: Decoded, *, level: float) -> list[Axis]:
    """D: the share of each r that goes when labels are exchanged within token types; empty without tokens."""
    if decoded.tokens is None:
        return []
    p = ranks(decoded.r, decoded.tokens)
    return [
        _share(float(r), float(e), null.double(), float(e), float(rank), level)
        for r, e, null, rank in zip(decoded.r, decoded.error, decoded.tokens.T, p, strict=True)
    ]


def _share(r: float, error: float, null: Tensor, null_error: float, rank: float, level: float) -> Axis:
    """1 - null r / r: what is left to the feature when the nulls' part is taken out."""
    if r <= 0:
        return unasked("the label is not found at all")
    mean, seeds = float(null.mean()), float(null.std()) / len(null) ** 0.5
    effect = 1 - mean / r
    # the nulls' r is uncertain as far as it is not 0: both errors shrink with what they are errors of
    own = (mean / r * error) ** 2 + (mean / r * null_error) ** 2 + seeds**2
    of_noise = (error * seeds / r) ** 2
    se = (own + of_noise) ** 0.5 / r
    return Axis(effect, se, max(rank, above(effect, se, SHARE.high)), below(effect, se, SHARE, level=level))


@dataclass(frozen=True)
class NullScores:
    """What labels score in null networks."""

    r: dict[str, Float[Tensor, "seeds features"]]
    """For each kind of null."""
    error: dict[str, Float[Tensor, " features"]]
    """Standard error of each r by documents, in the first seed of the kind."""


def null_scores(
    subject: Subject, data: Folded, *, seeds: int, seed: int, told: Callable[[int], None] = lambda done: None
) -> NullScores:
    """The same labels, folds and read-outs on the same inputs through networks drawn anew."""
    Y = as_float(subject.table)
    r: dict[str, Tensor] = {}
    error: dict[str, Tensor] = {}
    for kind, draw in subject.nulls.items():
        found = []
        for number in range(seeds):
            null = folded(draw(seed * 100_003 + number), data.dealt)
            found.append(null.r(Y))
            if number == 0:
                error[kind] = spread(null.scores(Y), Y, subject.groups, draws=DRAWS, seed=seed)
            told(1)
        r[kind] = torch.stack(found)
    return NullScores(r, error)


def beyond_nulls(decoded: Decoded, nulls: NullScores, *, level: float) -> list[Axis]:
    """W: the share of each r that null networks of every kind lack; the kind that shows most of it decides.

    Present: present against each kind. Absent: absent against some kind, the p-value times the number of kinds.
    """
    if not nulls.r:
        return [unasked("no weights stand behind the activations: nothing to draw anew") for _ in decoded.r]
    found = []
    for f in range(len(decoded.r)):
        kinds = [
            _share(
                float(decoded.r[f]),
                float(decoded.error[f]),
                r[:, f].double(),
                float(nulls.error[kind][f]),
                float(ranks(decoded.r[f : f + 1], r[:, f : f + 1])[0]),
                level,
            )
            for kind, r in nulls.r.items()
        ]
        least = min(kinds, key=lambda axis: axis.effect)
        p_absent = min(1.0, len(kinds) * min(axis.p_absent for axis in kinds))
        found.append(Axis(least.effect, least.error, max(axis.p for axis in kinds), p_absent, least.why))
    return found
