"""How well a linear read-out finds labels in activations of other documents: many label vectors at once, from sums.

The score is r, the correlation of held-out read-out and label. The read-out is linear discriminant analysis with a
little shrinkage; for two classes that is least squares, so that every label vector shares one factorisation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SHRINKAGE = 0.01
"""Of the median variance, added to all: a ridge."""
ROUNDING = 1e-12
"""Share of the largest variance that rounding of the rows stays below: single precision's step of 6e-8, squared, and
room for sums of it."""
LOPSIDED = 1e4
"""Largest over median variance from which single precision is not enough."""
FOLDS = 3
"""Of the cross-validation over documents."""
INDICES = 5_000_000
"""Of rows in a block of permutations."""


@dataclass(frozen=True)
class Deal:
    """Rows dealt to folds, and put in the folds' order so that a fold is a slice."""

    order: Int[Tensor, " rows"]
    """The row at each place."""
    edges: tuple[int, ...]
    """Where each fold begins, and the end."""

    @property
    def slices(self) -> list[slice]:
        """The folds."""
        return [slice(a, b) for a, b in pairwise(self.edges)]


def deal(fold_of: Int[np.ndarray, " rows"]) -> Deal:
    """From the fold of each row."""
    edges = np.cumsum(np.bincount(fold_of))
    return Deal(torch.from_numpy(np.argsort(fold_of, kind="stable")), (0, *edges.tolist()))


