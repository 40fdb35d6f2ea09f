"""How far points with the same label lie together, beside the same labels permuted."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import require


def cosine_distances(rows: Float[Tensor, "points d"]) -> Float[Tensor, "points points"]:
    """1 - cosine; 1 to a row of zeros."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    return (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)


def euclidean_distances(rows: Float[Tensor, "points d"]) -> Float[Tensor, "points points"]:
    """|a - b|."""
    return torch.cdist(rows.double(), rows.double())


def nearest(distances: Float[Tensor, "points points"], k: int) -> Int[Tensor, "points k"]:
    """Each point's k nearest others.

    Raises:
        UserError: no more than k points.
    """
    require(len(distances) > k, f"{k} neighbours need more points than that, got {len(distances)}")
    others = distances.clone().fill_diagonal_(torch.inf)
    return others.topk(k, largest=False).indices


def purity(neighbours: Int[Tensor, "points k"], labels: Int[Tensor, "*draws points"]) -> Float[Tensor, "*draws"]:
    """The share of neighbours that have the point's own label."""
    return (labels[..., neighbours] == labels[..., None]).double().mean((-2, -1))


def silhouette(
    distances: Float[Tensor, "points points"], labels: Int[Tensor, "*draws points"]
) -> Float[Tensor, "*draws"]:
    """Mean of (b - a) / max(a, b): a is the mean distance to the own label, b to the nearest other (Rousseeuw 1987).

    A point alone with its label counts 0, as does everything where all labels are one.
    """
    kinds = int(labels.max()) + 1
    member = torch.nn.functional.one_hot(labels, kinds).double()  # (*draws, points, kinds)
    size = member.sum(-2, keepdim=True)
    total = distances @ member
    own = (total * member).sum(-1) / ((size * member).sum(-1) - 1).clamp(min=1)
    other = torch.where((member > 0) | (size == 0), torch.inf, total / size.clamp(min=1)).amin(-1)
    score = (other - own) / torch.maximum(other, own).clamp(min=1e-300)
    alone = (size * member).sum(-1) == 1
    return torch.where(alone | other.isinf(), 0.0, score).mean(-1)


@dataclass(frozen=True)
class Score:
    """A score of labels and its law over permutations of them."""

    found: float
    """With the labels as they are."""
    permuted: Float[Tensor, " draws"]
    """With the labels permuted."""

    @property
    def beyond_chance(self) -> float:
        """(found - mean permuted) / (1 - mean permuted): 0 by chance, 1 at best; 0 where chance is already 1."""
        chance = self.permuted.mean().item()
        return 0.0 if chance > 1 - 1e-9 else (self.found - chance) / (1 - chance)


def scores(
    distances: Float[Tensor, "points points"], labels: Int[Tensor, " points"], *, k: int, draws: int, seed: int
) -> dict[str, Score]:
    """Purity of the k nearest and silhouette, each against `draws` permutations of the labels."""
    rng = np.random.default_rng(seed)
    permuted = torch.from_numpy(rng.permuted(np.tile(labels.numpy(), (draws, 1)), axis=1))
    neighbours = nearest(distances, k)
    blocks = permuted.split(16)  # a block of distances @ memberships is (16, points, kinds)
    return {
        "purity": Score(purity(neighbours, labels).item(), torch.cat([purity(neighbours, one) for one in blocks])),
        "silhouette": Score(
            silhouette(distances, labels).item(), torch.cat([silhouette(distances, one) for one in blocks])
        ),
    }
