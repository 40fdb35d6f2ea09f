"""Whether a set of rows lies in a circle, in a given order: days of the week, months, digits."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require

# Random sets scored at a time: their rows are copied out, in float64.
_SETS = 1000


def principal_plane(rows: Float[Tensor, "*sets members d"]) -> Float[Tensor, "*sets members 2"]:
    """Coordinates of each set's rows about their mean, along its two leading principal components.

    Raises:
        UserError: fewer than three members.
    """
    require(rows.shape[-2] >= 3, f"a plane is fitted to at least 3 rows, got {rows.shape[-2]}")
    values, vectors = torch.linalg.eigh(_gram(rows))
    return vectors[..., -2:].flip(-1) * values[..., None, -2:].flip(-1).clamp(min=0).sqrt()


def circular_rank_correlation(
    points: Float[Tensor, "*sets members 2"], order: Float[np.ndarray, "*orders members"] | None = None
) -> Float[Tensor, "*found"]:
    """How far the angular order of points about the origin is the given cyclic order; 1 is exactly, either way round.

    With r_i the rank of point i's angle: the larger of |1/m sum exp(2 pi i (r_i -+ i) / m)| (Mardia 1975, Statistics
    of directional data, section 6.2, whose coefficient is its square). Ranks alone enter, so its law over random
    orders is the same for every set of points.

    Args:
        points: a batch of sets, or one set where `order` holds a batch.
        order: the position each member has in the cycle, 0 to m - 1; by default the one in which they are given.
    """
    members = points.shape[-2]
    angles = torch.atan2(points[..., 1], points[..., 0])
    ranks = angles.argsort(-1).argsort(-1).double()
    positions = torch.arange(members).double() if order is None else torch.from_numpy(order).double()
    turn = 2 * math.pi / members
    return torch.maximum(*((turn * (ranks + sign * positions)).mul(1j).exp().mean(-1).abs() for sign in (-1, 1)))


def first_harmonic(
    rows: Float[Tensor, "*sets members d"], order: Float[np.ndarray, "*orders members"] | None = None
) -> Float[Tensor, "*found"]:
    """Share of a set's variance, in all d dimensions, that a circle in the given order holds: 1 for a regular polygon.

    It is the power of the first harmonic along the cycle over the power of all; 2 / (m - 1) on average over random
    orders. Unlike the rank correlation it needs no plane to be chosen, and it sees how round and how flat a set is.
    """
    gram = _gram(rows)
    members = gram.shape[-1]
    positions = torch.arange(members).double() if order is None else torch.from_numpy(order).double()
    wave = (2j * math.pi / members * positions).exp()
    power = torch.einsum("...i,...ij,...j->...", wave.conj(), gram.to(wave.dtype), wave).real  # (*found)
    return 2 * power / members / gram.diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=1e-300)


def _gram(rows: Tensor) -> Tensor:
    x = rows.double()
    x = x - x.mean(-2, keepdim=True)
    return x @ x.mT  # (*sets, members, members)


@dataclass(frozen=True)
class Circularity:
    """One set's scores and their laws under two nulls; all arrays float64."""

    plane: Float[np.ndarray, "members 2"]
    """The set in its principal plane."""
    order: float
    """Circular rank correlation there."""
    harmonic: float
    """Share of variance in the first harmonic."""
    order_permuted: Float[np.ndarray, " draws"]
    """`order` with the set's labels permuted."""
    harmonic_permuted: Float[np.ndarray, " draws"]
    """`harmonic` with the set's labels permuted."""
    order_random: Float[np.ndarray, " draws"]
    """`order` of as many random rows."""
    harmonic_random: Float[np.ndarray, " draws"]
    """`harmonic` of as many random rows."""
    closing: float
    """In the principal plane, distance of the last member from the first over the mean distance of neighbours: 1 in a
    regular polygon, more along an arc, which the two scores do not tell from a circle."""


def circularity(
    rows: Float[Tensor, "members d"], pool: Float[Tensor, "others d"], *, draws: int, seed: int
) -> Circularity:
    """Score one set in the order of its rows, against `draws` permutations and as many random sets from `pool`.

    Raises:
        UserError: the pool is smaller than the set.
    """
    size = len(rows)
    require(len(pool) >= size, f"random sets of {size} need a pool of at least as many rows, got {len(pool)}")
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(size, dtype=float), (draws, 1)), axis=1)
    sets = torch.from_numpy(np.stack([rng.choice(len(pool), size, replace=False) for _ in range(draws)])).split(_SETS)
    plane = principal_plane(rows)
    steps = (plane - plane.roll(-1, 0)).norm(dim=1)
    return Circularity(
        plane.numpy(),
        circular_rank_correlation(plane).item(),
        first_harmonic(rows).item(),
        circular_rank_correlation(plane, orders).numpy(),
        first_harmonic(rows, orders).numpy(),
        torch.cat([circular_rank_correlation(principal_plane(pool[chosen])) for chosen in sets]).numpy(),
        torch.cat([first_harmonic(pool[chosen]) for chosen in sets]).numpy(),
        (steps[-1] / steps[:-1].mean()).item(),
    )
