"""What an axis says of a feature: an effect with its uncertainty, and p-values for its presence and for its absence.

Presence is shown against the bound `high`, once the effect has a place among nulls of the same recipe that few have (a
rank has a floor, so it opens the gate and does not set the p-value); absence is shown by an equivalence test against
the bound `low` that would have seen `high`. The bounds are parts of the effect of a planted positive, stated before any
feature is looked at.
"""

from dataclasses import dataclass, field
from statistics import NormalDist

from controls.outcomes import Outcome

NORMAL = NormalDist()
POWER = 0.8
"""That an equivalence test must have at `high`, or it says nothing."""


@dataclass(frozen=True)
class Bounds:
    """Between which effects are neither present nor absent."""

    low: float
    """An effect shown to be below it is absent."""
    high: float
    """An effect shown to be above it is present."""


def bounds(planted: float) -> Bounds:
    """Half and a quarter of the effect of a planted positive."""
    return Bounds(planted / 4, planted / 2)


WITHIN = bounds(1.0)
"""Of the share of a decodability that is there within token types: all of it, when planted."""
TRAINED = Bounds(0.25, 0.75)
"""Of the share of a decodability that null networks lack: all of it, when planted. The bounds are symmetric, as a null
network that shows more than a quarter of a feature has the feature."""
CAUSAL = bounds(0.4)
"""Of the correlation of a feature with its output that steering brings about: a planted one makes for 16% of the
output's variance."""


@dataclass(frozen=True)
class Axis:
    """One axis of one feature."""

    effect: float
    """In the axis' own units."""
    error: float
    """Its standard error, by documents drawn with replacement."""
    p: float
    """That it is present: the test against `high`, or the rank among nulls where that is larger than the level."""
    p_absent: float
    """That it is absent: the test against `low`; 1 where that would not have seen `high`."""
    why: str = ""
    """What kept the axis from being asked, if anything did."""
    between: Bounds | None = None
    """What the tests are against."""
    outcomes: tuple[Outcome, ...] = field(default=(), compare=False, repr=False)
    """The nulls that its p rests on, a draw a number."""

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the effect lies, two-sided."""
        reach = NORMAL.inv_cdf((1 + level) / 2) * self.error
        return self.effect - reach, self.effect + reach

    @property
    def settled(self) -> str:
        """ "present", "absent" or "open", each taken by itself at 5%, two and a half to each side."""
        if self.p <= 0.025:
            return "present"
        return "absent" if self.p_absent <= 0.025 else "open"


def unasked(why: str) -> Axis:
    """An axis about which nothing is known."""
    return Axis(float("nan"), float("inf"), 1.0, 1.0, why)


def above(effect: float, error: float, bound: float) -> float:
    """p of an effect that is no larger than the bound."""
    return 1 - NORMAL.cdf((effect - bound) / max(error, 1e-12))


def below(effect: float, error: float, between: Bounds, *, level: float) -> float:
    """p of an effect that is no smaller than `low`; 1 where a test at this level would miss `high` too often."""
    reach = NORMAL.inv_cdf(1 - level) + NORMAL.inv_cdf(POWER)
    if error * reach > between.high - between.low:
        return 1.0
    return NORMAL.cdf((effect - between.low) / max(error, 1e-12))
