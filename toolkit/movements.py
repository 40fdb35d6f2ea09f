"""How far a change moved outputs, how much of it lies along the movement that was wanted, and how much beside it.

Outputs are log-probabilities, and the distance from clean p to changed q is KL(q || p); or plain numbers, and it is
|q - p|^2 / 2. Either splits without rest: the point r on the curve from p along e (p exp(t e) normalised; p + t e) that
is nearest to q has D(q, p) = D(q, r) + D(r, p), Pythagoras' theorem for exponential families (Csiszar 1975, Theorem
2.2). D(r, p) is what movement along e explains, D(q, r) is off target.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import unknown

DIVERGENCES = ("kl", "squared")
_STEPS = 30


@dataclass(frozen=True)
class Movements:
    """One number for each row, and one for each row and attribute."""

    divergence: Float[Tensor, " rows"]
    """From the clean outputs to the changed ones: KL(changed || clean) in nats, or half the squared distance."""
    explained: Float[Tensor, " rows"]
    """The part of it that movement along e, in the wanted sense, explains; 0 where outputs moved the other way."""
    along: Float[Tensor, "rows m"]
    """Movement along the wanted attribute's own e in units of |e|; for another k along what of its e the wanted one's
    does not hold, in units of that part's length."""


def distances(
    clean: Float[Tensor, "rows outputs"], moved: Float[Tensor, "rows outputs"], divergence: str
) -> Float[Tensor, " rows"]:
    """KL(moved || clean) of log-probabilities in nats, never below 0, or half the squared distance.

    Raises:
        UserError: an unknown divergence.
    """
    if divergence == "squared":
        return (moved - clean).square().sum(1) / 2
    if divergence != "kl":
        raise unknown("divergence", divergence, DIVERGENCES)
    return (moved.exp() * (moved - clean)).sum(1).clamp(min=0)


def centred(effects: Float[Tensor, "m outputs"], divergence: str) -> Float[Tensor, "m outputs"]:
    """Effects on log-probabilities less their mean over outputs, which is normalisation and moves no probability."""
    return effects - effects.mean(1, keepdim=True) if divergence == "kl" else effects


def movements(
    clean: Float[Tensor, "rows outputs"],
    moved: Float[Tensor, "rows outputs"],
    effects: Float[Tensor, "m outputs"],
    wanted: Int[Tensor, " rows"],
    signs: Float[Tensor, " rows"],
    *,
    divergence: str,
) -> Movements:
    """Split each row's movement into what its wanted attribute explains and the rest.

    Args:
        effects: the expected effect e of each attribute, as `centred` gives it.
        wanted: the attribute each row was steered towards; on any device.
        signs: 1 where more of it was asked for, -1 where less; all results are in the sense that was asked for.

    Raises:
        UserError: an unknown divergence.
    """
    whole = distances(clean, moved, divergence)
    e = signs[:, None] * effects[wanted]  # (rows, outputs)
    if divergence == "squared":
        explained = ((moved - clean) * e).sum(1).clamp(min=0).square() / e.square().sum(1) / 2
    else:
        explained = explained_nats(clean, moved, e)
    return Movements(whole, torch.minimum(explained, whole), _along(moved - clean, effects, wanted) * signs[:, None])


def _along(change: Tensor, effects: Tensor, wanted: Tensor) -> Tensor:
    """(rows, m): with g the effects' Gram matrix and j wanted, <change, e_k - g_kj / g_jj e_j> over its square."""
    gram = effects @ effects.mT
    products, own = change @ effects.mT, gram.diagonal()
    wanted = wanted.to(products.device)
    shares = gram / own[:, None]  # row j, column k: how much of e_j is in e_k
    at_own = products.gather(1, wanted[:, None])
    lengths = own - gram.square() / own[:, None]  # row j, column k: |e_k less its part along e_j|^2
    lengths = torch.where(lengths > 1e-9 * own, lengths, torch.nan)  # parallel effects cannot be told apart
    others = (products - shares[wanted] * at_own) / lengths[wanted]
    return others.scatter(1, wanted[:, None], at_own / own[wanted, None])


def explained_nats(
    clean: Float[Tensor, "rows outputs"], moved: Float[Tensor, "rows outputs"], e: Float[Tensor, "rows outputs"]
) -> Float[Tensor, " rows"]:
    """The most nats that a tilt of p by t e with t >= 0 explains: sup_t t E_q[e] - log E_p[exp(t e)].

    A concave function of t, climbed by Newton's method inside a bracket; whatever t it ends at, the value is a lower
    bound (Donsker and Varadhan 1975). Clean p and moved q are log-probabilities.
    """
    mean = (moved.exp() * e).sum(1)
    best = torch.zeros_like(mean)
    t, low, high = torch.zeros_like(mean), torch.zeros_like(mean), torch.full_like(mean, torch.inf)
    for _ in range(_STEPS):
        tilted = clean + t[:, None] * e
        normaliser = tilted.logsumexp(1)
        r = (tilted - normaliser[:, None]).exp()
        at = (r * e).sum(1)
        variance = (r * e.square()).sum(1) - at.square()
        best = torch.maximum(best, t * mean - normaliser + clean.logsumexp(1))
        slope = mean - at
        low, high = torch.where(slope > 0, t, low), torch.where(slope > 0, high, t)
        step = slope / variance.clamp(min=torch.finfo(t.dtype).tiny)
        if bool((((step * slope).abs() < torch.finfo(t.dtype).eps) | (high <= 0)).all()):
            break
        ahead = torch.where(high.isinf(), (t + step).clamp(max=4 * t + 1), t + step)
        t = torch.where((ahead > low) & (ahead < high), ahead, _between(low, high))
    return best


def _between(low: Tensor, high: Tensor) -> Tensor:
    return torch.where(high.isinf(), 2 * low + 1, (low + high) / 2)
