"""Latents of a sparse autoencoder moved without a change of how many are on.

```python
moved = mass_moved(z, share=0.3, seed=0)                 # (rows, width): the same latents on, the same total
moved = swapped(z, rates, share=0.3, seed=0).latents     # as many on: some have given way to others as frequent
x + sae.decode(moved[None])[0] - sae.decode(z[None])[0]  # the activation moved; the SAE's own error stays out of it
```
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.errors import require

NEAREST = 8
"""Latents, by frequency, among which the one that takes over is drawn."""
_FLOOR = 1e-9
"""Below every frequency: keeps its logarithm finite."""


def rates(blocks: Iterable[Float[Tensor, "_ width"]]) -> Float[Tensor, " width"]:
    """Share of rows in which each latent is on: not 0; of blocks of rows, one at a time where they come so."""
    on, rows = torch.zeros((), dtype=torch.long), 0
    for latents in blocks:
        on, rows = on + (latents != 0).sum(0), rows + len(latents)
    return on.double() / rows


def mass_moved(latents: Float[Tensor, "rows width"], *, share: float, seed: int) -> Float[Tensor, "rows width"]:
    """Every latent that is on gives a share of its value to the next one in a circle through those on, drawn at random.

    z' = (1 - share) z + share P z with P a random cycle of the latents on, another for each row. The same latents are
    on, and their sum is the same; the change grows in proportion to the share. A row with one latent on stays.

    Raises:
        UserError: a share outside (0, 1], latents below 0.
    """
    require(0 < share <= 1, f"share is of each latent's value, in (0, 1], got {share:g}")
    require(bool((latents >= 0).all()), "mass is moved among latents that are on or 0: some are negative")
    rng, moved = np.random.default_rng([seed, 71]), latents.clone()
    for row, z in enumerate(latents):
        on = rng.permutation(z.nonzero()[:, 0].numpy())
        given = torch.from_numpy(np.roll(on, 1))
        moved[row, torch.from_numpy(on)] = (1 - share) * z[torch.from_numpy(on)] + share * z[given]
    return moved


@dataclass(frozen=True)
class Swapped:
    """Latents of which some have given way to others."""

    latents: Float[Tensor, "rows width"]
    """With the values of those that left at those that came."""
    left: Int[Tensor, " swaps"]
    """Which left, over all rows."""
    came: Int[Tensor, " swaps"]
    """Which came for each."""
    rates: Float[Tensor, " width"]
    """Frequencies that were matched."""

    @property
    def mismatch(self) -> float:
        """Mean absolute logarithm of the frequency of the one that came over that of the one that left."""
        return float((self.rates[self.came] / self.rates[self.left].clamp(min=_FLOOR)).log().abs().mean())


def swapped(
    latents: Float[Tensor, "rows width"], rates: Float[Tensor, " width"], *, share: float, seed: int
) -> Swapped:
    """In every row a share of the latents on give way to latents that are off there and about as often on elsewhere.

    Which, is drawn at random, and so is the one that comes for each: among the NEAREST by the logarithm of frequency of
    those off in the row; one that is never on does not come. Values stay: as many are on, with the same values.

    Args:
        rates: share of rows in which each latent is on.
        share: of the latents on in a row, at least one.

    Raises:
        UserError: a share outside (0, 1], a row with fewer latents off, and ever on, than are to come.
    """
    require(0 < share <= 1, f"share is of the latents on in a row, in (0, 1], got {share:g}")
    rng, moved = np.random.default_rng([seed, 73]), latents.clone()
    left, came, frequency = list[int](), list[int](), rates.numpy()
    for row, z in enumerate(latents.numpy()):
        on = np.flatnonzero(z)
        going = rng.permutation(on)[: max(1, round(share * len(on)))]
        coming = _partners(going, (z == 0) & (frequency > 0), frequency, rng)
        values = latents[row, torch.from_numpy(going)]
        moved[row, torch.from_numpy(going)] = 0
        moved[row, torch.from_numpy(coming)] = values
        left += going.tolist()
        came += coming.tolist()
    return Swapped(moved, torch.tensor(left), torch.tensor(came), rates)


def _partners(
    going: Int[np.ndarray, " some"],
    free: Bool[np.ndarray, " width"],
    frequency: Float[np.ndarray, " width"],
    rng: np.random.Generator,
) -> Int[np.ndarray, " some"]:
    """One for each that goes, none twice."""
    require(
        int(free.sum()) >= len(going),
        f"{len(going)} latents are to give way and {int(free.sum())} are off that are ever on: take a wider SAE",
    )
    logs, found = np.log(frequency + _FLOOR), np.empty(len(going), int)
    open_ = free.copy()
    for place, latent in enumerate(going):
        able = np.flatnonzero(open_)
        near = able[np.argsort(np.abs(logs[able] - logs[latent]), kind="stable")[:NEAREST]]
        found[place] = rng.choice(near)
        open_[found[place]] = False
    return found
