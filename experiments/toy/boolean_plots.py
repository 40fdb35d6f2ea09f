"""What the experiments on Boolean inputs draw: means over seeds with their intervals."""

from collections.abc import Sequence

from experiments.checks import Values, interval
from experiments.figures import Series


def banded(name: str, x: Sequence[float], values: Sequence[Values]) -> Series:
    """A curve of means with its 95% band; `values` holds one number a seed for each x."""
    found = [interval(one) for one in values]
    return Series(name, x, [f.mean for f in found], "both", [f.low for f in found], [f.high for f in found])
