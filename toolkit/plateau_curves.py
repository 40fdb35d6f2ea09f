"""How outputs move while an activation is drawn along a line towards another one: straight, or plateau and boundary.

The distance of the outputs from those at the start, relative to that at the end, over the share s of the line that was
gone (Janiak et al. 2024, "Characterizing stable regions in the residual stream of LLMs"). A linear network gives the
straight line y = s whatever is interpolated; on a plateau y stays near 0, and makes up for it at a boundary.

    distances = output_distances(rest, starts, ends, at, {"logits": logit_distance})["logits"]
    fit = fit_sigmoids(shares(21), relative(distances))
    fit.width, fit.sharpness                                # .1 and 1 for a straight line
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import require
from toolkit.lbfgs import minimise

NEAR = 0.1
"""Of the way to its end: outputs that have moved less than this are on the plateau they started from."""
FLATTEST = 1e-3
"""Least steepness of a sigmoid: it is within 1e-7 of the straight line."""
STEEPEST = 8.0
"""Largest steepness in units of one over the spacing of the shares: it rises from .1 to .9 within .55 spacings, and
steeper ones look alike."""
_STEEPNESSES, _CENTRES = 32, 21
"""Of the grid where fits begin."""
_TOLERANCE = 1e-9
"""Of the gradient of the mean squared error."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""(clean (pairs, 1, outputs), moved (pairs, steps, outputs)) -> (pairs, steps)."""


def shares(steps: int) -> Float[Tensor, " steps"]:
    """Evenly spaced from 0 to 1, in double precision.

    Raises:
        UserError: fewer than 5 steps: a sigmoid has no shape on them.
    """
    require(steps >= 5, f"a curve needs at least 5 steps, got {steps}")
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def logit_distance(
    clean: Float[Tensor, "pairs one outputs"], moved: Float[Tensor, "pairs steps outputs"]
) -> Float[Tensor, "pairs steps"]:
    """Euclidean distance of log-probabilities, or logits, each less its mean over outputs.

    It sees nothing of the softmax: whatever is linear up to the logits moves in a straight line.
    """
    change = moved - clean
    return (change - change.mean(2, keepdim=True)).double().norm(dim=2)


def root_divergence(
    clean: Float[Tensor, "pairs one outputs"], moved: Float[Tensor, "pairs steps outputs"]
) -> Float[Tensor, "pairs steps"]:
    """sqrt KL(clean || moved) of log-probabilities, in sqrt nats.

    KL itself begins as the square of the step, and any smooth network would have a plateau; its root begins straight.
    """
    return (clean.exp() * (clean - moved)).double().sum(2).clamp(min=0).sqrt()


def interpolated(
    starts: Float[Tensor, "pairs d"], ends: Float[Tensor, "pairs d"], steps: int
) -> Float[Tensor, "pairs steps d"]:
    """The line from each start to its end, both included.

    Raises:
        UserError: fewer than 5 steps.
    """
    s = shares(steps).to(starts)[None, :, None]
    return starts[:, None] + s * (ends - starts)[:, None]


