"""Scores of toy models and sparse autoencoders, with their chance levels. Pure functions of tensors.

Directions are signed throughout: on antipodal geometry a feature and its antipode share a line, and a score of
|cos| would call a dictionary with half the features perfect.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components
from torch import Tensor

REPRESENTED = 0.5
"""A feature counts as represented when its squared norm passes this (Elhage et al. 2022, section 2)."""
RECOVERED = 0.99
"""A feature counts as recovered when its matched latent's signed cosine reaches this."""

# Polytopes of superposition by (vertices, dimensions they span); D_i = dimensions / vertices.
POLYTOPES = {
    (1, 1): "dedicated",
    (2, 1): "digon",
    (3, 2): "triangle",
    (4, 3): "tetrahedron",
    (5, 2): "pentagon",
    (5, 4): "5-cell",
    (6, 2): "hexagon",
    (7, 2): "heptagon",
    (8, 3): "square antiprism",
}


def gram(W: Float[Tensor, "*instances hidden features"]) -> Float[Tensor, "*instances features features"]:
    """G = W^T W; the off-diagonal entries are the interference between features."""
    return W.mT @ W


def represented(W: Float[Tensor, "*instances hidden features"]) -> Bool[Tensor, "*instances features"]:
    """Which features have squared norm above one half."""
    return W.square().sum(-2) > REPRESENTED


def dimensions_per_feature(W: Float[Tensor, "*instances hidden features"]) -> Float[Tensor, "*instances"]:
    """D* = m / ||W||_F^2 (Elhage et al. 2022, "The Geometry of Superposition"); inf where W = 0."""
    return W.shape[-2] / W.square().sum((-2, -1))


def feature_dimensionality(
    W: Float[Tensor, "*instances hidden features"],
) -> Float[Tensor, "*instances features"]:
    """D_i = ||W_i||^2 / sum_j (W_i/||W_i|| . W_j)^2, and 0 for a feature with W_i = 0 (Elhage et al. 2022)."""
    squared = W.square().sum(-2)
    projections = gram(W).square().sum(-1)  # sum_j (W_i . W_j)^2
    return torch.where(squared > 0, squared.square() / projections.clamp(min=torch.finfo(W.dtype).tiny), 0.0)


def capacity(W: Float[Tensor, "*instances hidden features"]) -> Float[Tensor, "*instances features"]:
    """C_i = (W_i . W_i)^2 / sum_j (W_i . W_j)^2, with sum C_i <= m (Scherlis et al. 2022, section 2).

    Algebraically the feature dimensionality of Elhage et al.; both names are in use.
    """
    return feature_dimensionality(W)


def geometry(W: Float[Tensor, "hidden features"], *, joined: float = 0.2) -> dict[str, int]:
    """Name the polytopes of one model's represented features, with how often each occurs.

    Features belong to one polytope when a chain of |cos| > `joined` links them; its dimension is the rounded
    sum of D_i (exact for a tight frame). A shape without a name reads 'vertices in dimensions'.
    """
    keep = represented(W)
    directions = torch.nn.functional.normalize(W[:, keep], dim=0)
    linked = (gram(directions).abs() > joined).cpu().numpy()
    count, label = connected_components(linked, directed=False)
    names: Counter[str] = Counter()
    for part in range(count):
        members = W[:, keep][:, torch.from_numpy(label == part)]
        shape = (members.shape[1], round(feature_dimensionality(members).sum().item()))
        names[POLYTOPES.get(shape, f"{shape[0]} in {shape[1]}")] += 1
    return dict(names.most_common())


@dataclass(frozen=True)
class Matching:
    """A one-to-one assignment of latents to true features."""

    latents: Int[Tensor, " features"]
    """Latent matched to each feature, -1 where there are fewer latents than features."""
    cosines: Float[Tensor, " features"]
    """Signed cosine of each match, 0 where there is none."""

    @property
    def score(self) -> float:
        """Mean over the features: 1 for a perfect dictionary, one half where half the features are missed."""
        return self.cosines.mean().item() if len(self.cosines) else float("nan")


def signed_matching(directions: Float[Tensor, "features d"], decoder: Float[Tensor, "latents d"]) -> Matching:
    """The assignment of latents to features that maximises the summed signed cosine (Hungarian).

    A latent that has to stand for a feature it points away from counts against the dictionary.
    """
    unit = torch.nn.functional.normalize
    cosines = (unit(directions, dim=1) @ unit(decoder, dim=1).T).cpu()
    features, latents = linear_sum_assignment(cosines.numpy(), maximize=True)
    matched = torch.full((len(directions),), -1)
    scores = torch.zeros(len(directions))
    matched[features] = torch.from_numpy(latents)
    scores[features] = cosines[features, latents]
    return Matching(matched, scores)


