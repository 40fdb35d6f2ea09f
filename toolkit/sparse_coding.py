"""Rows to sparse codes on the CPU: checks, blocks of rows, and float64 where float32 cannot decide.

X (rows, d) is written as Z D with a dictionary D (n, d), one atom a row as in scikit-learn, and codes Z (rows, n) in
CSR. A block's correlations X D^T are one dense product; from there on only the Gram matrix is used. Beside X, D and
the codes, memory holds the Gram matrix and one block.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from toolkit import homotopy, lasso_kernels, pursuit_kernels
from toolkit.errors import require

Codes: TypeAlias = sparse.csr_array
"""(rows, n)."""
BLOCK = 64 * 2**20
"""Bytes of a block's correlations."""
CLOSE = 8.0
"""Rounding of a float32 correlation, in units of machine precision times |x| |d|, within which a choice between two
atoms is left to float64."""
FINEST = 1e-5
"""Duality gap below which the lasso computes in float64."""
UNEVEN = 1e-10
"""Largest share by which the homotopy lengthens atoms, each by its own, so that no two events on a path coincide: with
a tie, as small whole numbers and twins make them, it may take the wrong turn. A code's gap grows by no more."""


@dataclass(frozen=True)
class Solved:
    """What a solver found."""

    codes: Codes
    """(rows, n)."""
    given_up: Int[np.ndarray, " unsolved"]
    """Indices of rows without a solution; their codes are empty."""
    dual: Float[np.ndarray, "rows d"] | None = None
    """For basis pursuit a point nu with |D nu| <= 1 for each row; x . nu = |z|_1 proves the code optimal."""


def omp_codes(X: Any, D: Any, n_nonzero: int, *, positive: bool = False) -> Solved:
    """Codes of at most `n_nonzero` atoms by orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993).

    Each step takes the atom of the largest |d . r|, atoms as they are given, and refits all coefficients; it ends
    early where the residual is zero or the next atom depends on those chosen. With `positive` the largest d . r and
    non-negative coefficients (Bruckstein, Elad and Zibulevsky 2008); atoms may then leave again.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom, n_nonzero outside 1..n.
    """
    X, D = checked(X, D)
    require(
        1 <= n_nonzero <= len(D),
        f"n_nonzero={n_nonzero} for {len(D)} atoms: expected a whole number from 1 to {len(D)}",
    )
    gram, parts, doubtful = D @ D.T, [], []
    for rows in _blocks(len(X), len(D), X.itemsize):
        codes, undecided = _omp_block(X[rows], D, gram, n_nonzero, positive)
        parts.append(codes)
        doubtful.append(np.flatnonzero(undecided) + rows.start)
    codes, index = _stacked(parts), np.concatenate(doubtful)
    if len(index):
        fine = omp_codes(X[index].astype(np.float64), D.astype(np.float64), n_nonzero)
        codes = _with(codes, index, fine.codes)
    return Solved(codes, np.empty(0, int))


def _omp_block(X: np.ndarray, D: np.ndarray, gram: np.ndarray, most: int, positive: bool) -> tuple[Codes, np.ndarray]:
    """Codes of a block, and which of its rows float32 cannot decide; their codes are empty."""
    single = X.dtype == np.float32
    correlations = X @ D.T  # (block, n)
    scale = np.linalg.norm(X, axis=1) * np.sqrt(gram.diagonal().max())  # (block,)
    chosen = np.empty((len(X), most), np.int32)
    values, counts = np.empty((len(X), most), X.dtype), np.empty(len(X), np.int32)
    if positive:
        floor = (64 * np.finfo(X.dtype).eps * scale).astype(X.dtype)
        pursuit_kernels.non_negative_omp(correlations, gram, most, floor, chosen, values, counts)
    else:
        whole = np.int32 if single else np.int64
        noise = (CLOSE * np.finfo(X.dtype).eps * scale if single else 0 * scale).astype(X.dtype)
        floor = (0 * scale if single else 1e-10 * scale).astype(X.dtype)
        bits, mask = correlations.view(whole), whole(np.iinfo(whole).max)
        pursuit_kernels.omp(correlations, bits, mask, gram, most, noise, floor, 1e-12, chosen, values, counts)
    return _as_csr(chosen, values, counts, len(D)), counts < 0


def lasso_codes(
    X: Any,
    D: Any,
    alpha: float,
    *,
    tolerance: float = 1e-4,
    positive: bool = False,
    start: Codes | None = None,
) -> Solved:
    """Codes that minimise 1/2 |x - D^T z|^2 + alpha |z|_1, each to a relative duality gap of `tolerance`.

    The gap is (P(z) - D(theta)) / P(z) with theta = r / max(alpha, |D r|_inf). `start` holds codes to begin with, say
    those of a larger alpha. Rows that the working-set solver gives up are solved by homotopy. With `positive` z >= 0.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom, alpha or tolerance not above 0.
    """
    X, D = checked(X, D)
    require(np.isfinite(alpha) and alpha > 0, f"alpha={alpha}: expected a finite number above 0")
    require(0 < tolerance < 1, f"tol={tolerance}: expected a relative gap between 0 and 1")
    fine = X.dtype == np.float32 and tolerance < FINEST
    atoms = D.astype(np.float64) if fine else D
    gram, parts, hard = atoms @ atoms.T, [], []
    for rows in _blocks(len(X), len(D), atoms.itemsize):
        block = X[rows].astype(atoms.dtype, copy=False)
        codes, given_up = _lasso_block(
            block, atoms, gram, alpha, tolerance, positive, None if start is None else start[rows]
        )
        parts.append(codes.astype(X.dtype))
        hard.append(np.flatnonzero(given_up) + rows.start)
    codes, index = _stacked(parts), np.concatenate(hard)
    if len(index) == 0:
        return Solved(codes, index)
    exact = _follow(X[index], D, alpha, positive)
    return Solved(_with(codes, index, exact.codes), index[exact.given_up])


