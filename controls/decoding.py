"""How well a linear read-out finds labels in activations of other documents: many label vectors at once, from sums.

The score is r, the correlation of held-out read-out and label. The read-out is linear discriminant analysis with a
little shrinkage; for two classes that is least squares, so that every label vector shares one factorisation.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SHRINKAGE = 0.01
"""Of the covariance, towards a multiple of the identity."""
FOLDS = 3
"""Of the cross-validation over documents."""


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
    X: Float[Tensor, "rows d"]
    """Activations less their mean, in the folds' order."""
    sums: Float[Tensor, "folds d"]
    """Of each fold's rows."""
    grams: Float[Tensor, "folds d d"]
    """Of each fold's rows, X^T X."""

    @property
    def counts(self) -> Float[Tensor, " folds"]:
        """Rows of each fold."""
        return torch.tensor(self.dealt.edges, dtype=torch.float64).diff()

    def r(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
        """Held-out correlation of each column of labels with its read-out, pooled over folds."""
        products, sums, weights = self._read_outs(Y[self.dealt.order])  # weights (folds, d, columns)
        moments = (weights * products).sum((0, 1))
        totals = torch.einsum("fd,fdc->c", self.sums, weights)
        squares = (weights * (self.grams @ weights)).sum((0, 1))
        y = sums.sum(0)
        return correlation(self.counts.sum(), totals, y, squares, y, moments)

    def scores(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Held-out read-outs, of standard deviation about 1."""
        found = torch.empty(Y.shape, dtype=torch.float64)
        weights = self._read_outs(Y[self.dealt.order])[2]
        for rows, w in zip(self.dealt.slices, weights, strict=True):
            found[self.dealt.order[rows]] = self.X[rows].double() @ w
        return found

    def _read_outs(self, Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X^T Y (folds, d, columns), sums of Y (folds, columns), and each fold's read-outs (folds, d, columns)."""
        products = torch.stack([self.X[rows].mT @ Y[rows] for rows in self.dealt.slices]).double()
        sums = torch.stack([Y[rows].sum(0) for rows in self.dealt.slices]).double()
        n = (self.counts.sum() - self.counts)[:, None]
        mean, share = (self.sums.sum(0) - self.sums) / n, (sums.sum(0) - sums) / n
        covariance = (self.grams.sum(0) - self.grams) / n[..., None] - mean[:, :, None] * mean[:, None]
        cross = (products.sum(0) - products) / n[..., None] - mean[:, :, None] * share[:, None]
        return products, sums, read_outs(covariance, cross)


def read_outs(
    covariance: Float[Tensor, "*folds d d"], cross: Float[Tensor, "*folds d columns"]
) -> Float[Tensor, "*folds d columns"]:
    """Discriminants of labels with these covariances with the rows, scaled to variance 1 on the rows."""
    d = covariance.shape[-1]
    mean = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean * torch.eye(d, dtype=covariance.dtype)
    w = torch.linalg.solve(shrunk, cross)
    return w / (w * (covariance @ w)).sum(-2, keepdim=True).clamp(min=1e-30).sqrt()


def folded(X: Float[Tensor, "rows d"], dealt: Deal) -> Folded:
    """Activations ready for any labels."""
    X = (X - X.mean(0)).float()[dealt.order]
    parts = [X[rows] for rows in dealt.slices]
    sums = torch.stack([part.sum(0) for part in parts]).double()
    return Folded(dealt, X, sums, torch.stack([part.mT @ part for part in parts]).double())


def correlation(n: Tensor, s: Tensor, y: Tensor, ss: Tensor, yy: Tensor, sy: Tensor) -> Tensor:
    """From sums over rows; 0 where either is constant."""
    variance = (ss - s * s / n) * (yy - y * y / n)
    return torch.where(variance > 0, (sy - s * y / n) / variance.clamp(min=1e-300).sqrt(), 0.0)


def spread(
    scores: Float[Tensor, "rows features"],
    Y: Float[Tensor, "rows features"],
    groups: Int[np.ndarray, " rows"],
    *,
    draws: int,
    seed: int,
) -> Float[Tensor, " features"]:
    """Standard error of each feature's r, over documents drawn with replacement."""
    documents, y = int(groups.max()) + 1, Y.double()
    terms = torch.stack([torch.ones_like(scores), scores, y, scores * scores, y, scores * y])  # (6, rows, features)
    of = torch.from_numpy(groups)
    sums = torch.zeros(6, documents, Y.shape[1], dtype=torch.float64).index_add_(1, of, terms)
    weights = resampled(documents, draws, seed=seed)
    moments = torch.einsum("bg,mgf->mbf", weights, sums)
    return correlation(*moments).std(0)


def resampled(documents: int, draws: int, *, seed: int) -> Float[Tensor, "draws documents"]:
    """How often each document is drawn."""
    rng = np.random.default_rng([seed, 61])
    return torch.from_numpy(rng.multinomial(documents, np.full(documents, 1 / documents), size=draws)).double()
