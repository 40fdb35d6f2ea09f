"""What can be proved about sparse codes, whoever found them: duality gaps, uniqueness, exact recovery.

X (rows, d) is approximated by Z D: the dictionary D (n, d) has one atom a row, as in scikit-learn, and the codes Z
(rows, n) are CSR. Atoms need not have unit norm. I is the support of a code, the entries that are not zero, D_I its
atoms, and D_I^+ the pseudo-inverse that takes a vector to its coefficients on them.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float
from scipy import sparse

from toolkit.certificate_kernels import largest_column, largest_off_support, solve_supports
from toolkit.coherence import as_dictionary, row_blocks
from toolkit.errors import require

Codes: TypeAlias = sparse.csr_array | sparse.csr_matrix
"""Codes of many rows, (rows, n)."""


@dataclass(frozen=True)
class Gaps:
    """How far each row's lasso code is, at most, from the minimum of P(z) = ||x - D^T z||^2 / 2 + alpha ||z||_1."""

    objective: Float[np.ndarray, " rows"]
    """P at the code."""
    absolute: Float[np.ndarray, " rows"]
    """P at the code less the dual value: the minimum is no further below P than this."""
    relative: Float[np.ndarray, " rows"]
    """The absolute gap over P, 0 where P is 0."""
    margin: Float[np.ndarray, " rows"]
    """max over atoms j off the support of |d_j . r| / alpha (positive: of the positive part of d_j . r), 0 if none is
    off it. Where the gap is 0 it is at most 1; below 1, with independent atoms on the support, no other code is
    optimal."""


@dataclass(frozen=True)
class EqualityGaps:
    """How far each row's code is from a solution of basis pursuit, min ||z||_1 subject to D^T z = x."""

    residual: Float[np.ndarray, " rows"]
    """||x - D^T z|| / ||x||; where x is 0, 0 if D^T z is 0 too and inf if not."""
    l1: Float[np.ndarray, " rows"]
    """||z||_1."""
    absolute: Float[np.ndarray, " rows"]
    """||z||_1 - x . nu for a feasible dual point nu. It bounds how far ||z||_1 is above the minimum; it can be
    negative, by at most ||x - D^T z|| ||nu||, where the code does not satisfy the constraint."""
    relative: Float[np.ndarray, " rows"]
    """The absolute gap over ||z||_1, 0 where z is 0 (the residual then says whether z is feasible)."""


def lasso_gaps(
    X: Float[np.ndarray, "rows d"], Z: Codes, D: Float[np.ndarray, "n d"], alpha: float, *, positive: bool = False
) -> Gaps:
    """Duality gap of each row's lasso code, with `positive` of the lasso over z >= 0.

    The dual of P is max ||x||^2 / 2 - ||x - u||^2 / 2 over ||D u||_inf <= alpha (positive: max(D u) <= alpha; Kim et
    al. 2007, "An interior-point method for large-scale l1-regularized least squares", section III). Its point is
    u = alpha theta = s r, with r = x - D^T z, theta = r / max(alpha, ||D r||_inf) and so s <= 1. The gap is summed as
    (1 - s)^2 ||r||^2 / 2 + sum_i (alpha |z_i| - s z_i d_i . r), whose terms are all >= 0 (rounding is cut off
    there): nothing cancels, and a tiny gap keeps its digits. Float64 throughout, a block of rows at a time; the cost
    is one product rows x n x d.

    Raises:
        UserError: for shapes that do not fit, values that are not finite, alpha <= 0, or, with `positive`, z < 0.
    """
    require(np.isfinite(alpha) and alpha > 0, f"alpha={alpha}: a lasso weight is a finite number above 0")
    Z, D = _checked(Z, D, positive)
    X = _matching(X, "X", Z, D)
    objective, absolute, margin = np.empty((3, Z.shape[0]))
    for rows in row_blocks(*Z.shape):
        codes = Z[rows]
        owner, atom, size = _owners(codes), codes.indices, np.abs(codes.data)
        residual = X[rows] - codes @ D  # (block, d), float64 as D is
        correlation = residual @ D.T  # (block, n)
        scale = alpha / np.maximum(alpha, _largest(correlation, positive))
        slack = np.maximum(alpha * size - scale[owner] * codes.data * correlation[owner, atom], 0)
        energy = np.square(residual).sum(1) / 2
        objective[rows] = energy + alpha * _per_row(size, owner, len(scale))
        absolute[rows] = (1 - scale) ** 2 * energy + _per_row(slack, owner, len(scale))
        correlation[owner, atom] = 0
        margin[rows] = _largest(correlation, positive) / alpha
    return Gaps(objective, absolute, _ratio(absolute, objective), margin)


