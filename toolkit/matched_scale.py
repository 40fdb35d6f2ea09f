"""How far to go along each of many directions until the outputs have moved by the same amount."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

TOLERANCE = 0.01
"""Relative error of the divergence that a scale may leave."""
_STEPS, _PATIENT = 40, 5
_FIRST, _FURTHEST = 1e-2, 1e4
"""Of the reach: where the search begins, and where it gives up."""


def matched_scales(
    measure: Callable[[Float[Tensor, "v d"]], Float[Tensor, " v"]],
    units: Float[Tensor, "v d"],
    wanted: float,
    reach: float,
) -> Float[Tensor, " v"]:
    """The scale of each vector at which `measure` of the scaled vector is `wanted`, within TOLERANCE; NaN for none.

    For small steps a divergence grows as the square of the scale, so the search goes by secants of its logarithm, from
    one percent of `reach` upwards, and halves the bracket where a secant does not shrink it enough. It finds a
    crossing, the first one unless the divergence comes down again within a step.

    Args:
        measure: divergence of many vectors at once; called with those that have not converged.
        reach: a typical length, such as that of the activations.
    """
    count = len(units)
    log_scale = torch.full((count,), math.log(_FIRST * reach), dtype=torch.float64)
    low, high = torch.full_like(log_scale, -torch.inf), torch.full_like(log_scale, torch.inf)
    at_low, at_high = torch.full_like(low, -torch.inf), torch.full_like(low, torch.inf)
    found = torch.full_like(log_scale, torch.nan)
    open_ = torch.arange(count)
    for step in range(_STEPS):
        if len(open_) == 0:
            break
        here = log_scale[open_]
        excess = measure(units[open_] * here.exp()[:, None].to(units)).double().cpu().log() - math.log(wanted)
        done = excess.abs() <= math.log1p(TOLERANCE)
        found[open_[done]] = here[done].exp()
        under = excess < 0
        low[open_], at_low[open_] = torch.where(under, here, low[open_]), torch.where(under, excess, at_low[open_])
        high[open_], at_high[open_] = torch.where(under, high[open_], here), torch.where(under, at_high[open_], excess)
        log_scale[open_] = _next(here, excess, low[open_], high[open_], at_low[open_], at_high[open_], step)
        open_ = open_[~done & (log_scale[open_] <= math.log(_FURTHEST * reach))]
    return found


def _next(
    here: Tensor, excess: Tensor, low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor, step: int
) -> Tensor:
    """Where to look next, all in logarithms: by slope 2 until there is a bracket, then inside it."""
    free = here - (excess / 2).clamp(-math.log(10), math.log(10))
    if step >= _PATIENT:  # on a curve that levels off such steps shrink: stride on
        free = torch.where(excess < 0, torch.maximum(free, here + math.log(2)), free)
    bracketed = low.isfinite() & high.isfinite()
    secant = low - at_low * (high - low) / (at_high - at_low)
    inside = secant if step % 3 else (low + high) / 2  # secants alone may crawl along a curved flank
    inside = torch.where((inside > low) & (inside < high), inside, (low + high) / 2)
    return torch.where(bracketed, inside, free)
