"""How sensitive outputs are to a direction: how far along it they go before they have moved by so many nats.

And the directions that they are most sensitive to: for small movements d of an activation KL(clean || moved) is
d^T G d / 2 with G = J^T F J, J the Jacobian of the logits by the activation and F = diag(p) - p p^T the Fisher
information of the softmax (Amari 2016, Information geometry, section 2.6). The eigenvectors of G are the right singular
vectors of F^(1/2) J; along a unit vector v a threshold of t nats is passed at sqrt(2 t / v^T G v).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from toolkit.downstream import Downstream
from toolkit.errors import require

BLOCK = 256
"""Rows that go through the network at a time."""
RUNGS = 12
"""Of the ladder, each twice as far as the one before."""
HALVINGS = 6
"""Of a rung in logarithms: a distance is then known to 1.1%."""
SPARE = 4
"""Vectors iterated beside those asked for: those asked for settle sooner."""

Measure = Callable[[Float[Tensor, " some"], Int[Tensor, " some"]], Float[Tensor, " some"]]
"""(distances, which curves) -> nats there."""


@dataclass(frozen=True)
class Sensitive:
    """The directions of each place to which the outputs are most sensitive."""

    directions: Float[Tensor, "places count d"]
    """Unit vectors, most sensitive first; their sign means nothing."""
    fisher: Float[Tensor, "places count"]
    """v^T G v of each: twice the KL of a step, in nats, over its squared length."""
    residual: Float[Tensor, "places count"]
    """|G v - (v^T G v) v| over the largest eigenvalue of the place: 0 for an eigenvector."""


@torch.no_grad()
def threshold_distances(
    measure: Measure,
    curves: int,
    thresholds: Sequence[float] | Float[Tensor, "thresholds curves"],
    *,
    furthest: float,
) -> Float[Tensor, "thresholds curves"]:
    """The first distance at which each curve reaches each threshold; infinite (censored) where it is beyond `furthest`.

    A ladder of RUNGS distances, each twice the one before, ends at `furthest`; the first rung at or above the threshold
    and the one below it (0 for the first) are a bracket, which is halved in logarithms. What rises above a threshold
    and falls below it again between two rungs is not seen. A curve climbs no further than its largest threshold.

    Args:
        measure: the curves, of many distances at once; curves count from 0.
        curves: how many there are.
        thresholds: nats, above 0; the same for all curves or one each.
        furthest: largest distance asked about, in the units of the activations.

    Returns:
        Distances, float64, within 1.1% from above; below the first rung they exceed the crossing by 1/46 of it at most
        (the first halving there is spent on half of it).

    Raises:
        UserError: no threshold, one that is not above 0, a furthest distance that is not.
    """
    wanted = torch.as_tensor(thresholds, dtype=torch.float64)
    wanted = wanted[:, None].expand(-1, curves) if wanted.ndim == 1 else wanted
    require(len(wanted) > 0 and bool((wanted > 0).all()), "thresholds must be above 0 nats, one at least")
    require(0 < furthest < float("inf"), f"the furthest distance must be above 0 and finite, got {furthest:g}")
    low, high = _brackets(measure, wanted, furthest)
    return _halved(measure, wanted, low, high)


def _brackets(measure: Measure, wanted: Tensor, furthest: float) -> tuple[Tensor, Tensor]:
    """Last rung below and first at or above each threshold; infinite where there is none."""
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, torch.inf)
    open_ = torch.arange(wanted.shape[1])
    for rung in range(RUNGS):
        distance = furthest * 2.0 ** (rung + 1 - RUNGS)
        nats = measure(torch.full((len(open_),), distance, dtype=torch.float64), open_).double()
        first = (nats >= wanted[:, open_]) & high[:, open_].isinf()
        high[:, open_] = torch.where(first, distance, high[:, open_])
        low[:, open_] = torch.where(high[:, open_].isinf(), distance, low[:, open_])
        open_ = open_[high[:, open_].isinf().any(0)]
        if not len(open_):
            break
    return low, high


def _halved(measure: Measure, wanted: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Brackets narrowed, those that there are."""
    level, curve = high.isfinite().nonzero().T
    below, above, target = low[level, curve], high[level, curve], wanted[level, curve]
    for _ in range(HALVINGS):
        middle = torch.where(below > 0, (below * above).sqrt(), above / 2)
        reached = measure(middle, curve).double() >= target
        below, above = torch.where(reached, below, middle), torch.where(reached, middle, above)
    found = high.clone()
    found[level, curve] = above
    return found


