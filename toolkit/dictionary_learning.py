"""One dictionary from rows: sparse codes of a batch, an update of every atom, and again.

The online algorithm of Mairal, Bach, Ponce and Sapiro 2009, "Online dictionary learning for sparse coding", with
codes from this package's solvers, a memory counted in uses of an atom, and atoms that nothing uses replaced.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import sparse

Codes: TypeAlias = sparse.csr_array
"""(rows, n)."""
MEMORY = 100
"""Uses of an atom, on average, after which the statistics of old codes have faded to 1/e: fewer leave an atom noisy,
more hold on to codes of dictionaries long gone."""
UNUSED = 3
"""Uses in an epoch below which an atom is replaced: so few do not determine it."""
TWINS = 0.99
"""|cosine| with a more used atom from which an atom is replaced too (Aharon, Elad and Bruckstein 2006, "K-SVD")."""
ATOMS = 64
"""Atoms updated together: one dense product for all, then a correction from each to the next."""
_ENGINES = {"cpu": "toolkit.sparse_coding", "cuda": "toolkit.sparse_coding_torch"}


@dataclass(frozen=True)
class Learning:
    """How one dictionary is learned."""

    n_components: int
    """Atoms."""
    n_nonzero: int | None
    """Atoms a code, by matching pursuit; None codes by the lasso."""
    alpha: float | None
    """Weight of |z|_1 where codes come from the lasso."""
    epochs: int
    """Passes over the rows."""
    batch_size: int
    """Rows coded between updates."""
    positive: bool
    """Coefficients >= 0."""
    device: str
    """Where codes are computed."""

    def codes(self, X: Float[np.ndarray, "rows d"], atoms: Float[np.ndarray, "n d"]) -> Codes:
        """Codes (rows, n) of X."""
        engine = importlib.import_module(_ENGINES[self.device])
        if self.n_nonzero is not None:
            return engine.omp_codes(X, atoms, self.n_nonzero, positive=self.positive).codes
        return engine.lasso_codes(X, atoms, self.alpha, tolerance=1e-3, positive=self.positive).codes


@dataclass(frozen=True)
class Rows:
    """Rows that are all different, and what each weighs."""

    X: Float[np.ndarray, "rows d"]
    """In a canonical order."""
    weights: Float[np.ndarray, " rows"]
    """Positive, with mean 1."""


@dataclass(frozen=True)
class Learned:
    """One learned dictionary."""

    components: Float[np.ndarray, "n d"]
    """Atoms of norm 1."""
    history: tuple[float, ...]
    """Weighted share of the held-out rows' squared norm that is not rebuilt, after each epoch."""
    replaced: int
    """How many atoms were replaced in all."""


def learn(
    train: Rows, held_out: Rows, how: Learning, *, seed: int, progress: Callable[[int], None] = lambda done: None
) -> Learned:
    """Learn a dictionary from random training rows as first atoms; `progress` is told of each batch.

    A row's weight multiplies its squared error, and leaves its own code as it is. A batch costs its codes and
    n^2 d multiply-adds for the update; memory holds the n x n and n x d statistics.
    """
    draw = np.random.default_rng([seed, 11])
    rows, n = len(train.X), how.n_components
    first = draw.choice(np.flatnonzero(train.X.any(1)), n, replace=False)
    atoms = _unit(train.X[first])
    products, targets = np.zeros((n, n), atoms.dtype), np.zeros_like(atoms)
    history, replaced = [], 0
    for epoch in range(how.epochs):
        uses, order = np.zeros(n), draw.permutation(rows)
        for start in range(0, rows, how.batch_size):
            batch = order[start : start + how.batch_size]
            codes = how.codes(train.X[batch], atoms)
            uses += np.bincount(codes.indices, minlength=n)
            kept = np.exp(-codes.nnz / (MEMORY * n))
            _remember(products, targets, codes, train.X[batch], train.weights[batch], kept)
            update(atoms, products, targets)
            progress(1)
        idle = _idle(atoms, uses)
        if len(idle) and epoch < how.epochs - 1:
            residual = train.X[batch] - codes @ atoms
            replaced += _replace(atoms, products, targets, idle, residual, train.weights[batch], draw)
        history.append(error(held_out, atoms, how))
    return Learned(atoms, tuple(history), replaced)


