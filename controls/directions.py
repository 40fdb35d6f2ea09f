"""Which way activations move when a feature alone does: coefficients given the other labels, and their uncertainty."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.decoding import resampled

MOST_COVARIATES = 20
"""Other labels that are held fixed, those that go most with the feature."""
LARGEST_INFLATION = 1e4
"""A label that, with those held fixed before it, says all but a ten-thousandth of the feature is not held fixed."""
NOISE = 2.0
"""Standard errors below which a part of a discriminant is left out."""
DORMANT = 0.01
"""Directions with less than this share of the median variance do not vary on data; nothing moves along them."""


@dataclass(frozen=True)
class Moments:
    """Sums over each document's rows of (1, labels) against themselves and against the activations."""

    own: Float[Tensor, "documents terms terms"]
    """Z^T Z, Z = (1, labels)."""
    cross: Float[Tensor, "documents terms d"]
    """Z^T X."""
    second: Float[Tensor, "d d"]
    """Covariance of all activations."""

    def drawn(self, weights: Float[Tensor, "draws documents"]) -> tuple[Tensor, Tensor]:
        """The sums where each document counts so often: (draws, terms, terms) and (draws, terms, d)."""
        return torch.einsum("bg,gst->bst", weights, self.own), torch.einsum("bg,gsd->bsd", weights, self.cross)


def moments(
    X: Float[Tensor, "rows d"], Y: Int[np.ndarray, "rows features"], groups: Int[np.ndarray, " rows"]
) -> Moments:
    """Of activations less their mean."""
    X = (X - X.mean(0)).double()
    Z = torch.cat([torch.ones(len(X), 1, dtype=torch.float64), torch.from_numpy(Y).double()], 1)
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(np.bincount(groups))
    own, cross = [], []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        rows = torch.from_numpy(order[start:end])
        own.append(Z[rows].mT @ Z[rows])
        cross.append(Z[rows].mT @ X[rows])
    return Moments(torch.stack(own), torch.stack(cross), X.mT @ X / len(X))


def covariates(Y: Int[np.ndarray, "rows features"], feature: int) -> list[int]:
    """The other labels to hold fixed, by correlation with the feature, but those that would leave nothing of it."""
    centred = Y - Y.mean(0)
    scaled = centred / centred.std(0)
    with_it = np.abs(scaled.T @ scaled[:, feature]) / len(Y)
    kept: list[int] = []
    for other in np.argsort(-with_it, kind="stable"):
        if other == feature or len(kept) == MOST_COVARIATES:
            continue
        some = scaled[:, [*kept, int(other)]]
        left = scaled[:, feature] - some @ np.linalg.lstsq(some, scaled[:, feature], rcond=None)[0]
        if (left**2).mean() * LARGEST_INFLATION > 1:
            kept.append(int(other))
    return kept


def alive(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The projection onto directions in which the activations vary."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = vectors[:, values >= DORMANT * values.median()]
    return kept @ kept.mT


@dataclass(frozen=True)
class Directions:
    """A feature's movement of the activations, estimated on some documents."""

    conditional: Float[Tensor, "draws d"]
    """From label 0 to 1, the other labels fixed; the first as estimated, then with documents drawn anew."""
    read_out: Float[Tensor, " d"]
    """The discriminant, as long as the first: it is blind to what also varies without the feature, labelled or not."""


def directions(
    found: Moments,
    feature: int,
    others: list[int],
    chosen: Float[Tensor, " documents"],
    *,
    draws: int,
    seed: int,
) -> Directions:
    """Of one feature from the documents chosen (1, others 0)."""
    documents = int(chosen.sum())
    weights = torch.zeros(draws + 1, len(chosen), dtype=torch.float64)
    weights[:, chosen > 0] = torch.cat([torch.ones(1, documents).double(), resampled(documents, draws, seed=seed)])
    own, cross = found.drawn(weights)
    terms = [0, 1 + feature, *(1 + other for other in others)]
    own, within = own[:, terms][:, :, terms], cross[:, terms]
    ridge = 1e-9 * own.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(len(terms), dtype=torch.float64)
    conditional = torch.linalg.solve(own + ridge, within)[:, 1] @ alive(found.second)  # (draws + 1, d)
    means = within[:, 0] / own[:, 0, :1]
    gaps = (within[:, 1] - own[:, 1, :1] * means) / own[:, 0, :1]  # (draws + 1, d), covariance with the label
    w = filtered(gaps, found.second)
    return Directions(conditional, w * conditional[0].norm() / w.norm().clamp(min=1e-30))


def filtered(gaps: Float[Tensor, "draws d"], covariance: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """The discriminant of a label's covariance with the activations, without what is only noise in it.

    Sigma^-1 weighs up directions of little variance, where a gap is mostly noise. In the eigenbasis of Sigma each part
    is shrunk by 1 - (NOISE error / gap)^2, and is 0 below that: a Wiener filter with the error that resampling shows.
    """
    values, vectors = torch.linalg.eigh(covariance)
    parts = gaps @ vectors
    sure = (1 - (NOISE * parts[1:].std(0) / parts[0].abs().clamp(min=1e-30)) ** 2).clamp(min=0)
    varies = values >= DORMANT * values.median()
    return vectors @ torch.where(varies, sure * parts[0] / values.clamp(min=1e-30), 0.0)
