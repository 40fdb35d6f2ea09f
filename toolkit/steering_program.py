"""More readouts than dimensions: the shortest steering vectors whose leakage into other readouts stays below a bound.

With m > d rows W S = I is impossible: the mean of diag(W W^+) is d / m. For each readout i what remains is the program
min |s| subject to w_i s = 1 and |w_j s| <= e for all j != i. The least feasible e comes from linear duality:
it is 1 / min{|y|_1 : sum over j != i of y_j w_j = w_i}, a basis pursuit, whose dual point is a vector that attains it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import sparse

from toolkit.coding_inputs import as_rows
from toolkit.errors import require
from toolkit.sparse_coding import basis_pursuit_codes
from toolkit.steering import square_root

# The program at the least leakage itself has a feasible set without interior, where interior-point methods stall.
_SLACK = 1e-5
_INDEPENDENT = 1e-9


@dataclass(frozen=True)
class SteeringVectors:
    """What `steering_vectors` found, and what proves it."""

    vectors: Float[np.ndarray, "d m"]
    """One a column; column i moves readout i by one."""
    leakage: Float[np.ndarray, "m m"]
    """W vectors: column i is what each readout moves by along vector i."""
    bound: Float[np.ndarray, " m"]
    """The bound on each vector's leakage that its program was solved with."""
    least: Float[np.ndarray, "m 2"]
    """Least leakage that any vector can have: a proven lower bound, and what a vector attains."""
    gap: Float[np.ndarray, " m"]
    """Relative duality gap of each program: the squared length is at most this share above the least possible."""

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
            covariance under which a row reads nothing.
    """
    W = as_rows(W, "W").astype(np.float64)
    require(
        tolerance is None or (np.isfinite(tolerance) and tolerance >= 0),
        f"tolerance={tolerance}: expected a finite number, 0 or more, or None for the least feasible",
    )
    root = square_root(covariance, W.shape[1])
    V = W @ root  # (m, d)
    norms = np.linalg.norm(V, axis=1)
    require(bool((norms > 0).all()), f"row {np.argmin(norms)} of W reads nothing: it is zero (under the covariance)")
    least, attained = _least_leakage(V)
    if tolerance is not None:
        worst = int(np.argmax(least[:, 0]))
        require(
            least[worst, 0] <= tolerance,
            f"no vector moves row {worst} of W by one and every other by at most {tolerance:g}: its least leakage is "
            f"{least[worst, 0]:.4g}; give a tolerance of at least {least[:, 1].max():.4g}, or None",
        )
    bound = least[:, 1] * (1 + _SLACK) if tolerance is None else np.full(len(W), float(tolerance))
    solved = [_shortest(V, i, float(e), attained[:, i]) for i, e in enumerate(bound)]
    vectors = root @ np.stack([u for u, _ in solved], 1)  # (d, m)
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
    V: Float[np.ndarray, "m d"], i: int, bound: float, feasible: Float[np.ndarray, " d"]
) -> tuple[Float[np.ndarray, " d"], float]:
    """The shortest u with V_i u = 1 and |V_j u| <= bound, and its relative duality gap."""
    import clarabel

    m, d = V.shape
    others = np.delete(V, i, 0)
    A = sparse.csc_matrix(np.concatenate([V[i : i + 1], others, -others]))
    b = np.concatenate([[1.0], np.full(2 * (m - 1), bound)])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(2 * (m - 1))]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    solved = clarabel.DefaultSolver(sparse.identity(d, format="csc"), np.zeros(d), A, b, cones, settings).solve()
    u, z = np.array(solved.x), np.array(solved.z)
    if not np.isfinite(u).all() or abs(V[i] @ u) < 0.5:
        u = feasible
    u = u / (V[i] @ u)
    primal = 0.5 * float(u @ u)
    # Lagrange's dual at multipliers z = (z_i, up, down): z_i - bound |z_j|_1 - |V^T z|^2 / 2, a lower bound for any z.
    lift = -z[0], z[m:] - z[1:m]
    v = lift[0] * V[i] + lift[1] @ others
    dual = lift[0] - bound * float(np.abs(lift[1]).sum()) - 0.5 * float(v @ v)
    return u, (primal - dual) / primal
