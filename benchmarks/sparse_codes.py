"""Sparse coding: OMP, the lasso at equal duality gap, and dictionary learning, each beside its peers."""

import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
from joblib import Parallel, delayed
from threadpoolctl import threadpool_limits

from benchmarks.timing import best_of, show
from toolkit.certificates import lasso_gaps
from toolkit.dictionaries import DictionaryLearner
from toolkit.language import load_embedding
from toolkit.pursuit import OMP, Lasso

ROWS, D, ATOMS, K = 30_522, 384, 1_536, 32
GAP = 1e-4
ALPHAS = (0.02, 0.05, 0.1)
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
PEER_ROWS = 64
CD_ROWS = 500
PROCESSES = 2


def report(model: str | None) -> None:
    """Print every table."""
    warnings.simplefilter("ignore")
    X = rows(model)
    learner = DictionaryLearner(ATOMS, n_nonzero=16, epochs=3, held_out=0.1).fit(X)
    what = f"{ROWS:,} x {D}, n={ATOMS:,} ({'embedding of ' + model if model else 'Gaussian rows'}, learned dictionary)"
    omp(X, learner.components_, what)
    lasso(X, learner.components_, what)
    dictionary_learning(X)


def rows(model: str | None) -> np.ndarray:
    """Rows of norm 1: a model's embedding about its mean in its first D principal components, or Gaussian."""
    draw = np.random.default_rng(0)
    if model is None:
        X = draw.standard_normal((ROWS, D), dtype=np.float32)
    else:
        whole = load_embedding(model).rows.numpy()
        whole = whole - whole.mean(0)
        directions = np.linalg.eigh(whole.T @ whole)[1][:, ::-1][:, :D]
        X = (whole @ directions)[draw.permutation(len(whole))[:ROWS]]
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def omp(X: np.ndarray, atoms: np.ndarray, what: str) -> None:
    """Against scikit-learn's sparse_encode on every core, and at the size of GPT-2's embedding."""
    from sklearn.decomposition import sparse_encode

    few, wide = X[:2000].astype(np.float64), atoms.astype(np.float64)
    encode = partial(sparse_encode, dictionary=wide, algorithm="omp", n_nonzero_coefs=K, n_jobs=PROCESSES)
    encode(few[:50])  # starts the processes
    begun = time.perf_counter()
    theirs = encode(few)
    their_rate = len(few) / (time.perf_counter() - begun)
    coder = OMP(atoms, n_nonzero=K)
    seconds = best_of(lambda: coder.transform(X))
    same = ((coder.transform(X[:2000]).toarray() != 0) == (theirs != 0)).all(1).mean()
    line = (f"{their_rate:,.0f}", f"{len(X) / seconds:,.0f}", f"{len(X) / seconds / their_rate:.0f}", f"{same:.1%}")
    show(f"OMP, k={K}, {what}, rows a second", ("scikit-learn", "ours", "times faster", "same supports"), [line])
    floor(len(X), D, ATOMS, seconds)
    draw = np.random.default_rng(1)
    big, basis = (draw.standard_normal((count, 768), dtype=np.float32) for count in (50_257, 3_072))
    coder = OMP(basis / np.linalg.norm(basis, axis=1, keepdims=True), n_nonzero=K)
    seconds = best_of(lambda: coder.transform(big), repeats=2)
    print(f"GPT-2's size, 50,257 x 768, n=3,072, k={K}, Gaussian: {seconds:.1f} s")
    floor(50_257, 768, 3_072, seconds)


def floor(count: int, d: int, n: int, seconds: float) -> None:
    """What OMP on the Gram matrix cannot do without, against what the machine does."""
    a, b = np.ones((2048, d), np.float32), np.ones((n, d), np.float32)
    product = best_of(lambda: a @ b.T) / 2048 * count
    updates = count * n * K * (K - 1) / 2
    vector = np.ones(2**15, np.float32)
    rate = PROCESSES * 2 * vector.nbytes / best_of(lambda: vector @ vector, repeats=50)
    reading = 4 * updates / rate
    print(
        f"  floor: correlations {2 * count * n * d / 1e9:.0f} Gflop, {product:.2f} s as one dense product; updates "
        f"{2 * updates / 1e9:.0f} Gflop on {4 * updates / 1e9:.0f} GB of Gram rows, {reading:.2f} s at the "
        f"{rate / 1e9:.0f} GB/s\n  at which {PROCESSES} cores multiply cached vectors; measured {seconds:.2f} s, "
        f"{seconds / (product + reading):.1f} times the floor"
    )


def lasso(X: np.ndarray, atoms: np.ndarray, what: str) -> None:
    """Against scikit-learn, celer and skglm, each at its loosest tolerance that brings every gap to 1e-4."""
    lines = []
    for alpha in ALPHAS:
        coder = Lasso(atoms, alpha=alpha, tol=GAP)
        ours = len(X) / best_of(lambda coder=coder: coder.transform(X), repeats=1)
        codes = coder.transform(X)
        worst = lasso_gaps(X, codes, atoms, alpha).relative.max()
        active = codes.nnz / len(X)
        peers = {}
        for name, (solve, count, kind) in PEERS.items():
            peers[name] = peer_rates(solve, X[:count].astype(kind), atoms.astype(kind), alpha)
        alone, together = (max(rates[i] for rates in peers.values()) for i in (0, 1))
        cells = [f"{rates[0]:.0f} / {rates[1]:.0f}" for rates in peers.values()]
        ratios = (f"{ours / alone:.0f}", f"{ours / together:.0f}", f"{worst:.1e}")
        lines.append((f"{alpha:g}", f"{active:.0f}", *cells, f"{ours:,.0f}", *ratios))
        head = ("alpha", "atoms a row", *PEERS, "ours", "times best alone", "times best on 2", "our largest gap")
        show("so far", head, lines[-1:])
    show(f"lasso to a gap of {GAP:g}, {what}, rows a second (peers: one process / {PROCESSES})", head, lines)


