"""Nulls of a weight matrix: a matrix of the same shape with one kind of structure taken away and another kept.

Each takes a `(rows, d)` float32 tensor and a seed, leaves its argument as it is and returns a new tensor.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require, unknown

SIDES = ("both", "left", "right")


def covariance_matched(matrix: Float[Tensor, "rows d"], *, seed: int) -> Float[Tensor, "rows d"]:
    """Gaussian rows with the matrix's mean and covariance (those of its rows, with divisor `rows`).

    Keeps every linear and quadratic fact, such as principal components; takes away sparsity, clusters and whatever
    else tells rows from a Gaussian cloud.

    Raises:
        UserError: the matrix has no rows.
    """
    require(len(matrix) > 0, "covariance_matched needs at least one row, got none")
    x = matrix.double()
    mean = x.mean(0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    root = vectors * values.clamp(min=0).sqrt()  # (d, d), root @ root.T is the covariance
    return (mean.float() + _normal(matrix.shape, seed) @ root.float().T).to(matrix.device)


def columns_shuffled(matrix: Float[Tensor, "rows d"], *, seed: int) -> Float[Tensor, "rows d"]:
    """Each column permuted by itself: keeps every coordinate's values, takes away what ties coordinates together."""
    shuffled = np.random.default_rng(seed).permuted(matrix.cpu().numpy(), axis=0)
    return torch.from_numpy(shuffled).to(matrix.device)


def entries_shuffled(matrix: Float[Tensor, "rows d"], *, seed: int) -> Float[Tensor, "rows d"]:
    """All entries permuted: keeps the values alone."""
    order = np.random.default_rng(seed).permutation(matrix.numel())
    return matrix.flatten()[torch.from_numpy(order).to(matrix.device)].reshape(matrix.shape)  # (rows * d) -> (rows, d)


def gaussian(matrix: Float[Tensor, "rows d"], *, seed: int) -> Float[Tensor, "rows d"]:
    """Independent Gaussian entries with the mean and variance of the matrix's entries."""
    x = matrix.double()
    mean, deviation = x.mean().item(), x.std(correction=0).item()
    return (mean + deviation * _normal(matrix.shape, seed)).to(matrix.device)


def step_zero(matrix: Float[Tensor, "rows d"], *, seed: int, std: float = 0.02) -> Float[Tensor, "rows d"]:
    """The matrix before training, as GPT-2 draws it: entries N(0, std²), std .02 (Radford et al. 2019, their code)."""
    return (std * _normal(matrix.shape, seed)).to(matrix.device)


def spectrum_matched(matrix: Float[Tensor, "rows d"], *, seed: int, side: str = "both") -> Float[Tensor, "rows d"]:
    """Keeps the singular values: Q₁ Σ Q₂ᵀ with Haar-random orthogonal Q₁ (rows) and Q₂ (coordinates).

    Args:
        side: which singular vectors are drawn anew, one of SIDES. "left" keeps the directions in R^d and forgets
            which token holds what, "right" keeps the tokens' Gram matrix and turns R^d at random.

    Raises:
        UserError: no such side.
    """
    if side not in SIDES:
        raise unknown("side", side, SIDES)
    left, values, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)  # right: (rank, d)
    generators = [np.random.default_rng([seed, which]) for which in (0, 1)]
    if side != "right":
        left = haar(len(left), len(values), generator=generators[0])
    if side != "left":
        right = haar(right.shape[1], len(values), generator=generators[1]).T
    return ((left * values) @ right).float().to(matrix.device)


def haar(rows: int, columns: int, *, generator: np.random.Generator) -> Float[Tensor, "rows columns"]:
    """Orthonormal columns drawn uniformly (float64), by QR of a Gaussian matrix with its signs set right.

    Without the signs of R's diagonal the draw is not uniform (Mezzadri 2007, How to generate random matrices from
    the classical compact groups, section 5).

    Raises:
        UserError: more columns than rows.
    """
    require(columns <= rows, f"{columns} orthonormal columns do not fit into {rows} rows")
    Q, R = torch.linalg.qr(torch.from_numpy(generator.standard_normal((rows, columns))))
    return Q * R.diagonal().sign()


def _normal(shape: torch.Size, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32))
