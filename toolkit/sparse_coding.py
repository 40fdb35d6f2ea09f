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
from toolkit.certificates import lasso_gaps
from toolkit.coding_inputs import check_count, check_lasso, checked

Codes: TypeAlias = sparse.csr_array
"""(rows, n)."""
BLOCK = 64 * 2**20
"""Bytes of a block's correlations."""
CLOSE = 8.0
"""Rounding of a float32 correlation, in units of machine precision times |x| |d|, within which a choice between two
atoms is left to float64."""
FINEST = 1e-5
"""Duality gap below which the lasso computes in float64, whatever the type of X."""
DIGITS = 3e-7
"""Rounding of a float32 correlation as a share of |x| |d|: a row is solved in float64 where correlations must be within
tolerance * alpha and that is less."""
UNEVEN = 1e-10
"""Largest share by which the homotopy lengthens atoms, each by its own, so that no two events on a path coincide: with
a tie, as small whole numbers and twins make them, it may take the wrong turn. The final code is fitted without it."""


@dataclass(frozen=True)
class Solved:
    """What a solver found."""

    codes: Codes
    """(rows, n)."""
    given_up: Int[np.ndarray, " unsolved"]
    """Indices of rows that were not solved to tolerance."""
    dual: Float[np.ndarray, "rows d"] | None = None
    """For basis pursuit a point nu with |D nu| <= 1 for each row; x . nu = |z|_1 proves the code optimal."""


def omp_codes(X: Any, D: Any, n_nonzero: int, *, positive: bool = False) -> Solved:
    """Codes of at most `n_nonzero` atoms by orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993).

    Each step takes the atom of the largest |d . r|, atoms as they are given, and refits all coefficients; it ends
    early where the residual is zero or the next atom depends on those chosen. With `positive` the largest d . r and
    non-negative coefficients (Bruckstein, Elad and Zibulevsky 2008); atoms may then leave again, and choices too close
    for float32 are left to it.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom, n_nonzero outside 1..n.
    """
    X, D = checked(X, D)
    check_count(n_nonzero, len(D))
    n_nonzero = min(n_nonzero, D.shape[1])  # more cannot be independent
    gram, parts, doubtful = D @ D.T, [], []
    for rows in _blocks(len(X), len(D), X.itemsize):
        codes, undecided = _omp_block(X[rows], D, gram, n_nonzero, positive)
        parts.append(codes)
        doubtful.append(np.flatnonzero(undecided) + rows.start)
    codes, index = stacked(parts), np.concatenate(doubtful)
    if len(index):
        fine = omp_codes(X[index].astype(np.float64), D.astype(np.float64), n_nonzero)
        codes = with_rows(codes, index, fine.codes)
    return Solved(codes, np.empty(0, int))


