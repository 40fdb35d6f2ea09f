"""Outputs on a small sphere round an activation: great circles through given directions, and the sphere's maxima.

How far the outputs move is KL(clean || moved) in nats. While it is quadratic, d^T G d / 2 for a movement d, it is a
sinusoid of twice the angle along every great circle, and the sphere's only maxima are the top eigenvectors of G,
whatever the radius: what is said to be a spike has to be more.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.downstream import Downstream
from toolkit.errors import require

BLOCK = 256
"""Rows that climb at a time: each has a vocabulary of outputs, and their gradients are kept."""
ORDER = 3
"""Harmonics of a smooth circle: quadratic and cubic movements have no others."""
_FASTER, _SMALLEST = 1.5, 2.0**-12
_PARALLEL = 1e-6
"""Sine of the angle between two directions below which they count as one."""


@dataclass(frozen=True)
class Maxima:
    """Where climbs over a sphere ended."""

    directions: Float[Tensor, "restarts places d"]
    """Unit vectors from the activation."""
    divergence: Float[Tensor, "restarts places"]
    """KL there, nats."""
    began: Float[Tensor, "restarts places"]
    """KL where each climb began."""
    residual: Float[Tensor, "restarts places"]
    """Sine of the angle between direction and gradient: 0 at a maximum."""
    is_settled: Bool[Tensor, "restarts places"]
    """Whether the residual is within the tolerance."""


def unit_rows(v: Float[Tensor, "*some d"]) -> Float[Tensor, "*some d"]:
    """Each at length 1; rows of 0 stay."""
    return v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def great_circles(
    through: Float[Tensor, "*some d"], towards: Float[Tensor, "*some d"], angles: Float[Tensor, " angles"]
) -> Float[Tensor, "*some angles d"]:
    """Unit vectors on the great circle through one direction (at angle 0) and another (at a positive angle).

    Args:
        through: of any length but 0.
        towards: likewise; where it is parallel to `through` there is no circle, and all points are cos(angle) through.
        angles: in radians.
    """
    u = unit_rows(through)
    across = towards - (towards * u).sum(-1, keepdim=True) * u
    is_rounding = across.norm(dim=-1, keepdim=True) <= _PARALLEL * towards.norm(dim=-1, keepdim=True)
    across = unit_rows(across.masked_fill(is_rounding, 0))
    cos, sin = angles.cos()[:, None].to(u), angles.sin()[:, None].to(u)
    return cos * u[..., None, :] + sin * across[..., None, :]


def spikes(
    values: Float[np.ndarray, "*some angles"], angles: Float[np.ndarray, " angles"], *, within: float
) -> Float[np.ndarray, " *some"]:
    """How far a circle's value at angle 0 stands above the smooth curve through the rest, over the circle's mean.

    The curve is the least-squares fit of harmonics up to ORDER to the points further than `within` from angle 0. It is
    0 for quadratic and cubic functions of the position.

    Args:
        values: of whole circles, evenly spaced.
        angles: radians in (-pi, pi], with 0 among them.
        within: radians.

    Raises:
        UserError: angle 0 is not there, or fewer points are left than the curve has coefficients.
    """
    at = np.flatnonzero(np.abs(angles) < 1e-9)
    away = np.abs(angles) > within + 1e-9
    require(len(at) == 1, "a circle's spike is told from its value at angle 0, and that angle is not among those given")
    needed = 2 * ORDER + 1
    require(int(away.sum()) >= needed, f"{int(away.sum())} angles are left of the peak, and {needed} are needed")
    turns = np.arange(1, ORDER + 1)
    waves = np.concatenate(
        [np.ones((len(angles), 1)), np.cos(np.outer(angles, turns)), np.sin(np.outer(angles, turns))], 1
    )
    smooth = waves[at[0]] @ np.linalg.pinv(waves[away])  # weights of the points away from the peak
    mean = np.maximum(values.mean(-1), np.finfo(float).tiny)
    return np.asarray((values[..., at[0]] - values[..., away] @ smooth) / mean)


def sphere_maxima(
    rest: Downstream,
    x: Float[Tensor, "places d"],
    clean: Float[Tensor, "places outputs"],
    starts: Float[Tensor, "restarts places d"],
    *,
    radius: float,
    steps: int = 60,
    tolerance: float = 0.05,
) -> Maxima:
    """Climb KL(clean || moved) over the sphere round each activation, from many starts at once.

    Each step turns a share of the angle from the direction to the gradient. The whole angle is the power method, which
    never falls while the divergence is convex (Journee et al. 2010, Generalized power method, section 3); the share
    grows while it rises, and is halved, the step not taken, where it does not: so no climb ever goes down.

    Args:
        rest: the network from the hook on; its outputs are log-probabilities, differentiable by the rows.
        x: activations of places 0, 1, ... of `rest`.
        clean: log-probabilities with nothing moved.
        starts: directions of any length but 0.
        radius: of the sphere, in units of x.
        steps: at most, each a forward and a backward pass of the climbs that are not settled.
        tolerance: sine of the angle between direction and gradient at which a climb is settled.

    Raises:
        UserError: a radius that is not above 0.
    """
    require_radius(radius)
    at = torch.arange(len(x)).repeat(len(starts))
    u = unit_rows(starts).flatten(0, 1)  # (restarts * places, d)
    parts = [
        _Climb(rest, x[places], clean[places], places, radius).run(some, steps, tolerance)
        for some, places in zip(u.split(BLOCK), at.split(BLOCK), strict=True)
    ]
    joined = [torch.cat(each).unflatten(0, starts.shape[:2]) for each in zip(*parts, strict=True)]
    directions, divergence, began, residual = joined
    return Maxima(directions, divergence, began, residual, residual <= tolerance)


def require_radius(radius: float) -> None:
    """A sphere has a radius above 0.

    Raises:
        UserError: it has none.
    """
    require(radius > 0 and radius < float("inf"), f"a sphere's radius must be above 0 and finite, got {radius:g}")


class _Climb:
    """Some rows that climb together."""

    def __init__(self, rest: Downstream, x: Tensor, clean: Tensor, at: Int[Tensor, " rows"], radius: float):
        self._rest, self._x, self._clean, self._at, self._radius = rest, x, clean, at, radius

    def _measured(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """KL at directions of some rows, and its gradient there at length 1."""
        with torch.enable_grad():
            moved = (self._x[rows] + self._radius * u).detach().requires_grad_()
            clean = self._clean[rows]
            nats = (clean.exp() * (clean - self._rest(moved, self._at[rows]).to(clean))).sum(1)
            (gradient,) = torch.autograd.grad(nats.sum(), moved)
        return nats.detach().double().clamp(min=0), unit_rows(gradient)

    def run(self, u: Tensor, steps: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Directions, KL there, KL at the start, sine of the angle to the gradient."""
        everywhere = torch.arange(len(u))
        value, gradient = self._measured(u, everywhere)
        u, began, share = u.clone(), value.clone(), torch.ones(len(u), dtype=u.dtype)
        for _ in range(steps):
            rows = ((_sine(u, gradient) > tolerance) & (share > _SMALLEST)).nonzero()[:, 0]
            if not len(rows):
                break
            turned = _turned(u[rows], gradient[rows], share[rows])
            there, slope = self._measured(turned, rows)
            rises = there > value[rows]
            kept = rows[rises]
            u[kept], value[kept], gradient[kept] = turned[rises], there[rises], slope[rises]
            share[rows] = torch.where(rises, share[rows] * _FASTER, share[rows] / 2)
        return u, value, began, _sine(u, gradient)


def _sine(u: Tensor, gradient: Tensor) -> Tensor:
    """Of the angle between them; 0 where there is no gradient, and 1 where it points the other way, a minimum."""
    along = (u * gradient).sum(1, keepdim=True)
    across = (gradient - along * u).norm(dim=1)
    return torch.where((along[:, 0] < 0) & (gradient.norm(dim=1) > 0), torch.ones_like(across), across)


def _turned(u: Tensor, gradient: Tensor, share: Tensor) -> Tensor:
    """By a share of the angle towards the gradient, a right angle at most."""
    along = (u * gradient).sum(1).clamp(-1, 1)
    angle = (share * along.arccos()).clamp(max=np.pi / 2)[:, None]
    across = unit_rows(gradient - along[:, None] * u)
    return unit_rows(angle.cos() * u + angle.sin() * across)
