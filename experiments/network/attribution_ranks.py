"""How far attributions rank the parts of a place as taking each away, or adding it, does."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

FEWEST = 4
"""Parts of a place that can be ranked."""
ENDS = {"ablation": "ablation", "insertion": "insertion", "both": "the mean of both"}
"""What attributions are compared with."""


def correlations(
    one: Mapping[str, Tensor], way: str, baseline: int = 0, *, end: str = "ablation"
) -> Float[np.ndarray, " places"]:
    """Spearman's rho with one of ENDS at each place; NaN for fewer than FEWEST latents or where all are alike."""
    truth = (one["ablation"] + one["insertion"]) / 2 if end == "both" else one[end]
    return _spearman(one[way][baseline].double().numpy(), truth[baseline].double().numpy())


def _spearman(
    a: Float[np.ndarray, "places latents"], b: Float[np.ndarray, "places latents"]
) -> Float[np.ndarray, " places"]:
    """Of each place over the latents that `b` has there: the correlation of ranks, ties having their mean."""
    there = ~np.isnan(b)
    count = there.sum(1)
    ranks = (stats.rankdata(np.where(there, each, np.inf), axis=1) for each in (a, b))
    x, y = (np.where(there, rank - (count[:, None] + 1) / 2, 0) for rank in ranks)  # ranks of those there have mean 0
    scale = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    known = (count >= FEWEST) & (scale > 0)
    return np.where(known, (x * y).sum(1) / np.where(known, scale, 1), np.nan)
