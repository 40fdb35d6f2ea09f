"""The accuracy that functions of the word type alone reach: on control tasks, and, as an estimate, on the labels."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True, eq=False)
class TypeCeilings:
    """What functions of the type, learned from the other folds, reach on held-out rows."""

    control: float
    """On a control task, in expectation: seen types are right, the others as often as the commonest label occurs."""
    seen: float
    """Share of rows whose type the other folds hold."""
    majority: float
    """Share of the commonest label."""
    agreement: float
    """Chance that two rows' labels drawn at random are the same: what two control tasks share for a type."""
    label: float
    """On the labels themselves: each type's commonest label in the other folds, the folds' commonest where unseen."""
    types: Shaped[np.ndarray, " types"]
    """The types, sorted."""
    rows: Int[np.ndarray, " types"]
    """Rows of each."""
    by_type: Float[np.ndarray, " types"]
    """`label` for the rows of each type."""


def type_ceilings(
    labels: Int[np.ndarray, " rows"],
    types: Int[np.ndarray, " rows"],
    names: Shaped[np.ndarray, " types"],
    fold_of: Int[np.ndarray, " rows"],
) -> TypeCeilings:
    """Ceilings over the folds; labels and types are numbers from 0, ties go to the smaller label."""
    kinds, classes = len(names), int(labels.max()) + 1
    right, seen = np.zeros(len(labels)), np.zeros(len(labels), bool)
    for fold in range(int(fold_of.max()) + 1):
        away = fold_of == fold
        pairs = types[~away] * classes + labels[~away]
        table = np.bincount(pairs, minlength=kinds * classes).reshape(kinds, classes)  # one row a type
        known = table.sum(1) > 0
        guess = np.where(known, table.argmax(1), table.sum(0).argmax())
        seen[away] = known[types[away]]
        right[away] = guess[types[away]] == labels[away]
    shares = np.bincount(labels) / len(labels)
    rows = np.bincount(types)
    return TypeCeilings(
        control=float(seen.mean() + (1 - seen.mean()) * shares.max()),
        seen=float(seen.mean()),
        majority=float(shares.max()),
        agreement=float(np.square(shares).sum()),
        label=float(right.mean()),
        types=names,
        rows=rows,
        by_type=np.bincount(types, right) / rows,
    )
