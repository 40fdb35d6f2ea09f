"""A search for the most selective probe, scored on documents that the search has not seen, and its null."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone

from toolkit.coding_inputs import as_rows
from toolkit.control_tasks import by_document, control_labels
from toolkit.descent import Progress
from toolkit.devices import progress_bar
from toolkit.errors import require
from toolkit.held_out import label_blocks, scores
from toolkit.label_permutations import permuted_rows
from toolkit.probe_base import Probe, check_probe
from toolkit.probe_inputs import (
    ProbeRows,
    as_array,
    blind_folds,
    check_count,
    check_members,
    check_share,
    numbered,
    probe_rows,
)
from toolkit.selectivity_interval import resampled_interval
from toolkit.selectivity_limits import Limits, limits
from toolkit.type_ceilings import type_ceilings


@dataclass(frozen=True)
class Candidate:
    """A probe of the search, scored by cross-validation on all rows."""

    name: str
    """As given."""
    accuracy: float
    """Share of held-out rows right."""
    control_accuracy: float
    """The same on control tasks, their mean."""
    chosen: int
    """Outer folds whose training rows chose it."""

    @property
    def selectivity(self) -> float:
        """Accuracy less control accuracy; the highest of a search is optimistic."""
        return self.accuracy - self.control_accuracy


@dataclass(frozen=True, eq=False)
class ProbeSearch:
    """The most selective of several probes; scores are of documents that did not help to choose."""

    winner: str
    """Name of the candidate of highest selectivity on all rows."""
    probe: Probe
    """The winner, fitted on all rows."""
    table: tuple[Candidate, ...]
    """Every candidate, in the order given."""
    accuracy: float
    """Of the search: each outer fold scored by the candidate that the other folds choose."""
    control_accuracy: float
    """Of the same candidates on control tasks, their mean."""
    interval: tuple[float, float]
    """Of `value`, over documents and control tasks; the scatter of the choice is not in it."""
    null: Float[np.ndarray, " redraws"]
    """`value` of the whole search on labels that types have exchanged; empty if not asked for."""
    limits: Limits
    """Whether documents suffice for the interval, and types and redraws for p where it was asked for."""

    @property
    def value(self) -> float:
        """Selectivity of the search."""
        return self.accuracy - self.control_accuracy

    @property
    def p(self) -> float | None:
        """(1 + number of null values at least as high) / (1 + redraws); None without redraws.

        The null: the best of the family reads nothing but a label that each type was given at random. Types exchange
        theirs (the commonest of their rows) in each redraw, so p is uniform where every row has its type's label, and
        conservative where some have lost it to noise. An orderly function of the type is not in the null.
        """
        if not len(self.null):
            return None
        least = self.value - 1e-12  # ties are ties however differences round
        return float((1 + (self.null >= least).sum()) / (1 + len(self.null)))

    @property
    def enough(self) -> bool:
        """Whether documents, and types and redraws where p was asked for, suffice."""
        return self.limits.enough

    @property
    def statement(self) -> str:
        """The result in plain words, and what is missing where something is."""
        low, high = self.interval
        found = f"the search, on documents unseen: {self.value:.3f} [{low:.3f}, {high:.3f}]; "
        return found + ("" if self.p is None else f"p {self.p:.3g}; ") + self.limits.statement

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.table)
        head = f"{'probe':<{width}}  accuracy  control  selectivity  chosen"
        lines = [
            f"{c.name:<{width}}  {c.accuracy:8.3f}  {c.control_accuracy:7.3f}  {c.selectivity:11.3f}  {c.chosen:6d}"
            for c in self.table
        ]
        return "\n".join([head, *lines, self.statement])


def default_candidates(classes: int) -> dict[str, Probe]:
    """The grid searched unless another is given, the simplest first.

    Means, discriminants, linear at four penalties, ranks below the number of classes less one (from which on a low-rank
    probe is the linear one), and hidden layers of two widths.
    """
    from toolkit.probes import LDAProbe, LinearProbe, LowRankProbe, MeanDifferenceProbe, MLPProbe

    found: dict[str, Probe] = {"mean difference": MeanDifferenceProbe(), "LDA": LDAProbe()}
    found |= {f"rank {rank}": LowRankProbe(rank, l2=0.01) for rank in (1, 2, 4, 8, 16) if 1 < classes - 1 > rank}
    found |= {f"linear, l2 {l2:g}": LinearProbe(l2=l2) for l2 in (1.0, 0.1, 0.01, 0.001)}
    return found | {f"MLP, {hidden} hidden": MLPProbe(hidden, l2=0.01) for hidden in (16, 64)}


def select_probe(
    X: Any,
    y: Any,
    *,
    tokens: Any,
    groups: Any = None,
    candidates: Mapping[str, Probe] | None = None,
    tasks: int = 20,
    parts: int = 4,
    redraws: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
    quiet: bool = False,
) -> ProbeSearch:
    """Choose the probe of highest selectivity by nested cross-validation over documents; ties go to the one first.

    Documents are dealt to `parts` folds. For each fold, the candidates are compared on the others by cross-validation
    among those, and the best is scored on it. Fits without folds i and j serve both as inner fits, so parts (parts + 1)
    / 2 fits a candidate do; all columns of labels (the labels, control tasks, redraws) share each.

    Args:
        X: (rows, d) activations.
        y: (rows,) labels.
        tokens: (rows,) word types, numbers or text.
        groups: (rows,) documents; without them each different row is one.
        candidates: unfitted probes by name; `default_candidates` unless given.
        tasks: control tasks that selectivity is measured against, 2 or more.
        parts: folds; inner fits see parts - 2 of them, 3 or more.
        redraws: labels with which the whole search is repeated, for the null and p: types exchange theirs.
        confidence: of the interval, two-sided.
        quiet: without a progress bar.

    Raises:
        UserError: what `toolkit.control_tasks.selectivity` refuses, no candidates, parts below 3, and before the search
            what the fit of a candidate on all rows would refuse.
    """
    check_share(confidence, "confidence")
    check_count(parts, "parts", least=3)
    check_count(tasks, "tasks", least=2)
    check_count(redraws, "redraws", least=0)
    data = probe_rows(as_rows(as_array(X), "X"), y, None, groups)
    types = numbered(tokens, "tokens", "type", len(data.X))
    probes = _candidates(default_candidates(len(data.classes)) if candidates is None else candidates)
    fold_of = blind_folds(data, parts, seed=seed, name="parts")
    check_members(data, parts, name="parts")
    for probe in probes.values():
        probe.check(data)
    columns = [data.labels[:, None]]
    if redraws:
        columns.append(data.labels[permuted_rows(data.labels, scheme="types", tokens=types, n=redraws, seed=seed)])
    columns.append(control_labels(data.labels, types, n=tasks, seed=seed))
    with progress_bar(len(probes) * parts * (parts + 1) // 2, "probes", quiet) as done:
        held = [_held_out(probe, data, np.concatenate(columns, 1), fold_of, done) for probe in probes.values()]
    return _concluded(probes, held, data, types, fold_of, tasks, confidence=confidence, seed=seed)


def _candidates(given: Any) -> dict[str, Probe]:
    named = isinstance(given, Mapping)
    require(named, f"candidates is a {type(given).__name__}: expected probes by name, such as {{'means': ...}}")
    require(len(given) > 0, "candidates is empty: give a probe to search among, or leave it out")
    for name, probe in given.items():
        check_probe(probe, f"candidates[{name!r}]")
    return {str(name): probe for name, probe in given.items()}


@dataclass(frozen=True)
class _Held:
    """Rows right, of one candidate."""

    inner: Float[np.ndarray, "parts parts columns"]
    """[i, j]: of fold j, fitted without i and j; 0 where i = j."""
    outer: Float[np.ndarray, "documents columns"]
    """Of each document, fitted without its fold."""


def _held_out(
    probe: Probe,
    data: ProbeRows,
    columns: Int[np.ndarray, "rows columns"],
    fold_of: Int[np.ndarray, " rows"],
    done: Progress,
) -> _Held:
    blocks, parts = list(label_blocks(probe, data, columns)), int(fold_of.max()) + 1
    inner = np.zeros((parts, parts, columns.shape[1]))
    outer = np.zeros((int(data.groups.max()) + 1, columns.shape[1]))
    for i in range(parts):
        for j in range(i + 1):
            fit, away = (fold_of != i) & (fold_of != j), (fold_of == i) | (fold_of == j)
            right = np.concatenate([scores(probe, data, some, fit=fit, score_on=away) for some in blocks], 1)
            if i == j:
                outer += by_document(data.groups[away], right, len(outer))
            else:
                inner[i, j] = right[fold_of[away] == j].sum(0)
                inner[j, i] = right[fold_of[away] == i].sum(0)
            done(1)
    return _Held(inner, outer)


def _chosen(
    inner: Float[np.ndarray, "candidates parts parts columns"], tasks: int
) -> Int[np.ndarray, "parts searched"]:
    """For each outer fold and searched column, the candidate most selective on the other folds."""
    right = inner.sum(2)  # (candidates, outer fold, columns)
    controls = right[..., -tasks:].mean(-1, keepdims=True)
    return (right[..., :-tasks] - controls).argmax(0)


def _concluded(
    probes: dict[str, Probe],
    held: list[_Held],
    data: ProbeRows,
    types: Int[np.ndarray, " rows"],
    fold_of: Int[np.ndarray, " rows"],
    tasks: int,
    *,
    confidence: float,
    seed: int,
) -> ProbeSearch:
    sizes = np.bincount(data.groups).astype(float)
    home = np.empty(len(sizes), int)
    home[data.groups] = fold_of  # fold of each document
    outer = np.stack([of.outer for of in held])  # (candidates, documents, columns)
    chosen = _chosen(np.stack([of.inner for of in held]), tasks)[home]  # (documents, searched)
    at, searched = np.arange(len(sizes))[:, None], chosen.shape[1]
    own = outer[chosen, at, np.arange(searched)]  # (documents, searched)
    control = outer[..., searched:].mean(-1)[chosen, at]  # (documents, searched)
    table = _table(probes, outer.sum(1) / sizes.sum(), chosen[:, 0], home, searched)
    winner = max(table, key=lambda row: row.selectivity).name
    interval = resampled_interval(
        sizes, own[:, 0], outer[chosen[:, 0], at[:, 0], searched:], confidence=confidence, seed=seed
    )
    ceilings = type_ceilings(data.labels, types, np.unique(types), fold_of)
    groups = data.groups if data.grouped else None
    return ProbeSearch(
        winner=winner,
        probe=clone(probes[winner]).fit(data.X, data.classes[data.labels], groups=groups),
        table=table,
        accuracy=float(own[:, 0].sum() / sizes.sum()),
        control_accuracy=float(control[:, 0].sum() / sizes.sum()),
        interval=interval,
        null=(own - control).sum(0)[1:] / sizes.sum(),
        limits=limits(
            sizes,
            ceilings,
            interval,
            redraws=searched - 1,
            confidence=confidence,
            grouped=data.grouped,
            drawn="redraws",
        ),
    )


def _table(
    probes: dict[str, Probe],
    accuracies: Float[np.ndarray, "candidates columns"],
    chosen: Int[np.ndarray, " documents"],
    home: Int[np.ndarray, " documents"],
    searched: int,
) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(name, float(row[0]), float(row[searched:].mean()), len(np.unique(home[chosen == number])))
        for number, (name, row) in enumerate(zip(probes, accuracies, strict=True))
    )
