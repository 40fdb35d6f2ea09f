"""Spectra of random rows, cosines between rows, and offsets shared by pairs of rows."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require

_BLOCK = 1024
_BINS = 4000


def covariance_eigenvalues(rows: Float[Tensor, "rows d"]) -> Float[Tensor, " d"]:
    """Eigenvalues of the rows' covariance (divisor `rows`), largest first, over their mean: 1 each were it a sphere."""
    x = rows.double() - rows.double().mean(0)
    values = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0)
    return values / values.mean().clamp(min=1e-300)


def marchenko_pastur_edge(rows: int, d: int) -> float:
    """(1 + sqrt(d / rows))²: where the eigenvalues of independent entries of variance 1 end, as rows and d grow.

    Marchenko and Pastur 1967. At finite size the largest lies within about rows^(-2/3) of it.
    """
    return (1 + math.sqrt(d / rows)) ** 2


def marchenko_pastur_quantiles(rows: int, d: int) -> Float[np.ndarray, " d"]:
    """The d eigenvalues that the Marchenko-Pastur law expects, largest first, for independent entries of variance 1.

    Raises:
        UserError: fewer rows than columns, where part of the law sits at 0.
    """
    require(rows >= d, f"the law is taken for at least as many rows as columns, got {rows} rows and {d} columns")
    ratio = d / rows
    low, high = (1 - math.sqrt(ratio)) ** 2, marchenko_pastur_edge(rows, d)
    # The density has square-root edges (and a pole at 0 where rows = d): half a cosine makes it smooth.
    angle = (np.arange(20_000) + 0.5) * np.pi / 20_000
    x = low + (high - low) * (1 - np.cos(angle)) / 2
    mass = np.sqrt((high - x) * (x - low)) / (2 * np.pi * ratio * x) * np.sin(angle)
    share = np.cumsum(mass) / mass.sum()
    return np.interp(1 - (np.arange(d) + 0.5) / d, share, x)


@dataclass(frozen=True)
class Cosines:
    """The cosines of all pairs of rows about their mean."""

    counts: Float[Tensor, " bins"]
    """Pairs in each of equal bins from -1 to 1."""
    kurtosis: float
    """Excess kurtosis: 0 for a Gaussian."""
    nearest: Float[Tensor, " rows"]
    """Each row's largest cosine with another."""

    def beyond(self, share: float) -> float:
        """The least |cosine|, to a bin's width, that at most a `share` of the pairs exceed."""
        folded = self._folded()
        exceeding = folded.flip(0).cumsum(0).flip(0) / folded.sum()  # share of pairs at or above each bin's inner edge
        return int((exceeding > share).sum()) / len(folded)

    def above(self, cosine: float) -> float:
        """The share of pairs with |cosine| at or above this, to a bin's width."""
        folded = self._folded()
        return (folded[math.ceil(cosine * len(folded) - 1e-9) :].sum() / folded.sum()).item()

    def _folded(self) -> Tensor:
        half = len(self.counts) // 2
        return self.counts[half:] + self.counts[:half].flip(0)


def cosines(rows: Float[Tensor, "rows d"]) -> Cosines:
    """Cosines between all pairs of rows after the mean row is taken off; streamed, so memory stays at 1,024 x rows.

    Raises:
        UserError: fewer than two rows.
    """
    require(len(rows) >= 2, f"cosines are between rows: expected at least 2, got {len(rows)}")
    unit = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    counts, powers = torch.zeros(_BINS, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    nearest = torch.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = (unit[start : start + _BLOCK] @ unit.T).clamp(-1, 1)  # (block, rows)
        own = torch.arange(len(block)), torch.arange(start, start + len(block))
        block[own] = -2
        nearest[start : start + _BLOCK] = block.amax(1)
        block[own] = torch.nan
        pairs = block[~block.isnan()]
        counts += torch.histc(pairs, _BINS, -1, 1).double()
        powers += torch.stack([pairs.pow(p).sum(dtype=torch.float64) for p in range(5)])
    return Cosines(counts, _excess_kurtosis(powers), nearest)


def _excess_kurtosis(powers: Tensor) -> float:
    """From the sums of the powers 0 to 4."""
    _, m1, m2, m3, m4 = (powers / powers[0]).tolist()
    variance = m2 - m1 * m1
    fourth = m4 - 4 * m1 * m3 + 6 * m1 * m1 * m2 - 3 * m1**4
    return fourth / max(variance, 1e-300) ** 2 - 3


def shared_offset(differences: Float[Tensor, "pairs d"], *, folds: int, seed: int) -> Float[Tensor, " folds"]:
    """The share of the differences' squared length that one offset explains, in each of several parts held out.

    The offset is the mean difference of the other parts: 1 - sum |d_i - o|² / sum |d_i|² in a part. Without a shared
    offset it is slightly negative.

    Raises:
        UserError: fewer than two pairs a part, or fewer than two parts.
    """
    require(folds >= 2, f"an offset is held out in at least 2 parts, got {folds}")
    require(len(differences) >= 2 * folds, f"{folds} parts need at least {2 * folds} pairs, got {len(differences)}")
    order = np.random.default_rng(seed).permutation(len(differences))
    total = differences.double().sum(0)
    found = []
    for part in np.array_split(order, folds):
        held = differences[torch.from_numpy(part)].double()
        offset = (total - held.sum(0)) / (len(differences) - len(held))
        found.append(1 - (held - offset).square().sum() / held.square().sum().clamp(min=1e-300))
    return torch.stack(found).float()
