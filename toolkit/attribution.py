"""What each feature of an activation does for an output: integrated gradients, one gradient, true ablation.

An activation is written as a baseline, plus a move along each feature's direction, plus a rest that no feature writes
(an SAE's error, or what lies outside the probes). The rest is a feature of its own, so nothing is lost:

```python
parts = latent_parts(sae, x)                          # or probe_parts(directions, x, x.mean(0))
metric = output_of(rest, tokens)                      # log-probability of one token at each place
found = integrated_gradients(metric, parts)           # found.features (places, features), found.rest (places,)
found.missing <= TOLERANCE * found.change.abs() + FLOOR
```
"""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.downstream import Downstream
from toolkit.errors import UserError, require
from toolkit.path_gradient import BLOCK, Metric, gradients, mean_gradient, values
from toolkit.sae import SAE, LoadedSAE

TOLERANCE = 1e-3
"""Of |metric(x) - metric(baseline)|: how far the sum of integrated gradients may be from it, beside FLOOR."""
FLOOR = 1e-4
"""In the metric's unit: added to what TOLERANCE allows, since a change of nothing has no relative error."""
ROWS = 4096
"""Encoded at a time for the mean of latents."""
AFFINE = 1e-3
"""Of an activation's length: by how much the part of a reconstruction that no latent writes may differ between rows."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Activations as baseline + sum over features of (values - base) * direction + rest."""

    start: Float[Tensor, "places d"]
    """The baseline."""
    values: Float[Tensor, "places features"]
    """Of the features."""
    base: Float[Tensor, " features"]
    """Of the features at the baseline."""
    directions: Float[Tensor, "features d"]
    """What one unit of each feature adds."""
    rest: Float[Tensor, "places d"]
    """What is left."""

    @property
    def moves(self) -> Float[Tensor, "places features"]:
        """How far each feature is from its baseline."""
        return self.values - self.base

    @property
    def x(self) -> Float[Tensor, "places d"]:
        """The activations."""
        return self.start + self.moves @ self.directions + self.rest


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each feature is said to do for the metric, in its unit."""

    features: Float[Tensor, "places features"]
    """A number a feature; NaN where it was not asked for."""
    rest: Float[Tensor, " places"]
    """The same for what no feature writes."""
    change: Float[Tensor, " places"]
    """metric(x) - metric(baseline)."""
    steps: Int[Tensor, " places"]
    """Gradients or outputs taken at each place."""
    gradient: Float[Tensor, "places d"] | None = None
    """What each feature's move along its direction is multiplied by; ablation has none."""

    @property
    def missing(self) -> Float[Tensor, " places"]:
        """|sum over features and rest - change|; integrated gradients keep it within what they allow."""
        return (self.features.double().sum(1) + self.rest.double() - self.change.double()).abs()


def latent_parts(
    sae: SAE | LoadedSAE, x: Float[Tensor, "places d"], *, rows: Float[Tensor, "rows d"] | None = None
) -> Parts:
    """Activations in the latents of an SAE, its error as the rest.

    Args:
        sae: of one instance.
        rows: activations whose mean is the baseline: each latent's base is then its mean over them, and the rest is
            the error less the mean error. None: the baseline is what the SAE writes with every latent at zero (b_dec),
            and the rest is the error.

    Raises:
        UserError: the SAE scales each row, so that its latents have no direction of their own.
    """
    codes, directions, start = _coded(sae, x)
    base = torch.zeros_like(directions[:, 0])
    if rows is not None:
        base, start = _mean_latents(sae, rows), rows.mean(0)
    rest = x - start - (codes - base) @ directions
    return Parts(start.expand_as(x), codes, base, directions, rest)