def peer_rates(solve: Callable[..., np.ndarray], X: np.ndarray, atoms: np.ndarray, alpha: float) -> tuple[float, float]:
    """Rows a second in one process and in two, at the loosest tolerance at which PEER_ROWS gaps are at most GAP."""
    from scipy import sparse

    few = X[:PEER_ROWS]
    for tolerance in TOLERANCES:
        codes = sparse.csr_array(solve(few, atoms, alpha, tolerance))
        if lasso_gaps(few, codes, atoms, alpha).relative.max() <= GAP:
            break
    else:
        return float("nan"), float("nan")
    begun = time.perf_counter()
    solve(X, atoms, alpha, tolerance)
    alone = time.perf_counter() - begun
    halves = np.array_split(np.concatenate([X, X]), PROCESSES)
    with Parallel(n_jobs=PROCESSES) as pool:
        pool(delayed(solve)(half[:8], atoms, alpha, tolerance) for half in halves)
        begun = time.perf_counter()
        pool(delayed(solve)(half, atoms, alpha, tolerance) for half in halves)
        together = time.perf_counter() - begun
    return len(X) / alone, 2 * len(X) / together


def coordinate_descent(X: np.ndarray, atoms: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """scikit-learn's Lasso on the Gram matrix, all rows in one call."""
    from sklearn.linear_model import Lasso as Peer

    with threadpool_limits(1):
        columns = np.asfortranarray(atoms.T)
        peer = Peer(
            alpha=alpha / X.shape[1], fit_intercept=False, precompute=atoms @ atoms.T, tol=tolerance, max_iter=3000
        )
        return peer.fit(columns, X.T).coef_


def lars(X: np.ndarray, atoms: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """scikit-learn's exact path; has no tolerance."""
    from sklearn.decomposition import sparse_encode

    with threadpool_limits(1):
        return sparse_encode(X, atoms, algorithm="lasso_lars", alpha=alpha, max_iter=10**4)


def celer(X: np.ndarray, atoms: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """celer, row by row."""
    from celer import Lasso as Peer

    columns = np.asfortranarray(atoms.T)
    with threadpool_limits(1):
        return np.array(
            [Peer(alpha / len(columns), fit_intercept=False, tol=tolerance).fit(columns, x).coef_ for x in X]
        )


def skglm(X: np.ndarray, atoms: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """skglm, row by row."""
    from skglm import Lasso as Peer

    columns = np.asfortranarray(atoms.T)
    with threadpool_limits(1):
        return np.array(
            [Peer(alpha / len(columns), fit_intercept=False, tol=tolerance).fit(columns, x).coef_ for x in X]
        )


PEERS = {
    "sklearn cd f32": (coordinate_descent, CD_ROWS, np.float32),
    "sklearn cd f64": (coordinate_descent, CD_ROWS, np.float64),
    "sklearn lars": (lars, PEER_ROWS, np.float64),
    "celer": (celer, PEER_ROWS, np.float64),
    "skglm": (skglm, PEER_ROWS, np.float64),
}
"""Each with so many rows a call, which spreads the Gram matrix over them, in the type that suits it best."""


def dictionary_learning(X: np.ndarray) -> None:
    """Against MiniBatchDictionaryLearning: same rows, atoms and penalty; errors of rows held out from both."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    d, n, alpha = 128, 512, 0.15
    X = X[:10_000, :d] / np.linalg.norm(X[:10_000, :d], axis=1, keepdims=True)
    train, held_out = X[:8_000], X[8_000:]
    lines = []
    for epochs in (1, 4):
        peer = MiniBatchDictionaryLearning(
            n, alpha=alpha, batch_size=256, max_iter=epochs, fit_algorithm="cd", n_jobs=PROCESSES, random_state=0
        )
        begun = time.perf_counter()
        peer.fit(train.astype(np.float64))
        lines.append(
            learned(f"scikit-learn, {epochs} epochs", time.perf_counter() - begun, peer.components_, held_out, alpha)
        )

    def learn(epochs: int) -> DictionaryLearner:
        return DictionaryLearner(n, alpha=alpha, epochs=epochs, held_out=0.0, batch_size=2048).fit(train)

    learn(1)
    for epochs in (2, 6, 10):
        begun = time.perf_counter()
        ours = learn(epochs)
        lines.append(learned(f"ours, {epochs} epochs", time.perf_counter() - begun, ours.components_, held_out, alpha))
    head = ("", "seconds", "held-out objective", "held-out error", "atoms a row")
    show(f"dictionary learning, 8,000 x {d}, n={n}, alpha={alpha}", head, lines)


def learned(name: str, seconds: float, atoms: np.ndarray, held_out: np.ndarray, alpha: float) -> tuple[str, ...]:
    """One dictionary's line, its held-out rows coded by the same lasso."""
    atoms = atoms[np.linalg.norm(atoms, axis=1) > 0].astype(np.float32)
    codes = Lasso(atoms, alpha=alpha).transform(held_out)
    left = np.square(held_out - codes @ atoms).sum(1)
    objective = (left / 2 + alpha * np.abs(codes).sum(1)).mean()
    return name, f"{seconds:.2f}", f"{objective:.5f}", f"{left.mean():.4f}", f"{codes.nnz / len(held_out):.1f}"