def fvu(
    x: Float[Tensor, "rows d"],
    recovered: Float[Tensor, "rows d"],
    *,
    about: Literal["mean", "zero"] = "mean",
    weights: Float[Tensor, " rows"] | None = None,
) -> float:
    """Fraction of variance unexplained: squared error over squared distance from the mean row, or from zero.

    `weights` (non-negative, one a row) weigh the error, the mean and the variance alike.
    """
    w = torch.ones(len(x), device=x.device) if weights is None else weights
    w = (w / w.sum())[:, None]
    origin = (w * x).sum(0) if about == "mean" else torch.zeros_like(x.sum(0))
    return ((w * (recovered - x).square()).sum() / (w * (x - origin).square()).sum()).item()


def l0(latents: Float[Tensor, "rows latents"], weights: Float[Tensor, " rows"] | None = None) -> float:
    """Mean number of active latents a row."""
    active = (latents > 0).sum(-1).float()
    return active.mean().item() if weights is None else ((active * weights).sum() / weights.sum()).item()


def dead(latents: Float[Tensor, "rows latents"]) -> float:
    """Share of latents that are active on no row."""
    return 1 - (latents > 0).any(0).float().mean().item()


def f1(latents: Float[Tensor, "rows features"], features: Float[Tensor, "rows features"]) -> Float[Tensor, " features"]:
    """F1 of 'latent above t' as a detector of 'feature on', column by column, at the positive t that suits it best.

    The best threshold, not zero: a latent that fires at 1e-4 on empty rows is no worse a detector for it.
    NaN for a feature that is never on.
    """
    values, order = latents.sort(dim=0, descending=True)
    hits = (features > 0).gather(0, order).cumsum(0).float()
    called = torch.arange(1, len(latents) + 1, device=latents.device)[:, None]
    total = (features > 0).sum(0)
    # A threshold can only fall between different values: the last of a run of equal ones stands for them all.
    ends = torch.cat([values[:-1] > values[1:], torch.ones_like(values[:1], dtype=torch.bool)])
    scores = torch.where(ends & (values > 0), 2 * hits / (called + total), 0.0)
    return torch.where(total > 0, scores.max(0).values, torch.nan)


def shrinkage(written: Float[Tensor, "rows features"], true: Float[Tensor, "rows features"]) -> float:
    """How far matched latents fall short of the amplitude they should write: 1 - least-squares slope, 0 is none.

    Args:
        written: matched latent times decoder norm. true: feature value times the norm of its direction.
    """
    return 1 - ((written * true).sum() / true.square().sum().clamp(min=1e-30)).item()


@dataclass(frozen=True)
class Recovery:
    """How well one dictionary finds one toy model's features."""

    signed_mcc: float
    """Mean signed cosine after Hungarian matching, over represented features."""
    recovered: float
    """Represented features whose matched latent has signed cosine >= RECOVERED."""
    f1: float
    """Mean over represented features of the matched latent's F1 as a detector of the feature, see `f1`."""
    fvu: float
    """Fraction of variance unexplained, about the mean."""
    fvu_zero: float
    """The same about zero."""
    l0: float
    """Active latents a row."""
    dead: float
    """Share of latents active on no row."""
    shrinkage: float
    """1 - slope of written on true amplitude."""


def recovery(
    W: Float[Tensor, "hidden features"],
    features: Float[Tensor, "rows features"],
    x: Float[Tensor, "rows hidden"],
    latents: Float[Tensor, "rows latents"],
    decoder: Float[Tensor, "latents hidden"],
    bias: Float[Tensor, " hidden"],
) -> Recovery:
    """Compare a dictionary's codes with the features that made the activations x = features W^T."""
    keep = represented(W)
    match = signed_matching(W[:, keep].T, decoder)
    found = match.latents >= 0
    # A feature without a latent is scored against one that never fires.
    columns = torch.zeros(len(latents), len(found))
    columns[:, found] = latents[:, match.latents[found]].cpu()
    norms = torch.zeros(len(found))
    norms[found] = decoder[match.latents[found]].norm(dim=1).cpu()
    truth = features[:, keep].cpu()
    rebuilt = latents @ decoder + bias
    return Recovery(
        signed_mcc=match.score,
        recovered=int((match.cosines >= RECOVERED).sum()),
        f1=f1(columns, truth).nanmean().item(),
        fvu=fvu(x, rebuilt),
        fvu_zero=fvu(x, rebuilt, about="zero"),
        l0=l0(latents),
        dead=dead(latents),
        shrinkage=shrinkage(columns * norms, truth * W[:, keep].norm(dim=0).cpu()),
    )


def random_dictionary(width: int, d: int, *, seed: int) -> Float[Tensor, "width d"]:
    """Directions drawn uniformly from the sphere: the dictionary that has learned nothing."""
    draws = np.random.default_rng(seed).standard_normal((width, d))
    return torch.from_numpy(draws / np.linalg.norm(draws, axis=1, keepdims=True)).float()


def least_squares_gain(x: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"]) -> float:
    """The scalar that brings a reconstruction nearest to x, so that a chance level is not lost to its scale."""
    return ((x * rebuilt).sum() / rebuilt.square().sum().clamp(min=1e-30)).item()
