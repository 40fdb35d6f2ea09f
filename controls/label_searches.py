"""What labels cost to send, and what the best of many probes makes of them, against control tasks by word type."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning

from controls.case import Case
from controls.label_nulls import TRIES, control_tasks, joined, number, of_each, types_of
from controls.outcomes import Outcome
from controls.registry import control
from toolkit.code_length import code_length
from toolkit.control_tasks import control_labels
from toolkit.errors import require
from toolkit.held_out import label_blocks, scores
from toolkit.probe_base import Probe
from toolkit.probe_inputs import ProbeRows, blind_folds, probe_rows
from toolkit.probes import LDAProbe, LinearProbe, MeanDifferenceProbe, MLPProbe

L2 = 0.01
"""Penalty of the coding probe, a mean loss in nats: choosing one in each block would cost eighteen times as much."""
TOGETHER = 100
"""Columns of labels coded together."""
SEARCHED = 1000
"""Rows at most of a search, of as many documents as `Case.some` takes for them: every family is fitted six times."""
PARTS = 3
"""Folds of a search, the fewest that it can nest."""
TASKS = 5
"""Control tasks that selectivity is measured against, the same for a label and its null draws: these stay comparable,
and the fits are few."""
STEPS = 60
"""Of each network's fit: more changed no selectivity by .005 in a trial of 1,600 rows."""
HIDDEN = 16
"""Units of the network: one of 64 took more than twice as long."""


@control(
    "labels.code-length",
    null="the labels are no easier to code than ones that each word type was given at random (Voita and Titov 2020)",
    mind="a share of the entropy of the label's own rate, so that control tasks of another rate can be compared",
    dear=True,
)
def coded(case: Case) -> list[Outcome]:
    """Online code length, blocks of documents: each label against its control tasks, in the same blocks."""
    _, columns, left = _some(case, case.some, 1)
    each, whole = 1 + case.dear, np.concatenate(list(columns.values()), 1)
    X, groups = case.subject.activations.numpy()[case.some], case.subject.groups[case.some]
    bits = np.concatenate(
        [_bits(X, whole[:, at : at + TOGETHER], groups, case.seed) for at in range(0, whole.shape[1], TOGETHER)]
    )
    bits, entropy = bits.reshape(-1, each), _entropy(whole).reshape(-1, each)  # (features, 1 + tasks)
    found = []
    for name, code, base in zip(columns, bits, entropy, strict=True):
        note = f"{code[0]:.3f} bits a row ({base[0]:.3f} by the rate alone), control tasks {code[1:].mean():.3f}"
        own, *null = code / base
        outcome = Outcome("labels.code-length", name, CODE, float(own), np.array(null), larger=False)
        found.append(replace(outcome, note=joined(left, note)))
    return found


CODE = "online code length, share of the entropy of the label's rate"
"""What `coded` measures."""


def _some(
    case: Case, rows: Int[np.ndarray, " some"], least: int
) -> tuple[Int[np.ndarray, " some"], dict[str, Int[np.ndarray, "some columns"]], str]:
    """Types of some rows, each label beside its control tasks, and a note on the labels left out.

    Both values of a label have to be on `least` of the rows, and of its tasks too.
    """
    types = np.unique(types_of(case)[rows], return_inverse=True)[1]

    def beside_tasks(y: Int[np.ndarray, " some"]) -> Int[np.ndarray, "some columns"]:
        rarer = int(min(y.sum(), len(y) - y.sum()))
        require(
            rarer >= least,
            f"the rarer of 0 and 1 has {rarer} of the {len(y)} rows taken, and {least} are needed: "
            "give more rows, or leave the label or this control out",
        )
        return np.concatenate([y[:, None], control_tasks(y, types, case.dear, case.seed, least=least)], 1)

    return types, *of_each({name: y[rows].astype(int) for name, y in case.subject.labels.items()}, beside_tasks)


def _bits(
    X: Float[np.ndarray, "rows d"], columns: Int[np.ndarray, "rows n"], groups: Int[np.ndarray, " rows"], seed: int
) -> Float[np.ndarray, " n"]:
    """Bits a row of each column, coded by fits to its own labels that all columns share the rows of."""
    code = code_length(LinearProbe(l2=L2), X, columns[:, 0], groups=groups, controls=columns[:, 1:], seed=seed)
    return np.concatenate([[code.bits], code.control_bits]) / len(X)


def _entropy(columns: Int[np.ndarray, "rows n"]) -> Float[np.ndarray, " n"]:
    """Bits a row of a code that knows each column's rate and nothing else."""
    p = columns.mean(0)
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