@torch.no_grad()
def output_distances(
    rest: Callable[[Tensor, Tensor], Tensor],
    starts: Float[Tensor, "pairs d"],
    ends: Float[Tensor, "pairs d"],
    at: Int[Tensor, " pairs"],
    distances: Mapping[str, Distance],
    *,
    steps: int = 21,
    block: int = 512,
) -> dict[str, Float[Tensor, "pairs steps"]]:
    """How far the outputs have moved from those at the start, at each step of each line.

    Args:
        rest: a `toolkit.downstream.Downstream`: from rows and the places they stand at to outputs.
        at: the place of each line; it keeps the context of its start.
        distances: by name; all are read off one pass.
        block: rows that go through the network at a time, at least one line.

    Raises:
        UserError: fewer than 5 steps.
    """
    kept: dict[str, list[Tensor]] = {name: [] for name in distances}
    for which in torch.arange(len(starts)).split(max(1, block // steps)):
        rows = interpolated(starts[which], ends[which], steps).flatten(0, 1)  # (pairs * steps, d)
        outputs = rest(rows, at[which].repeat_interleave(steps)).cpu()
        outputs = outputs.view(len(which), steps, -1)  # (pairs * steps, outputs) -> (pairs, steps, outputs)
        for name, distance in distances.items():
            kept[name].append(distance(outputs[:, :1], outputs))
    return {name: torch.cat(parts) for name, parts in kept.items()}


def relative(distances: Float[Tensor, "pairs steps"]) -> Float[Tensor, "pairs steps"]:
    """Each curve over its last value, in double precision; NaN where the outputs end where they began."""
    last = distances[:, -1:].double()
    return torch.where(last > 0, distances.double() / last, torch.nan)


def first_share(s: Float[Tensor, " steps"], curves: Float[Tensor, "pairs steps"]) -> Float[Tensor, " pairs"]:
    """The share of the line at which a curve first reaches NEAR, straight between steps; NEAR for a straight line."""
    known = curves.isfinite().all(1)
    after = (curves >= NEAR).double().argmax(1).clamp(min=1)
    y0, y1 = (curves.gather(1, index[:, None])[:, 0] for index in (after - 1, after))
    found = s[after - 1] + (NEAR - y0) / (y1 - y0) * (s[after] - s[after - 1])
    return torch.where(known, found, torch.nan)


def largest_slope(s: Float[Tensor, " steps"], curves: Float[Tensor, "pairs steps"]) -> Float[Tensor, " pairs"]:
    """Of the steps of each curve; 1 for a straight line, and at least 1 for any that goes from 0 to 1."""
    return (curves.diff(dim=1) / s.diff()).amax(1)


@dataclass(frozen=True)
class Sigmoids:
    """A logistic curve through (0, 0) and (1, 1) for each pair, y = (L(s) - L(0)) / (L(1) - L(0)), where
    L(s) = 1 / (1 + exp(-steepness (s - centre))) and the centre lies on the line; NaN where there was no curve."""

    steepness: Float[Tensor, " pairs"]
    """Of the logistic function; to 0 it becomes the straight line."""
    centre: Float[Tensor, " pairs"]
    """Where its slope is largest, between 0 and 1; means nothing for a straight line."""
    width: Float[Tensor, " pairs"]
    """Plateau width: the share of the line on which the curve is below NEAR; NEAR for a straight line."""
    sharpness: Float[Tensor, " pairs"]
    """The curve's largest slope, at its centre; 1 for a straight line."""
    residual: Float[Tensor, " pairs"]
    """Root mean squared difference from the points."""


def sigmoid(
    s: Float[Tensor, "... steps"], steepness: Float[Tensor, "... one"], centre: Float[Tensor, "... one"]
) -> Float[Tensor, "... steps"]:
    """The curve that `Sigmoids` names, by products that neither cancel nor overflow."""
    rise = torch.expm1(-steepness * s) / torch.expm1(-steepness)
    ends = (1 + torch.exp(-steepness * (1 - centre))) / (1 + torch.exp(-steepness * (s - centre).abs()))
    return torch.exp(-steepness * (centre - s).clamp(min=0)) * rise * ends


def fit_sigmoids(s: Float[Tensor, " steps"], curves: Float[Tensor, "pairs steps"]) -> Sigmoids:
    """Least squares for all curves at once: the best of a grid, then L-BFGS.

    Args:
        s: evenly spaced from 0 to 1.
        curves: relative output distances, as `relative` has them; a curve with NaN gets NaN.
    """
    known = curves.isfinite().all(1)
    y, most = curves[known].double(), STEEPEST * (len(s) - 1)
    found = torch.full((5, len(curves)), torch.nan, dtype=torch.float64)
    if len(y):
        free = minimise(_objective(s, y, most), _begin(s, y, most), tolerance=_TOLERANCE).parameters
        k, c = _bounded(free, most)
        residual = (sigmoid(s, k, c) - y).square().mean(1).sqrt()
        found[:, known] = torch.stack([k[:, 0], c[:, 0], *_read_off(k[:, 0], c[:, 0]), residual])
    return Sigmoids(*found)


def _bounded(free: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Steepness and centre, (problems, 1) each, of unbounded parameters (problems, 2)."""
    log_low, log_high = math.log(FLATTEST), math.log(most)
    steepness = torch.exp(log_low + (log_high - log_low) * torch.sigmoid(free[:, :1]))
    return steepness, torch.sigmoid(free[:, 1:])


def _objective(s: Tensor, y: Tensor, most: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mean squared error of each curve and its gradient by the unbounded parameters."""

    def objective(free: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = free.detach().requires_grad_()
            errors = (sigmoid(s, *_bounded(at, most)) - y[which]).square().mean(1)
            (slope,) = torch.autograd.grad(errors.sum(), at)
        return errors.detach(), slope

    return objective


def _begin(s: Tensor, y: Tensor, most: float) -> Tensor:
    """The grid's best point for each curve, (curves, 2)."""
    inside = torch.linspace(0.02, 0.98, _STEEPNESSES, dtype=torch.float64).logit()
    centres = torch.linspace(0.02, 0.98, _CENTRES, dtype=torch.float64).logit()
    grid = torch.cartesian_prod(inside, centres)  # (points, 2)
    points = sigmoid(s, *_bounded(grid, most))  # (points, steps)
    errors = points.square().sum(1) - 2 * y @ points.mT  # (curves, points), less what the points do not change
    return grid[errors.argmin(1)]


def _read_off(k: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Width and sharpness of the curves with these parameters."""
    low, high = torch.sigmoid(-k * c), torch.sigmoid(k * (1 - c))
    width = c + torch.logit(low + NEAR * (high - low)) / k
    return width, k / 4 / (high - low)
