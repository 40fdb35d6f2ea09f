"""How well an SAE rebuilds rows, and which rows move its latents most; streamed, whatever the rows are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.sae import SAE, LoadedSAE

SAMPLED = 12
"""Latents whose most typical rows are shown."""
TYPICAL = 10
"""Rows shown for each."""
CHUNK = 4096
"""Rows coded at a time."""


class Explained:
    """FVU of rows that come a chunk at a time: squared error over squared distance from the mean row, and from zero.

    Sums are kept in double precision, about the first chunk's mean, so that a large mean takes no digits. As
    `toolkit.metrics.fvu`, which needs all the rows at once.
    """

    def __init__(self) -> None:
        self.error = self.square = self.raw = self.weight = 0.0
        self.origin: Tensor | None = None
        self.total = torch.zeros(())

    def add(self, x: Tensor, rebuilt: Tensor, weights: Tensor | None = None) -> None:
        """Take in rows, their reconstruction and, where they are not all alike, their weights."""
        w = (torch.ones(len(x)) if weights is None else weights).double()[:, None]
        x = x.double()
        if self.origin is None:
            self.origin = x.mean(0)
            self.total = torch.zeros_like(self.origin)
        away = x - self.origin
        self.error += (w * (rebuilt.double() - x).square()).sum().item()
        self.square += (w * away.square()).sum().item()
        self.raw += (w * x.square()).sum().item()
        self.total += (w * away).sum(0)
        self.weight += w.sum().item()

    @property
    def variance(self) -> float:
        """Weighted squared distance from the weighted mean, summed over rows; 0 without rows."""
        return self.square - self.total.square().sum().item() / self.weight if self.weight else 0.0

    @property
    def about_mean(self) -> float:
        """FVU about the weighted mean; NaN without rows."""
        return self._over(self.variance)

    @property
    def about_zero(self) -> float:
        """FVU about zero; NaN without rows."""
        return self._over(self.raw)

    def _over(self, variance: float) -> float:
        return self.error / variance if variance > 0 else float("nan")


@dataclass(frozen=True)
class Scores:
    """What a pass over rows says of an SAE."""

    fvu: float
    """Fraction of variance unexplained, about the mean; NaN without rows."""
    fvu_zero: float
    """The same about zero."""
    fvu_weighted: float
    """The same as `fvu` with the rows' weights; where they have none, `fvu` again."""
    fvu_zero_weighted: float
    """The same about zero."""
    l0: float
    """Active latents a row."""
    counts: Float[Tensor, " latents"]
    """Rows on which each latent is active."""
    rows: int
    """How many rows there were."""


@torch.no_grad()
def score_rows(
    sae: SAE | LoadedSAE, x: Iterable[Float[Tensor, "_ d"]], weights: Float[Tensor, " rows"] | None = None
) -> Scores:
    """Scores of an SAE of one instance on rows that come in pieces."""
    device, rows = sae.W_dec.device, 0
    plain, weighted = Explained(), Explained()
    counts = torch.zeros(sae.W_dec.shape[1])
    for chunk in (part for piece in x for part in piece.split(CHUNK)):
        latents = sae.encode(chunk.to(device)[None])
        rebuilt = sae.decode(latents)[0].cpu()
        plain.add(chunk, rebuilt)
        if weights is not None:
            weighted.add(chunk, rebuilt, weights[rows : rows + len(chunk)])
        counts += (latents[0] > 0).sum(0).cpu()
        rows += len(chunk)
    weighted = plain if weights is None else weighted
    l0 = counts.double().sum().item() / rows if rows else float("nan")
    fvus = (plain.about_mean, plain.about_zero, weighted.about_mean, weighted.about_zero)
    return Scores(*fvus, l0, counts, rows)


@dataclass(frozen=True)
class Typical:
    """The rows on which one latent is most active."""

    latent: int
    """Its number."""
    share: float
    """Share of rows on which it is active."""
    rows: Int[np.ndarray, " rows"]
    """At most `TYPICAL` rows on which it is active, the most active first."""


@torch.no_grad()
def typical_rows(
    sae: SAE | LoadedSAE, x: Iterable[Float[Tensor, "_ d"]], shares: Float[Tensor, " latents"], *, seed: int
) -> Iterator[Typical]:
    """For a sample of live latents, the rows that activate each most; `x` comes in pieces."""
    alive = shares.nonzero().flatten().numpy()
    chosen = np.sort(np.random.default_rng([seed, 5]).permutation(alive)[:SAMPLED])
    device, first = sae.W_dec.device, 0
    values, indices = torch.zeros(0, len(chosen)), torch.zeros(0, len(chosen), dtype=torch.int64)
    for chunk in (part for piece in x for part in piece.split(CHUNK)):
        latents = sae.encode(chunk.to(device)[None])[0][:, torch.from_numpy(chosen).to(device)].cpu()
        here = torch.arange(first, first + len(chunk))[:, None].expand_as(latents)
        values, indices = torch.cat([values, latents]), torch.cat([indices, here])
        top = values.topk(min(TYPICAL, len(values)), dim=0)
        values, indices = top.values, indices.gather(0, top.indices)
        first += len(chunk)
    for at, latent in enumerate(chosen):
        yield Typical(int(latent), shares[latent].item(), indices[values[:, at] > 0, at].numpy())