def _lasso_block(
    X: np.ndarray,
    D: np.ndarray,
    gram: np.ndarray,
    alpha: float,
    tolerance: float,
    positive: bool,
    start: Codes | None,
) -> tuple[Codes, np.ndarray]:
    """Codes of a block, and which of its rows were given up."""
    most = min(len(D), 2 * X.shape[1] + 4 * lasso_kernels.FIRST)
    chosen, values = np.zeros((len(X), most), np.int32), np.zeros((len(X), most), X.dtype)
    sizes = np.zeros(len(X), np.int32)
    if start is not None:
        for r in range(len(X)):
            entries = slice(start.indptr[r], start.indptr[r + 1])
            if entries.stop - entries.start <= most:
                sizes[r] = entries.stop - entries.start
                chosen[r, : sizes[r]], values[r, : sizes[r]] = start.indices[entries], start.data[entries]
    correlations, squares = X @ D.T, np.square(X, dtype=np.float64).sum(1)
    lasso_kernels.lasso(correlations, squares, gram, X.dtype.type(alpha), tolerance, positive, chosen, values, sizes)
    return _as_csr(chosen, values, sizes, len(D)), sizes < 0


def basis_pursuit_codes(X: Any, D: Any, *, positive: bool = False) -> Solved:
    """Codes of least |z|_1 among those with D^T z = x, by following the lasso's path to its end, in float64.

    Where x is outside the span of the atoms (with `positive`, their cone) no code exists; the one returned is then
    of least |z|_1 among those that come nearest to x.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom.
    """
    X, D = checked(X, D)
    return _follow(X, D, 0.0, positive)


def _follow(X: np.ndarray, D: np.ndarray, alpha: float, positive: bool) -> Solved:
    """The lasso's homotopy from its largest alpha down to `alpha`, in float64."""
    scale = 1 + UNEVEN * np.random.default_rng(0).random((len(D), 1))
    atoms = D * scale  # (n, d), float64
    gram, parts, hard = atoms @ atoms.T, [], []
    dual = np.empty(X.shape)
    for rows in _blocks(len(X), len(D), 8):
        block = X[rows].astype(np.float64)
        most = min(D.shape)
        chosen, values = np.zeros((len(block), most), np.int32), np.zeros((len(block), most))
        counts = np.empty(len(block), np.int32)
        homotopy.follow(block @ atoms.T, gram, atoms, alpha, positive, chosen, values, counts, dual[rows])
        values *= scale[chosen, 0]
        parts.append(_as_csr(chosen, values, counts, len(D)).astype(X.dtype))
        hard.append(np.flatnonzero(counts < 0) + rows.start)
    return Solved(_stacked(parts), np.concatenate(hard), dual)


def checked(X: Any, D: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows and dictionary as contiguous arrays of one floating type, float32 if X is.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom.
    """
    X = as_rows(X, "X")
    D = as_rows(D, "dictionary").astype(X.dtype, copy=False)
    require(
        X.shape[1] == D.shape[1],
        f"X has {X.shape[1]} columns and the dictionary's atoms have {D.shape[1]}: expected as many",
    )
    zero = np.flatnonzero(~D.any(1))
    require(
        len(zero) == 0,
        f"atom {zero[0] if len(zero) else 0} of the dictionary is zero ({len(zero)} are): leave zero atoms out",
    )
    return X, D


def as_rows(A: Any, name: str) -> np.ndarray:
    """A two-dimensional, finite, contiguous float32 or float64 array."""
    A = np.asarray(A)
    require(A.ndim == 2 and A.size > 0, f"{name} has shape {A.shape}: expected (rows, d), neither of them 0")
    require(A.dtype.kind in "fiub", f"{name} holds {A.dtype}: expected real numbers")
    A = np.ascontiguousarray(A, np.float32 if A.dtype == np.float32 else np.float64)
    finite = np.isfinite(A).all(1)
    require(finite.all(), f"{name} holds NaN or infinity, first in row {np.argmin(finite)}: mend or leave out the row")
    return A


def _blocks(rows: int, n: int, itemsize: int) -> list[slice]:
    size = max(64, BLOCK // (n * itemsize))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _as_csr(chosen: np.ndarray, values: np.ndarray, counts: np.ndarray, n: int) -> Codes:
    """CSR from the first counts[r] entries of each row, zeros left out."""
    kept = (np.arange(chosen.shape[1]) < counts[:, None]) & (values != 0)
    starts = np.concatenate(([0], np.cumsum(kept.sum(1))))
    codes = sparse.csr_array((values[kept], chosen[kept], starts), shape=(len(chosen), n))
    codes.sort_indices()
    return codes


def _stacked(parts: list[Codes]) -> Codes:
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def _with(codes: Codes, rows: np.ndarray, solved: Codes) -> Codes:
    """The codes with those of some rows, empty so far, put in."""
    ones = (np.ones(len(rows), codes.dtype), (rows, np.arange(len(rows))))
    place = sparse.csr_array(ones, shape=(codes.shape[0], len(rows)))
    return sparse.csr_array(codes + place @ solved.astype(codes.dtype))
