"""A thousand label permutations of a linear probe at once, against scikit-learn's logistic regressions one by one."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from benchmarks.timing import show
from toolkit.logistic import Logistic, design, fit_logistic
from toolkit.permutation_null import PermutationNull, permutation_null
from toolkit.probes import LinearProbe

ROWS, WIDTH, PERMUTATIONS = 4_000, 576, 1_000
PEER_FITS, OUR_FITS = 6, 2
"""Fits of each that are timed after one that warms up, by their mean; of the peer a thousand are taken to cost a
thousand times that."""
FOLDS = 3
"""Of the cross-validation in `permutation_null`."""
TOLERANCES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Tried in turn until the largest gradient of all permutations is no larger than the smallest of the peer's."""
NOT_REACHED = "not reached"
Row: TypeAlias = tuple[str, ...]
"""Of the table."""


def report() -> None:
    """Print seconds and gradients of ours and of scikit-learn's solvers, with ratios where gradients are as small."""
    X, labels = problem(seed=0)
    rows = [row for solver in ("lbfgs", "newton-cholesky") for row in compared(X, labels, solver)]
    title = f"{PERMUTATIONS:,} permutations, n = {ROWS:,}, d = {WIDTH}, C = 1; {floor(X):.2f} s a pass over the rows"
    heads = ("what", "peer", "a fit", "its least |gradient|", "ours, all", "largest |gradient|", "times cheaper")
    show(title, heads, rows)


def compared(X: np.ndarray, labels: np.ndarray, solver: str) -> list[Row]:
    """The fits alone; then `permutation_null` at the same tolerance, beside three fits a permutation by the peer."""
    seconds, gradients = peer(X, labels, solver)
    found = until(X, labels, min(gradients))
    told = ("fits", solver, f"{seconds * 1e3:.0f} ms", f"{min(gradients):.1e}")
    if found.seconds is None:
        return [(*told, NOT_REACHED, f"{found.largest:.1e}", NOT_REACHED)]
    ratio = seconds * labels.shape[1] / found.seconds
    fits = (*told, f"{found.seconds:.2f} s", f"{found.largest:.1e}", f"{ratio:.0f}")
    kept = len(X) * (FOLDS - 1) // FOLDS
    seconds, _ = peer(X[:kept], labels[:kept], solver)
    null = mean_seconds(partial(null_of, X, labels, found.tolerance))
    ratio = seconds * FOLDS * labels.shape[1] / null
    return [fits, ("permutation_null", solver, f"{seconds * 1e3:.0f} ms", "", f"{null:.2f} s", "", f"{ratio:.0f}")]


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
    """Euclidean norm of each problem's gradient by coefficients and intercept, mean loss and penalty of C = 1."""
    residual = (expit(X @ coefficients + intercepts) - y) / len(X)  # (rows, problems)
    return np.sqrt(((X.T @ residual + coefficients / len(X)) ** 2).sum(0) + residual.sum(0) ** 2)


@dataclass(frozen=True)
class Reached:
    """What all permutations at once came to."""

    seconds: float | None
    """Mean of OUR_FITS; None where no tolerance made the gradients small enough."""
    tolerance: float
    """The first that did, or the last tried."""
    largest: float
    """Largest gradient of any permutation there."""


def until(X: np.ndarray, labels: np.ndarray, wanted: float) -> Reached:
    """The first tolerance at which every permutation's gradient is at most `wanted`, and its time.

    The seconds hold everything from the raw rows on: the eigendecomposition, the optimisation, the way back.
    """
    for tolerance in TOLERANCES:
        heads = ours(X, labels, tolerance).heads
        coefficients, intercepts = heads.coefficients[:, 0].double().numpy().T, heads.intercepts[:, 0].double().numpy()
        largest = float(gradient(X, labels, coefficients, intercepts).max())
        if largest <= wanted:
            return Reached(mean_seconds(partial(ours, X, labels, tolerance)), tolerance, largest)
    return Reached(None, tolerance, largest)


def ours(X: np.ndarray, labels: np.ndarray, tolerance: float) -> Logistic:
    """All permutations in single precision."""
    data = design(torch.as_tensor(X, dtype=torch.float32))
    penalties = torch.full((labels.shape[1],), 1 / len(X))
    return fit_logistic(data, torch.as_tensor(labels), classes=2, l2=penalties, tolerance=tolerance)


def null_of(X: np.ndarray, labels: np.ndarray, tolerance: float) -> PermutationNull:
    """Accuracies over FOLDS folds of as many permutations, in single precision, C = 1 on two thirds of the rows."""
    probe = LinearProbe(l2=FOLDS / ((FOLDS - 1) * len(X)), tolerance=tolerance, device="cpu")
    how: Any = {"groups": np.arange(len(X)), "n": labels.shape[1] - 1, "parts": FOLDS}
    return permutation_null(probe, X.astype(np.float32), labels[:, 0], scheme="iid", **how)


def mean_seconds(call: Callable[[], object]) -> float:
    """Mean of OUR_FITS calls after one that warms up."""
    call()
    start = time.perf_counter()
    for _ in range(OUR_FITS):
        call()
    return (time.perf_counter() - start) / OUR_FITS


def floor(X: np.ndarray) -> float:
    """Seconds of the two matrix products that one pass of all permutations needs, 2 * 2 * n * d * permutations flop."""
    Z = torch.as_tensor(X, dtype=torch.float32)
    B = torch.randn(PERMUTATIONS, WIDTH)
    start = time.perf_counter()
    for _ in range(3):
        (Z @ B.mT).mT @ Z
    return (time.perf_counter() - start) / 3
