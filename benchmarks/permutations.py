"""A thousand label permutations of a linear probe at once, against scikit-learn's logistic regressions one by one."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from benchmarks.timing import show
from toolkit.logistic import Logistic, design, fit_logistic

ROWS, WIDTH, PERMUTATIONS = 4_000, 576, 1_000
PEER_FITS = 6
"""Fits of each peer that are timed; a thousand are taken to cost a thousand times the mean."""
L2 = 1 / ROWS
"""scikit-learn's C = 1."""
TOLERANCES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Tried in turn until the gradient is no larger than the peer's."""


def report() -> None:
    """Print seconds and gradients of ours and of scikit-learn's solvers, each ratio at an equal gradient norm."""
    X, labels = problem(seed=0)
    rows = []
    for solver in ("lbfgs", "newton-cholesky"):
        seconds, gradients = peer(X, labels, solver)
        ours = until(X, labels, median(gradients))
        ratio = seconds * PERMUTATIONS / ours[0]
        rows.append((solver, f"{seconds * 1e3:.0f} ms", f"{median(gradients):.1e}", f"{ours[0]:.2f} s",
                     f"{median(ours[1]):.1e}", f"{ours[2]}", f"{ratio:.0f}"))  # fmt: skip
    title = f"{PERMUTATIONS:,} permutations, n = {ROWS:,}, d = {WIDTH}, C = 1; {floor(X):.2f} s a pass over the rows"
    show(title, ("peer", "a fit", "its |gradient|", "ours, all", "|gradient|", "iterations", "times cheaper"), rows)


def problem(seed: int) -> tuple[Float[np.ndarray, "rows d"], Int[np.ndarray, "rows permutations"]]:
    """Standardised rows with a power-law spectrum, as activations have it, and a label's permutations."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    X = rng.normal(size=(ROWS, WIDTH)) * np.arange(1, WIDTH + 1) ** -0.5 @ basis
    y = (X @ rng.normal(size=WIDTH) > 0.5).astype(int)
    labels = np.stack([rng.permutation(y) for _ in range(PERMUTATIONS)], 1)
    return (X - X.mean(0)) / X.std(0), labels


def peer(X: np.ndarray, labels: np.ndarray, solver: str) -> tuple[float, list[float]]:
    """Mean seconds of a fit after one that warms up, and each fit's gradient."""
    seconds, gradients = [], []
    for y in labels[:, : PEER_FITS + 1].T:
        start = time.perf_counter()
        fitted = LogisticRegression(C=1.0, solver=solver, max_iter=1000).fit(X, y)
        seconds.append(time.perf_counter() - start)
        gradients.append(float(gradient(X, y[:, None], fitted.coef_.T, fitted.intercept_)[0]))
    return float(np.mean(seconds[1:])), gradients[1:]


def gradient(X: np.ndarray, y: np.ndarray, coefficients: np.ndarray, intercepts: np.ndarray) -> np.ndarray:
    """Euclidean norm of each problem's gradient by coefficients and intercept, mean loss and penalty."""
    residual = (expit(X @ coefficients + intercepts) - y) / len(X)  # (rows, problems)
    return np.sqrt(((X.T @ residual + L2 * coefficients) ** 2).sum(0) + residual.sum(0) ** 2)


def until(X: np.ndarray, labels: np.ndarray, wanted: float) -> tuple[float, np.ndarray, int]:
    """Seconds, gradients and iterations of all permutations at the first tolerance whose median gradient is as small.

    The seconds hold everything from the raw rows on: the eigendecomposition, the optimisation, the way back.
    """
    for tolerance in TOLERANCES:
        call = partial(ours, X, labels, tolerance)
        seconds, found = timed(call)
        coefficients = found.heads.coefficients[:, 0].double().numpy().T
        norms = gradient(X, labels, coefficients, found.heads.intercepts[:, 0].double().numpy())
        if np.median(norms) <= wanted:
            break
    return seconds, norms, found.iterations


def ours(X: np.ndarray, labels: np.ndarray, tolerance: float) -> Logistic:
    """All permutations in single precision."""
    data = design(torch.as_tensor(X, dtype=torch.float32))
    penalties = torch.full((labels.shape[1],), L2)
    return fit_logistic(data, torch.as_tensor(labels), classes=2, l2=penalties, tolerance=tolerance)


def timed(call: Callable[[], Logistic]) -> tuple[float, Logistic]:
    """The faster of two calls."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), found


def floor(X: np.ndarray) -> float:
    """Seconds of the two matrix products that one pass of all permutations needs, 2 * 2 * n * d * permutations flop."""
    Z = torch.as_tensor(X, dtype=torch.float32)
    B = torch.randn(PERMUTATIONS, WIDTH)
    start = time.perf_counter()
    for _ in range(3):
        (Z @ B.mT).mT @ Z
    return (time.perf_counter() - start) / 3
