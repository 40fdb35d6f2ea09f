"""Features that depend on one another, with the truth known, as targets of SAEs; absorption and hedging."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.metrics import random_dictionary, signed_matching
from toolkit.samplers import sample
from toolkit.sources import uniforms
from toolkit.targets import Target

SILENT = 0.1
"""A latent is silent on a row where it is below this share of a feature's mean amplitude, 1."""
FOUND = 0.8
"""Least cosine of a latent that stands for a parent: one without is missed, not absorbed. Mixing two gives .71."""
ABSORBED = 0.4
"""Share of a silent parent that other latents must write for it to count as absorbed (Chanin et al. 2024, tau_pa)."""


@dataclass(frozen=True)
class Dependent:
    """Sparse features of mean amplitude 1; each but the first ones of a family depends on another."""

    instances: int
    """Sets of draws side by side."""
    depends_on: tuple[int, ...]
    """The parent or partner of each feature, -1 for none."""
    draw: Callable[[int, int], Float[Tensor, "instances rows features"]]
    """(step, rows) -> features."""


def hierarchy(
    instances: int, parents: int, children: int, *, parent: float, child: float, linked: bool, spread: float, seed: int
) -> Dependent:
    """Parents, on with probability `parent`, then each one's children, on with probability `child` if it is.

    Args:
        linked: where false, the control: children are on with probability parent x child, whatever their parent does.
        spread: amplitudes are uniform on 1 - spread to 1 + spread.
    """
    owner = [-1] * parents + [p for p in range(parents) for _ in range(children)]

    def draw(step: int, rows: int) -> Tensor:
        coins = uniforms(instances, rows, len(owner), seed=seed, step=step)
        above = coins[..., :parents] < parent
        if linked:
            below = (coins[..., parents:] < child) & above[..., owner[parents:]]
        else:
            below = coins[..., parents:] < parent * child
        return torch.cat([above, below], -1) * _amplitudes(coins, spread, seed, step)

    return Dependent(instances, tuple(owner), draw)


def correlated_pairs(
    instances: int, pairs: int, *, density: float, correlation: float, spread: float, seed: int
) -> Dependent:
    """Pairs of equally dense features: the second copies the first's coin with probability `correlation`, which is
    then the correlation of the two coins."""

    def draw(step: int, rows: int) -> Tensor:
        coins = uniforms(instances, rows, 3 * pairs, seed=seed, step=step)
        first, second, copied = coins.split(pairs, -1)
        on = torch.cat([first < density, torch.where(copied < correlation, first, second) < density], -1)
        return on * _amplitudes(on, spread, seed, step)

    return Dependent(instances, (-1,) * pairs + tuple(range(pairs)), draw)


def _amplitudes(like: Tensor, spread: float, seed: int, step: int) -> Tensor:
    return 1 + spread * (2 * uniforms(*like.shape, seed=seed, step=step, draw=1) - 1)


def dependent_target(data: Dependent, directions: Float[Tensor, "instances features d"]) -> Target:
    """Rows that sum the features along their directions."""
    return Target(
        "dependent features",
        directions.shape[2],
        data.instances,
        lambda step, rows: torch.bmm(data.draw(step, rows), directions),  # (I, B, n) @ (I, n, d) -> (I, B, d)
        directions,
    )


def feature_directions(instances: int, features: int, d: int, *, seed: int) -> Float[Tensor, "instances features d"]:
    """Random directions: orthonormal where there are as many dimensions as features, else in superposition."""
    drawn = torch.stack([random_dictionary(features, d, seed=seed * 10_007 + i) for i in range(instances)])
    return torch.linalg.qr(drawn.mT).Q.mT.contiguous() if d >= features else drawn


def absorption(
    data: Dependent,
    directions: Float[Tensor, "instances features d"],
    features: Float[Tensor, "instances rows features"],
    latents: Float[Tensor, "instances rows width"],
    decoder: Float[Tensor, "instances width d"],
) -> Float[Tensor, " instances"]:
    """Share of rows with a parent and a child of it on where the parent's latent is silent and others write it.

    From ground truth (Chanin et al. 2024, "A is for Absorption", section 4, where probes stand for it): the parent's
    latent is the one matched to its direction, and parents that have none with a cosine of FOUND are left out; it is
    absorbed where it is silent and the other latents together write at least ABSORBED of the parent's amplitude
    along its direction.
    """
    owner = torch.tensor(data.depends_on)
    parents = owner[owner >= 0].unique()
    rates = torch.zeros(data.instances)
    for i in range(data.instances):
        matching = signed_matching(directions[i], decoder[i])
        match, found = matching.latents[parents], matching.cosines[parents] >= FOUND
        written = latents[i][:, :, None] * (decoder[i] @ directions[i][parents].T)
        own = written[:, match, torch.arange(len(parents))]  # (B, parents)
        others = written.sum(1) - own
        amplitude = features[i][:, parents]
        child = torch.stack([(features[i][:, owner == p] > 0).any(1) for p in parents], 1)
        both = (amplitude > 0) & child & found
        absorbed = both & (latents[i][:, match] < SILENT) & (others >= ABSORBED * amplitude)
        rates[i] = absorbed.sum() / both.sum().clamp(min=1)
    return rates


def hedging(
    data: Dependent, directions: Float[Tensor, "instances features d"], decoder: Float[Tensor, "instances width d"]
) -> Float[Tensor, " instances"]:
    """Mean over latents of the decoder's cosine with the partner of the feature it points at most.

    Chanin et al. 2025, "Feature Hedging": a latent of a dictionary too narrow for both features of a correlated pair
    mixes the second into the first; 0 where it does not, .71 where it mixes them equally.
    """
    partner = torch.tensor(data.depends_on)
    found = (partner >= 0).nonzero().flatten()
    partner[partner[found]] = found
    cosines = torch.bmm(torch.nn.functional.normalize(decoder, dim=-1), directions.mT)  # (I, width, n)
    own = cosines.argmax(-1)  # (I, width)
    return cosines.gather(-1, partner[own][..., None]).mean((-2, -1))


def unit_rows(
    instances: int, samples: int, features: int, density: float, *, seed: int, step: int = 0
) -> Float[Tensor, "instances samples features"]:
    """Sparse features scaled to rows of norm 1, none of them empty (Henighan et al. 2023, "Experiment setup")."""
    chances = torch.full((instances, features), density)
    drawn = sample(chances, 2 * samples + 64, seed=seed, step=step)
    kept = torch.stack([x[x.any(1)][:samples] for x in drawn])
    return torch.nn.functional.normalize(kept, dim=-1)
