"""Labels changed, activations kept: random labels by word type, and labels dealt anew in four ways.

The statistic is r, the held-out correlation of a label and its linear read-out (`controls.decoding`).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axis_decodable import centred as centred
from controls.case import Case
from controls.decoding import INDICES, Deal, Folded, exchanged, folded
from controls.outcomes import Outcome
from controls.registry import control
from controls.subject import as_float
from toolkit.control_tasks import control_labels
from toolkit.errors import UserError, require
from toolkit.label_permutations import permuted_rows
from toolkit.type_ceilings import type_ceilings

AT_ONCE = 256
"""Columns of labels drawn and scored together, fewer where rows are so many that these would be over INDICES."""
TRIES = 50
"""Times that control tasks are drawn before it is said that the label is too rare for them."""
SETTLED = 1e-9
"""Less its type's mean, a label as small is one that the type settles."""
TOLD = 3
"""Labels left out that a note names."""
R = "held-out r of label and linear read-out"
"""What all of them measure."""

Dealt = Callable[[Float[np.ndarray, " rows"]], Float[np.ndarray, "rows n"]]
"""A column of labels -> the same dealt anew n times."""
Shuffle = Callable[[int, int], Dealt]
"""(n, seed) -> what n draws make of any column."""
Drawn = TypeVar("Drawn")


@control(
    "labels.type-task",
    null="the label is one that each word type was given at random (Hewitt and Liang 2019)",
    mind="an orderly function of the type (a suffix, a part of speech) is not in the null and may survive it; r stands "
    "in the place of Hewitt and Liang's selectivity, which is an accuracy less another: labels.probe-search has that",
)
def type_task(case: Case) -> list[Outcome]:
    """r of each label against r of control tasks: a random label for each type, from the label's own shares."""
    types, fold_of, found = types_of(case), folds_of(case.data.dealt), []

    def scored(y: Int[np.ndarray, " rows"]) -> Tensor:
        blocks = _blocks(case)
        drawn = (control_tasks(y, types, n, number(case.seed, TRIES + block)) for block, n in enumerate(blocks))
        return torch.cat([case.data.r(as_float(some)) for some in drawn])

    nulls, left = of_each(case.subject.labels, scored)
    for name, null in nulls.items():
        y = case.subject.labels[name]
        seen = type_ceilings(y, types, np.unique(types), fold_of).seen
        note = f"{seen:.0%} of rows have a type seen in other folds: memory of a task's types reaches r {seen**0.5:.2f}"
        own = _own(case.data, y)
        found.append(Outcome("labels.type-task", name, R, own, null.numpy(), note=joined(left, note)))
    return found


def of_each(
    labels: Mapping[str, Int[np.ndarray, " rows"]], draw: Callable[[Int[np.ndarray, " rows"]], Drawn]
) -> tuple[dict[str, Drawn], str]:
    """What is drawn for each label; labels too rare for it are left out, which a note tells.

    Raises:
        UserError: all of them are too rare.
    """
    found, refused = dict[str, Drawn](), dict[str, UserError]()
    for name, y in labels.items():
        try:
            found[name] = draw(y)
        except UserError as error:
            refused[name] = error
    if not found:
        name, why = next(iter(refused.items()))
        raise UserError(f"label {name!r}: {why}") from why
    told = ", ".join(map(repr, list(refused)[:TOLD])) + f" and {len(refused) - TOLD} more" * (len(refused) > TOLD)
    return found, f"too rare in the rows taken, hence left out: {told}" if refused else ""


def joined(*notes: str) -> str:
    """Those that say something."""
    return "; ".join(filter(None, notes))


def types_of(case: Case) -> Int[np.ndarray, " rows"]:
    """Word types, numbered from 0 without gaps.

    Raises:
        UserError: the rows have none.
    """
    tokens = case.subject.tokens
    require(tokens is not None, "these rows have no token types, so there are none to give labels to: leave this out")
    assert tokens is not None
    found: np.ndarray = np.unique(tokens, return_inverse=True)[1]
    return found


def control_tasks(
    y: Int[np.ndarray, " rows"], types: Int[np.ndarray, " rows"], n: int, seed: int, *, least: int = 1
) -> Int[np.ndarray, "rows n"]:
    """Labels of n control tasks; those in which 0 or 1 has fewer than `least` rows are drawn again.

    The label itself has as many, so that it is one more such draw where types were given theirs at random.

    Raises:
        UserError: hardly any control task has.
    """
    kept, held = list[np.ndarray](), 0
    for attempt in range(TRIES):
        drawn = control_labels(y.astype(np.int8), types, n=n, seed=number(seed, attempt))
        ones = drawn.sum(0, dtype=int)
        kept.append(drawn[:, np.minimum(ones, len(y) - ones) >= least])
        held += kept[-1].shape[1]
        if held >= n:
            return np.concatenate(kept, 1)[:, :n].astype(int)
    raise UserError(
        f"{TRIES} times {n} control tasks gave {held} in which both labels have {least} rows or more: the label "
        f"({int(y.sum())} of {len(y)} rows) is too rare, or types too few ({int(types.max()) + 1}); give more rows"
    )


def number(seed: int, place: int) -> int:
    """A seed for the draw at some place."""
    return int(np.random.default_rng([seed, 127, place]).integers(2**31))


