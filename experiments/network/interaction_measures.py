"""N9's bases side by side: how sparse interactions between consecutive layers are in each, and how few edges do."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.interaction_basis import (
    InteractionBasis,
    Layer,
    interaction_bases,
    neuron_basis,
    principal_basis,
    rotated_basis,
)
from toolkit.interactions import edges_needed, fewest, interactions, keep_edges, path_jacobians, sparsity

LOCAL, PCA, NEURONS, RANDOM, OTHER = "interaction basis", "principal", "neurons", "random rotation", "another network's"
BASES = (LOCAL, PCA, NEURONS, RANDOM, OTHER)
"""The last is the interaction basis that Jacobians of a network with other weights give on the same activations."""
QUANTITIES = ("effective", "for_90", "for_99", "needed", "directions")
"""Effective edges, edges that hold 90% and 99%, edges and directions that must stay."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Two consecutive layers at the rows that are measured."""

    layer: Layer
    """From one to the next."""
    x: Float[Tensor, "rows d"]
    """Activations of the first."""
    harm: Callable[[Tensor], float]
    """What it costs to put other activations of the next layer in the place of its own."""
    tolerance: float
    """Of that."""


def all_bases(
    activations: Sequence[Tensor], steps: Sequence[Tensor], others: Sequence[Tensor], seed: int
) -> dict[str, list[InteractionBasis]]:
    """Every kind of basis of each layer, from activations and Jacobians of this network and of another."""
    return {
        LOCAL: interaction_bases(activations, steps),
        PCA: [principal_basis(x) for x in activations],
        NEURONS: [neuron_basis(x) for x in activations],
        RANDOM: [rotated_basis(x, seed=seed) for x in activations],
        OTHER: interaction_bases(activations, others),
    }


def squared_of(
    pair: Pair, bases: dict[str, list[InteractionBasis]], at: int, *, steps: int
) -> dict[str, Float[Tensor, "kept_next kept"]]:
    """Mean squared interactions of layers `at` and `at + 1` in every basis."""
    local = bases[LOCAL]
    paths = path_jacobians(pair.layer, pair.x, local[at].mean, steps=steps)
    metric = local[at + 1].metric
    return {
        name: interactions(pair.x, paths, one[at], one[at + 1], metric=metric).mean(0) for name, one in bases.items()
    }


def quantities(
    pair: Pair,
    basis: InteractionBasis,
    following: InteractionBasis,
    squared: Float[Tensor, "kept_next kept"],
    *,
    ranked: Float[Tensor, "kept_next kept"],
) -> Float[Tensor, " quantities"]:
    """QUANTITIES of one basis; where all its edges or directions together do too much harm, all of the whole space.

    Args:
        squared: interactions at these rows.
        ranked: by which edges are ranked that stay: at these rows or, where they are few, at others.
    """
    found, d = sparsity(squared), len(basis.mean)

    def without_edges(mask: Tensor) -> float:
        return pair.harm(keep_edges(pair.layer, pair.x, basis, following, mask))

    @torch.no_grad()
    def without_directions(count: int) -> float:
        c = basis.to_basis(pair.x)
        c[:, count:] = 0
        return pair.harm(pair.layer(basis.from_basis(c).to(pair.x)))

    edges = edges_needed(without_edges, ranked, tolerance=pair.tolerance)
    directions = fewest(without_directions, len(basis.importance), tolerance=pair.tolerance)
    edges = edges if math.isfinite(edges) else d * len(following.mean)
    directions = directions if math.isfinite(directions) else d
    return torch.tensor([found.effective, found.for_90, found.for_99, edges, directions], dtype=torch.float64)
