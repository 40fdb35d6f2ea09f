"""Which vectors to add to activations so that a readout moves: duals, patterns, differences of means.

A probe reads rows W (m, d) as x W^T. A steering basis S (d, m) is what to add: along column j readout j should rise by
one and every other stay as it is, W S = I. The probe's own rows do that only where they are orthogonal.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from toolkit.coding_inputs import as_rows
from toolkit.errors import UserError, require
from toolkit.probe_inputs import as_array, numbered

LARGEST_CONDITION = 1e6
"""Above this, noise of one part in a million in the readouts moves the dual by as much as itself."""


@dataclass(frozen=True, eq=False)
class DualBasis:
    """Steering vectors of independent readouts."""

    vectors: Float[np.ndarray, "d m"]
    """One a column: W vectors = I (up to the ridge)."""
    condition: float
    """Ratio of the largest to the least singular value of the readouts at norm 1."""
    ridge: float
    """What was added to the squared singular values of the readouts at norm 1; 0 for the exact dual."""


def dual_basis(
    W: ArrayLike, *, covariance: ArrayLike | None = None, ridge: float = 0.0, largest: float = LARGEST_CONDITION
) -> DualBasis:
    """The dual S of independent rows W (m, d): W S = I, each column of the least length that does it.

    Without `covariance` S = W^+. With one, Sigma (d, d), length is Mahalanobis' and S = Sigma W^T (W Sigma W^T)^-1: of
    all vectors that move readout j alone by one the most likely under N(0, Sigma), and the pattern of Haufe et al. 2014
    (Eq. 6). A `ridge` > 0 shortens the vectors of readouts that are nearly dependent, at the price of some leakage.

    Raises:
        UserError: more rows than columns, dependent rows or a condition above `largest` without a ridge (the rows that
            depend on the others are named), a covariance that does not fit or is not positive semi-definite.
    """
    W = as_rows(as_array(W), "W").astype(np.float64)
    m, d = W.shape
    require(m <= d, f"W has {m} rows in {d} dimensions: no dual exists for m > d; use steering_vectors")
    require(bool(np.isfinite(ridge)) and ridge >= 0, f"ridge={ridge}: expected a finite number, 0 or more")
    root = square_root(covariance, d)
    norms = np.linalg.norm(W @ root, axis=1)
    require(bool((norms > 0).all()), f"row {np.argmin(norms)} of W reads nothing: it is zero (under the covariance)")
    unit = (W @ root) / norms[:, None]
    left, values, right = np.linalg.svd(unit, full_matrices=False)
    condition = float(values[0] / values[-1]) if values[-1] > 0 else float("inf")
    if ridge == 0 and condition > largest:
        raise _dependent(left, values, condition, largest)
    # unit = L diag(v) R, so its dual is R^T diag(v / (v^2 + ridge)) L^T, (d, m)
    dual = (right.T * (values / (values**2 + ridge))) @ left.T
    return DualBasis(root @ dual / norms, condition, ridge)


def _dependent(
    left: Float[np.ndarray, "m m"], values: Float[np.ndarray, " m"], condition: float, largest: float
) -> UserError:
    worst = np.argsort(-np.abs(left[:, -1]))[:2]
    return UserError(
        f"the rows of W are nearly dependent (condition {condition:.2g}, at most {largest:.2g}; rows "
        f"{' and '.join(str(row) for row in worst)} most): leave one out, or give a ridge > 0"
    )


def square_root(covariance: ArrayLike | None, d: int) -> Float[np.ndarray, "d d"]:
    """The symmetric square root of a covariance (d, d); the identity without one.

    Raises:
        UserError: not (d, d), not symmetric, or with an eigenvalue below zero by more than rounding.
    """
    if covariance is None:
        return np.eye(d)
    sigma = as_rows(as_array(covariance), "covariance").astype(np.float64)
    require(sigma.shape == (d, d), f"covariance has shape {sigma.shape}: expected {(d, d)}, as W has {d} columns")
    require(bool(np.allclose(sigma, sigma.T, rtol=1e-6)), "covariance is not symmetric: expected X^T X / rows or such")
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    require(
        bool(values[0] >= -1e-6 * max(values[-1], 0)) and values[-1] > 0,
        f"covariance is not positive semi-definite: its eigenvalues run from {values[0]:.2g} to {values[-1]:.2g}",
    )
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def haufe_patterns(X: ArrayLike, readouts: ArrayLike) -> Float[np.ndarray, "d m"]:
    """What goes with the readouts in data X (rows, d): Cov(X, s) Cov(s)^-1 for readouts s (rows, m).

    Haufe et al. 2014, Theorem 1. For s = X W^T it equals `dual_basis(W, covariance=Cov(X))`; the readouts may also be
    non-linear, or labels.

    Raises:
        UserError: rows that do not match, a readout that is constant or depends on the others.
    """
    X = as_rows(as_array(X), "X").astype(np.float64)
    s = as_rows(as_array(readouts), "readouts").astype(np.float64)
    require(len(X) == len(s), f"X has {len(X)} rows and the readouts {len(s)}: expected as many")
    X, s = X - X.mean(0), s - s.mean(0)
    scale = s.std(0)
    require(bool((scale > 0).all()), f"readout {np.argmin(scale)} is constant: it has no pattern")
    s /= scale
    gram = s.T @ s
    condition = float(np.linalg.cond(gram)) ** 0.5
    require(condition <= LARGEST_CONDITION, f"the readouts depend on one another (condition {condition:.2g})")
    return np.linalg.solve(gram, s.T @ X).T / scale


def mean_differences(X: ArrayLike, y: ArrayLike) -> Float[np.ndarray, "d m"]:
    """Mean of each class less the mean of the other rows, (d, classes); for two classes that of the second alone.

    Labels y (rows,); classes in the order of numpy's unique.

    Raises:
        UserError: labels that do not match the rows, one missing (NaN or None), fewer than two classes.
    """
    X = as_rows(as_array(X), "X").astype(np.float64)
    y = np.asarray(as_array(y))
    require(y.shape == (len(X),), f"y has shape {y.shape}: expected one label for each of {len(X)} rows of X")
    code = numbered(y, "y", "label", len(X))
    count = int(code.max()) + 1
    require(count > 1, f"y holds one class only ({y[0]!r}): a difference needs two")
    shown = range(count) if count > 2 else (1,)
    return np.stack([X[code == c].mean(0) - X[code != c].mean(0) for c in shown], 1)
