"""How strongly directions of one layer act on those of the next, and how sparse that is, in any basis.

```python
paths = path_jacobians(layer, x, bases[0].mean)
E = interactions(x, paths, bases[0], bases[1], metric=bases[1].metric).mean(0)      # (kept of the next, kept)
sparsity(E).for_90                                                  # edges that hold 90% of it
edges_needed(lambda mask: harm(keep_edges(layer, x, bases[0], bases[1], mask)), E, tolerance=0.05)
```

An interaction is an integrated gradient (Sundararajan et al. 2017): what coordinate j gives to coordinate i of the next
layer on the straight way from the mean to the activation. It is chosen over the Jacobian's entries because it does not
change with the length of direction j, so that bases scaled in different ways can be compared, because it counts changes
of the size that data have, and because contributions add up to the whole change. All bases share the way, so that the
Jacobians along it are computed once.

What is squared and averaged is counted by what coordinate i does further on (`metric`): otherwise a direction of large
variance that nobody reads would be most of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toolkit.errors import require
from toolkit.interaction_basis import InteractionBasis, Layer, jacobians

_AT_ONCE = 2**14
"""Rows run together when edges are cut."""
PRECISION = 0.05
"""Of numbers of edges needed, relative."""


@dataclass(frozen=True)
class Sparsity:
    """How few edges hold the squared interaction."""

    edges: int
    """Between all directions kept."""
    for_90: int
    """Fewest edges that hold 90% of it."""
    for_99: int
    """Fewest edges that hold 99%."""
    effective: float
    """Participation ratio (sum e)^2 / sum e^2: as many equal edges would be as concentrated."""


def path_jacobians(
    layer: Layer, x: Float[Tensor, "rows d"], baseline: Float[Tensor, " d"], *, steps: int = 8
) -> Float[Tensor, "rows outputs d"]:
    """Mean Jacobian on the straight way from the baseline to each row, float64; Gauss-Legendre with `steps` nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    base = baseline.to(x)
    parts = [
        w / 2 * jacobians(layer, base + (1 + t) / 2 * (x - base)).double()
        for t, w in zip(nodes, weights.tolist(), strict=True)
    ]
    return torch.stack(parts).sum(0)


def attributions(
    x: Float[Tensor, "rows d"],
    paths: Float[Tensor, "rows outputs d"],
    basis: InteractionBasis,
    following: InteractionBasis,
) -> Float[Tensor, "rows kept_next kept"]:
    """What each coordinate gives to each of the next layer's; over directions kept they add up to its whole change
    from the baseline to the row, less what those left out give."""
    slopes = torch.einsum("in,rnd,dj->rij", following.reads, paths, basis.writes)
    return slopes * basis.to_basis(x)[:, None]


def interactions(
    x: Float[Tensor, "rows d"],
    paths: Float[Tensor, "rows outputs d"],
    basis: InteractionBasis,
    following: InteractionBasis,
    *,
    metric: Float[Tensor, "outputs outputs"],
) -> Float[Tensor, "rows kept_next kept"]:
    """Squared attributions, each counted by what its target does further on.

    Args:
        metric: that of the next layer's local interaction basis, whichever basis is looked at.
    """
    further = torch.einsum("ni,nm,mi->i", following.writes, metric, following.writes)
    return attributions(x, paths, basis, following).square() * further[:, None]


def sparsity(squared: Float[Tensor, "kept_next kept"]) -> Sparsity:
    """Of squared interactions.

    Raises:
        UserError: all are zero.
    """
    values = squared.flatten().double().sort(descending=True).values
    total = values.sum()
    require(bool(total > 0), "no direction acts on any of the next layer: all interactions are zero")
    sums = values.cumsum(0) / total

    def fewest(share: float) -> int:
        return int((sums < share - 1e-12).sum()) + 1

    return Sparsity(len(values), fewest(0.9), fewest(0.99), float(total.square() / values.square().sum()))


@torch.no_grad()
def keep_edges(
    layer: Layer,
    x: Float[Tensor, "rows d"],
    basis: InteractionBasis,
    following: InteractionBasis,
    mask: Bool[Tensor, "kept_next kept"],
) -> Float[Tensor, "rows outputs"]:
    """The next layer's activations where each of its coordinates is computed from the sources that `mask` leaves it.

    Other sources, and whatever the basis leaves out, stand at their mean.

    Args:
        layer: is given all rows of x, in their order, once or several times over.
    """
    c = basis.to_basis(x)
    patterns, of = mask.unique(dim=0, return_inverse=True)  # targets with the same sources are computed together
    some = max(1, _AT_ONCE // len(x))
    found = c.new_zeros(len(x), len(mask))
    for first in range(0, len(patterns), some):
        chosen = patterns[first : first + some]
        inputs = basis.from_basis(c * chosen[:, None]).flatten(0, 1)  # (patterns, rows, d) -> (patterns * rows, d)
        reached = layer(inputs.to(x)).unflatten(0, (len(chosen), len(x)))  # -> (patterns, rows, outputs)
        targets = ((of >= first) & (of < first + some)).nonzero()[:, 0]
        away = reached.to(c)[of[targets] - first] - following.mean  # (targets, rows, outputs)
        found[:, targets] = torch.einsum("trn,tn->rt", away, following.reads[targets])
    return following.from_basis(found).to(x)


def edges_needed(
    harm: Callable[[Tensor], float], squared: Float[Tensor, "kept_next kept"], *, tolerance: float
) -> float:
    """How many of the strongest edges must stay for the harm to be no more than `tolerance`, as `fewest` has it.

    Args:
        harm: of a mask (kept_next, kept), True where an edge stays.
    """
    ranks = squared.flatten().argsort(descending=True, stable=True).argsort().view(squared.shape)
    return fewest(lambda count: harm(ranks < count), squared.numel(), tolerance=tolerance)


def fewest(harm: Callable[[int], float], total: int, *, tolerance: float) -> float:
    """A count with harm no more than `tolerance`, where one smaller by more than PRECISION does more: by bisection
    of the logarithm.

    Infinity where `total` does more harm; 0 where none does as little.
    """
    if harm(total) > tolerance:
        return math.inf
    if harm(0) <= tolerance:
        return 0
    low, high = 0, total
    while high - low > max(1, PRECISION * high):
        middle = min(max(round(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
        low, high = (middle, high) if harm(middle) > tolerance else (low, middle)
    return high
