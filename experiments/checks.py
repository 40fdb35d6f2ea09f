"""Claims that pass or fail, each with what was expected, what was measured and its spread over seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats
from torch import Tensor

LEVEL = 0.95
"""Coverage of every interval."""
Values: TypeAlias = Sequence[float] | np.ndarray | Tensor
"""One number a seed."""


@dataclass(frozen=True)
class Check:
    """One claim and its fate."""

    claim: str
    """What should hold."""
    expected: str
    """The bound or the target with its tolerance."""
    measured: float
    """The mean over seeds, or the share."""
    low: float
    """Lower end of the 95% interval of `measured`; NaN where there is one value only."""
    high: float
    """Upper end."""
    values: int
    """How many values, mostly seeds, it is measured over."""
    passed: bool
    """Whether `measured` keeps to `expected`; the interval is shown and does not soften it."""

    @property
    def spread(self) -> str:
        """The measured value with its interval, as text."""
        interval = "" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]"
        return f"{self.measured:.4g}{interval}"


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie."""

    mean: float
    """Of the values."""
    low: float
    """Lower end; NaN for a single value."""
    high: float
    """Upper end."""


def interval(values: Values) -> Interval:
    """Student's t interval of the mean, at LEVEL."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return Interval(float(x.mean()), math.nan, math.nan)
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def share_interval(hits: int, total: int) -> Interval:
    """Wilson's interval of a share (Wilson 1927), at LEVEL."""
    z = stats.norm.ppf((1 + LEVEL) / 2)
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def at_least(claim: str, values: Values, bound: float) -> Check:
    """The mean over seeds reaches `bound`."""
    found = interval(values)
    return _check(claim, f">= {bound:g}", found, len(values), found.mean >= bound)


def at_most(claim: str, values: Values, bound: float) -> Check:
    """The mean over seeds stays within `bound`."""
    found = interval(values)
    return _check(claim, f"<= {bound:g}", found, len(values), found.mean <= bound)


def near(claim: str, values: Values, target: float, tolerance: float) -> Check:
    """The mean over seeds is within `tolerance` of `target`."""
    found = interval(values)
    within = abs(found.mean - target) <= tolerance
    return _check(claim, f"{target:g} ± {tolerance:g}", found, len(values), within)


def above(claim: str, values: Values, bound: float) -> Check:
    """The whole interval lies above `bound`: for differences, an effect that the seeds cannot explain."""
    found = interval(values)
    return _check(claim, f"interval above {bound:g}", found, len(values), found.low > bound)


def within(claim: str, values: Values, low: float, high: float) -> Check:
    """The whole interval lies between `low` and `high`: for differences, no effect worth speaking of."""
    found = interval(values)
    inside = low <= found.low and found.high <= high
    return _check(claim, f"interval within [{low:g}, {high:g}]", found, len(values), inside)


def share(claim: str, hits: Sequence[bool] | np.ndarray | Tensor, bound: float) -> Check:
    """The claim holds in at least a share `bound` of the cases."""
    flags = np.asarray(hits, bool)
    found = share_interval(int(flags.sum()), len(flags))
    return _check(claim, f"in >= {bound:.0%} of cases", found, len(flags), found.mean >= bound)


def rare(claim: str, observed: float, null: Values, bound: float) -> Check:
    """The p-value (1 + #{null >= observed}) / (1 + draws) is at most `bound`; the interval is that of the share.

    A draw that falls short by rounding alone counts as equal: some permutations change nothing but the last digit.
    """
    draws = np.asarray(null, float)
    hits = int((draws >= observed - 1e-9 * abs(observed)).sum())
    found = share_interval(hits, len(draws))
    low = found.low if hits else 0.0
    p = (1 + hits) / (1 + len(draws))
    return Check(claim, f"p <= {bound:.3g}", p, low, max(p, found.high), len(draws), p <= bound)


def _check(claim: str, expected: str, found: Interval, values: int, passed: bool) -> Check:
    return Check(claim, expected, found.mean, found.low, found.high, values, bool(passed))
