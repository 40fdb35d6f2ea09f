"""Values of places brought to documents, which are what is resampled: means, ratios of means with their interval."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from experiments.checks import LEVEL, Check, Interval

DRAWS = 2_000
"""Resamples of documents behind an interval of a ratio."""


def means(
    values: Float[np.ndarray, " places"], documents: Int[np.ndarray, " places"]
) -> Float[np.ndarray, " documents"]:
    """The mean of each document's places; places that hold NaN are left out, and documents of nothing else."""
    sums, counts = _sums(values, documents)
    return sums[counts > 0] / counts[counts > 0]


def ratio(
    numerator: Float[np.ndarray, " places"],
    denominator: Float[np.ndarray, " places"],
    documents: Int[np.ndarray, " places"],
    *,
    seed: int,
) -> Interval:
    """Ratio of the means over places, and the percentile interval of documents resampled with replacement."""
    above, below = _sums(numerator, documents)[0], _sums(denominator, documents)[0]
    drawn = np.random.default_rng([seed, 67]).multinomial(len(above), np.full(len(above), 1 / len(above)), DRAWS)
    low, high = np.quantile((drawn @ above) / (drawn @ below), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(above.sum() / below.sum()), float(low), float(high))


def bounded(claim: str, expected: str, found: Interval, values: int, passes: Callable[[Interval], bool]) -> Check:
    """A check on an interval that comes from elsewhere, such as `ratio`'s."""
    return Check(claim, expected, found.mean, found.low, found.high, values, bool(passes(found)))


def _sums(
    values: Float[np.ndarray, " places"], documents: Int[np.ndarray, " places"]
) -> tuple[Float[np.ndarray, " documents"], Float[np.ndarray, " documents"]]:
    here = np.unique(documents, return_inverse=True)[1]
    known = ~np.isnan(values)
    return np.bincount(here, np.where(known, values, 0)), np.bincount(here, known)
