"""Rows that keep some statistics of given rows and lose the rest: second moments, marginals, sparsity."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from controls.finders import AT_ONCE, Finder, Latents
from toolkit.errors import require

ROUNDS = 3
"""Times that covariance and marginals are set in turn; the covariance is then right to some thousandths."""
FLAT = 1e-12
"""Share of the largest variance below which a direction counts as without variance."""


def rotated(X: Float[Tensor, "rows d"], rng: np.random.Generator) -> Float[Tensor, "rows d"]:
    """Gaussian rows of exactly X's mean and covariance.

    X less its mean is U S V^T; they are Q S V^T with Q uniform among orthonormal columns that sum to 0. Gaussian rows
    given their mean and covariance are distributed so (Langsrud 2005, Rotation tests), hence a test against these is
    exact.
    """
    rows, mean = _centred(X)
    return _single(mean + _rotated(rows, rng))


def rank_matched(X: Float[Tensor, "rows d"], rng: np.random.Generator) -> Float[Tensor, "rows d"]:
    """Rows with exactly the values of X in each column, ordered as Gaussian rows of nearly X's covariance.

    Marginals and covariance are set in turn, marginals last (Schreiber and Schmitz 1996, with the covariance in the
    place of the spectrum).
    """
    rows, mean = _centred(X)
    values, covariance = np.sort(rows, 0), rows.T @ rows / len(rows)
    found = _ranked(_rotated(rows, rng), values)
    for _ in range(ROUNDS):
        found = _ranked(found @ _transport(found.T @ found / len(found), covariance), values)
    return _single(mean + found)


@dataclass(frozen=True)
class Coded:
    """Rows as a finder codes them: rows = codes atoms + rest."""

    rows: Float[np.ndarray, "rows d"]
    """Less their mean."""
    mean: Float[np.ndarray, " d"]
    """Theirs."""
    codes: Any
    """(rows, atoms), sparse, by columns."""
    norms: Float[np.ndarray, " atoms"]
    """Of the atoms."""
    rest: Float[np.ndarray, "rows d"]
    """Less its mean."""


def coded(finder: Finder, X: Float[Tensor, "rows d"]) -> Coded:
    """Rows in the latents of an SAE, or in a finder's coordinates along its directions.

    Raises:
        UserError: a finder without directions.
    """
    rows, mean = _centred(X)
    if isinstance(finder, Latents):
        atoms = finder.sae.W_dec[0].detach().double().cpu().numpy()
        with torch.no_grad():
            parts = (finder.sae.encode(some[None].float())[0].cpu().numpy() for some in X.split(AT_ONCE))
            codes = sparse.vstack([sparse.csr_array(part) for part in parts]).astype(float)
    else:
        directions = finder.directions()
        require(directions is not None, f"finder {finder.family!r} has no directions: it codes no rows")
        assert directions is not None
        atoms = directions.double().numpy()
        codes = sparse.csr_array(rows @ np.linalg.pinv(atoms))
    rest = rows - codes @ atoms
    return Coded(rows, mean, sparse.csc_array(codes), np.linalg.norm(atoms, axis=1), rest - rest.mean(0))


@dataclass(frozen=True)
class Sparse:
    """Rows of a random dictionary."""

    rows: Float[Tensor, "rows d"]
    """Codes times atoms, and a Gaussian rest."""
    atoms: Float[Tensor, "atoms d"]
    """What stands for each atom."""


def random_sparse(given: Coded, rng: np.random.Generator) -> Sparse:
    """Rows of exactly the same mean and covariance, equally sparse in a random dictionary of as many atoms.

    Each atom keeps its values, dealt to other rows, and its norm; its direction is drawn from N(0, covariance). What
    codes leave over is drawn by `rotated`. A linear map, the one that moves rows least, then sets the covariance: it
    takes atoms along, and leaves codes as they are.
    """
    n, d = given.rows.shape
    covariance = given.rows.T @ given.rows / n
    drawn = rng.standard_normal((len(given.norms), d)) @ _power(covariance, 0.5)
    atoms = drawn * (given.norms / np.linalg.norm(drawn, axis=1).clip(min=1e-300))[:, None]
    rows = _dealt(given.codes, rng) @ atoms
    rows = rows - rows.mean(0) + _rotated(given.rest, rng)
    fit = _transport(rows.T @ rows / n, covariance)
    return Sparse(_single(given.mean + rows @ fit), _single(atoms @ fit))


def _dealt(codes: Any, rng: np.random.Generator) -> Any:
    """Each column's values at other rows, drawn without replacement."""
    n = codes.shape[0]
    counts = np.diff(codes.indptr)
    rows = [rng.choice(n, count, replace=False) for count in counts if count]
    index = np.concatenate(rows) if rows else np.empty(0, int)
    columns = np.repeat(np.arange(codes.shape[1]), counts)
    return sparse.csr_array((codes.data, (index, columns)), shape=codes.shape)


def _centred(X: Tensor) -> tuple[np.ndarray, np.ndarray]:
    rows = X.double().numpy()
    return rows - rows.mean(0), rows.mean(0)


def _single(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).float()


def _rotated(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of rows with mean 0."""
    values, vectors = np.linalg.eigh(rows.T @ rows)
    kept = values > FLAT * values.max(initial=0.0)
    kept[: max(0, len(values) - (len(rows) - 1))] = False  # rows less their mean span no more than rows - 1
    drawn = rng.standard_normal((len(rows), int(kept.sum())))
    Q, R = np.linalg.qr(drawn - drawn.mean(0))
    uniform = Q * np.sign(np.diag(R))  # QR's own signs are not uniform
    return np.asarray((uniform * np.sqrt(values[kept])) @ vectors[:, kept].T)


def _ranked(order: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The sorted values of each column, in the order of another matrix."""
    found = np.empty_like(values)
    np.put_along_axis(found, order.argsort(0), values, 0)
    return found


def _power(covariance: np.ndarray, exponent: float) -> np.ndarray:
    """Of a symmetric matrix, 0 where it has no variance."""
    values, vectors = np.linalg.eigh(covariance)
    raised = np.where(values > FLAT * values.max(initial=0.0), values.clip(min=1e-300) ** exponent, 0.0)
    return np.asarray((vectors * raised) @ vectors.T)


def _transport(covariance: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The map of Gaussian rows that sets a covariance and moves them least (Olkin and Pukelsheim 1982)."""
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    return np.asarray(inverse @ _power(root @ wanted @ root, 0.5) @ inverse)
