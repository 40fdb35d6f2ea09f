"""D and W: is the label in the activations, beyond what its token tells, and beyond what null networks show?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axes import TRAINED, WITHIN, Axis, Bounds, above, below, unasked
from controls.decoding import FOLDS, Folded, deal, drawn_r, exchanged, folded, resampled, sums_by_unit
from controls.directions import without
from controls.subject import Subject, as_float, halves, units
from toolkit.label_permutations import permuted_rows

DRAWS = 200
"""Resamplings of documents behind each standard error."""
PAIRED = 5
"""Null networks of each kind that are resampled together with the trained one."""


@dataclass(frozen=True)
class Decoded:
    """What all features score, and their nulls."""

    r: Float[Tensor, " features"]
    """Held-out correlations of labels and read-outs."""
    error: Float[Tensor, " features"]
    """Their standard errors."""
    documents: Float[Tensor, "permutations features"]
    """r with documents' labels exchanged."""

    @property
    def p_found(self) -> Float[Tensor, " features"]:
        """Of labels that have nothing to do with the activations."""
        return ranks(self.r, self.documents)


def decode(subject: Subject, *, permutations: int, seed: int) -> tuple[Decoded, Folded]:
    """Score all labels, and as many exchanges of documents' labels."""
    Y, of = subject.table, units(subject.groups, seed=seed)
    data = folded(subject.activations, deal(halves(subject.groups, FOLDS, seed=seed)))
    sums = sums_by_unit(data.scores(as_float(Y)), as_float(Y), of)
    error = drawn_r(sums, resampled(sums.shape[1], DRAWS, seed=seed)).std(0)
    source = exchanged(subject.groups, permutations, seed=seed)
    return Decoded(data.r(as_float(Y)), error, _columns(data, Y, source)), data


def _columns(data: Folded, Y: np.ndarray, source: Int[np.ndarray, "rows n"]) -> Float[Tensor, "n features"]:
    """r of every column under the same permutations."""
    return torch.stack([data.r(as_float(column[source])) for column in Y.astype(np.float32).T], 1)


def ranks(observed: Float[Tensor, " features"], null: Float[Tensor, "draws features"]) -> Float[Tensor, " features"]:
    """(1 + number of nulls at least as high) / (1 + number of nulls)."""
    return (1 + (null >= observed - 1e-9).sum(0)) / (1 + len(null))


def beyond_token(
    subject: Subject, data: Folded, decoded: Decoded, *, permutations: int, level: float, seed: int
) -> list[Axis] | None:
    """D: how much of each r is there within token types; None without tokens, or where none occurs twice.

    Activations and labels less their mean over the rows of the same type; the null exchanges labels within types. A
    label that every type has throughout or never is memorised by definition.
    """
    if subject.tokens is None or len(np.unique(subject.tokens)) == len(subject.tokens):
        return None
    of = np.unique(subject.tokens, return_inverse=True)[1]
    Y = _centred(torch.from_numpy(subject.table).double(), of).numpy()
    inside = folded(_centred(subject.activations, of), data.dealt)
    r = inside.r(as_float(Y))
    sums = sums_by_unit(inside.scores(as_float(Y)), as_float(Y), units(subject.groups, seed=seed))
    error = drawn_r(sums, resampled(sums.shape[1], DRAWS, seed=seed)).std(0)
    source = permuted_rows(subject.table[:, 0], scheme="tokens", tokens=of, n=permutations, seed=seed)
    p = ranks(r, _columns(inside, Y, source))
    found = []
    for f in range(Y.shape[1]):
        if np.abs(Y[:, f]).max() < 1e-9:
            found.append(Axis(0.0, 0.0, 1.0, 0.0))
        elif decoded.r[f] <= 0:
            found.append(unasked(NOT_FOUND))
        else:
            share, error_of = float(r[f] / decoded.r[f]), float(error[f] / decoded.r[f])
            found.append(_tested(share, error_of, float(p[f]), WITHIN, level))
    return found


NOT_FOUND = "the label is not found at all"


