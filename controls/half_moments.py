"""Means and covariances of some rows, summed in double precision block by block: no copy of all rows is made."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

AT_ONCE = 8192
"""Rows that are in double precision at a time."""


@dataclass(frozen=True)
class Spread:
    """Of some rows."""

    count: int
    """How many there are."""
    mean: Float[Tensor, " d"]
    """Of them."""
    covariance: Float[Tensor, "d d"]
    """Sum over rows divided by their number."""

    def __add__(self, other: "Spread") -> "Spread":
        """Of the rows of both."""
        n = self.count + other.count
        share, apart = other.count / n, other.mean - self.mean
        within = (1 - share) * self.covariance + share * other.covariance
        between = share * (1 - share) * torch.outer(apart, apart)
        return Spread(n, self.mean + share * apart, within + between)


def spread(X: Float[Tensor, "rows d"], which: Int[Tensor, " some"]) -> Spread:
    """Of the rows named, one at least."""
    centre = _near_the_mean(X, which)
    sums, gram = torch.zeros_like(centre), torch.zeros(len(centre), len(centre)).double()
    for some in which.split(AT_ONCE):
        x = X[some].double() - centre
        sums += x.sum(0)
        gram += x.mT @ x
    off = sums / len(which)
    return Spread(len(which), centre + off, gram / len(which) - torch.outer(off, off))


def with_labels(
    X: Float[Tensor, "rows d"], Y: Int[Tensor, "rows labels"], which: Int[Tensor, " some"]
) -> Float[Tensor, "labels d"]:
    """Covariance of each label with the activations, over the rows named, divided by their number."""
    centre, rates = _near_the_mean(X, which), Y[which].double().mean(0)
    found = torch.zeros(Y.shape[1], X.shape[1]).double()
    for some in which.split(AT_ONCE):
        found += (Y[some].double() - rates).mT @ (X[some].double() - centre)
    return found / len(which)


def _near_the_mean(X: Tensor, which: Tensor) -> Tensor:
    """What to take off before summing, so that a mean far from 0 costs no digits."""
    return X[which[:AT_ONCE]].double().mean(0)
