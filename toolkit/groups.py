"""How features that belong to sets lie in the hidden space. Pure functions of weights (instances, hidden, features)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from toolkit.metrics import gram

Sets = Sequence[Sequence[int]]
"""The features of each set, as `sources.grouped` takes them."""


def partners(sets: Sets, features: int) -> Bool[Tensor, "features features"]:
    """Which ordered pairs of different features share a set."""
    label = torch.full((features,), -1)
    for at, one in enumerate(sets):
        label[list(one)] = at
    return (label[:, None] == label) & (label >= 0) & ~torch.eye(features, dtype=torch.bool)


def cosines_within(W: Float[Tensor, "instances hidden features"], sets: Sets) -> Float[Tensor, "instances pairs"]:
    """Signed cosines of all ordered pairs that share a set."""
    return gram(torch.nn.functional.normalize(W, dim=1))[:, partners(sets, W.shape[2])]


def interference_within(W: Float[Tensor, "instances hidden features"], sets: Sets) -> Float[Tensor, " instances"]:
    """Share of the squared cosines of different features that lies within sets; chance: the share of pairs that do."""
    every = [list(range(W.shape[2]))]
    return cosines_within(W, sets).square().sum(1) / cosines_within(W, every).square().sum(1)


def weight_in_sums(W: Float[Tensor, "instances hidden features"], sets: Sets) -> Float[Tensor, " instances"]:
    """Share of ||W||_F^2 that reads only the sum over each set: 1 where each set is merged into its sum.

    For exchangeable features the sum is a set's first principal component; a set of k that is kept in orthogonal
    directions of one length has 1/k.
    """
    sums = [W[:, :, list(one)].sum(2).square().sum(1) / len(one) for one in sets]
    return torch.stack(sums).sum(0) / W.square().sum((1, 2))