def _centred(values: Tensor, of: Int[np.ndarray, " rows"]) -> Tensor:
    """Less the mean of the rows of the same type."""
    index, counts = torch.from_numpy(of), torch.from_numpy(np.bincount(of))
    means = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, index, values)
    return values - (means / counts[:, None].to(values.dtype))[index]


def _tested(effect: float, error: float, rank: float, between: Bounds, level: float) -> Axis:
    """The rank among nulls has a floor, so it is a gate at the level: beyond it the test against the bound decides."""
    p = above(effect, error, between.high)
    return Axis(effect, error, p if rank <= level else max(rank, p), below(effect, error, between, level=level))


@dataclass(frozen=True)
class NullScores:
    """What labels, less what other labels tell of them, score in the trained network and in null networks."""

    r: Float[Tensor, " features"]
    """Trained."""
    sums: Float[Tensor, "six units features"]
    """Of the trained network's scores, unit by unit."""
    nulls: dict[str, Float[Tensor, "seeds features"]]
    """r for each kind of null."""
    null_sums: dict[str, list[Float[Tensor, "six units features"]]]
    """Of the first few seeds of each kind."""


def null_scores(
    subject: Subject,
    data: Folded,
    others: list[list[int]],
    *,
    seeds: int,
    seed: int,
    told: Callable[[int], None] = lambda done: None,
) -> NullScores:
    """The same labels, folds and read-outs on the same inputs through networks drawn anew.

    Labels are taken less what the other labels, held fixed, tell of them: one that goes with a feature of the input
    would be found in any network by way of it.
    """
    of = units(subject.groups, seed=seed)
    Y = as_float(without(subject.table, others))
    r: dict[str, Tensor] = {}
    sums: dict[str, list[Tensor]] = {}
    for kind, draw in subject.nulls.items():
        found, sums[kind] = list[Tensor](), []
        for number in range(seeds):
            null = folded(draw((seed * 100_003 + number) % 2**31), data.dealt)
            found.append(null.r(Y))
            if number < PAIRED:
                sums[kind].append(sums_by_unit(null.scores(Y), Y, of))
            told(1)
        r[kind] = torch.stack(found)
    return NullScores(data.r(Y), sums_by_unit(data.scores(Y), Y, of), r, sums)


def beyond_nulls(scores: NullScores, *, level: float, seed: int) -> list[Axis]:
    """W: the share of each r that null networks of every kind lack; the kind that shows most of it decides.

    Present: present against each kind. Absent: absent against some kind, the p-value times the number of kinds. Without
    weights behind the activations there is nothing to draw anew, and any network has them: absent.
    """
    if not scores.nulls:
        return [Axis(0.0, 0.0, 1.0, 0.0) for _ in scores.r]
    by_kind = [_against(scores, kind, level, seed) for kind in scores.nulls]
    found = []
    for kinds in zip(*by_kind, strict=True):
        least = min(kinds, key=lambda axis: axis.effect if not axis.why else -np.inf)
        p_absent = min(1.0, len(kinds) * min(axis.p_absent for axis in kinds))
        found.append(Axis(least.effect, least.error, max(axis.p for axis in kinds), p_absent, least.why))
    return found


def _against(scores: NullScores, kind: str, level: float, seed: int) -> list[Axis]:
    """Documents are drawn with replacement in the trained and in null networks at once: both have the same labels."""
    weights = resampled(scores.sums.shape[1], DRAWS, seed=seed)
    r, null = scores.r, scores.nulls[kind].double()
    mean, between = null.mean(0), null.std(0) / len(null) ** 0.5
    drawn = drawn_r(scores.sums, weights) - r
    drawn_null = torch.stack([drawn_r(sums, weights) for sums in scores.null_sums[kind]]).mean(0)
    rank = ranks(r, null)
    found = []
    for f in range(len(r)):
        if r[f] <= 0:
            found.append(unasked(NOT_FOUND))
            continue
        # share = 1 - mean / r, to first order in both
        change = drawn[:, f] * mean[f] / r[f] ** 2 - (drawn_null[:, f] - drawn_null[:, f].mean()) / r[f]
        error = float((change.var() + (between[f] / r[f]) ** 2).sqrt())
        found.append(_tested(float(1 - mean[f] / r[f]), error, float(rank[f]), TRAINED, level))
    return found