def along(
    rest: Downstream,
    x: Float[Tensor, "places d"],
    clean: Float[Tensor, "places outputs"],
    units: Float[Tensor, "ways places d"],
) -> Measure:
    """KL(clean || moved), in nats, along directions of each place; curve w * places + p is way w at place p."""
    flat = units.flatten(0, 1)  # (ways * places, d)

    def measure(distances: Tensor, curves: Tensor) -> Tensor:
        found = []
        for t, which in zip(distances.split(BLOCK), curves.split(BLOCK), strict=True):
            at = which % len(x)
            moved = rest((x[at] + t[:, None] * flat[which]).to(x), at).to(clean)
            found.append((clean[at].exp() * (clean[at] - moved)).double().sum(1).clamp(min=0))
        return torch.cat(found) if found else distances

    return measure


def sensitive_directions(
    rest: Downstream,
    x: Float[Tensor, "places d"],
    *,
    count: int,
    rounds: int = 12,
    tolerance: float = 0.01,
    seed: int,
) -> Sensitive:
    """The top eigenvectors of G = J^T F J at each place: block power iteration, then Rayleigh and Ritz.

    G is never formed, nor J: a round takes J v forwards and J^T w backwards for count + SPARE vectors a place
    (Halko et al. 2011, Finding structure with randomness, section 4.5).

    Args:
        rest: the network from the hook on, outputs log-probabilities, differentiable both ways.
        x: activations of places 0, 1, ... of `rest`.
        count: directions a place.
        rounds: at most.
        tolerance: relative residual of all those asked for at which rounds end.
        seed: of the start.

    Raises:
        UserError: more directions asked for than dimensions.
    """
    places, d = x.shape
    require(1 <= count <= d, f"{count} sensitive directions were asked for, and activations have {d} dimensions")
    size = min(d, count + SPARE)
    draw = np.random.default_rng([seed, 71]).standard_normal((places, d, size))
    basis = torch.linalg.qr(torch.from_numpy(draw).to(x)).Q  # (places, d, size)
    for _ in range(rounds):
        image = _applied(rest, x, basis)
        values, turn = torch.linalg.eigh(_symmetric(basis.mT @ image))
        vectors, images, values = basis @ turn.flip(2), image @ turn.flip(2), values.flip(1)
        residual = (images - vectors * values[:, None]).norm(dim=1)[:, :count]
        residual = residual / values[:, :1].clamp(min=torch.finfo(x.dtype).tiny)
        if bool((residual <= tolerance).all()):
            break
        basis = torch.linalg.qr(images).Q
    return Sensitive(vectors[:, :, :count].mT.contiguous(), values[:, :count], residual)


def fisher_forms(
    rest: Downstream, x: Float[Tensor, "places d"], units: Float[Tensor, "ways places d"]
) -> Float[Tensor, "ways places"]:
    """v^T G v of directions of each place: KL is half of it times the squared length, for small steps."""
    vectors = units.permute(1, 2, 0)  # (ways, places, d) -> (places, d, ways)
    return (vectors * _applied(rest, x, vectors)).sum(1).mT.clamp(min=0)


def _symmetric(m: Tensor) -> Tensor:
    return (m + m.mT) / 2


def _applied(rest: Downstream, x: Tensor, vectors: Float[Tensor, "places d n"]) -> Float[Tensor, "places d n"]:
    """G v of each vector of each place."""
    n = vectors.shape[2]
    flat = vectors.mT.flatten(0, 1)  # (places, d, n) -> (places * n, d)
    at = torch.arange(len(x)).repeat_interleave(n)
    parts = [
        _product(rest, x[which], which, some) for some, which in zip(flat.split(BLOCK), at.split(BLOCK), strict=True)
    ]
    return torch.cat(parts).unflatten(0, (len(x), n)).mT


def _product(rest: Downstream, rows: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
    """J^T F J v row by row: for log-probabilities L, F J v is p times the derivative of L along v."""

    def outputs(moved: Tensor) -> Tensor:
        return rest(moved, at)

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no derivative forwards
        logs, change = torch.func.jvp(outputs, (rows,), (vectors.to(rows),))
        _, backwards = torch.func.vjp(outputs, rows)
        (found,) = backwards(logs.exp() * change)
    return found.detach()