def folds_of(dealt: Deal) -> Int[np.ndarray, " rows"]:
    """The fold of each row."""
    found = np.empty(len(dealt.order), int)
    for fold, rows in enumerate(dealt.slices):
        found[dealt.order[rows].numpy()] = fold
    return found


@control(
    "labels.iid",
    null="the label is independent of the activations, row by row",
    mind="anticonservative on text: rows of a document are alike, and no shuffled label is",
)
def iid(case: Case) -> list[Outcome]:
    """Labels shuffled over all rows."""
    note = "anticonservative on text: read labels.documents instead"
    return _permuted(case, "labels.iid", _scheme(case, "iid"), note=lambda y: note)


@control(
    "labels.documents",
    null="the labels of a document are independent of its activations",
    mind="documents are the unit; which of a document's rows has the label counts for nothing by itself",
)
def documents(case: Case) -> list[Outcome]:
    """Documents get each other's labels, from the first on, over again where they are longer."""
    groups = case.subject.groups

    def shuffle(n: int, seed: int) -> Dealt:
        source = exchanged(groups, n, seed=seed)
        return lambda y: y[source]

    note = f"{int(groups.max()) + 1} documents"
    return _permuted(case, "labels.documents", shuffle, note=lambda y: note)


@control(
    "labels.shift",
    null="a label's place in its document is independent of the activations there",
    mind="runs, sparsity and base rate of each document are kept; a label that whole documents share never survives; "
    "exact where the label is stationary in its document, which one of position (first sentence, headings) is not",
)
def shift(case: Case) -> list[Outcome]:
    """Labels turned round inside each document."""
    groups = case.subject.groups

    def note(y: Int[np.ndarray, " rows"]) -> str:
        ones, sizes = np.bincount(groups, y), np.bincount(groups)
        return f"the label varies in {int(((ones > 0) & (ones < sizes)).sum())} of {len(sizes)} documents"

    return _permuted(case, "labels.shift", _scheme(case, "shift"), note=note)


@control(
    "labels.within-token",
    null="given the token type, the label is independent of the activations",
    mind="documents are the unit: labels and activations count less their type's mean, and a draw turns the sign of "
    "all of a document's labels; approximate: where few documents have the label p is somewhat too small",
)
def within_token(case: Case) -> list[Outcome]:
    """Activations and labels less their type's mean, as D has them; labels change their sign by whole documents.

    What is left of a document's labels is as likely as its negative where they are symmetric about the type's rate;
    with signs changed it is again taken less its type's mean, as the labels are. Of labels independent of what is left
    of the activations 3 to 6% had p <= .05 in trials; where 6 of 60 whole documents had the label, 8%.
    """
    types, groups = types_of(case), case.subject.groups
    varied = centred(torch.from_numpy(case.subject.table).double(), types).numpy()
    inside = folded(centred(case.subject.activations, types), case.data.dealt)

    def turned(n: int, seed: int) -> Dealt:
        signs = np.random.default_rng([seed, 137]).choice([-1.0, 1.0], (int(groups.max()) + 1, n)).astype(np.float32)
        return lambda y: centred(torch.from_numpy(y[:, None] * signs[groups]), types).numpy()

    def note(y: Float[np.ndarray, " rows"]) -> str:
        free = np.abs(y) > SETTLED
        if not free.any():
            return "the type settles it"
        holding = len(np.unique(groups[free]))
        return f"{free.mean():.0%} of rows, in {holding} documents, have a type that the label varies in"

    return _permuted(case, "labels.within-token", turned, inside, varied, note=note)


def _scheme(case: Case, scheme: str) -> Shuffle:
    subject = case.subject

    def shuffle(n: int, seed: int) -> Dealt:
        y = subject.table[:, 0]  # none of these schemes looks at labels
        source = permuted_rows(y, scheme=scheme, groups=subject.groups, tokens=subject.tokens, n=n, seed=seed)
        return lambda y: y[source]

    return shuffle


def _permuted(
    case: Case,
    name: str,
    shuffle: Shuffle,
    data: Folded | None = None,
    table: Float[np.ndarray, "rows features"] | None = None,
    *,
    note: Callable[[np.ndarray], str],
) -> list[Outcome]:
    """r of each column against r of the same dealt anew, by draws that all columns share."""
    data, table = case.data if data is None else data, case.subject.table if table is None else table
    nulls: list[list[Tensor]] = [[] for _ in case.subject.names]
    for dealt in _drawn(shuffle, case):
        for column, null in zip(table.T, nulls, strict=True):
            null.append(data.r(as_float(dealt(column.astype(np.float32)))))
    return [
        Outcome(name, feature, R, _own(data, y), torch.cat(null).numpy(), note=note(y))
        for feature, y, null in zip(case.subject.names, table.T, nulls, strict=True)
    ]


def _drawn(shuffle: Shuffle, case: Case) -> Iterator[Dealt]:
    """All draws, some at a time."""
    for block, some in enumerate(_blocks(case)):
        yield shuffle(some, number(case.seed, block))


def _blocks(case: Case) -> list[int]:
    """How many of the draws are made at a time."""
    at_once = max(1, min(AT_ONCE, INDICES // len(case.subject.groups)))
    return [len(some) for some in np.array_split(np.arange(case.draws), -(-case.draws // at_once))]


def _own(data: Folded, y: np.ndarray) -> float:
    return float(data.r(as_float(y[:, None]))[0])