def error(rows: Rows, atoms: Float[np.ndarray, "n d"], how: Learning, *, weighted: bool = True) -> float:
    """Share of the rows' squared norm that their codes do not rebuild; nan without rows."""
    if len(rows.X) == 0:
        return float("nan")
    weights = rows.weights if weighted else np.ones(len(rows.X))
    left = np.square(rows.X - how.codes(rows.X, atoms) @ atoms).sum(1)
    return float(weights @ left / (weights @ np.square(rows.X).sum(1)))


def _remember(
    products: np.ndarray, targets: np.ndarray, codes: Codes, X: np.ndarray, weights: np.ndarray, kept: float
) -> None:
    """products = kept * products + Z^T W Z and targets = kept * targets + Z^T W X."""
    weighted = sparse.csr_array((codes * weights[:, None].astype(X.dtype)).T)
    products *= kept
    products += (weighted @ codes).toarray()
    targets *= kept
    targets += weighted @ X


def update(
    atoms: Float[np.ndarray, "n d"], products: Float[np.ndarray, "n n"], targets: Float[np.ndarray, "n d"]
) -> None:
    """Set each atom in turn to the minimiser over the sphere, in place (Mairal et al. 2009, algorithm 2).

    d_j becomes the direction of d_j + (b_j - a_j D) / a_jj, a_j and b_j being rows of products and targets. Atoms
    that no code has used stay.
    """
    for start in range(0, len(atoms), ATOMS):
        block = slice(start, start + ATOMS)
        wanted = targets[block] - products[block] @ atoms  # (block, d)
        own = products[block, block]
        for j in np.flatnonzero(own.diagonal() > 0):
            old = atoms[start + j].copy()
            new = old + wanted[j] / own[j, j]
            size = np.linalg.norm(new)
            if size > 0:
                atoms[start + j] = new / size
                wanted -= own[:, j, None] * (atoms[start + j] - old)


def _idle(atoms: np.ndarray, uses: np.ndarray) -> np.ndarray:
    """Atoms that next to nothing uses, or that do the work of another."""
    order = np.argsort(-uses, kind="stable")
    cosines = np.triu(np.abs(atoms[order] @ atoms[order].T), 1)  # (n, n), above the diagonal: with a more used atom
    twins = order[cosines.max(0) > TWINS]
    return np.union1d(np.flatnonzero(uses < UNUSED), twins)


def _replace(
    atoms: np.ndarray,
    products: np.ndarray,
    targets: np.ndarray,
    idle: np.ndarray,
    residual: np.ndarray,
    weights: np.ndarray,
    draw: np.random.Generator,
) -> int:
    """Turn idle atoms towards what is left of rows, drawn by how much is left of them; returns how many."""
    loss = weights * np.square(residual).sum(1)
    count = min(len(idle), int((loss > 0).sum()))
    if count == 0:
        return 0
    which = draw.choice(len(loss), count, replace=False, p=loss / loss.sum())
    idle = idle[:count]
    atoms[idle] = _unit(residual[which])
    products[idle] = products[:, idle] = targets[idle] = 0
    return count


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def merge(X: Float[np.ndarray, "rows d"], weights: Float[np.ndarray, " rows"]) -> Rows:
    """Rows in a canonical order, equal ones made one with the sum of their weights, those that weigh nothing left out.

    So a row given twice is a row of twice the weight, and never stands on both sides of a split.
    """
    kept = weights > 0
    X = np.ascontiguousarray(X[kept]) + 0.0  # -0.0 is 0.0, of other bytes
    raw = X.view(np.dtype((np.void, X.itemsize * X.shape[1]))).ravel()
    _, first, which = np.unique(raw, return_index=True, return_inverse=True)
    summed = np.bincount(which, weights[kept])
    return Rows(X[first], summed * (len(first) / summed.sum()))
