"""What labels cost to send, and what the best of many probes makes of them, against control tasks by word type."""

import warnings
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning

from controls.case import Case
from controls.label_nulls import TRIES, control_tasks, number, types_of
from controls.outcomes import Outcome
from controls.registry import control
from toolkit.code_length import code_length
from toolkit.errors import require
from toolkit.probe_base import Probe
from toolkit.probe_search import ProbeSearch, select_probe
from toolkit.probes import LDAProbe, LinearProbe, MeanDifferenceProbe, MLPProbe

L2 = 0.01
"""Penalty of the coding probe, a mean loss in nats: choosing one in each block would cost eighteen times as much."""
TOGETHER = 100
"""Columns of labels coded together."""
SEARCHED = 2000
"""Rows at most of a search, whole documents: it is repeated for each draw of the null."""
PARTS = 3
"""Folds of a search, the fewest that it can nest."""
TASKS = 5
"""Control tasks that a search measures selectivity against: their scatter is in the null as in what is observed."""
STEPS = 60
"""Of each network's fit: more changed no selectivity by .005 in a trial of 1,600 rows."""


@control(
    "labels.code-length",
    null="the labels are no easier to code than ones that each word type was given at random (Voita and Titov 2020)",
    mind="a share of the entropy of the label's own rate, so that control tasks of another rate can be compared",
    dear=True,
)
def coded(case: Case) -> list[Outcome]:
    """Online code length, blocks of documents: each label against its control tasks, in the same blocks."""
    types, labels = _some(case, case.some, 1)
    each = 1 + case.dear
    columns = [y[:, None] for y in labels.values()]
    tasks = [control_tasks(y, types, case.dear, case.seed) for y in labels.values()]
    whole = np.concatenate([part for pair in zip(columns, tasks, strict=True) for part in pair], 1)
    X, groups = case.subject.activations.numpy()[case.some], case.subject.groups[case.some]
    bits = np.concatenate(
        [_bits(X, whole[:, at : at + TOGETHER], groups, case.seed) for at in range(0, whole.shape[1], TOGETHER)]
    )
    bits, entropy = bits.reshape(-1, each), _entropy(whole).reshape(-1, each)  # (features, 1 + tasks)
    found = []
    for name, code, base in zip(labels, bits, entropy, strict=True):
        note = f"{code[0]:.3f} bits a row ({base[0]:.3f} by the rate alone), control tasks {code[1:].mean():.3f}"
        shares = code / base
        found.append(Outcome("labels.code-length", name, CODE, float(shares[0]), shares[1:], larger=False, note=note))
    return found


CODE = "online code length, share of the entropy of the label's rate"
"""What `coded` measures."""


def _some(
    case: Case, rows: Int[np.ndarray, " some"], least: int
) -> tuple[Int[np.ndarray, " some"], dict[str, Int[np.ndarray, " some"]]]:
    """Types and labels of some rows; both labels have to be on `least` of them."""
    types = np.unique(types_of(case)[rows], return_inverse=True)[1]
    labels = {name: y[rows].astype(int) for name, y in case.subject.labels.items()}
    for name, y in labels.items():
        rarer = int(min(y.sum(), len(y) - y.sum()))
        require(
            rarer >= least,
            f"label {name!r}: the rarer of 0 and 1 has {rarer} of the {len(y)} rows taken, and {least} are needed: "
            "give more rows, or leave the label or this control out",
        )
    return types, labels


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
    mind="selectivity in accuracy, which a rare label can raise by little; the whole search is repeated in each draw",
    dear=True,
)
def searched(case: Case) -> list[Outcome]:
    """Nested search of the most selective probe, for the label and for control tasks in its place."""
    rows = replace(case, rows=min(case.rows, SEARCHED)).some
    types, labels = _some(case, rows, PARTS)
    X, groups = case.subject.activations.numpy()[rows], case.subject.groups[rows]
    found = []
    for name, y in labels.items():
        tasks = control_tasks(y, types, case.dear, case.seed, least=PARTS)
        own, *null = (_search(X, column, types, groups, case.seed) for column in (y, *tasks.T))
        note = f"{own.winner} wins, accuracy {own.accuracy:.3f}, on control tasks {own.control_accuracy:.3f}"
        values = np.array([search.value for search in null])
        found.append(Outcome("labels.probe-search", name, SELECTIVITY, own.value, values, note=note))
    return found


SELECTIVITY = "selectivity (accuracy less that on control tasks) of the search, on documents unseen"
"""What `searched` measures."""


def families() -> dict[str, Probe]:
    """The probes searched among, the simplest first. With two classes probes of every rank are the linear one."""
    linear = {f"linear, l2 {l2:g}": LinearProbe(l2=l2) for l2 in (0.1, 0.01)}
    networks = {f"MLP, {hidden} hidden": MLPProbe(hidden, l2=0.01, max_steps=STEPS) for hidden in (16, 64)}
    return {"mean difference": MeanDifferenceProbe(), "LDA": LDAProbe(), **linear, **networks}


def _search(
    X: Float[np.ndarray, "rows d"],
    y: Int[np.ndarray, " rows"],
    types: Int[np.ndarray, " rows"],
    groups: Int[np.ndarray, " rows"],
    seed: int,
) -> ProbeSearch:
    """One search: folds are the same for all labels, control tasks are drawn from the labels given."""
    with warnings.catch_warnings():  # STEPS is to end the fits of networks
        warnings.simplefilter("ignore", ConvergenceWarning)
        return select_probe(
            X,
            y,
            tokens=types,
            groups=groups,
            candidates=families(),
            tasks=TASKS,
            parts=PARTS,
            seed=number(seed, TRIES),
            quiet=True,
        )
