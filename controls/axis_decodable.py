"""D and W: is the label in the activations, beyond what its token tells, and beyond what null networks show?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axes import TRAINED, WITHIN, Axis, Bounds, above, below, unasked
from controls.decoding import (
    FOLDS,
    INDICES,
    Deal,
    Folded,
    deal,
    drawn_r,
    exchanges,
    folded,
    resampled,
    sums_by_unit,
)
from controls.directions import without
from controls.outcomes import ROUNDING, Outcome
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


def decode(
    subject: Subject,
    *,
    permutations: int,
    seed: int,
    data: Folded | None = None,
    features: list[int] | None = None,
) -> tuple[Decoded, Folded]:
    """Score labels (all, or some), and as many exchanges of documents' labels; activations may be folded already."""
    data = data or folded_subject(subject, seed=seed)
    Y = subject.table if features is None else subject.table[:, features]
    of = units(subject.groups, seed=seed)
    sums = sums_by_unit(data.scores(as_float(Y)), as_float(Y), of)
    error = drawn_r(sums, resampled(sums.shape[1], DRAWS, seed=seed)).std(0)
    null = torch.cat([_columns(data, Y, source) for source in exchanges(subject.groups, permutations, seed=seed)])
    return Decoded(data.r(as_float(Y)), error, null), data


def folded_subject(subject: Subject, *, seed: int) -> Folded:
    """A subject's activations, ready for any labels."""
    return folded(subject.activations, deal(halves(subject.groups, FOLDS, seed=seed)))


def _columns(data: Folded, Y: np.ndarray, source: Int[np.ndarray, "rows n"]) -> Float[Tensor, "n features"]:
    """r of every column under the same permutations."""
    return torch.stack([data.r(as_float(column[source])) for column in Y.astype(np.float32).T], 1)


def ranks(observed: Float[Tensor, " features"], null: Float[Tensor, "draws features"]) -> Float[Tensor, " features"]:
    """(1 + number of nulls at least as high) / (1 + number of nulls)."""
    return (1 + (null >= observed - ROUNDING).sum(0)) / (1 + len(null))


def beyond_token(
    subject: Subject,
    data: Folded,
    decoded: Decoded,
    *,
    permutations: int,
    level: float,
    seed: int,
    features: list[int] | None = None,
) -> list[Axis] | None:
    """D: how much of each r is there within token types; None without tokens, or where none occurs twice.

    Activations and labels less their mean over the rows of the same type; the null exchanges labels within types. A
    label that every type has throughout or never is memorised by definition.
    """
    if subject.tokens is None or len(np.unique(subject.tokens)) == len(subject.tokens):
        return None
    names = list(subject.names) if features is None else [subject.names[f] for f in features]
    labels = np.stack([subject.labels[name] for name in names], 1)
    of = np.unique(subject.tokens, return_inverse=True)[1]
    Y = centred(torch.from_numpy(labels).double(), of).numpy()
    inside = folded(centred(subject.activations, of), data.dealt)
    r = inside.r(as_float(Y))
    sums = sums_by_unit(inside.scores(as_float(Y)), as_float(Y), units(subject.groups, seed=seed))
    error = drawn_r(sums, resampled(sums.shape[1], DRAWS, seed=seed)).std(0)
    null = torch.cat([_columns(inside, Y, source) for source in _within(labels[:, 0], of, permutations, seed)])
    found = []
    for f, name in enumerate(names):
        if np.abs(Y[:, f]).max() < 1e-9:
            found.append(Axis(0.0, 0.0, 1.0, 0.0, between=WITHIN))
        elif decoded.r[f] <= 0:
            found.append(unasked(NOT_FOUND))
        else:
            share, error_of = float(r[f] / decoded.r[f]), float(error[f] / decoded.r[f])
            outcome = Outcome("labels.within-token", name, WITHIN_TYPES, float(r[f]), null[:, f].numpy())
            found.append(_tested(share, error_of, outcome, WITHIN, level))
    return found


def _within(
    y: Int[np.ndarray, " rows"], of: Int[np.ndarray, " rows"], n: int, seed: int
) -> Iterator[Int[np.ndarray, "rows some"]]:
    """Permutations within types, some at a time."""
    at_once = max(1, INDICES // len(of))
    for number, begin in enumerate(range(0, n, at_once)):
        yield permuted_rows(y, scheme="tokens", tokens=of, n=min(at_once, n - begin), seed=seed + 7_919 * number)


WITHIN_TYPES = "held-out r within token types"
"""What D's null is of."""
NOT_FOUND = "the label is not found at all"
NOT_LEFT = "nothing is found of what other labels leave of it, at the rows where null networks are read"


def centred(values: Tensor, of: Int[np.ndarray, " rows"]) -> Tensor:
    """Less the mean of the rows of the same type."""
    index, counts = torch.from_numpy(of), torch.from_numpy(np.bincount(of))
    means = torch.zeros(len(counts), values.shape[1], dtype=values.dtype).index_add_(0, index, values)
    return values - (means / counts[:, None].to(values.dtype))[index]


def _tested(effect: float, error: float, outcome: Outcome, between: Bounds, level: float) -> Axis:
    """The rank among nulls has a floor, so it is a gate at the level: beyond it the test against the bound decides."""
    p, rank = above(effect, error, between.high), outcome.p
    absent = below(effect, error, between, level=level)
    return Axis(effect, error, p if rank <= level else max(rank, p), absent, "", between, (outcome,))


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
    others: list[list[int]],
    *,
    seeds: int,
    seed: int,
    told: Callable[[int], None] = lambda done: None,
) -> NullScores:
    """The same labels, folds and read-outs on the same inputs through networks drawn anew."""
    r: dict[str, list[Tensor]] = {}
    sums: dict[str, list[Tensor]] = {}
    asked = Asked.of_subject(subject, others, seed=seed)
    for kind in subject.nulls:
        scores = list[Scored]()
        for number in range(seeds):
            scores.append(asked.null(subject, kind, number, seed=seed))
            told(1)
        r[kind], sums[kind] = [one.r for one in scores], [one.sums for one in scores[:PAIRED]]
    trained = asked.scored(subject.activations[asked.rows])
    return NullScores(trained.r, trained.sums, {kind: torch.stack(found) for kind, found in r.items()}, sums)


