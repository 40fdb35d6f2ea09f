"""How well a linear read-out finds labels in activations of other documents: many label vectors at once, from sums.

The score is r, the correlation of held-out read-out and label. The read-out is linear discriminant analysis with a
little shrinkage; for two classes that is least squares, so that every label vector shares one factorisation.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

SHRINKAGE = 0.01
"""Of the covariance, towards a multiple of the identity."""
FOLDS = 3
"""Of the cross-validation over documents."""


@dataclass(frozen=True)
class Folded:
    """Activations cut into folds, and what every label vector needs of them."""

    X: Float[Tensor, "rows d"]
    """Activations less their mean."""
    fold_of: Int[Tensor, " rows"]
    """The fold of each row."""
    sums: Float[Tensor, "folds d"]
    """Of each fold's rows."""
    grams: Float[Tensor, "folds d d"]
    """Of each fold's rows, X^T X."""
    counts: Float[Tensor, " folds"]
    """Rows of each fold."""

    def r(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
        """Held-out correlation of each column of labels with its read-out, pooled over folds."""
        moments, totals, squares = 0.0, 0.0, 0.0
        products, sums, weights = self._read_outs(Y)
        for fold, w in enumerate(weights):
            moments = moments + (w * products[fold]).sum(0)
            totals = totals + self.sums[fold] @ w
            squares = squares + (w * (self.grams[fold] @ w)).sum(0)
        n, y = self.counts.sum(), sums.sum(0)
        return correlation(n, torch.as_tensor(totals), y, torch.as_tensor(squares), y, torch.as_tensor(moments))

    def scores(self, Y: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Held-out read-outs, of standard deviation about 1."""
        found = torch.empty(Y.shape, dtype=torch.float64)
        for fold, w in enumerate(self._read_outs(Y)[2]):
            rows = self.fold_of == fold
            found[rows] = self.X[rows].double() @ w
        return found

    def _read_outs(self, Y: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """X^T Y (folds, d, columns), sums of Y (folds, columns), and each fold's read-outs (d, columns)."""
        parts = [self.fold_of == fold for fold in range(len(self.counts))]
        products = torch.stack([self.X[rows].mT @ Y[rows] for rows in parts]).double()
        sums = torch.stack([Y[rows].sum(0) for rows in parts]).double()
        weights = []
        for fold in range(len(parts)):
            n = self.counts.sum() - self.counts[fold]
            mean = (self.sums.sum(0) - self.sums[fold]) / n
            covariance = (self.grams.sum(0) - self.grams[fold]) / n - torch.outer(mean, mean)
            cross = (products.sum(0) - products[fold]) / n - torch.outer(mean, (sums.sum(0) - sums[fold]) / n)
            weights.append(read_outs(covariance, cross))
        return products, sums, weights


def read_outs(covariance: Float[Tensor, "d d"], cross: Float[Tensor, "d columns"]) -> Float[Tensor, "d columns"]:
    """Discriminants of labels with these covariances with the rows, scaled to variance 1 on the rows."""
    d = len(covariance)
    mean = covariance.diagonal().mean()
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * mean * torch.eye(d, dtype=covariance.dtype)
    w = torch.linalg.solve(shrunk, cross)
    return w / (w * (covariance @ w)).sum(0).clamp(min=1e-30).sqrt()


def folded(X: Float[Tensor, "rows d"], fold_of: Int[np.ndarray, " rows"]) -> Folded:
    """Activations ready for any labels."""
    X = (X - X.mean(0)).float()
    fold = torch.from_numpy(fold_of)
    parts = [X[fold == number] for number in range(int(fold.max()) + 1)]
    return Folded(
        X,
        fold,
        torch.stack([part.sum(0) for part in parts]).double(),
        torch.stack([part.mT @ part for part in parts]).double(),
        torch.tensor([len(part) for part in parts], dtype=torch.float64),
    )


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
