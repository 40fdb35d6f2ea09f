"""Compiled pieces of the certificates: for each row, a Cholesky factor of the Gram matrix of its support.

The support of row r is indices[indptr[r]:indptr[r+1]]. All arithmetic is float64: what comes out is a claim of proof.
"""

import numba
import numpy as np

from toolkit.samplers import FAST

INDEPENDENT = 1e-10
"""Atoms count as dependent where one's squared distance from the span of the others before it is at most this times
its squared norm (a hundred-thousandth of its length): beyond that, float64 leaves too few digits for a claim."""

_EPS = np.finfo(np.float64).eps
# Rows a thread takes at a time, so that scratch memory is allocated once for many.
_CHUNK = 16
# Atoms solved for at a time: k * _TILE numbers stay in the second-level cache for k up to a few hundred.
_TILE = 64


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _factor(gram, support, L):
    """Cholesky factor of gram[support, support] into the lower triangle of L; False where it is deficient."""
    for i in range(support.shape[0]):
        row = gram[support[i]]
        for j in range(i + 1):
            left = row[support[j]]
            for m in range(j):
                left -= L[i, m] * L[j, m]
            if j < i:
                L[i, j] = left / L[j, j]
            elif left > INDEPENDENT * row[support[i]]:
                L[i, i] = np.sqrt(left)
            else:
                return False
    return True


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def solve_supports(gram, indptr, indices, signs, dimension, weights, independent):
    """weights[I] = G_II^-1 signs[I] for each row's support I, and whether its atoms are independent, (rows,)."""
    rows = independent.shape[0]
    for chunk in numba.prange((rows + _CHUNK - 1) // _CHUNK):
        first, last = chunk * _CHUNK, min((chunk + 1) * _CHUNK, rows)
        longest = np.max(indptr[first + 1 : last + 1] - indptr[first:last])
        L = np.empty((longest, longest))
        for r in range(first, last):
            support = indices[indptr[r] : indptr[r + 1]]
            k = support.shape[0]
            independent[r] = k <= dimension and _factor(gram, support, L)
            if not independent[r]:
                continue
            b = weights[indptr[r] : indptr[r + 1]]
            for i in range(k):
                b[i] = signs[indptr[r] + i]
                for m in range(i):
                    b[i] -= L[i, m] * b[m]
                b[i] /= L[i, i]
            for i in range(k - 1, -1, -1):
                b[i] /= L[i, i]
                for m in range(i):
                    b[m] -= L[i, m] * b[i]


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def largest_off_support(gram, indptr, indices, weights, positive, largest):
    """largest[r] = max over j off the support of |sum_i weights_i G_ij|, or of its positive part; (rows,)."""
    rows, n = largest.shape[0], gram.shape[0]
    for chunk in numba.prange((rows + _CHUNK - 1) // _CHUNK):
        sums = np.empty(n)
        for r in range(chunk * _CHUNK, min((chunk + 1) * _CHUNK, rows)):
            sums[:] = 0.0
            for entry in range(indptr[r], indptr[r + 1]):
                weight, row = weights[entry], gram[indices[entry]]
                for j in range(n):
                    sums[j] += weight * row[j]
            for entry in range(indptr[r], indptr[r + 1]):
                sums[indices[entry]] = 0.0
            most = 0.0
            for j in range(n):
                most = max(most, sums[j] if positive else abs(sums[j]))
            largest[r] = most


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _column_norms(L, block, norms):
    """norms[j] = ||(L L^T)^-1 block[:, j]||_1; block is (k, tile) and is overwritten."""
    k, tile = block.shape
    for i in range(k):
        for m in range(i):
            factor = L[i, m]
            for j in range(tile):
                block[i, j] -= factor * block[m, j]
        for j in range(tile):
            block[i, j] /= L[i, i]
    norms[:] = 0.0
    for i in range(k - 1, -1, -1):
        for m in range(i + 1, k):
            factor = L[m, i]
            for j in range(tile):
                block[i, j] -= factor * block[m, j]
        for j in range(tile):
            block[i, j] /= L[i, i]
            norms[j] += abs(block[i, j])


@numba.njit(cache=True, fastmath=FAST, error_model="numpy")
def _inverse_norm(L, block, norms):
    """||(L L^T)^-1||_1, the columns of the identity taken through the scratch block (k, tile)."""
    k, tile = block.shape
    most = 0.0
    for start in range(0, k, tile):
        block[:] = 0.0
        for i in range(start, min(start + tile, k)):
            block[i, i - start] = 1.0
        _column_norms(L, block, norms)
        most = max(most, np.max(norms))
    return most


@numba.njit(cache=True, parallel=True, fastmath=FAST, error_model="numpy")
def largest_column(gram, lengths, indptr, indices, dimension, largest):
    """largest[r] = max over j off the support I of ||G_II^-1 G_Ij||_1, inf where G_II is deficient; (rows,).

    Rounded up by (d + 4k) eps ||G_II^-1||_1 sum_i ||d_i|| max_j ||d_j|| (1 + the norm): the products of the Gram
    matrix, d terms each, and the two triangular solves after a factorisation (Higham 2002, theorem 10.4).
    """
    rows, n = largest.shape[0], gram.shape[0]
    longest = np.max(lengths)
    for r in numba.prange(rows):
        support = indices[indptr[r] : indptr[r + 1]]
        k = support.shape[0]
        L, block = np.empty((k, k)), np.empty((k, _TILE))
        norms, off = np.empty(_TILE), np.ones(n, np.bool_)
        off[support] = False
        largest[r] = 0.0 if k <= dimension and _factor(gram, support, L) else np.inf
        if largest[r] == np.inf:
            continue
        for start in range(0, n, _TILE):
            width = min(_TILE, n - start)
            for i in range(k):
                block[i, :width] = gram[support[i], start : start + width]
            _column_norms(L, block, norms)
            for j in range(width):
                if off[start + j]:
                    largest[r] = max(largest[r], norms[j])
        error = (dimension + 4 * k) * _EPS * _inverse_norm(L, block, norms) * np.sum(lengths[support]) * longest
        largest[r] += error * (1 + largest[r])
