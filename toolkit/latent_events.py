"""When each latent of an SAE is on: one pass over rows, kept as a sparse matrix, and what is read off it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from toolkit.sae import SAE, LoadedSAE
from toolkit.sae_scores import CHUNK, Explained

BARS = 32
"""Of a latent's histogram."""
_ELEMENTS = 1 << 24
"""Numbers in a dense table of rows by latents, or of latents by latents, at most."""
_PAIRS = 1 << 27
"""Pairs of latents that are on together, counted over the rows from which co-activation is found."""


@dataclass(frozen=True)
class Events:
    """Latents that are on, by row and by latent."""

    by_row: Any
    """Their values as a scipy csr_array (rows, latents); what is off is not stored."""
    fvu: Float[np.ndarray, " latents"]
    """How much FVU about the mean rises where the latent's part of the reconstruction is left out; NaN: no variance."""

    @cached_property
    def by_latent(self) -> Any:
        """The same by columns; within one, rows ascend."""
        return csc_array(self.by_row)

    @property
    def counts(self) -> Int[np.ndarray, " latents"]:
        """Rows on which each latent is on."""
        return np.diff(self.by_latent.indptr)

    @property
    def sums(self) -> Float[np.ndarray, " latents"]:
        """Each latent's values summed, in double precision."""
        found = np.bincount(self.by_row.indices, self.by_row.data, minlength=self.by_row.shape[1])
        return found.astype(np.float64)  # numpy counts where there is nothing to add up

    @cached_property
    def highest(self) -> Float[np.ndarray, " latents"]:
        """Each latent's largest value; 0 where it is never on."""
        found = np.zeros(self.by_row.shape[1], np.float32)
        alive = np.flatnonzero(self.counts)
        if len(alive):
            found[alive] = np.maximum.reduceat(self.by_latent.data, self.by_latent.indptr[alive])
        return found

    def top(self, latent: int, count: int) -> Int[np.ndarray, " rows"]:
        """The rows on which a latent is most active, the most active first, the earlier first where they tie."""
        span = slice(*self.by_latent.indptr[latent : latent + 2])
        values, rows = self.by_latent.data[span], self.by_latent.indices[span]
        if len(values) > count:
            least = np.partition(values, len(values) - count)[len(values) - count]
            rows, values = rows[values >= least], values[values >= least]
        return rows[np.argsort(-values, kind="stable")[:count]].astype(np.int64)

    def at(self, rows: Int[np.ndarray, "..."], latents: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Values of latents on rows, both of one shape; 0 where off."""
        if not rows.size:  # scipy answers with a sparse array
            return np.zeros(rows.shape, np.float32)
        return np.asarray(self.by_row[rows.ravel(), latents.ravel()]).reshape(rows.shape)

    def histograms(self) -> Int[np.ndarray, "latents bars"]:
        """How often each latent has which value, in bars of equal width from 0 to its largest."""
        latents, width = self.by_row.indices, self.by_row.shape[1]
        share = self.by_row.data / self.highest[latents]
        bar = np.minimum((share * BARS).astype(np.int64), BARS - 1)
        return np.bincount(latents * np.int64(BARS) + bar, minlength=width * BARS).reshape(width, BARS)


@torch.no_grad()
def read_events(sae: SAE | LoadedSAE, x: Iterable[Float[Tensor, "_ d"]]) -> Events:
    """One pass of an SAE of one instance over rows that come in pieces.

    What leaving out a latent costs is exact where the decoder is affine in its latents: the sum over rows of
    |e + a w|² - |e|², with e the error, a the latent and w its decoder row. It is NaN where the decoder is not, as in
    SAEs that bring each row back to a scale of its own.
    """
    device, decoder = sae.W_dec.device, sae.W_dec[0].float()
    at_once = max(1, min(CHUNK, _ELEMENTS // len(decoder)))
    explained, gain = Explained(), torch.zeros(len(decoder), dtype=torch.float64)
    counts, latents, values = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for chunk in (part.to(device) for piece in x for part in piece.split(at_once)):
        code = sae.encode(chunk[None])[0]
        rebuilt = sae.decode(code[None])[0]
        explained.add(chunk.cpu(), rebuilt.cpu())
        if len(counts) == 1 and not _affine(code, rebuilt, decoder):
            gain.fill_(torch.nan)
        crossed = (code.mT @ (chunk - rebuilt) * decoder).sum(1)
        gain += (2 * crossed + code.square().sum(0) * decoder.square().sum(1)).double().cpu()
        on = code > 0
        counts.append(on.sum(1).cpu().numpy())
        latents.append(on.nonzero()[:, 1].to(torch.int32).cpu().numpy())
        values.append(code[on].float().cpu().numpy())
    pointer = np.concatenate(counts).cumsum()
    table = (np.concatenate(values), np.concatenate(latents), pointer.astype(np.int32))
    variance = explained.variance if explained.variance > 0 else float("nan")
    return Events(csr_array(table, shape=(len(pointer) - 1, len(decoder))), (gain / variance).numpy())


def _affine(
    code: Float[Tensor, "rows latents"], rebuilt: Float[Tensor, "rows d"], decoder: Float[Tensor, "latents d"]
) -> bool:
    """Whether what the decoder adds to its rows' sum is the same on every row."""
    bias = rebuilt - code @ decoder
    return bool((bias - bias[:1]).abs().max() <= 1e-3 * rebuilt.abs().max())


@dataclass(frozen=True)
class Near:
    """For each latent others, the nearest first."""

    latents: Int[np.ndarray, "latents near"]
    """Their numbers."""
    values: Float[np.ndarray, "latents near"]
    """How near; -inf where there is none."""

    def of(self, latent: int, *, above: float = -np.inf) -> list[tuple[int, float]]:
        """Number and nearness, of those nearer than `above`."""
        pairs = zip(self.latents[latent].tolist(), self.values[latent].tolist(), strict=True)
        return [(number, value) for number, value in pairs if value > above]


def nearest_by_direction(decoder: Float[Tensor, "latents d"], count: int) -> Near:
    """By the cosine of decoder rows."""
    unit = torch.nn.functional.normalize(decoder.float(), dim=1)
    return _nearest(((some, unit[some] @ unit.mT) for some in _blocks(len(unit))), len(unit), count)


def nearest_by_company(events: Events, count: int) -> Near:
    """By Jaccard's index: rows on which both are on, over rows on which either is.

    It is found over the first rows only where latents on together are more than a hundred million pairs.
    """
    table = events.by_row[: company_rows(events)].astype(bool).astype(np.float32)
    by_latent, each = csc_array(table), torch.from_numpy(np.asarray(table.sum(0)))

    def jaccard(some: slice) -> Tensor:
        both = torch.from_numpy((by_latent[:, some].T @ table).toarray())
        return both / (each[some, None] + each - both).clamp(min=1)

    width = table.shape[1]
    return _nearest(((some, jaccard(some)) for some in _blocks(width)), width, count)


def company_rows(events: Events) -> int:
    """How many of the first rows `nearest_by_company` counts over."""
    pairs = np.square(np.diff(events.by_row.indptr).astype(np.int64)).cumsum()
    return max(1, int(np.searchsorted(pairs, _PAIRS, side="right")))


def _blocks(width: int) -> list[slice]:
    step = max(1, _ELEMENTS // 4 // width)
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def _nearest(parts: Iterator[tuple[slice, Tensor]], width: int, count: int) -> Near:
    latents, values = [], []
    for some, near in parts:
        here = torch.arange(some.start, some.stop)
        near[here - some.start, here] = -torch.inf
        top = near.cpu().topk(min(count, width), dim=1)
        latents.append(top.indices.numpy())
        values.append(top.values.numpy())
    return Near(np.concatenate(latents), np.concatenate(values))
