"""Geometry of many features in few dimensions: named values of D_i, how often they occur, and the optimal attack."""

import numpy as np
import torch
from jaxtyping import Float, Real
from scipy import stats
from torch import Tensor


def rank_correlation(x: Real[Tensor, " values"], y: Real[Tensor, " values"]) -> float:
    """Spearman's rank correlation (1904), ties at their mean rank; 0 where one of them does not vary."""
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    return float(stats.spearmanr(x.double().numpy(), y.double().numpy()).statistic)


LEVELS = {
    "dedicated": 1.0,
    "tetrahedron": 3 / 4,
    "triangle": 2 / 3,
    "digon": 1 / 2,
    "pentagon": 2 / 5,
    "antiprism": 3 / 8,
}
"""D_i of the uniform polytopes (Elhage et al. 2022, "The Geometry of Superposition")."""


def peak(values: Float[Tensor, " values"], level: float, *, width: float = 0.01, smooth: float = 0.05) -> float:
    """Excess mass at `level`: share of the values within `width` of it, less what a smoothed copy has there.

    The copy spreads each value evenly over `smooth` to either side: 0 where the density is straight about the level,
    1 - width / smooth where all values stand on it, and 0 where there are no values. The idea is that of excess-mass
    estimates of modality (Mueller and Sawitzki 1991).
    """
    if not len(values):
        return 0.0
    off = (values - level).abs()
    smoothed = (torch.minimum(off + smooth, off.new_tensor(width)) - (off - smooth).clamp(min=-width)).clamp(min=0)
    return ((off <= width).double() - smoothed / (2 * smooth)).mean().item()


def stay(x: Float[Tensor, " points"], y: Float[Tensor, " points"], level: float, *, within: float = 0.05) -> float:
    """How much of the range of ascending x the straight line through the points spends within a share of a level."""
    at = torch.linspace(float(x[0]), float(x[-1]), 4001, dtype=torch.float64)
    along = np.interp(at, x.double(), y.double())
    return float((abs(along - level) <= within * level).mean() * (at[-1] - at[0]))


STARTS = 8
"""Outputs whose own optimum an attack starts from."""


@torch.no_grad()
def attack(
    W: Float[Tensor, "hidden features"],
    b: Float[Tensor, " features"],
    x: Float[Tensor, "rows features"],
    size: float,
    *,
    relu: bool = True,
    steps: int = 40,
) -> Float[Tensor, "rows features"]:
    """The perturbation of each row, of norm `size` at most, that most raises `x' = [ReLU](G x + b)`'s squared error.

    Output i rises fastest along row i of G = W^T W, by size |G_i| = size |W_i|^2 / sqrt(D_i): each output's own
    optimum, up and down, is a start. The best STARTS of them and the gradient at x go on by projected gradient ascent
    with steps that shrink from `size` on, and the best seen is kept. After Elhage et al. 2022, "Superposition and
    Adversarial Robustness".
    """
    G = W.mT @ W
    own = size * torch.nn.functional.normalize(G, dim=1)
    own = torch.cat([own, -own])
    z, shifts = x @ G + b, own @ G
    # Row by row, since every start meets every output: (2n, n).
    first = [_errors(row + shifts, to, relu).topk(STARTS).indices for row, to in zip(z, x, strict=True)]
    delta = torch.cat([own[torch.stack(first)], torch.zeros_like(x)[:, None]], 1)  # (rows, STARTS + 1, n)
    x = x[:, None]
    best, highest = delta.clone(), _errors((x + delta) @ G + b, x, relu)
    for step in np.geomspace(1, 0.02, steps):
        at = (x + delta) @ G + b
        residual = (at.relu() - x) * (at > 0) if relu else at - x
        delta = delta + step * size * torch.nn.functional.normalize(residual @ G, dim=-1)
        delta = delta * (size / delta.norm(dim=-1, keepdim=True).clamp(min=size))
        reached = _errors((x + delta) @ G + b, x, relu)
        better = reached > highest
        best[better], highest[better] = delta[better], reached[better]
    return best[torch.arange(len(best)), highest.argmax(1)]


def _errors(z: Tensor, x: Tensor, relu: bool) -> Tensor:
    return ((z.relu() if relu else z) - x).square().sum(-1)
