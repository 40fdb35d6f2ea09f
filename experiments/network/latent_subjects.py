"""SAEs whose latents N4 moves, and what the moves do beside changes of the activation of the same length."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.finder_nulls import like_rows
from experiments.network.ground import Ground, divergence
from experiments.network.over_layers import AT_ONCE, size_of_sae
from experiments.network.subjects import BATCH
from toolkit.frozen_decoder import fit_encoder
from toolkit.latent_moves import Swapped, mass_moved, rates, swapped
from toolkit.metrics import fvu, random_dictionary
from toolkit.sae import SAE, LoadedSAE, SAEConfig
from toolkit.same_norm import from_covariance, isotropic

MASS, SWAP = "mass moved", "latents swapped"
MOVES = (MASS, SWAP)
LEARNED, UNIFORM, LIKE_ROWS = "trained", "random decoder", "random decoder from the covariance"
"""Whose latents: decoder directions learned; drawn uniformly; drawn from the activations' covariance."""
ISOTROPIC, COVARIANCE = "isotropic", "covariance"


def seed_of(hook: str, kind: str, number: int, seed: int) -> int:
    """Of one of a hook's dictionaries, below 2^31."""
    words = [seed, zlib.crc32(hook.encode()), (UNIFORM, LIKE_ROWS).index(kind), number]
    return int(np.random.SeedSequence(words).generate_state(1)[0]) >> 1


def random_decoders(
    g: Ground, kind: str, numbers: Sequence[int], *, steps: int, seed: int
) -> Iterator[tuple[SAE, int]]:
    """SAEs with random decoder directions and a trained encoder, L0 and number of latents as of the ground's own.

    As many directions as that has latents ever on in the rows to learn from. Each with its seed, one for each number.
    """
    width, k = size_of_sae(g)
    config = SAEConfig(architecture="topk", width=width, k=k, steps=steps, batch=BATCH)
    rows = g.learn[~g.aside]  # those that the ground's own SAE was trained on
    for own in (seed_of(g.hook, kind, number, seed) for number in numbers):
        uniform = kind == UNIFORM
        draw = random_dictionary(width, g.x.shape[1], seed=own) if uniform else like_rows(rows, width, seed=own)
        yield fit_encoder(rows, draw, config, seed=own), own


@dataclass(frozen=True)
class Moved:
    """What moves of latents do at every place, and what changes of their lengths do."""

    kl: Float[Tensor, "moves shares draws places"]
    """KL(clean || moved) in nats."""
    isotropic: Float[Tensor, "moves shares draws places"]
    """The same for isotropic noise."""
    covariance: Float[Tensor, "moves shares draws places"]
    """For draws from the activations' covariance."""
    norms: Float[Tensor, "moves shares draws places"]
    """Lengths of the moves."""
    broken: float
    """The most that L0, or the share of the total of the latents, changed."""
    mismatch: float
    """Mean |log ratio| of the frequencies of latents that took each other's place, over shares and draws."""
    unexplained: float
    """Share of the variance of the places' activations that the SAE leaves out."""
    l0: float
    """Latents on at a place."""


def moved(g: Ground, sae: SAE | LoadedSAE, *, shares: tuple[float, ...], draws: int, rebuilt: bool, seed: int) -> Moved:
    """Move latents at every place.

    The activation x becomes x + decode(moved) - decode(latents): the SAE's error is in both, and what is compared is
    the move alone.

    Args:
        rebuilt: start from the SAE's reconstruction instead, and compare with the outputs at the reconstruction.
    """
    frequency = rates(sae.encode(some[None])[0].detach() for some in g.learn.split(AT_ONCE))
    z = sae.encode(g.x[None])[0].detach()  # last of all: some SAEs decode in the scale of the rows encoded last
    before = sae.decode(z[None])[0].detach()
    base = before if rebuilt else g.x
    clean = g.outputs(base, torch.arange(len(base)))
    swaps = _swaps(z, frequency, shares, draws, seed)
    after = [*_mass(z, shares, draws, seed), *(each.latents for each in swaps)]  # by move, then share, then draw
    steps = torch.stack([sae.decode(latents[None])[0].detach() - before for latents in after])
    norms = steps.norm(dim=2)  # (moves * shares * draws, places)
    many, d = range(len(norms)), base.shape[1]
    noise = {
        ISOTROPIC: [isotropic(norms[i], d, draws=1, seed=10_000 * seed + i)[0] for i in many],
        COVARIANCE: [from_covariance(norms[i], g.covariance, draws=1, seed=10_000 * seed + 5_000 + i)[0] for i in many],
    }
    shape = (len(MOVES), len(shares), draws, len(base))
    return Moved(
        kl=_kl(g, clean, base, steps).view(shape),
        isotropic=_kl(g, clean, base, torch.stack(noise[ISOTROPIC])).view(shape),
        covariance=_kl(g, clean, base, torch.stack(noise[COVARIANCE])).view(shape),
        norms=norms.view(shape),
        broken=max(_broken(z, latents) for latents in after),
        mismatch=float(np.mean([each.mismatch for each in swaps])),
        unexplained=fvu(g.x, before),
        l0=float((z != 0).sum(1).double().mean()),
    )


def _mass(z: Tensor, shares: tuple[float, ...], draws: int, seed: int) -> list[Tensor]:
    return [mass_moved(z, share=share, seed=1_000 * seed + draw) for share in shares for draw in range(draws)]


def _swaps(z: Tensor, frequency: Tensor, shares: tuple[float, ...], draws: int, seed: int) -> list[Swapped]:
    return [swapped(z, frequency, share=share, seed=1_000 * seed + draw) for share in shares for draw in range(draws)]


def _kl(g: Ground, clean: Tensor, base: Tensor, steps: Float[Tensor, "ways places d"]) -> Float[Tensor, "ways places"]:
    at = torch.arange(len(base))
    return torch.stack([divergence(clean, g.outputs(base + step, at)) for step in steps]).float()


def _broken(z: Tensor, after: Tensor) -> float:
    on = ((after != 0).sum(1) - (z != 0).sum(1)).abs().max()
    total = ((after.double().sum(1) - z.double().sum(1)).abs() / z.double().sum(1).clamp(min=1e-30)).max()
    return max(float(on), float(total))
