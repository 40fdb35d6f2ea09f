"""Mutual coherence: what a dictionary alone says about its codes. One atom a row, (n, d), of any norms."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from toolkit.errors import require

# Numbers a streamed block of rows x atoms holds: 32 MB in float64.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Coherence:
    """The coherence of a dictionary, and how little it vouches for."""

    mu: float
    """max over i != j of |d_i . d_j| / (||d_i|| ||d_j||)."""
    pair: tuple[int, int]
    """Two atoms that attain it."""
    guaranteed: int
    """The largest k < (1 + 1/mu)/2, at most n: every code with up to k atoms is the only one so sparse."""
    sentence: str
    """Both in words."""


def coherence(D: Float[np.ndarray, "n d"]) -> Coherence:
    """Mutual coherence of a dictionary and the sparsity below which it guarantees uniqueness.

    A code with fewer than (1 + 1/mu)/2 atoms is the sparsest of its vector and the only one so sparse (Donoho and
    Elad 2003, "Optimally sparse representation in general dictionaries"). Orthogonal matching pursuit and basis
    pursuit on the normalised atoms find it (Tropp 2004, "Greed is good", corollary 3.6). Streamed over blocks of
    atoms.

    Raises:
        UserError: for fewer than two atoms, a zero atom, or values that are not finite.
    """
    D = as_dictionary(D)
    norms = np.linalg.norm(D, axis=1)
    require(len(D) > 1, f"D has {len(D)} atom: coherence compares two")
    require(bool(norms.all()), f"atom {int(norms.argmin())} of D is zero and has no angle to others: leave it out")
    D = D / norms[:, None]
    mu, pair = -1.0, (0, 0)
    for rows in row_blocks(len(D), len(D)):
        cosines = np.abs(D[rows] @ D[rows.start :].T)  # (block, n - start): each pair once
        np.fill_diagonal(cosines, -1)
        i, j = np.unravel_index(cosines.argmax(), cosines.shape)
        if cosines[i, j] > mu:
            mu, pair = float(cosines[i, j]), (rows.start + int(i), rows.start + int(j))
    mu = min(mu, 1.0)
    # The bound is strict; mu is rounded up by two norms' and a product's error, so that rounding never adds an atom.
    bound = (1 + 1 / (mu + 2 * (D.shape[1] + 2) * np.finfo(np.float64).eps)) / 2
    guaranteed = min(int(np.ceil(bound)) - 1, len(D))
    return Coherence(mu, pair, guaranteed, _in_words(mu, pair, guaranteed))


def as_dictionary(D: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """D in float64.

    Raises:
        UserError: where it is no finite matrix of at least one atom.
    """
    D = np.ascontiguousarray(D, np.float64)
    require(D.ndim == 2 and D.size > 0, f"D has shape {D.shape}: expected (atoms, dimensions)")
    require(bool(np.isfinite(D).all()), "D has values that are not finite")
    return D


def row_blocks(rows: int, n: int) -> Iterator[slice]:
    """Slices of rows whose products with n atoms fit into a block."""
    step = max(1, _BLOCK // n)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _in_words(mu: float, pair: tuple[int, int], guaranteed: int) -> str:
    """What coherence says, and that it says nothing beyond."""
    if guaranteed == 0:
        return f"coherence {mu:.3g} vouches for no code at all: atoms {pair[0]} and {pair[1]} are parallel"
    atoms = "1 atom" if guaranteed == 1 else f"{guaranteed} atoms"
    return f"coherence {mu:.3g} vouches for codes of at most {atoms}; about longer codes it says nothing"