@dataclass(frozen=True)
class Scored:
    """One network's scores."""

    r: Float[Tensor, " features"]
    """Held-out correlations."""
    sums: Float[Tensor, "six units features"]
    """What they add up from."""


@dataclass(frozen=True)
class Asked:
    """What every network is asked: labels less what the other labels, held fixed, tell of them.

    One that goes with a feature of the input would be found in any network by way of it.
    """

    rows: Int[Tensor, " some"]
    """Where null networks are read."""
    Y: Float[Tensor, "some features"]
    """The labels there."""
    dealt: Deal
    """The folds."""
    of: Int[np.ndarray, " some"]
    """The units of resampling."""

    @classmethod
    def of_subject(cls, subject: Subject, others: list[list[int]], *, seed: int) -> "Asked":
        """From the rows of a subject that null networks are read at."""
        rows = np.arange(len(subject.activations)) if subject.null_rows is None else subject.null_rows
        groups = np.unique(subject.groups[rows], return_inverse=True)[1]
        dealt = deal(halves(groups, FOLDS, seed=seed))
        Y = as_float(without(subject.table[rows], others))
        return cls(torch.from_numpy(rows), Y, dealt, units(groups, seed=seed))

    def scored(self, activations: Float[Tensor, "some d"]) -> Scored:
        """Of a network's activations at these rows."""
        data = folded(activations, self.dealt)
        return Scored(data.r(self.Y), sums_by_unit(data.scores(self.Y), self.Y, self.of))

    def null(self, subject: Subject, kind: str, number: int, *, seed: int) -> Scored:
        """Of one null network."""
        return self.scored(subject.nulls[kind]((seed * 100_003 + number) % 2**31))


def beyond_nulls(scores: NullScores, names: Sequence[str], *, level: float, seed: int) -> list[Axis]:
    """W: the share of each r that null networks of every kind lack; the kind that shows most of it decides.

    Present: present against each kind. Absent: absent against some kind, the p-value times the number of kinds. Without
    weights behind the activations there is nothing to draw anew, and any network has them: absent.
    """
    if not scores.nulls:
        return [Axis(0.0, 0.0, 1.0, 0.0, between=TRAINED) for _ in scores.r]
    by_kind = [_against(scores, names, kind, level, seed) for kind in scores.nulls]
    found = []
    for kinds in zip(*by_kind, strict=True):
        least = min(kinds, key=lambda axis: axis.effect if not axis.why else -np.inf)
        p_absent = min(1.0, len(kinds) * min(axis.p_absent for axis in kinds))
        outcomes = tuple(outcome for axis in kinds for outcome in axis.outcomes)
        present = max(axis.p for axis in kinds)
        found.append(Axis(least.effect, least.error, present, p_absent, least.why, TRAINED, outcomes))
    return found


LESS_OTHERS = "held-out r, labels less what others tell of them"
"""What W's nulls are of."""


def _against(scores: NullScores, names: Sequence[str], kind: str, level: float, seed: int) -> list[Axis]:
    """Documents are drawn with replacement in the trained and in null networks at once: both have the same labels."""
    weights = resampled(scores.sums.shape[1], DRAWS, seed=seed)
    r, null = scores.r, scores.nulls[kind].double()
    mean, between = null.mean(0), null.std(0) / len(null) ** 0.5
    drawn = drawn_r(scores.sums, weights) - r
    drawn_null = torch.stack([drawn_r(sums, weights) for sums in scores.null_sums[kind]]).mean(0)
    found = []
    for f, name in enumerate(names):
        if r[f] <= 0:
            found.append(unasked(NOT_LEFT))
            continue
        # share = 1 - mean / r, to first order in both
        change = drawn[:, f] * mean[f] / r[f] ** 2 - (drawn_null[:, f] - drawn_null[:, f].mean()) / r[f]
        error = float((change.var() + (between[f] / r[f]) ** 2).sqrt())
        outcome = Outcome(f"weights.{kind}", name, LESS_OTHERS, float(r[f]), null[:, f].numpy())
        found.append(_tested(float(1 - mean[f] / r[f]), error, outcome, TRAINED, level))
    return found
