"""A dictionary on a device: with a place for no atom, its Gram matrix, sums of few atoms."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


class Atoms(NamedTuple):
    """A dictionary with atom n, which is zero and stands for an empty place."""

    D: Float[Tensor, "n+1 d"]
    """float64."""
    gram: Float[Tensor, "n+1 n+1"]
    """D D^T."""

    @property
    def n(self) -> int:
        """How many atoms there are."""
        return len(self.D) - 1

    @property
    def most(self) -> int:
        """How many of them can be independent."""
        return min(self.n, self.D.shape[1])

    def sums(self, which: Int[Tensor, "rows m"], z: Float[Tensor, "rows m"]) -> Float[Tensor, "rows d"]:
        """sum_i z_i d_i of each row, 2 m d flops."""
        return weighted_rows(self.D, which, z)

    def products(self, X: Float[Tensor, "rows d"]) -> Float[Tensor, "rows n"]:
        """Every atom's product with every row, 2 d n flops a row."""
        return X @ self.D[:-1].T  # (rows, d) (d, n)

    def images(self, which: Int[Tensor, "rows m"], z: Float[Tensor, "rows m"]) -> Float[Tensor, "rows n"]:
        """Every atom's product with sum_i z_i d_i.

        From rows of the Gram matrix, 2 m n flops, where they are few; else as a dense product, 2 d (m + n) flops: more,
        but at a rate that gathering rows does not reach.
        """
        if 4 * which.shape[1] < self.D.shape[1]:
            return weighted_rows(self.gram, which, z)[:, :-1]
        return self.products(self.sums(which, z))

    def inside(self, which: Int[Tensor, "rows m"]) -> Tensor:
        """Whether an atom is among a row's, (rows, n), true or false."""
        found = torch.zeros(len(which), self.n + 1, dtype=torch.bool, device=which.device)
        return found.scatter_(1, which, True)[:, :-1]


def as_atoms(D: Float[Tensor, "n d"]) -> Atoms:
    """The dictionary with its empty place, and its Gram matrix, in float64."""
    D = pad(D.double(), (0, 0, 0, 1))
    return Atoms(D, D @ D.T)


def weighted_rows(
    A: Float[Tensor, "all columns"], which: Int[Tensor, "rows k"], weights: Float[Tensor, "rows k"]
) -> Float[Tensor, "rows columns"]:
    """sum_i weights_i A[which_i] for each row, 2 k columns flops a row; the gathered rows are not written down."""
    return embedding_bag(which, A, mode="sum", per_sample_weights=weights.to(A.dtype))
