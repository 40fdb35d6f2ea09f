"""Are there types, documents and redraws enough for the test asked for? Each rule is a calculation."""

from dataclasses import dataclass
from math import ceil, log

import numpy as np
from jaxtyping import Float

from toolkit.type_ceilings import TypeCeilings


@dataclass(frozen=True)
class Limits:
    """What selectivity's interval and p need, and what there is."""

    documents: float
    """Documents of equal size that would weigh as much, (sum of rows)^2 / sum of rows^2 (Kish 1965)."""
    documents_needed: int
    """Least D with 2^(1 - D) <= 1 - confidence: an interval by document that assumes nothing (all on one side)."""
    types: float
    """Types of equal frequency that would weigh as much, likewise."""
    types_needed: int
    """Least T with agreement^T <= 1 - confidence: else a control task repeats the labels too often for p."""
    redraws: int
    """Control tasks, or labels that types exchanged: what p is counted among; 0 where no p is asked for."""
    redraws_needed: int
    """Least n with 1 / (1 + n) <= 1 - confidence."""
    shortfalls: tuple[str, ...]
    """A sentence for each thing that is missing."""
    note: str
    """What else to mind; empty where nothing."""

    @property
    def enough(self) -> bool:
        """Nothing is missing."""
        return not self.shortfalls

    @property
    def statement(self) -> str:
        """In plain words."""
        if self.shortfalls:
            return "not enough for this test: " + "; ".join(self.shortfalls) + self.note
        if not self.redraws:
            return (
                f"enough documents ({self.documents:.0f} effective, {self.documents_needed} needed); without redraws "
                "there is no p" + self.note
            )
        return (
            f"enough types ({self.types:.0f} effective, {self.types_needed} needed), documents ({self.documents:.0f}, "
            f"{self.documents_needed}) and redraws ({self.redraws}, {self.redraws_needed})" + self.note
        )


def limits(
    sizes: Float[np.ndarray, " documents"],
    ceilings: TypeCeilings,
    interval: tuple[float, float],
    *,
    redraws: int,
    confidence: float,
    grouped: bool,
    drawn: str = "control tasks",
) -> Limits:
    """Compare what there is with what an interval and a p at level 1 - confidence need.

    Documents and types count by their effective number. A control task can only gain seen * (1 - majority) by memory of
    types: where that is within the interval's half-width, selectivity cannot tell memory from reading.

    Args:
        sizes: rows of each document.
        redraws: what p is counted among, called `drawn`; 0 where no p is asked for.
        grouped: whether documents were given.
    """
    alpha = 1 - confidence
    documents, types = _effective(sizes), _effective(ceilings.rows.astype(float))
    need = ceil(1 + log(1 / alpha, 2)), ceil(log(alpha) / log(ceilings.agreement)), ceil(round(1 / alpha - 1, 9))
    gain, reach = ceilings.seen * (1 - ceilings.majority), (interval[1] - interval[0]) / 2
    missing = [
        (documents, need[0], "documents of equal size", f"an interval of confidence {confidence:g} by document"),
        (types, need[1], "word types of equal frequency", f"a p of {alpha:.3g}: control tasks repeat the labels else"),
        (float(redraws), need[2], drawn, f"a p of {alpha:.3g}"),
    ][: 3 if redraws else 1]
    shortfalls = [
        f"there are as good as {there:.1f} {what}, and {needed} are needed for {purpose}"
        for there, needed, what, purpose in missing
        if round(there, 9) < needed
    ]
    if gain <= reach:
        shortfalls.append(
            f"memory of types could add {gain:.3f} to a control task's accuracy ({ceilings.seen:.0%} of held-out rows "
            f"have a type seen in training), within the interval's half-width {reach:.3f}: give more rows of each type"
        )
    note = "" if grouped else "; no groups were given, so each row counts as a document of its own"
    return Limits(documents, need[0], types, need[1], redraws, need[2], tuple(shortfalls), note)


def _effective(counts: Float[np.ndarray, " units"]) -> float:
    return float(counts.sum() ** 2 / np.square(counts).sum())