def equality_gaps(
    X: Float[np.ndarray, "rows d"],
    Z: Codes,
    D: Float[np.ndarray, "n d"],
    *,
    dual: Float[np.ndarray, "rows d"] | None = None,
    positive: bool = False,
) -> EqualityGaps:
    """Feasibility and duality gap of each row's code for min ||z||_1 s.t. D^T z = x (positive: and z >= 0).

    The dual is max x . nu over ||D nu||_inf <= 1 (positive: max(D nu) <= 1; Chen, Donoho and Saunders 2001, "Atomic
    decomposition by basis pursuit"). `dual` holds a solver's points nu, divided here by max(1, ||D nu||_inf). Without
    it nu = D_I^{+T} sign(z_I), divided likewise: where Fuchs' condition holds that proves the code optimal, elsewhere
    the gap is loose. It takes the Gram matrix (8 n^2 bytes) and k^3 / 6 products a row; so pass the solver's points
    where supports are long.

    Raises:
        UserError: for shapes that do not fit, values that are not finite or, with `positive`, z < 0.
    """
    Z, D = _checked(Z, D, positive)
    X = _matching(X, "X", Z, D)
    if dual is not None:
        dual = _matching(dual, "dual", Z, D)
    weights, independent = _support_weights(Z, D) if dual is None else (Z, np.ones(Z.shape[0], np.bool_))
    residual, l1, absolute = np.empty((3, Z.shape[0]))
    for rows in row_blocks(*Z.shape):
        codes = Z[rows]
        owner, atom, size = _owners(codes), codes.indices, np.abs(codes.data)
        nu = _smallest_duals(codes, weights[rows], independent[rows], D) if dual is None else dual[rows]
        correlation = nu @ D.T  # (block, n)
        scale = 1 / np.maximum(1, _largest(correlation, positive))
        error = X[rows] - codes @ D  # (block, d)
        slack = np.maximum(size - scale[owner] * codes.data * correlation[owner, atom], 0)
        absolute[rows] = _per_row(slack, owner, len(scale)) - scale * (error * nu).sum(1)
        size_of_x = np.linalg.norm(X[rows].astype(np.float64), axis=1)
        residual[rows] = _ratio(np.linalg.norm(error, axis=1), size_of_x, empty=np.inf)
        l1[rows] = _per_row(size, owner, len(scale))
    return EqualityGaps(residual, l1, absolute, _ratio(absolute, l1))


def fuchs(Z: Codes, D: Float[np.ndarray, "n d"], *, positive: bool = False) -> Float[np.ndarray, " rows"]:
    """max over atoms j off the support of |d_j . D_I^{+T} sign(z_I)|; below 1 it proves the code unique.

    Below 1, z is the only solution of basis pursuit for x = D^T z (Fuchs 2004, "On sparse representations in
    arbitrary redundant bases"): the vector D_I^{+T} sign(z_I) is then a strict dual certificate. At 1 or
    above nothing follows, for another certificate may do. With `positive`, of basis pursuit over z >= 0, where only
    the positive part of the product counts. Only signs and support of Z matter.

    It is inf where the support's atoms are dependent: then z is never the only solution. Where no atom is off the
    support it is 0, for independent atoms leave no second code; so it is for an empty support, as z = 0 is the only
    code of norm 0. The Gram matrix takes 8 n^2 bytes, a row k n + k^3 / 6 products.

    Rounded up by a bound on float64's errors, (d + 4k) eps sum_i |w_i| ||d_i|| max_j ||d_j|| with w = G_II^-1 sign(z_I)
    (Higham 2002, "Accuracy and stability of numerical algorithms", theorem 10.4): an atom's twin off the support gives
    1 and never less.

    Raises:
        UserError: for shapes that do not fit, values that are not finite or, with `positive`, z < 0.
    """
    Z, D = _checked(Z, D, positive)
    gram = D @ D.T
    weights, independent = _support_weights(Z, D, gram)
    largest = np.empty(Z.shape[0])
    largest_off_support(gram, weights.indptr, weights.indices, weights.data, positive, largest)
    lengths = np.linalg.norm(D, axis=1)
    terms = D.shape[1] + 4 * np.diff(Z.indptr)
    error = terms * np.finfo(np.float64).eps * (abs(weights) @ lengths) * lengths.max()
    return np.where(independent, largest + error, np.inf)


