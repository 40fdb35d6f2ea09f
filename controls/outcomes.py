"""What a control says of a feature: a statistic, and the same statistic with one ingredient changed."""

import sys
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from toolkit.errors import check_types, require

ROUNDING = 1e-6
"""What is computed alone and what is computed beside many others differ by so much in single precision."""


@dataclass(frozen=True)
class Outcome:
    """One control on one feature."""

    control: str
    """Its name in the registry."""
    feature: str
    """The feature, or the finder (`sae`, `pca`) where it is the finder as a whole that is tried."""
    statistic: str
    """What was measured, in a few words and with its unit."""
    observed: float
    """With every ingredient as it is."""
    null: Float[np.ndarray, " draws"] = field(repr=False)
    """With one ingredient changed, a number a draw."""
    larger: bool = True
    """Whether a feature that is real has the larger value; False for lengths and errors."""
    note: str = ""
    """What a reader has to know of this number, if anything."""
    is_test: bool = True
    """Whether the null draws are exchangeable with what was observed; False for a row of depths or sizes."""

    def __post_init__(self) -> None:
        check_types(self)
        given = isinstance(self.null, np.ndarray) and self.null.ndim == 1
        require(given and len(self.null) > 0, f"{self.control} on {self.feature!r} has no null draws")
        finite = abs(self.observed) <= sys.float_info.max and bool(np.isfinite(self.null).all())
        require(finite, f"{self.control} on {self.feature!r} gives numbers that are not finite")

    @property
    def p(self) -> float:
        """(1 + nulls at least as good) / (1 + nulls); what differs by less than ROUNDING is as good."""
        sign = 1.0 if self.larger else -1.0
        slack = ROUNDING * max(1.0, abs(self.observed))
        return float((1 + (sign * self.null >= sign * self.observed - slack).sum()) / (1 + len(self.null)))

    def survived(self, level: float) -> bool | None:
        """Whether p is at most the level; None where so few draws could not have shown it, or where it is no test."""
        if not self.is_test or 1 / (1 + len(self.null)) > level:
            return None
        return self.p <= level
