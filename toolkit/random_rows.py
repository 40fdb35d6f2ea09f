"""Random embedding rows: uniform directions, rejection-sampled under a cosine bound, at given norms."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require
from toolkit.pretrain_config import PretrainConfig

_BLOCK = 512
_DRAWS_A_ROW = 50
"""A bound that asks for more draws a row than this counts as out of reach."""
_REJECTED = 0.02


def cosine_tail(bound: float, dimensions: int) -> float:
    """P(|cos| > bound) between a fixed and a uniformly random direction: cos^2 is Beta(1/2, (d - 1)/2)."""
    from scipy.special import betainc

    return float(betainc((dimensions - 1) / 2, 0.5, 1 - bound**2)) if dimensions > 1 else 1.0


def default_bound(rows: int, dimensions: int) -> float:
    """The bound at which about one draw in fifty is rejected for the last of `rows` random directions.

    It takes the tail off the largest cosines and asks little: of 4,096 directions in 128 dimensions the largest
    |cosine| is about .44, and the bound .39.
    """
    from scipy.special import betaincinv

    return math.sqrt(1 - float(betaincinv((dimensions - 1) / 2, 0.5, min(1.0, _REJECTED / rows))))


def bounded_directions(rows: int, dimensions: int, bound: float, *, seed: int) -> Float[Tensor, "rows d"]:
    """Unit vectors drawn uniformly, each rejected while its |cosine| with an earlier one is above the bound.

    Raises:
        UserError: the bound is out of reach: it would take more than fifty draws a row.
    """
    draw = torch.Generator().manual_seed(seed)
    kept = torch.empty(rows, dimensions, dtype=torch.float64)
    count = drawn = 0
    # Accepted directions keep apart, so their forbidden caps overlap less than independent ones': in truth it takes
    # more draws than this.
    _refuse(_expected_draws(rows, dimensions, bound) > _DRAWS_A_ROW * rows, rows, dimensions, bound)
    while count < rows:
        _refuse(drawn > _DRAWS_A_ROW * rows + _BLOCK, rows, dimensions, bound)
        block = torch.randn(_BLOCK, dimensions, generator=draw, dtype=torch.float64)
        block /= block.norm(dim=1, keepdim=True)
        drawn += _BLOCK
        fits = block[((block @ kept[:count].T).abs() <= bound).all(1)]
        taken = _apart(fits, bound)[: rows - count]
        kept[count : count + len(taken)] = fits[taken]
        count += len(taken)
    return kept.float()


def _apart(directions: Tensor, bound: float) -> list[int]:
    """The directions that are within the bound of all taken before them, in turn."""
    within = (directions @ directions.T).abs() <= bound
    taken: list[int] = []
    for at in range(len(directions)):
        if within[at, taken].all():
            taken.append(at)
    return taken


def _expected_draws(rows: int, dimensions: int, bound: float) -> float:
    """Sum over n < rows of 1 / P(no conflict with n earlier ones), taking conflicts as independent."""
    tail = cosine_tail(bound, dimensions)
    exponent = rows * tail
    return math.inf if exponent > 50 else rows * math.expm1(exponent) / exponent if exponent else rows


def _refuse(out_of_reach: bool, rows: int, dimensions: int, bound: float) -> None:
    require(
        not out_of_reach,
        f"{rows:,} random rows of {dimensions} dimensions cannot be drawn with every |cosine| at most {bound:g}: it "
        f"would take more than {_DRAWS_A_ROW} draws a row; raise the cosine bound, "
        f"{default_bound(rows, dimensions) + 0.005:.2f} is within reach",
    )


def frozen_rows(like: Tensor, config: PretrainConfig, *, seed: int) -> Float[Tensor, "rows d"]:
    """Rows of an embedding that is never trained: directions under the bound, norms those of `like`.

    Args:
        like: rows (vocabulary, d) whose norms are taken, or the norms (vocabulary,).
    """
    norms = like.norm(dim=1) if like.dim() == 2 else like
    require(len(norms) == config.vocabulary, f"{len(norms)} norms for {config.vocabulary} rows: expected one for each")
    bound = config.cosine_bound or default_bound(config.vocabulary, config.width)
    return bounded_directions(config.vocabulary, config.width, bound, seed=seed) * norms[:, None]


def redraw(rows: Float[Tensor, "rows d"], *, seed: int) -> Float[Tensor, "rows d"]:
    """Random rows at the same norms: uniform directions, without a bound."""
    draw = torch.Generator().manual_seed(seed)
    fresh = torch.randn(rows.shape, generator=draw, dtype=torch.float64)
    return (fresh / fresh.norm(dim=1, keepdim=True)).to(rows.dtype) * rows.norm(dim=1, keepdim=True)