def exact_recovery(Z: Codes, D: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " rows"]:
    """Tropp's exact recovery coefficient max over j off the support of ||D_I^+ d_j||_1; only the support matters.

    Below 1, orthogonal matching pursuit finds in k steps, and basis pursuit finds too, every code with this support,
    whatever its signs and sizes (Tropp 2004, "Greed is good", theorems 3.1 and 3.3). The source takes atoms of unit
    norm, but its proof compares the products |d_j . r| with atoms as they are, so that the statement holds for any
    norms of a pursuit that selects by |d_j . r| and of ||z||_1 as given. For a pursuit that divides by ||d_j||, pass
    the dictionary with its atoms normalised: the coefficient is another one.

    Never below `fuchs`, and rounded up likewise; inf where the support's atoms are dependent, 0 where the support is
    empty or no atom is off it. A row costs k^2 n products, k times as many as `fuchs`: 32 atoms a row among 3,072 are
    3.1 million. Where rows are many, pass a sample of them.

    Raises:
        UserError: for shapes that do not fit and values that are not finite.
    """
    Z, D = _checked(Z, D, positive=False)
    largest = np.empty(Z.shape[0])
    largest_column(D @ D.T, np.linalg.norm(D, axis=1), Z.indptr, Z.indices, D.shape[1], largest)
    return largest


def _support_weights(
    Z: sparse.csr_array, D: Float[np.ndarray, "n d"], gram: Float[np.ndarray, "n n"] | None = None
) -> tuple[sparse.csr_array, Bool[np.ndarray, " rows"]]:
    """w_I = G_II^-1 sign(z_I) on each row's support, so that D_I^{+T} sign(z_I) = D^T w, and where that exists."""
    weights, independent = np.zeros(Z.nnz), np.empty(Z.shape[0], np.bool_)
    gram = D @ D.T if gram is None else gram
    solve_supports(gram, Z.indptr, Z.indices, np.sign(Z.data), D.shape[1], weights, independent)
    return sparse.csr_array((weights, Z.indices, Z.indptr), shape=Z.shape), independent


def _smallest_duals(
    codes: sparse.csr_array, weights: sparse.csr_array, independent: Bool[np.ndarray, " rows"], D: np.ndarray
) -> Float[np.ndarray, "rows d"]:
    """D_I^{+T} sign(z_I) of each row, by least squares where the atoms of the support are dependent."""
    nu = weights @ D
    for row in np.flatnonzero(~independent):
        entries = slice(codes.indptr[row], codes.indptr[row + 1])
        nu[row] = np.linalg.lstsq(D[codes.indices[entries]], np.sign(codes.data[entries]))[0]
    return nu


def _checked(Z: Codes, D: Float[np.ndarray, "n d"], positive: bool) -> tuple[sparse.csr_array, np.ndarray]:
    """Z and D in float64; a copy of Z, without stored zeros or duplicates, so that what is stored is the support."""
    D = as_dictionary(D)
    Z = sparse.csr_array(Z, dtype=np.float64, copy=True)
    require(Z.shape[1] == len(D), f"Z has shape {Z.shape} and D {D.shape}: expected one column of Z an atom of D")
    require(bool(np.isfinite(Z.data).all()), "Z has values that are not finite")
    Z.sum_duplicates()
    Z.eliminate_zeros()
    require(not positive or bool((Z.data > 0).all()), "Z has negative entries: leave out positive=True")
    return sparse.csr_array((Z.data, Z.indices.astype(np.int64), Z.indptr.astype(np.int64)), shape=Z.shape), D


def _matching(A: Float[np.ndarray, "rows d"], name: str, Z: sparse.csr_array, D: np.ndarray) -> np.ndarray:
    """A, refused unless it is finite and has Z's rows and D's dimensions."""
    A = np.asarray(A)
    expected = (Z.shape[0], D.shape[1])
    require(A.shape == expected, f"{name} has shape {A.shape}: expected {expected}, rows of Z and dimensions of D")
    require(bool(np.isfinite(A).all()), f"{name} has values that are not finite")
    return A


def _owners(codes: sparse.csr_array) -> np.ndarray:
    """The row of each stored entry, (nnz,)."""
    return np.repeat(np.arange(codes.shape[0]), np.diff(codes.indptr))


def _per_row(entries: Float[np.ndarray, " nnz"], owner: np.ndarray, rows: int) -> Float[np.ndarray, " rows"]:
    """The sum over each row's stored entries."""
    # The sum over no entries at all comes out in integers.
    return np.bincount(owner, weights=entries, minlength=rows).astype(np.float64, copy=False)


def _largest(products: Float[np.ndarray, "rows n"], positive: bool) -> Float[np.ndarray, " rows"]:
    """Each row's largest absolute value, or its largest positive part."""
    return np.max(products if positive else np.abs(products), axis=1, initial=0)


def _ratio(
    part: Float[np.ndarray, " rows"], whole: Float[np.ndarray, " rows"], *, empty: float = 0.0
) -> Float[np.ndarray, " rows"]:
    """part / whole; where whole is 0, 0 if part is 0 and `empty` if not."""
    apart = np.where(part == 0, 0.0, empty)
    return np.divide(part, whole, out=apart, where=whole > 0)
