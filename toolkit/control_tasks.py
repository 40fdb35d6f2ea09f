"""Control tasks: is a probe's accuracy more than a memory of word types? (Hewitt and Liang 2019)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from toolkit.coding_inputs import as_rows
from toolkit.errors import require
from toolkit.held_out import held_out_scores, label_blocks
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
from toolkit.probe_settings import check_settings
from toolkit.selectivity_interval import resampled_interval
from toolkit.selectivity_limits import Limits, limits
from toolkit.type_ceilings import TypeCeilings, type_ceilings


def control_labels(y: Any, tokens: Any, *, n: int, seed: int) -> Shaped[np.ndarray, "rows n"]:
    """Labels of n control tasks: each word type gets one label, drawn from the labels of all rows.

    Hewitt and Liang 2019, section 2. The first columns stay the same when n grows.

    Args:
        y: (rows,) labels.
        tokens: (rows,) word types, numbers or text.

    Raises:
        UserError: not one type a row, one missing, n below 1.
    """
    check_count(n, "n", least=1)
    check_count(seed, "seed", least=0)
    y = np.asarray(as_array(y))
    require(y.ndim == 1 and len(y) > 0, f"y has shape {y.shape}: expected (rows,), one label a row")
    types = numbered(tokens, "tokens", "type", len(y))
    drawn = np.random.default_rng([seed, 43]).integers(len(y), size=(n, int(types.max()) + 1))
    return y[drawn[:, types].T]


@dataclass(frozen=True, eq=False)
class Selectivity:
    """A probe's accuracy beside that of the same probe on control tasks, all of held-out documents."""

    accuracy: float
    """Share of rows right, with the labels as they are."""
    control_accuracies: Float[np.ndarray, " n"]
    """The same for each control task."""
    interval: tuple[float, float]
    """Of `value`, over documents and control tasks; the probes' own scatter over training sets is not in it."""
    confidence: float
    """Of the interval; 1 less it is the level that `limits` judge p by."""
    ceilings: TypeCeilings
    """What functions of the type alone can reach."""
    type_accuracies: Float[np.ndarray, " types"]
    """The probe's accuracy on each type's rows, in the order of `ceilings.types`."""
    documents: int
    """Documents; rows, where none were given."""
    limits: Limits
    """Whether types, documents and redraws suffice for the interval and for p."""

    @property
    def control_accuracy(self) -> float:
        """Mean over the control tasks."""
        return float(self.control_accuracies.mean())

    @property
    def value(self) -> float:
        """Selectivity: accuracy less mean control accuracy (Hewitt and Liang 2019, section 2.2)."""
        return self.accuracy - self.control_accuracy

    @property
    def p(self) -> float:
        """(1 + number of control accuracies at least as high) / (1 + n).

        The null: each type's label was drawn on its own from the labels' shares, as a control task's are, and rows may
        have lost theirs to noise. Without noise the accuracy is one more draw of the control accuracies, but for the
        shares, which are those of the labels drawn: control tasks scatter about the labels' own shares, and p is
        conservative, the more so the fewer types make up most rows (`permutation_null` with scheme="types" is exact).
        With noise p is conservative too. A label that is an orderly function of the type is not in the null: a small p
        does not show that the probe reads more than the type.
        """
        return float((1 + (self.control_accuracies >= self.accuracy).sum()) / (1 + len(self.control_accuracies)))

    @property
    def ceiling(self) -> float:
        """Expected accuracy of the best function of the type on a control task."""
        return self.ceilings.control

    @property
    def types(self) -> int:
        """Different word types."""
        return len(self.ceilings.types)

    @property
    def enough(self) -> bool:
        """Whether types, documents and redraws suffice."""
        return self.limits.enough

    @property
    def statement(self) -> str:
        """The result in plain words, and what is missing where something is."""
        low, high = self.interval
        found = (
            f"selectivity {self.value:.3f} [{low:.3f}, {high:.3f}]: accuracy {self.accuracy:.3f}, on "
            f"{len(self.control_accuracies)} control tasks {self.control_accuracy:.3f} (at most {self.ceiling:.3f} by "
            f"memory of types), p {self.p:.3g}; "
        )
        return found + self.limits.statement


def selectivity(
    probe: Probe,
    X: Any,
    y: Any,
    *,
    tokens: Any,
    groups: Any = None,
    n: int = 200,
    parts: int = 3,
    confidence: float = 0.95,
    seed: int = 0,
) -> Selectivity:
    """Score a probe by cross-validation over documents, with its labels and with n control tasks, fitted together.

    Folds do not look at labels; where the probe has no penalty, each column of labels chooses its own.

    Args:
        probe: any probe of `toolkit.probes`, unfitted; its settings are used.
        X: (rows, d) activations.
        y: (rows,) labels.
        tokens: (rows,) word types, numbers or text.
        groups: (rows,) documents, which folds keep whole; without them each different row is one.
        n: control tasks, 2 or more; 200 let p fall to .005.
        parts: folds of the cross-validation.
        confidence: of the interval, two-sided.

    Raises:
        UserError: what `probe.fit`, `control_labels` and `toolkit.probe_inputs.blind_folds` refuse, a class with fewer
            members than parts, a confidence outside (0, 1), what is no probe.
    """
    check_probe(probe)
    check_share(confidence, "confidence")
    check_count(n, "n", least=2)
    check_count(parts, "parts", least=2)
    data = probe_rows(as_rows(as_array(X), "X"), y, None, groups)
    check_settings(probe, data)
    types = numbered(tokens, "tokens", "type", len(data.X))
    controls = control_labels(data.labels, types, n=n, seed=seed)
    fold_of = blind_folds(data, parts, seed=seed, name="parts")
    check_members(data, parts, name="parts")
    hits, right = _hits(probe, data, np.concatenate([data.labels[:, None], controls], 1), fold_of)
    sizes = np.bincount(data.groups).astype(float)
    interval = resampled_interval(sizes, hits[:, 0], hits[:, 1:], confidence=confidence, seed=seed)
    ceilings = type_ceilings(data.labels, types, np.unique(as_array(tokens)), fold_of)
    accuracies = hits.sum(0) / len(types)
    return Selectivity(
        accuracy=float(accuracies[0]),
        control_accuracies=accuracies[1:],
        interval=interval,
        confidence=confidence,
        ceilings=ceilings,
        type_accuracies=np.bincount(types, right) / ceilings.rows,
        documents=len(sizes),
        limits=limits(sizes, ceilings, interval, redraws=n, confidence=confidence, grouped=data.grouped),
    )


def _hits(
    probe: Probe, data: ProbeRows, columns: Int[np.ndarray, "rows problems"], fold_of: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, "documents problems"], Float[np.ndarray, " rows"]]:
    """Rows right of each document by column, and which rows are right in the first column."""
    found: list[np.ndarray] = []
    first = np.empty(0)
    for some in label_blocks(probe, data, columns):
        right = held_out_scores(probe, data, some, fold_of)
        first = right[:, 0].astype(float) if not found else first
        found.append(by_document(data.groups, right, int(data.groups.max()) + 1))
    return np.concatenate(found, 1), first


def by_document(
    documents: Int[np.ndarray, " rows"], right: Shaped[np.ndarray, "rows problems"], count: int
) -> Float[np.ndarray, "documents problems"]:
    """Sums over the rows of each of `count` documents."""
    total = np.zeros((count, right.shape[1]))
    np.add.at(total, documents, right)
    return total
