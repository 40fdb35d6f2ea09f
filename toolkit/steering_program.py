"""More readouts than dimensions: the shortest steering vectors whose leakage into other readouts stays below a bound.

With m > d rows W S = I is impossible: the mean of diag(W W^+) is d / m. For each readout i what remains is the program
min |s| subject to w_i s = 1 and |w_j s| <= e for all j != i. The least feasible e comes from linear duality:
it is 1 / min{|y|_1 : sum over j != i of y_j w_j = w_i}, a basis pursuit, whose dual point is a vector that attains it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy import sparse

from toolkit.coding_inputs import as_rows
from toolkit.errors import UserError, require
from toolkit.probe_inputs import as_array
from toolkit.sparse_coding import basis_pursuit_codes
from toolkit.steering import square_root

# The program at the least leakage itself has a feasible set without interior, where interior-point methods stall.
_SLACK = 1e-5
_INDEPENDENT = 1e-9
_OVER = 1e-6
"""Share of its bound by which a vector's leakage may exceed it."""
_ROUNDING = 1e-14
"""Leakage along a vector that is rounding, in units of |row| |vector|."""
_WIDEST = 1e-3
"""Relative gap above which a program is not called solved."""
_DIGITS, _STEPS = 1e-10, 200
_GUESSES = 5
"""Of the set of constraints that bind, each from the vector of the last, beginning with the solver's."""


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """What `steering_vectors` found, and what proves it."""

    vectors: Float[np.ndarray, "d m"]
    """One a column; column i moves readout i by one."""
    leakage: Float[np.ndarray, "m m"]
    """W vectors: column i is what each readout moves by along vector i."""
    bound: Float[np.ndarray, " m"]
    """The bound on each vector's leakage in its program; kept to one part in a million, or rounding."""
    least: Float[np.ndarray, "m 2"]
    """Least leakage that any vector can have: a proven lower bound, and what a vector attains."""
    gap: Float[np.ndarray, " m"]
    """Relative duality gap of each program: the squared length is at most this share, .001 or less, above the least."""

    @property
    def largest_leakage(self) -> Float[np.ndarray, " m"]:
        """Largest |movement| of another readout along each vector."""
        return np.abs(self.leakage - np.diag(np.diag(self.leakage))).max(0)


def steering_vectors(
    W: ArrayLike, *, covariance: ArrayLike | None = None, tolerance: float | None = None
) -> SteeringVectors:
    """For each row of W (m, d) the shortest vector that moves it by one and no other by more than `tolerance`.

    Without `tolerance` each vector gets the least feasible one of its own. Lengths are Mahalanobis' with a `covariance`
    (d, d). For independent rows and tolerance 0 these are the columns of `dual_basis`.

    Raises:
        UserError: a zero row, a tolerance that some row cannot keep (the row and its least leakage are named), a
            covariance under which a row reads nothing, rows so nearly dependent that no vector is proved to keep its
            bound and to be the shortest, within .001 of its squared length.
    """
    W = as_rows(as_array(W), "W").astype(np.float64)
    require(
        tolerance is None or (np.isfinite(tolerance) and tolerance >= 0),
        f"tolerance={tolerance}: expected a finite number, 0 or more, or None for the least feasible",
    )
    root = square_root(covariance, W.shape[1])
    V = W @ root  # (m, d)
    norms = np.linalg.norm(V, axis=1)
    require(bool((norms > 0).all()), f"row {np.argmin(norms)} of W reads nothing: it is zero (under the covariance)")
    largest = norms.max()
    V, norms = V / largest, norms / largest
    least, attained = _least_leakage(V)
    if tolerance is not None:
        worst = int(np.argmax(least[:, 0]))
        require(
            least[worst, 0] <= tolerance,
            f"no vector moves row {worst} of W by one and every other by at most {tolerance:g}: its least leakage is "
            f"{least[worst, 0]:.4g}; give a tolerance of at least {least[:, 1].max():.4g}, or None",
        )
    bound = least[:, 1] * (1 + _SLACK) if tolerance is None else np.full(len(W), float(tolerance))
    rows = V / norms[:, None]
    solved = [_shortest(rows, i, e * norms[i] / norms, attained[:, i] * norms[i]) for i, e in enumerate(bound)]
    vectors = root @ np.stack([u for u, _ in solved], 1) / (largest * norms)  # (d, m)
    return SteeringVectors(vectors, W @ vectors, bound, least, np.array([gap for _, gap in solved]))


def _least_leakage(V: Float[np.ndarray, "m d"]) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "d m"]]:
    """Lower bound and attained value of each row's least leakage, and vectors that attain it."""
    inverse = np.linalg.pinv(V)  # (d, m)
    share = np.einsum("md,dm->m", V, inverse)  # 1 for a row that is independent of the others
    least = np.zeros((len(V), 2))
    attained = inverse / share
    for i in np.flatnonzero(1 - share > _INDEPENDENT):
        others = np.delete(V, i, 0)
        others = others[others.any(1)]
        solved = basis_pursuit_codes(V[i : i + 1], others)
        norm = float(np.abs(solved.codes).sum())
        assert solved.dual is not None
        nu = solved.dual[0] / np.abs(others @ solved.dual[0]).max()
        attained[:, i] = nu / (V[i] @ nu)
        least[i] = 1 / norm, 1 / float(V[i] @ nu)
    return least, attained