def _omp_block(X: np.ndarray, D: np.ndarray, gram: np.ndarray, most: int, positive: bool) -> tuple[Codes, np.ndarray]:
    """Codes of a block, and which of its rows float32 cannot decide; their codes are empty."""
    single = X.dtype == np.float32
    correlations = X @ D.T  # (block, n)
    scale = _sizes(X, D)  # (block,)
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
    return as_csr(chosen, values, counts, len(D)), counts < 0


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
    those of a larger alpha. Rows that need more digits are solved in float64, those that the working-set solver gives
    up there by homotopy. With `positive` z >= 0.

    Raises:
        UserError: shapes that do not fit, values that are not finite, a zero atom, alpha or tolerance not above 0.
    """
    X, D = checked(X, D)
    check_lasso(alpha, tolerance)
    single = X.dtype == np.float32
    fine = single & ((tolerance < FINEST) | (tolerance * alpha < DIGITS * _sizes(X, D)))  # (rows,)
    codes, hard = _working_sets(X, D, np.flatnonzero(~fine), alpha, tolerance, positive, start)
    index = np.union1d(np.flatnonzero(fine), hard)
    if len(index) == 0:
        return Solved(codes, index)
    rows, atoms = X[index].astype(np.float64), D.astype(np.float64)
    if single:
        warm = None if start is None else start[index]
        exact = lasso_codes(rows, atoms, alpha, tolerance=tolerance, positive=positive, start=warm)
    else:
        exact = _follow(rows, atoms, alpha, positive)
        gaps = lasso_gaps(rows, exact.codes, atoms, alpha, positive=positive).relative
        exact = Solved(exact.codes, np.flatnonzero(gaps > tolerance))
    return Solved(with_rows(codes, index, exact.codes), index[exact.given_up])


def _sizes(X: np.ndarray, D: np.ndarray) -> np.ndarray:
    """The largest |x| |d| of each row, (rows,)."""
    return np.linalg.norm(X, axis=1) * np.linalg.norm(D, axis=1).max()


def _working_sets(
    X: np.ndarray,
    D: np.ndarray,
    which: np.ndarray,
    alpha: float,
    tolerance: float,
    positive: bool,
    start: Codes | None,
) -> tuple[Codes, np.ndarray]:
    """Codes (rows, n) with those of some rows solved and the others empty; which of them were given up."""
    gram, parts, hard = D @ D.T, [], []
    for block in _blocks(len(which), len(D), X.itemsize):
        rows = which[block]
        warm = None if start is None else start[rows]
        codes, given_up = _lasso_block(X[rows], D, gram, alpha, tolerance, positive, warm)
        parts.append(codes)
        hard.append(rows[given_up])
    empty = sparse.csr_array((len(X), len(D)), dtype=X.dtype)
    if len(which) == 0:
        return empty, which
    codes = stacked(parts)
    return codes if len(which) == len(X) else with_rows(empty, which, codes), np.concatenate(hard)


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
    whole = np.int32 if X.dtype == np.float32 else np.int64
    mask = np.array([-1 if positive else np.iinfo(whole).max], whole)
    weight = X.dtype.type(alpha)
    lasso_kernels.lasso(correlations, squares, gram, weight, tolerance, positive, mask, chosen, values, sizes)
    return as_csr(chosen, values, sizes, len(D)), sizes < 0


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
    scale = 1 + UNEVEN * np.random.default_rng(0).random(len(D))
    atoms = D.astype(np.float64)
    gram, parts, hard = atoms @ atoms.T, [], []
    uneven = scale[:, None] * gram * scale
    dual = np.empty(X.shape)
    for rows in _blocks(len(X), len(D), 8):
        block = X[rows].astype(np.float64)
        most = min(D.shape)
        chosen, values = np.zeros((len(block), most), np.int32), np.zeros((len(block), most))
        counts = np.empty(len(block), np.int32)
        correlations = block @ atoms.T
        homotopy.follow(correlations, gram, scale, uneven, atoms, alpha, positive, chosen, values, counts, dual[rows])
        largest = np.abs(values).max(1, keepdims=True)
        values[np.abs(values) <= homotopy.ROUNDING * largest] = 0
        parts.append(as_csr(chosen, values, counts, len(D)).astype(X.dtype))
        hard.append(np.flatnonzero(counts < 0) + rows.start)
    return Solved(stacked(parts), np.concatenate(hard), dual)


def _blocks(rows: int, n: int, itemsize: int) -> list[slice]:
    size = max(64, BLOCK // (n * itemsize))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def as_csr(chosen: np.ndarray, values: np.ndarray, counts: np.ndarray, n: int) -> Codes:
    """CSR from the first counts[r] entries of each row, zeros left out."""
    used = max(counts.max(initial=0), 0)
    chosen, values = chosen[:, :used], values[:, :used]
    kept = (np.arange(used) < counts[:, None]) & (values != 0)
    starts = np.concatenate(([0], np.cumsum(kept.sum(1))))
    codes = sparse.csr_array((values[kept], chosen[kept], starts), shape=(len(chosen), n))
    codes.sort_indices()
    return codes


def stacked(parts: list[Codes]) -> Codes:
    """The codes of consecutive blocks of rows as one."""
    return sparse.csr_array(sparse.vstack(parts, format="csr"))


def with_rows(codes: Codes, rows: np.ndarray, solved: Codes) -> Codes:
    """The codes with those of some rows, empty so far, put in."""
    ones = (np.ones(len(rows), codes.dtype), (rows, np.arange(len(rows))))
    place = sparse.csr_array(ones, shape=(codes.shape[0], len(rows)))
    return sparse.csr_array(codes + place @ solved.astype(codes.dtype))
