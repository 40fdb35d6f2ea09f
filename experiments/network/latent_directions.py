"""Directions of an SAE at places: of latents that are on or off there, and random directions drawn like its rows."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from experiments.network.ground import Ground
from toolkit.errors import require
from toolkit.sphere_search import unit_rows

AT_ONCE = 4096
"""Rows encoded together."""
FEWEST = 8
"""Latents that must be on somewhere."""


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Decoder directions of the latents that are on somewhere."""

    rows: Float[Tensor, "latents d"]
    """Of length 1."""
    on: Bool[Tensor, "places latents"]
    """Where they are on."""


@torch.no_grad()
def dictionary(ground: Ground) -> Dictionary:
    """Of the SAE at a hook; a latent lives if it is on in one of the rows to learn from.

    Raises:
        UserError: fewer than FEWEST latents live.
    """
    rows = ground.sae.W_dec[0].detach().to(ground.x)
    alive = torch.stack([(ground.latents(some) != 0).any(0) for some in ground.learn.split(AT_ONCE)]).any(0)
    alive &= rows.norm(dim=1) > 0
    require(
        int(alive.sum()) >= FEWEST,
        f"{int(alive.sum())} latents of the SAE at {ground.hook} are ever on, and {FEWEST} are needed: is it its SAE?",
    )
    return Dictionary(unit_rows(rows[alive]), ground.latents(ground.x)[:, alive] != 0)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """What random directions are drawn from, before their lengths are taken."""

    mean: Float[Tensor, " d"]
    """Of it."""
    root: Float[Tensor, "d d"]
    """R with covariance R^T R."""

    @classmethod
    def of(cls, covariance: Float[Tensor, "d d"]) -> "Gaussian":
        """About 0."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(torch.zeros(len(values)).double(), (vectors * values.clamp(min=0).sqrt()).mT)

    @classmethod
    def like(cls, rows: Float[Tensor, "rows d"]) -> "Gaussian":
        """With the mean and covariance of rows."""
        return replace(cls.of(torch.cov(rows.double().mT)), mean=rows.double().mean(0))

    def units(self, shape: tuple[int, ...], rng: np.random.Generator) -> Float[Tensor, "..."]:
        """Draws at length 1, (*shape, d), float64."""
        z = torch.from_numpy(rng.standard_normal((*shape, len(self.mean))))
        return unit_rows(self.mean + z @ self.root)


def as_far_along(
    x: Float[Tensor, "places d"], given: Float[Tensor, "count places d"], drawn: Float[Tensor, "count places d"]
) -> Float[Tensor, "count places d"]:
    """Drawn unit directions turned until they lie as far along each place's activation as given ones.

    Layer norm mutes movement along an activation, and directions that are on at a place point along it more than any
    others.
    """
    axis = unit_rows(x)
    share = (given * axis).sum(-1, keepdim=True)
    across = unit_rows(drawn - (drawn * axis).sum(-1, keepdim=True) * axis)
    return share * axis + (1 - share**2).clamp(min=0).sqrt() * across


def among(
    mask: Bool[Tensor, "places latents"], count: int, rng: np.random.Generator
) -> tuple[Int[Tensor, "count places"], Bool[Tensor, " places"]]:
    """Some of each place's, drawn at random, by turns where there are fewer; and the places that have any."""
    order = torch.from_numpy(rng.random(mask.shape)).masked_fill(~mask, 2).argsort(1)
    held = mask.sum(1)
    turns = torch.arange(count)[:, None] % held.clamp(min=1)  # (count, places)
    return order.gather(1, turns.mT).mT, held > 0
