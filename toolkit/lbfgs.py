"""Many small minimisations at once: limited-memory BFGS over problems that share their data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(parameters (problems, k), which problems (problems,)) -> values (problems,) and gradients (problems, k)."""

_MEMORY = 8
_SHRINK = 0.25
_HALVINGS = 12
# Armijo's condition asks for this share of the decrease that the slope promises.
_SUFFICIENT = 1e-4


@dataclass(frozen=True)
class Minimised:
    """Where every problem ended."""

    parameters: Float[Tensor, "problems k"]
    """The minimisers."""
    values: Float[Tensor, " problems"]
    """The objectives there."""
    gradient: Float[Tensor, " problems"]
    """Largest absolute entry of each gradient, in the coordinates minimised over."""
    converged: Bool[Tensor, " problems"]
    """Whether that is at most the tolerance."""
    exhausted: Bool[Tensor, " problems"]
    """Whether the steps ran out first, while there was still a decrease to be had."""
    iterations: int
    """Of the slowest problem."""


def minimise(
    objective: Objective, start: Float[Tensor, "problems k"], *, tolerance: float = 1e-5, most: int = 500
) -> Minimised:
    """Minimise each of several smooth functions (Nocedal and Wright 2006, algorithm 7.5), in step.

    Problems do not touch one another: each has its own step length, and its own history. A problem is left alone once
    its gradient's largest entry is at most `tolerance`, or where rounding allows no further decrease.
    """
    here, which = start.clone(), torch.arange(len(start), device=start.device)
    value, slope = objective(here, which)
    done = _Done(here, value, slope)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    done_after, stuck = most, torch.zeros_like(value, dtype=torch.bool)
    for iteration in range(most):
        going = (slope.abs().amax(1) > tolerance) & ~stuck
        if 2 * int(going.sum()) <= len(which):  # enough have ended to be worth copying the others
            done.keep(which, here, value, slope)
            here, value, slope, which, stuck = (each[going] for each in (here, value, slope, which, stuck))
            history = [(s[going], y[going], rho[going]) for s, y, rho in history]
            going = torch.ones_like(stuck)
            if len(which) == 0:
                done_after = iteration
                break
        direction = _direction(slope, history)
        uphill = (direction * slope).sum(1) >= 0
        direction = torch.where(uphill[:, None], -slope, direction) * going[:, None]
        step, new_value, new_slope, blocked = _search(
            objective, here, which, value, slope, direction, first=not history
        )
        history = [*history[-_MEMORY + 1 :], _pair(step, new_slope - slope)]
        here, value, slope, stuck = here + step, new_value, new_slope, stuck | blocked
    done.keep(which, here, value, slope)
    gradient, exhausted = done.slope.abs().amax(1), torch.zeros(len(start), dtype=torch.bool, device=start.device)
    exhausted[which] = (slope.abs().amax(1) > tolerance) & ~stuck
    return Minimised(done.here, done.value, gradient, gradient <= tolerance, exhausted, done_after)


class _Done:
    """Results of all problems, filled in as they end."""

    def __init__(self, here: Tensor, value: Tensor, slope: Tensor) -> None:
        self.here, self.value, self.slope = here.clone(), value.clone(), slope.clone()

    def keep(self, which: Tensor, here: Tensor, value: Tensor, slope: Tensor) -> None:
        self.here[which], self.value[which], self.slope[which] = here, value, slope


def _pair(step: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A step, the gradient's change along it, and 1 over their product; 0 where curvature is not positive."""
    product = (step * change).sum(1)
    good = product > 1e-10 * change.square().sum(1)
    return step, change, torch.where(good, 1 / product.where(good, torch.ones_like(product)), 0.0)


def _direction(slope: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion: minus the inverse Hessian's estimate times the gradient."""
    q, weights = -slope, []
    for step, change, rho in reversed(history):
        weight = rho * (step * q).sum(1)
        q = q - weight[:, None] * change
        weights.append(weight)
    if history:
        step, change, rho = history[-1]
        square = change.square().sum(1)
        scale = torch.where(rho > 0, 1 / (rho * square).where(rho > 0, torch.ones_like(rho)), 1.0)
        q = q * scale[:, None]
    for (step, change, rho), weight in zip(history, reversed(weights), strict=True):
        q = q + (weight - rho * (change * q).sum(1))[:, None] * step
    return q


def _search(
    objective: Objective, here: Tensor, which: Tensor, value: Tensor, slope: Tensor, direction: Tensor, *, first: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtracking for each problem: its step, value and gradient there, and whether nothing went down."""
    promised = (direction * slope).sum(1)
    length = torch.ones_like(value)
    if first:  # nothing is known of the curvature yet
        length = length / slope.norm(dim=1).clamp(min=1)
    step = length[:, None] * direction
    new_value, new_slope = objective(here + step, which)
    rounding = 4 * torch.finfo(value.dtype).eps * value.abs()

    def fails() -> Int[Tensor, " bad"]:
        good = new_value <= value + _SUFFICIENT * length * promised + rounding
        return (~good).nonzero().flatten()

    for _ in range(_HALVINGS):
        bad = fails()
        if len(bad) == 0:
            break
        length[bad] *= _SHRINK
        step[bad] = length[bad, None] * direction[bad]
        new_value[bad], new_slope[bad] = objective(here[bad] + step[bad], which[bad])
    stuck = torch.zeros_like(value, dtype=torch.bool)
    if len(bad := fails()):
        step[bad], new_value[bad], new_slope[bad], stuck[bad] = 0, value[bad], slope[bad], True
    return step, new_value, new_slope, stuck