@dataclass(frozen=True)
class Folded:
    """Activations cut into folds, and what every label vector needs of them."""

    dealt: Deal
    """Which rows the folds hold."""
    X: Float[Tensor, "rows k"]
    """Activations less their mean, in the folds' order; as coordinates in `basis` where there is one."""
    sums: Float[Tensor, "folds k"]
    """Of each fold's rows."""
    grams: Float[Tensor, "folds k k"]
    """Of each fold's rows, X^T X."""
    ridge: Float[Tensor, " k"]
    """Added to the diagonal of covariances."""
    basis: Float[Tensor, "d k"] | None = None
    """Principal directions over their standard deviations, where these are so unlike that sums in single precision
    would drown the small ones."""

    @property
    def counts(self) -> Float[Tensor, " folds"]:
        """Rows of each fold."""
        return torch.tensor(self.dealt.edges, dtype=torch.float64).diff()

    def r(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
        """Held-out correlation of each column with its read-out, pooled over folds."""
        Y = Y[self.dealt.order]
        products, sums, weights = self._read_outs(Y)  # weights (folds, d, columns)
        moments = (weights * products).sum((0, 1))
        totals = torch.einsum("fd,fdc->c", self.sums, weights)
        squares = (weights * (self.grams @ weights)).sum((0, 1))
        return correlation(self.counts.sum(), totals, sums.sum(0), squares, Y.square().sum(0).double(), moments)

    def scores(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Held-out read-outs, of standard deviation about 1."""
        found = torch.empty(Y.shape, dtype=torch.float64)
        weights = self._read_outs(Y[self.dealt.order])[2]
        for rows, w in zip(self.dealt.slices, weights, strict=True):
            found[self.dealt.order[rows]] = self.X[rows].double() @ w
        return found

    def switches(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns d"]:
        """Read-outs of labels 0 and 1 by all rows, scaled so that from 0 to 1 each moves by 1."""
        Y = Y[self.dealt.order].double()
        n, X = len(Y), self.X.double()
        centred = Y - Y.mean(0)
        cross = X.mT @ centred / n
        w = read_outs(self.grams.sum(0) / n, cross, self.ridge)
        moved = (w * cross).sum(0) / centred.square().mean(0).clamp(min=1e-12)  # of the read-out, by the label
        w = w / torch.where(moved.abs() > 1e-12, moved, torch.inf)
        return (w if self.basis is None else self.basis @ w).mT

    def _read_outs(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X^T Y (folds, d, columns), sums of Y (folds, columns), and each fold's read-outs (folds, d, columns)."""
        products = torch.stack([self.X[rows].mT @ Y[rows] for rows in self.dealt.slices]).double()
        sums = torch.stack([Y[rows].sum(0) for rows in self.dealt.slices]).double()
        n = (self.counts.sum() - self.counts)[:, None]
        mean, share = (self.sums.sum(0) - self.sums) / n, (sums.sum(0) - sums) / n
        covariance = (self.grams.sum(0) - self.grams) / n[..., None] - mean[:, :, None] * mean[:, None]
        cross = (products.sum(0) - products) / n[..., None] - mean[:, :, None] * share[:, None]
        return products, sums, read_outs(covariance, cross, self.ridge)


def read_outs(
    covariance: Float[Tensor, "*folds k k"], cross: Float[Tensor, "*folds k columns"], ridge: Float[Tensor, " k"]
) -> Float[Tensor, "*folds k columns"]:
    """Discriminants of labels with these covariances with the rows, scaled to variance 1 on the rows."""
    shrunk = covariance + ridge * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    w = torch.linalg.solve(shrunk, cross)
    return w / (w * (covariance @ w)).sum(-2, keepdim=True).clamp(min=1e-30).sqrt()


def folded(X: Float[Tensor, "rows d"], dealt: Deal) -> Folded:
    """Activations ready for any labels.

    The ridge is SHRINKAGE times the median variance of the directions that vary, so that one huge direction does not
    drown the rest; where it is huge beside them, rows are turned and scaled to variance 1 first, and the ridge with
    them: the same read-outs, from numbers that single precision can add.
    """
    X = (X - X.mean(0))[dealt.order]
    grams, basis = _grams(X.float(), dealt), None
    values = torch.linalg.eigvalsh(grams.sum(0) / len(X))
    if values[-1] > LOPSIDED * values.median():
        values, vectors = torch.linalg.eigh(_grams(X.double(), dealt).sum(0) / len(X))
        basis = vectors[:, real(values)] / values[real(values)].sqrt()
        X = X.double() @ basis  # (rows, d) (d, k)
        grams = _grams(X.float(), dealt)
    X, values = X.float(), values[real(values)]
    sums = torch.stack([X[rows].sum(0) for rows in dealt.slices]).double()
    ridge = torch.full((X.shape[1],), SHRINKAGE * float(values.median()) if len(values) else 1.0, dtype=torch.float64)
    return Folded(dealt, X, sums, grams, ridge if basis is None else ridge / values, basis)


def _grams(X: Float[Tensor, "rows d"], dealt: Deal) -> Float[Tensor, "folds d d"]:
    return torch.stack([X[rows].mT @ X[rows] for rows in dealt.slices]).double()


def real(values: Float[Tensor, " d"]) -> Bool[Tensor, " d"]:
    """Which variances are more than the rounding of activations in single precision."""
    return values > ROUNDING * values.max()


def correlation(n: Tensor, s: Tensor, y: Tensor, ss: Tensor, yy: Tensor, sy: Tensor) -> Tensor:
    """From sums over rows; 0 where either is constant."""
    variance = (ss - s * s / n) * (yy - y * y / n)
    flat = variance <= 1e-12 * ss * yy
    return torch.where(flat, 0.0, (sy - s * y / n) / variance.clamp(min=1e-300).sqrt())


def sums_by_unit(
    scores: Float[Tensor, "rows features"], Y: Float[Tensor, "rows features"], units: Int[np.ndarray, " rows"]
) -> Float[Tensor, "six units features"]:
    """What `correlation` needs, unit by unit."""
    y = Y.double()
    terms = torch.stack([torch.ones_like(scores), scores, y, scores * scores, y * y, scores * y])
    found = torch.zeros(6, int(units.max()) + 1, Y.shape[1], dtype=torch.float64)
    return found.index_add_(1, torch.from_numpy(units), terms)


def drawn_r(
    sums: Float[Tensor, "six units features"], weights: Float[Tensor, "draws units"]
) -> Float[Tensor, "draws features"]:
    """r where each unit counts as often as it was drawn."""
    return correlation(*torch.einsum("bg,mgf->mbf", weights, sums))


def resampled(units: int, draws: int, *, seed: int) -> Float[Tensor, "draws units"]:
    """How often each unit is drawn."""
    rng = np.random.default_rng([seed, 61])
    return torch.from_numpy(rng.multinomial(units, np.full(units, 1 / units), size=draws)).double()


def exchanged(groups: Int[np.ndarray, " rows"], n: int, *, seed: int) -> Int[np.ndarray, "rows n"]:
    """For each of n permutations of the documents, the row whose label each row gets.

    A document gets another's labels from the first on, over again where it is longer: labels that hang together stay
    together whatever the lengths. The base rate moves a little, which a correlation does not see.
    """
    return np.concatenate(list(exchanges(groups, n, seed=seed)), 1)


def exchanges(groups: Int[np.ndarray, " rows"], n: int, *, seed: int) -> Iterator[Int[np.ndarray, "rows some"]]:
    """The same, some at a time: all of them for many rows are gigabytes."""
    rng = np.random.default_rng([seed, 43])
    home = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    starts = sizes.cumsum() - sizes
    within = np.empty(len(groups), int)
    within[home] = np.arange(len(groups)) - starts[groups[home]]
    at_once = max(1, INDICES // len(groups))
    for begin in range(0, n, at_once):
        others = [rng.permutation(len(sizes))[groups] for _ in range(min(at_once, n - begin))]
        yield np.stack([home[starts[other] + within % sizes[other]] for other in others], 1)
