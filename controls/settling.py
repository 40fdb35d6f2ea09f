"""What would settle an open question: more rows, more null networks, or nothing of the kind."""

from math import ceil, inf

from controls.axes import NORMAL, POWER, Axis
from controls.verdict import Evidence, Verdict


def settle(verdict: Verdict, *, rows: int) -> str:
    """In words, for an undecided verdict; "" for any other.

    Standard errors fall with the root of the number of documents, so the rows asked for are those at which a test of
    the effect as it stands would pass; what stands between the bounds passes at no number.
    """
    if verdict.verdict != "undecided":
        return ""
    one = verdict.evidence
    asked = {"D": one.token, "W": one.training, "C": one.causal}
    level = verdict.alpha / 2
    if verdict.why.startswith("D: not found"):
        return found(one, verdict.threshold, rows)
    lines = [f"{name}: {needed(axis, level, rows)}" for name, axis in asked.items() if axis and is_open(axis, level)]
    return "; ".join(lines) or "fewer features, or more rows: every axis stands at its own level, not all at once"


def is_open(axis: Axis, level: float) -> bool:
    """Whether an axis says neither present nor absent."""
    return min(axis.p, axis.p_absent) > level


def found(one: Evidence, level: float, rows: int) -> str:
    """Of a label that is not found: rows at which its correlation would stand out, were it what it seems."""
    if one.r <= 0:
        return "D: nothing: the label is not in the activations as far as these rows show"
    times = (NORMAL.inv_cdf(1 - level) * one.error / one.r) ** 2
    return f"D: about {_rounded(max(2 * rows, ceil(times * rows)))} rows, if r is {one.r:.3f}"


def needed(axis: Axis, level: float, rows: int) -> str:
    """Of one open axis."""
    if axis.why or axis.between is None:
        return axis.why or "it was not asked"
    few = [o for o in axis.outcomes if o.survived(level) is None]
    if few:
        return f"{ceil(1 / level) - 1} null draws at least, there were {len(few[0].null)}"
    beaten = [o for o in axis.outcomes if o.p > level]
    low, high = axis.between.low, axis.between.high
    if beaten and axis.effect > low:
        return f"no number of rows: {beaten[0].control} does as well (rank p {beaten[0].p:.2g})"
    if low <= axis.effect <= high:
        return f"no number of rows: {axis.effect:.2f} lies between absent ({low:g}) and present ({high:g})"
    grown = times(axis, level)
    if grown == inf:
        return "no number of rows: asked in another way (an interchange, without what hardly varies) it says otherwise"
    return f"about {_rounded(ceil(grown * rows))} rows"


def times(axis: Axis, level: float) -> float:
    """By how much the rows have to grow for the tests to pass; infinite where one points the other way.

    p-values are of the worst way to ask: `effect` alone may lie on the right side.
    """
    assert axis.between is not None
    low, high, nulls = axis.between.low, axis.between.high, max(1, len(axis.outcomes))
    if axis.effect > high:
        return _grown(axis.p, level)
    power = ((NORMAL.inv_cdf(1 - level) + NORMAL.inv_cdf(POWER)) * axis.error / (high - low)) ** 2
    if power <= 1:  # the test was made; W's p is the least of its nulls', times their number
        return _grown(axis.p_absent / nulls, level / nulls)
    return max(power, (NORMAL.inv_cdf(1 - level / nulls) * axis.error / (low - axis.effect)) ** 2)


def _grown(p: float, level: float) -> float:
    """A test's z grows with the root of the rows."""
    return max(1.0, (NORMAL.inv_cdf(1 - level) / NORMAL.inv_cdf(1 - p)) ** 2) if p < 0.5 else inf


def _rounded(rows: int) -> str:
    """To two digits."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return f"{-(-rows // unit) * unit:,}"
