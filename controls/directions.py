"""Which way activations move when a feature alone does: coefficients given the other labels, and their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from controls.decoding import real, resampled

MOST_COVARIATES = 20
"""Other labels that are held fixed, those that go most with the feature."""
LARGEST_INFLATION = 1e4
"""A label that, with those held fixed before it, says all but a ten-thousandth of the feature is not held fixed."""
NOISE = 2.0
"""Standard errors below which a part of a discriminant is left out."""
DORMANT = 0.01
"""Directions with less than this share of the median variance hardly vary on data: what a movement along them alone
does is no evidence that a feature is used (Makelov et al. 2023), and no evidence that it is not."""


@dataclass(frozen=True)
class Moments:
    """Sums over each unit's rows of (1, labels) against themselves and against the activations."""

    own: Float[Tensor, "units terms terms"]
    """Z^T Z, Z = (1, labels)."""
    cross: Float[Tensor, "units terms d"]
    """Z^T X."""
    values: Float[Tensor, " d"]
    """Eigenvalues of the covariance of all activations."""
    vectors: Float[Tensor, "d d"]
    """Its eigenvectors, in columns."""

    def drawn(self, weights: Float[Tensor, "draws units"]) -> tuple[Tensor, Tensor]:
        """The sums where each unit counts so often: (draws, terms, terms) and (draws, terms, d)."""
        return torch.einsum("bg,gst->bst", weights, self.own), torch.einsum("bg,gsd->bsd", weights, self.cross)


def moments(
    X: Float[Tensor, "rows d"], Y: Int[np.ndarray, "rows features"], units: Int[np.ndarray, " rows"]
) -> Moments:
    """Of activations less their mean."""
    X = (X - X.mean(0)).double()
    Z = torch.cat([torch.ones(len(X), 1, dtype=torch.float64), torch.from_numpy(Y).double()], 1)
    order, ends = np.argsort(units, kind="stable"), np.cumsum(np.bincount(units)).tolist()
    parts = [torch.from_numpy(order[a:b]) for a, b in pairwise([0, *ends])]
    own = torch.stack([Z[rows].mT @ Z[rows] for rows in parts])
    cross = torch.stack([Z[rows].mT @ X[rows] for rows in parts])
    return Moments(own, cross, *torch.linalg.eigh(X.mT @ X / len(X)))


def covariates(Y: Int[np.ndarray, "rows features"], feature: int, among: Sequence[int] | None = None) -> list[int]:
    """The other labels (all, or among some) to hold fixed, by correlation with the feature, but those that would leave
    nothing of it."""
    centred = Y - Y.mean(0)
    scaled = centred / centred.std(0)
    with_it = np.abs(scaled.T @ scaled[:, feature]) / len(Y)
    kept: list[int] = []
    for other in np.argsort(-with_it, kind="stable"):
        if other == feature or len(kept) == MOST_COVARIATES or (among is not None and other not in among):
            continue
        some = scaled[:, [*kept, int(other)]]
        left = scaled[:, feature] - some @ np.linalg.lstsq(some, scaled[:, feature], rcond=None)[0]
        if (left**2).mean() * LARGEST_INFLATION > 1:
            kept.append(int(other))
    return kept


def without(
    Y: Int[np.ndarray, "rows features"], others: list[list[int]], features: list[int] | None = None
) -> Float[np.ndarray, "rows some"]:
    """Labels (all, or some) less what the labels held fixed, a list for each, tell of them by least squares."""
    chosen = list(range(Y.shape[1])) if features is None else features
    found = np.empty((len(Y), len(chosen)))
    for column, (f, fixed) in enumerate(zip(chosen, others, strict=True)):
        Z = np.concatenate([np.ones((len(Y), 1)), Y[:, fixed]], 1)
        found[:, column] = Y[:, f] - Z @ np.linalg.lstsq(Z, Y[:, f], rcond=None)[0]
    return found


@dataclass(frozen=True)
class Directions:
    """A feature's movement of the activations, estimated on some documents; the first of each as estimated, then with
    units drawn anew."""

    conditional: Float[Tensor, "draws d"]
    """From label 0 to 1, the other labels fixed."""
    read_out: Float[Tensor, "draws d"]
    """The discriminant, as long as the first: it is blind to what also varies without the feature, labelled or not."""
    awake: Float[Tensor, "one d"]
    """The first, without its part in directions that hardly vary on data."""
    sure: Float[Tensor, " d"]
    """The first, each principal direction's part shrunk by what resampling shows to be noise in it."""


def directions(
    found: Moments, feature: int, others: list[int], chosen: Float[Tensor, " units"], *, draws: int, seed: int
) -> Directions:
    """Of one feature from the units chosen (1, others 0)."""
    held = int(chosen.sum())
    weights = torch.zeros(draws + 1, len(chosen), dtype=torch.float64)
    weights[:, chosen > 0] = torch.cat([torch.ones(1, held).double(), resampled(held, draws, seed=seed)])
    own, cross = found.drawn(weights)
    terms = [0, 1 + feature, *(1 + other for other in others)]
    own, within = own[:, terms][:, :, terms], cross[:, terms]
    ridge = 1e-9 * own.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(len(terms), dtype=torch.float64)
    conditional = torch.linalg.solve(own + ridge, within)[:, 1]  # (draws + 1, d)
    means = within[:, 0] / own[:, 0, :1]
    gaps = (within[:, 1] - own[:, 1, :1] * means) / own[:, 0, :1]  # (draws + 1, d), covariance with the label
    w = filtered(gaps, found)
    w = w * (conditional[0].norm() / w[0].norm().clamp(min=1e-30))
    vectors = found.vectors[:, varies(found.values)]
    parts = conditional @ found.vectors
    sure = (shrunk(parts, noise=1.0) * parts[0]) @ found.vectors.mT
    return Directions(conditional, w, conditional[:1] @ vectors @ vectors.mT, sure)


def varies(values: Float[Tensor, " d"]) -> Bool[Tensor, " d"]:
    """Which principal directions vary on data: DORMANT of the median of those that are more than rounding."""
    kept = real(values)
    return kept & (values >= DORMANT * values[kept].median()) if bool(kept.any()) else kept


def filtered(gaps: Float[Tensor, "draws d"], found: Moments) -> Float[Tensor, "draws d"]:
    """Discriminants of a label's covariances with the activations, without what is only noise in them.

    Sigma^-1 weighs up directions of little variance, where a gap is mostly noise. In the eigenbasis of Sigma each part
    is shrunk by 1 - (NOISE error / gap)^2, and is 0 below that: a Wiener filter with the error that resampling shows.
    """
    parts = gaps @ found.vectors
    weights = torch.where(varies(found.values), shrunk(parts, noise=NOISE) / found.values.clamp(min=1e-30), 0.0)
    return (parts * weights) @ found.vectors.mT


def shrunk(parts: Float[Tensor, "draws d"], *, noise: float) -> Float[Tensor, " d"]:
    """What to multiply estimates (the first) by whose error resampling (the others) shows; 0 for noise alone."""
    return (1 - (noise * parts[1:].std(0) / parts[0].abs().clamp(min=1e-30)) ** 2).clamp(min=0)
