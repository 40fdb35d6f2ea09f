"""Labels changed, activations kept: random labels by word type, and labels dealt anew in five ways.

The statistic is r, the held-out correlation of a label and its linear read-out (`controls.decoding`).
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axis_decodable import centred as centred
from controls.case import Case
from controls.decoding import Deal, Folded, exchanged, folded
from controls.outcomes import Outcome
from controls.registry import control
from controls.subject import as_float
from toolkit.control_tasks import control_labels
from toolkit.errors import UserError, require
from toolkit.label_permutations import permuted_rows
from toolkit.type_ceilings import type_ceilings

AT_ONCE = 256
"""Columns of labels drawn and scored together: 20,000 rows of them are 40 MB of row numbers."""
TRIES = 50
"""Times that control tasks are drawn before it is said that the label is too rare for them."""
R = "held-out r of label and linear read-out"
"""What all of them measure."""

Shuffle = Callable[[int, int], Int[np.ndarray, "rows n"]]
"""(n, seed) -> for each of n permutations, the row whose label each row gets."""


@control(
    "labels.type-task",
    null="the label is one that each word type was given at random (Hewitt and Liang 2019)",
    mind="an orderly function of the type (a suffix, a part of speech) is not in the null and may survive it",
)
def type_task(case: Case) -> list[Outcome]:
    """r of each label against r of control tasks: a random label for each type, from the label's own shares."""
    types, subject = types_of(case), case.subject
    fold_of, found = folds_of(case.data.dealt), []
    for name, y in subject.labels.items():
        drawn = control_tasks(y, types, case.draws, case.seed)
        null = torch.cat([case.data.r(as_float(part)) for part in np.array_split(drawn, _parts(case.draws), 1)])
        seen = type_ceilings(y, types, np.unique(types), fold_of).seen
        note = f"{seen:.0%} of rows have a type seen in other folds: memory of a task's types reaches r {seen**0.5:.2f}"
        found.append(Outcome("labels.type-task", name, R, _own(case.data, y), null.numpy(), note=note))
    return found


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

    def shuffle(n: int, seed: int) -> Int[np.ndarray, "rows n"]:
        return exchanged(groups, n, seed=seed)

    note = f"{int(groups.max()) + 1} documents"
    return _permuted(case, "labels.documents", shuffle, note=lambda y: note)


@control(
    "labels.shift",
    null="a label's place in its document is independent of the activations there",
    mind="runs, sparsity and base rate of each document are kept; a label that whole documents share never survives",
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
    mind="rows are the unit: a topic that both label and activations follow inside a type is found as well",
)
def within_token(case: Case) -> list[Outcome]:
    """Labels exchanged among rows of the same type; activations and labels less their type's mean, as D has them."""
    types = types_of(case)
    varied = centred(torch.from_numpy(case.subject.table).double(), types).numpy()
    inside = folded(centred(case.subject.activations, types), case.data.dealt)

    def note(y: Float[np.ndarray, " rows"]) -> str:
        free = int((np.abs(y) > 1e-9).sum())
        return f"{free / len(y):.0%} of rows have a type that the label varies in" if free else "the type settles it"

    return _permuted(case, "labels.within-token", _scheme(case, "tokens"), inside, varied, note=note)


def _scheme(case: Case, scheme: str) -> Shuffle:
    subject = case.subject

    def shuffle(n: int, seed: int) -> Int[np.ndarray, "rows n"]:
        y = subject.table[:, 0]  # none of these schemes looks at labels
        return permuted_rows(y, scheme=scheme, groups=subject.groups, tokens=subject.tokens, n=n, seed=seed)

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
    """r of each column against r of its permutations, which all columns share."""
    data, table = case.data if data is None else data, case.subject.table if table is None else table
    nulls: list[list[Tensor]] = [[] for _ in case.subject.names]
    for source in _drawn(shuffle, case):
        for column, null in zip(table.T, nulls, strict=True):
            null.append(data.r(as_float(column.astype(np.float32)[source])))
    return [
        Outcome(name, feature, R, _own(data, y), torch.cat(null).numpy(), note=note(y))
        for feature, y, null in zip(case.subject.names, table.T, nulls, strict=True)
    ]


def _drawn(shuffle: Shuffle, case: Case) -> Iterator[Int[np.ndarray, "rows n"]]:
    """All permutations, some at a time."""
    for block, some in enumerate(np.array_split(np.arange(case.draws), _parts(case.draws))):
        yield shuffle(len(some), number(case.seed, block))


def _parts(draws: int) -> int:
    return -(-draws // AT_ONCE)


def _own(data: Folded, y: np.ndarray) -> float:
    return float(data.r(as_float(y[:, None]))[0])
