"""The mean gradient of a number along straight paths, as fine as each path asks for.

mean_gradient(metric, start, end, shares, tolerance=1e-3, floor=1e-4).gradient       # (places, d)
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Metric: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(rows (n, d), their places (n,)) -> a number a row, differentiable by the rows, each row's of itself alone."""
Shares: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(gradients (n, d), their places (n,)) -> (n, shares), linear: what a gradient over the whole path gives each feature;
they sum to the gradient times the path."""

NODES = 8
"""Of the Gauss-Legendre rule on each piece of a path."""
ROUNDS = 14
"""How often a piece may be halved: to 1/16,384 of the path, where a kink costs less than any tolerance in use."""
BLOCK = 512
"""Rows that go through the metric at a time."""

_ABSCISSAE, _WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))


@dataclass(frozen=True, eq=False)
class PathGradient:
    """What a metric does between two activations of each place."""

    gradient: Float[Tensor, "places d"]
    """Its gradient's mean over the path, in float64."""
    change: Float[Tensor, " places"]
    """Metric at the end less metric at the start."""
    steps: Int[Tensor, " places"]
    """Gradients taken."""


def mean_gradient(
    metric: Metric,
    start: Float[Tensor, "places d"],
    end: Float[Tensor, "places d"],
    shares: Shares,
    *,
    tolerance: float,
    floor: float,
) -> PathGradient:
    """Integrate the gradient by Gauss-Legendre, halving the pieces of a path where its shares are not yet settled.

    A piece's error is the larger of two: by how much its shares do not sum to the metric's difference between its ends,
    and by how much any one share changed when the piece was last halved. A path is done when its errors, summed
    without regard to sign, are at most tolerance * |change| + floor, so that no share is further off than that; one
    that is not there after ROUNDS is left as it is. All places go through the metric together.
    """
    at = torch.arange(len(start), device=start.device)
    first, last = (values(metric, each, at) for each in (start, end))
    allowed = tolerance * (last - first).double().abs() + floor
    path = _Paths(metric, start, end, shares)
    zero = torch.zeros(len(start), dtype=torch.float64, device=start.device)
    known = path.integrated(at, zero, zero + 1, first, last)
    steps = torch.full_like(at, NODES)
    worst = torch.ones_like(at, dtype=torch.bool)  # one piece has nothing yet to be compared with
    for _ in range(ROUNDS):
        fresh = path.halved(known.where(worst))
        steps += NODES * torch.bincount(fresh.at, minlength=len(start))
        known = known.where(~worst).joined(fresh)
        worst = _too_far(known, allowed)
        if not worst.any():
            break
    weighted = (known.high - known.low)[:, None] * known.gradient
    gradient = torch.zeros(start.shape, dtype=torch.float64, device=start.device).index_add(0, known.at, weighted)
    return PathGradient(gradient, last - first, steps)


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Pieces of paths."""

    at: Tensor
    """Place of each."""
    low: Tensor
    """Where it begins, from 0 to 1 along the path."""
    high: Tensor
    """Where it ends."""
    below: Tensor
    """The metric where it begins."""
    above: Tensor
    """The metric where it ends."""
    gradient: Tensor
    """(pieces, d) mean over it by quadrature."""
    error: Tensor
    """How far its shares may be off."""

    def where(self, chosen: Tensor) -> "_Pieces":
        return _Pieces(*(getattr(self, each.name)[chosen] for each in fields(self)))

    def joined(self, other: "_Pieces") -> "_Pieces":
        return _Pieces(*(torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))


def _too_far(known: _Pieces, allowed: Float[Tensor, " places"]) -> Bool[Tensor, " pieces"]:
    """Pieces with more than half their share of the error, of places that have more than is allowed."""
    total = torch.zeros_like(allowed).index_add(0, known.at, known.error)
    fair = allowed / (2 * torch.bincount(known.at, minlength=len(allowed)))
    return (total > allowed)[known.at] & (known.error > fair[known.at])


@dataclass(frozen=True, eq=False)
class _Paths:
    """Straight paths of all places."""

    metric: Metric
    start: Tensor
    end: Tensor
    shares: Shares

    def integrated(self, at: Tensor, low: Tensor, high: Tensor, below: Tensor, above: Tensor) -> _Pieces:
        """Pieces with the gradient's mean over them; errors are how far their shares are from summing."""
        along = low[:, None] + (high - low)[:, None] * (_ABSCISSAE.to(low) + 1) / 2  # (pieces, nodes)
        each = at.repeat_interleave(NODES)
        found = gradients(self.metric, self._rows(each, along.flatten()), each)
        mean = torch.einsum(
            "k,pkd->pd", _WEIGHTS.to(low) / 2, found.double().unflatten(0, (-1, NODES))
        )  # (pieces * nodes, d)
        integral = (high - low) * self.shares(mean, at).sum(1)
        return _Pieces(at, low, high, below, above, mean, (integral - (above - below).double()).abs())

    def halved(self, old: _Pieces) -> _Pieces:
        """Both halves of each piece; a change of shares is an error of half its size in each."""
        middle = (old.low + old.high) / 2
        between = values(self.metric, self._rows(old.at, middle), old.at)
        low, high = torch.cat([old.low, middle]), torch.cat([middle, old.high])
        below, above = torch.cat([old.below, between]), torch.cat([between, old.above])
        fresh = self.integrated(old.at.repeat(2), low, high, below, above)
        change = old.gradient - fresh.gradient.unflatten(0, (2, -1)).mean(0)  # (2 * old, d) -> (old, d)
        changed = (old.high - old.low) / 2 * self.shares(change, old.at).abs().amax(1)
        return replace(fresh, error=torch.maximum(fresh.error, changed.repeat(2)))

    def _rows(self, at: Tensor, along: Tensor) -> Tensor:
        """Activations (n, d) at a share of the way."""
        return self.start[at] + along[:, None].to(self.start) * (self.end - self.start)[at]


@torch.no_grad()
def values(metric: Metric, rows: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The metric of many rows, a block at a time."""
    parts = zip(rows.split(BLOCK), at.split(BLOCK), strict=True)
    return torch.cat([metric(some, places).detach().to(rows) for some, places in parts])


def gradients(metric: Metric, rows: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows d"]:
    """The metric's gradient by many rows, a block at a time."""
    found = []
    for some, places in zip(rows.detach().split(BLOCK), at.split(BLOCK), strict=True):
        leaf = some.clone().requires_grad_()
        with torch.enable_grad():
            found.append(torch.autograd.grad(metric(leaf, places).sum(), leaf)[0])
    return torch.cat(found)