@torch.no_grad()
def _coded(sae: SAE | LoadedSAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (rows, width), directions (width, d) and what the SAE writes without any latent (d,)."""
    latents, rebuilt, directions = sae.encode(x[None])[0], sae(x[None])[0], sae.W_dec[0]
    for each in (directions, torch.nn.functional.normalize(directions, dim=1)):  # some decode by unit rows
        without = rebuilt - latents @ each
        if (without - without[0]).norm(dim=1).max() <= AFFINE * x.norm(dim=1).mean():
            return latents.detach(), each.detach(), without.mean(0).detach()
    raise UserError("this SAE scales each row by itself: its latents have no fixed directions to attribute to")


@torch.no_grad()
def _mean_latents(sae: SAE | LoadedSAE, rows: Tensor) -> Tensor:
    sums = [sae.encode(some[None])[0].double().sum(0) for some in rows.split(ROWS)]
    return (torch.stack(sums).sum(0) / len(rows)).to(rows)


def probe_parts(
    directions: Float[Tensor, "features d"], x: Float[Tensor, "places d"], start: Float[Tensor, " d"]
) -> Parts:
    """Activations in a basis of k directions, the rest at a right angle to all of them.

    Args:
        directions: probes, principal axes, or others; they need be neither orthogonal nor unit.
        start: the baseline, such as the mean activation.

    Raises:
        UserError: directions that do not differ enough to be told apart (more than d of them, a repeated one).
    """
    rank = int(torch.linalg.matrix_rank(directions.double()))
    require(rank == len(directions), f"{len(directions)} directions span {rank} dimensions: leave out what others span")
    inverse = torch.linalg.pinv(directions.double()).to(x)
    read, base = x @ inverse, start @ inverse
    return Parts(start.expand_as(x), read, base, directions, x - start - (read - base) @ directions)


def output_of(rest: Downstream, outputs: Int[Tensor, " places"]) -> Metric:
    """The metric that is one output of a network at each place, such as the log-probability of one token."""

    def metric(rows: Tensor, at: Tensor) -> Tensor:
        found = rest(rows, at)
        return found.gather(1, outputs[at.cpu()][:, None].to(found.device))[:, 0].cpu()

    return metric


def integrated_gradients(
    metric: Metric, parts: Parts, *, tolerance: float = TOLERANCE, floor: float = FLOOR
) -> Attribution:
    """Move times the gradient's mean along the straight path from the baseline (Sundararajan et al. 2017, eq. 1).

    The sum over features and rest is metric(x) - metric(baseline), to tolerance * |change| + floor at each place, and
    each of them is as near to its integral: the path is cut into pieces, and these are halved, until no attribution
    changes by more (`toolkit.path_gradient`). What is smooth costs 24 gradients a place.

    Args:
        metric: what is explained.
        parts: what it is explained by.
        tolerance: relative to the change at the place.
        floor: absolute, in the metric's unit.
    """
    parts_of = partial(_shares, parts)
    path = mean_gradient(metric, parts.start, parts.x, parts_of, tolerance=tolerance, floor=floor)
    return _along(parts, path.gradient, path.change, path.steps)


def gradient_times_activation(metric: Metric, parts: Parts) -> Attribution:
    """Move times the gradient at the activation itself: the change to first order."""
    x, at = parts.x, torch.arange(len(parts.start))
    change = values(metric, x, at) - values(metric, parts.start, at)
    return _along(parts, gradients(metric, x, at), change, torch.ones_like(at))


def ablation(metric: Metric, parts: Parts, asked: Bool[Tensor, "places features"]) -> Attribution:
    """How much the metric falls when one feature alone is put back to its baseline, and when the rest is.

    To second order it differs from gradient x activation by half the curvature along the feature's own move, and from
    integrated gradients by half the mixed curvature of that move with all the others.

    Args:
        metric: what is explained.
        parts: what it is explained by.
        asked: features to be put back, each by itself; the others are NaN, but those at their baseline are 0.
    """
    return _alone(metric, parts, asked, parts.x, -1)


def insertion(metric: Metric, parts: Parts, asked: Bool[Tensor, "places features"]) -> Attribution:
    """How much the metric rises when one feature alone is moved from the baseline, and when the rest is.

    Where the metric is quadratic, integrated gradients are the mean of this and of `ablation`. Arguments as there.
    """
    return _alone(metric, parts, asked, parts.start, 1)


@torch.no_grad()
def _alone(metric: Metric, parts: Parts, asked: Tensor, origin: Tensor, sign: int) -> Attribution:
    """sign * (metric with one feature's move times sign added to the origin - metric at the origin)."""
    places, moves = torch.arange(len(origin)), parts.moves
    before = values(metric, origin, places)
    features = torch.where(moves == 0, 0.0, torch.nan).to(origin)
    pairs = (asked & (moves != 0)).nonzero()
    for some in pairs.split(BLOCK):
        at, which = some.T
        moved = origin[at] + sign * moves[at, which, None] * parts.directions[which]  # (pairs, d)
        features[at, which] = sign * (metric(moved, at).to(origin) - before[at])
    rest = sign * (values(metric, origin + sign * parts.rest, places) - before)
    change = values(metric, parts.x, places) - values(metric, parts.start, places)
    return Attribution(features, rest, change, 4 + torch.bincount(pairs[:, 0], minlength=len(origin)))


def _shares(parts: Parts, gradient: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Tensor:
    """Each feature's move times the gradient along it, then the rest's, (rows, features + 1)."""
    features = parts.moves[at] * (gradient @ parts.directions.to(gradient).mT)
    return torch.cat([features, (parts.rest[at] * gradient).sum(1, keepdim=True)], 1)


def _along(parts: Parts, gradient: Tensor, change: Tensor, steps: Tensor) -> Attribution:
    found = _shares(parts, gradient, torch.arange(len(gradient))).to(change)
    return Attribution(found[:, :-1], found[:, -1], change, steps, gradient.to(change))