@control(
    "labels.probe-search",
    null="the best of the families reads only a label that each word type was given at random",
    mind="selectivity in accuracy, which a rare label can raise by little; each null draw is searched for as the label "
    f"is, against the same {TASKS} control tasks",
    dear=True,
)
def searched(case: Case) -> list[Outcome]:
    """Nested search of the most selective probe, for the label and for control tasks in its place."""
    rows = replace(case, rows=min(case.rows, SEARCHED)).some
    types, columns, left = _some(case, rows, PARTS)
    seed, X, groups = number(case.seed, TRIES), case.subject.activations.numpy()[rows], case.subject.groups[rows]
    tasks = [control_labels(column[:, 0], types, n=TASKS, seed=seed) for column in columns.values()]
    found = []
    for name, search in zip(columns, searches(X, list(columns.values()), tasks, groups, seed=seed), strict=True):
        own, *null = search.values
        note = f"{search.winner} wins, accuracy {search.accuracy:.3f}, on control tasks {search.accuracy - own:.3f}"
        note = joined(left, note)
        found.append(Outcome("labels.probe-search", name, SELECTIVITY, float(own), np.array(null), note=note))
    return found


SELECTIVITY = "selectivity (accuracy less that on control tasks) of the search, on documents unseen"
"""What `searched` measures."""


def families() -> dict[str, Probe]:
    """The probes searched among, the simplest first. With two classes probes of every rank are the linear one."""
    linear = {f"linear, l2 {l2:g}": LinearProbe(l2=l2) for l2 in (0.1, 0.01)}
    network = {f"MLP, {HIDDEN} hidden": MLPProbe(HIDDEN, l2=0.01, max_steps=STEPS)}
    return {"mean difference": MeanDifferenceProbe(), "LDA": LDAProbe(), **linear, **network}


@dataclass(frozen=True)
class Search:
    """Columns of labels, each searched for alone, against the control tasks that they share."""

    winner: str
    """The probe most selective for the first column on all rows."""
    accuracy: float
    """For the first column: each fold by the probe that the others choose."""
    values: Float[np.ndarray, " columns"]
    """Selectivity so: accuracy less the mean on the tasks by the same probes."""


def searches(
    X: Float[np.ndarray, "rows d"],
    columns: list[Int[np.ndarray, "rows searched"]],
    tasks: list[Int[np.ndarray, "rows tasks"]],
    groups: Int[np.ndarray, " rows"],
    *,
    seed: int,
) -> Iterator[Search]:
    """The nested search of `toolkit.probe_search.select_probe` for all columns, whose fits share what they can.

    Args:
        X: activations.
        columns: for each feature its label and what is searched for in its place.
        tasks: for each feature the control tasks.
        groups: documents, dealt to PARTS folds.
        seed: of the deal.
    """
    data, probes = probe_rows(X, columns[0][:, 0], None, groups), families()
    fold_of = blind_folds(data, PARTS, seed=seed, name="parts")
    whole = np.concatenate([part for pair in zip(columns, tasks, strict=True) for part in pair], 1)
    right = np.stack([_right(probe, data, whole, fold_of) for probe in probes.values()])
    at = 0
    for some, shared in zip(columns, tasks, strict=True):
        count = some.shape[1] + shared.shape[1]
        yield _concluded(right[..., at : at + count], some.shape[1], list(probes), len(X))
        at += count


def _right(
    probe: Probe, data: ProbeRows, columns: Int[np.ndarray, "rows columns"], fold_of: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "parts parts columns"]:
    """[i, j]: how many rows of fold j are right by a fit without i and j."""
    found, blocks = np.zeros((PARTS, PARTS, columns.shape[1])), list(label_blocks(probe, data, columns))
    with warnings.catch_warnings():  # STEPS is to end the fits of networks
        warnings.simplefilter("ignore", ConvergenceWarning)
        for i in range(PARTS):
            for j in range(i + 1):
                away = (fold_of == i) | (fold_of == j)
                hit = np.concatenate([scores(probe, data, some, fit=~away, score_on=away) for some in blocks], 1)
                found[i, j], found[j, i] = (hit[fold_of[away] == fold].sum(0) for fold in (j, i))
    return found


def _concluded(
    right: Float[np.ndarray, "probes parts parts columns"], searched: int, names: list[str], rows: int
) -> Search:
    """The first columns are searched for, the others are control tasks."""
    outer = np.einsum("piic->pic", right)
    inner = right.sum(2) - outer  # (probes, parts, columns), by the folds that are not i
    chosen = (inner[..., :searched] - inner[..., searched:].mean(-1, keepdims=True)).argmax(0)  # (parts, searched)
    part = np.arange(PARTS)[:, None]
    own = outer[chosen, part, np.arange(searched)].sum(0) / rows
    control = outer[..., searched:].mean(-1)[chosen, part].sum(0) / rows
    whole = outer.sum(1)
    winner = int((whole[:, 0] - whole[:, searched:].mean(-1)).argmax())
    return Search(names[winner], float(own[0]), own - control)