def _shortest(
    rows: Float[np.ndarray, "m d"], i: int, bounds: Float[np.ndarray, " m"], feasible: Float[np.ndarray, " d"]
) -> tuple[Float[np.ndarray, " d"], float]:
    """The shortest u with v_i u = 1 and |v_j u| <= bounds_j for unit rows v, and its relative duality gap.

    Of the solver's vector and the exact ones for the constraints that seem to bind, the one of the smallest gap once
    each keeps its bounds: near dependent rows the solver stalls, and where they are none it has fewer digits.
    """
    others, kept = np.delete(rows, i, 0), np.delete(bounds, i)
    found = []
    for given, lift in _candidates(rows[i], others, kept):
        if np.isfinite(given).all() and rows[i] @ given > 0.5:
            u = _within(given / (rows[i] @ given), others, kept, feasible)
            found.append((u, 1 - _shortest_possible(rows[i], others, kept, lift) / float(u @ u)))
    sound = [one for one in found if _keeps(one[0], others, kept) and one[1] <= _WIDEST]
    if not sound:
        raise UserError(
            f"row {i} of W: no vector could be proved to keep its bound and to be the shortest; the rows are nearly "
            f"dependent (condition {np.linalg.cond(rows):.2g}): leave one out, or give a larger tolerance"
        )
    return min(sound, key=lambda one: one[1])


def _candidates(
    own: Float[np.ndarray, " d"], others: Float[np.ndarray, "n d"], bounds: Float[np.ndarray, " n"]
) -> Iterator[tuple[Float[np.ndarray, " d"], Float[np.ndarray, " n"]]]:
    """Vectors u, each with multipliers of the other rows in units of the own row's."""
    u, lift = _solved(own, others, bounds)
    yield u, lift
    before = np.zeros(0, bool)
    for _ in range(_GUESSES):
        pulled = others @ u - lift
        binds = np.abs(pulled) > bounds
        if np.array_equal(binds, before) or not np.isfinite(pulled).all():
            return
        u, lift = _bound_by(own, others, binds, bounds * np.sign(pulled))
        yield u, lift
        before = binds


def _solved(
    own: Float[np.ndarray, " d"], others: Float[np.ndarray, "n d"], bounds: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " n"]]:
    """By clarabel's interior points."""
    import clarabel

    n, d = others.shape
    A = sparse.csc_matrix(np.concatenate([own[None], others, -others]))
    b = np.concatenate([[1.0], bounds, bounds])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * n)]
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_iter = False, _STEPS
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = _DIGITS
    solved = clarabel.DefaultSolver(sparse.identity(d, format="csc"), np.zeros(d), A, b, cones, settings).solve()
    z = np.array(solved.z)
    return np.array(solved.x), (z[1 + n :] - z[1 : 1 + n]) / (-z[0] or 1.0)


def _bound_by(
    own: Float[np.ndarray, " d"], others: Float[np.ndarray, "n d"], binds: Bool[np.ndarray, " n"], values: np.ndarray
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " n"]]:
    """The shortest u that moves the own row by one and some others by given values, and the multipliers."""
    tight, asked = np.concatenate([own[None], others[binds]]), np.concatenate([[1.0], values[binds]])
    inverse = np.linalg.pinv(tight)  # (d, 1 + binding)
    u = inverse @ asked
    u += inverse @ (asked - tight @ u)  # what rounding left
    multipliers = inverse.T @ u  # u = tight^T multipliers
    lift = np.zeros(len(others))
    lift[binds] = multipliers[1:] / (multipliers[0] or 1.0)
    return u, lift


def _within(
    u: Float[np.ndarray, " d"],
    others: Float[np.ndarray, "n d"],
    bounds: Float[np.ndarray, " n"],
    feasible: Float[np.ndarray, " d"],
) -> Float[np.ndarray, " d"]:
    """Drawn towards a vector of the least leakage until no bound is broken."""
    if _keeps(u, others, bounds):
        return u
    here, there = np.abs(others @ u), np.abs(others @ feasible)
    allowed = bounds + _ROUNDING / 2 * np.linalg.norm(feasible)
    broken = here > allowed
    share = ((here - allowed)[broken] / np.maximum(here - there, np.finfo(float).tiny)[broken]).max()
    return u + min(share, 1.0) * (feasible - u)


def _keeps(u: Float[np.ndarray, " d"], others: Float[np.ndarray, "n d"], bounds: Float[np.ndarray, " n"]) -> bool:
    return bool((np.abs(others @ u) <= bounds * (1 + _OVER) + _ROUNDING * np.linalg.norm(u)).all())


def _shortest_possible(
    own: Float[np.ndarray, " d"],
    others: Float[np.ndarray, "n d"],
    bounds: Float[np.ndarray, " n"],
    lift: Float[np.ndarray, " n"],
) -> float:
    """Lower bound of |u|^2 from any multipliers: u (own + lift others) is at least 1 - bounds |lift|, then Cauchy."""
    least = 1 - float(bounds @ np.abs(lift))
    return max(least, 0.0) ** 2 / max(float(np.square(own + lift @ others).sum()), np.finfo(float).tiny)
