"""Sparse codes together with what can be proved about them."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from toolkit import certificates
from toolkit.coherence import Coherence, coherence
from toolkit.phase_transition import phase_transition

Codes: TypeAlias = sparse.csr_array
"""(rows, n)."""


@dataclass(frozen=True)
class Certified:
    """Codes and what can be proved about them, computed from rows, dictionary and codes alone."""

    codes: Codes
    """(rows, n)."""
    residual: Float[np.ndarray, " rows"]
    """|x - D^T z| / |x|, 0 for a zero row."""
    gap: Float[np.ndarray, " rows"] | None
    """Relative duality gap; None for OMP, which minimises no convex objective."""
    tolerance: float
    """The gap, for basis pursuit the residual too, that was asked for; nan for OMP."""
    unsettled: Int[np.ndarray, " above"]
    """Indices of the rows above it."""
    fuchs: Float[np.ndarray, " rows"]
    """Fuchs' coefficient: below 1, z is the unique code of least |z|_1 for what it rebuilds."""
    exact_recovery: Float[np.ndarray, " rows"]
    """Tropp's coefficient: below 1, OMP and basis pursuit recover any code on this support (unit atoms)."""
    coherence: Coherence | None
    """Of the dictionary, with a sentence on how little it says; None for a single atom."""
    yardstick: float
    """Donoho and Tanner's k*: in a random dictionary of this size basis pursuit finds codes of up to about so many
    atoms."""

    @property
    def unique(self) -> Bool[np.ndarray, " rows"]:
        """Whether Fuchs' condition holds."""
        return self.fuchs < 1

    @property
    def recoverable(self) -> Bool[np.ndarray, " rows"]:
        """Whether Tropp's condition holds."""
        return self.exact_recovery < 1

    def __str__(self) -> str:
        """The certificates in a few lines."""
        active = np.diff(self.codes.indptr)
        rows, n = self.codes.shape
        lines = [
            f"{rows:,} rows on {n:,} atoms: {active.mean():.1f} atoms a row, at most {active.max()}; "
            f"relative residual {self.residual.mean():.3f}"
        ]
        if self.gap is not None:
            first = f", first {self.unsettled[:5].tolist()}" if len(self.unsettled) else ""
            lines += [f"largest gap {self.gap.max():.2g}; {len(self.unsettled)} rows above {self.tolerance:g}{first}"]
        return "\n".join(
            [
                *lines,
                f"Fuchs' condition holds for {self.unique.mean():.1%} of the rows, "
                f"Tropp's for {self.recoverable.mean():.1%}",
                self.coherence.sentence if self.coherence else "a single atom has no coherence",
                f"in a random dictionary of this size codes of up to about {self.yardstick:.0f} atoms are found",
            ]
        )


def certify(
    X: Float[np.ndarray, "rows d"],
    codes: Codes,
    atoms: Float[np.ndarray, "n d"],
    *,
    gap: Float[np.ndarray, " rows"] | None,
    tolerance: float,
    unsettled: Int[np.ndarray, " above"],
    positive: bool,
) -> Certified:
    """Add to codes of X and their duality gap what follows from the supports and from the dictionary."""
    residual, norms = np.linalg.norm(X - codes @ atoms, axis=1), np.linalg.norm(X, axis=1)
    return Certified(
        codes=codes,
        residual=np.divide(residual, norms, out=np.zeros_like(norms), where=norms > 0),
        gap=gap,
        tolerance=tolerance,
        unsettled=unsettled,
        fuchs=certificates.fuchs(codes, atoms, positive=positive),
        exact_recovery=certificates.exact_recovery(codes, atoms),
        coherence=coherence(atoms) if len(atoms) > 1 else None,
        yardstick=phase_transition(*atoms.shape, positive=positive),
    )
