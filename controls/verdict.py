"""Three axes to one verdict: model feature, dataset feature, inherited, unread, or which question is still open.

Each verdict is an intersection-union test: its p-value is the largest of those of the axes it rests on, so nothing is
corrected inside a feature. Across features Benjamini and Hochberg's (1995) procedure at half of alpha says which are
there at all, and then, among these, by the least of each feature's four p-values, which verdicts stand. The least of
four is no p-value of its own: for each single verdict the rate of false ones is bounded, for all four together by
three times as much.
"""

from dataclasses import dataclass, field

import numpy as np

from controls.axes import Axis
from controls.outcomes import Outcome
from controls.steering_curve import Curve

VERDICTS = ("model", "dataset", "inherited", "unread", "undecided")
"""What a feature can be called."""


@dataclass(frozen=True)
class Evidence:
    """What was found of one feature."""

    feature: str
    """Its name."""
    rate: float
    """Share of rows where it is on."""
    r: float
    """Held-out correlation of label and read-out."""
    error: float
    """Its standard error."""
    p_found: float
    """That the label has nothing to do with the activations, documents exchanged."""
    token: Axis | None
    """D: beyond what the token tells; None where there are no tokens."""
    training: Axis
    """W: beyond what null networks show."""
    causal: Axis
    """C: what the rest of the network makes of it."""
    controls: tuple[Outcome, ...] = field(default=(), repr=False)
    """Controls beside those that the axes hold."""
    curve: Curve | None = field(default=None, repr=False)
    """What steering by more and less does, where it was tried."""

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every control's null: those of the axes, then the others."""
        axes = [axis for axis in (self.token, self.training, self.causal) if axis is not None]
        return (*(outcome for axis in axes for outcome in axis.outcomes), *self.controls)

    @property
    def computed(self) -> float:
        """p that it is not both beyond its token and beyond null networks."""
        return max(self.training.p, self.token.p if self.token else 0.0)

    @property
    def inherited(self) -> float:
        """p that neither its token nor some null network has all of it; twice the lesser where both are asked."""
        if self.token is None:
            return self.training.p_absent
        return min(1.0, 2 * min(self.token.p_absent, self.training.p_absent))

    def p_values(self) -> dict[str, float]:
        """One for each verdict but undecided, for a feature that is there."""
        return {
            "model": max(self.computed, self.causal.p),
            "unread": max(self.computed, self.causal.p_absent),
            "inherited": max(self.inherited, self.causal.p),
            "dataset": max(self.inherited, self.causal.p_absent),
        }


@dataclass(frozen=True)
class Verdict:
    """What a feature is called, and why."""

    verdict: str
    """One of VERDICTS."""
    p: float
    """Of the verdict with the least, or of being there at all where it is not; judged against `threshold`."""
    threshold: float
    """What Benjamini and Hochberg's procedure leaves of half of alpha."""
    alpha: float
    """Error rate asked for."""
    why: str
    """Which axis is open and what would settle it, where undecided."""
    evidence: Evidence
    """Beneath it."""

    @property
    def place(self) -> str:
        """Computed or inherited, and used or unread, each by itself at half of alpha; "open" for neither."""
        one, level = self.evidence, self.alpha / 2
        if one.p_found > level:
            return "open / open"
        origin = "computed" if one.computed <= level else "inherited" if one.inherited <= level else "open"
        use = "used" if one.causal.p <= level else "unread" if one.causal.p_absent <= level else "open"
        return f"{origin} / {use}"


def judge(evidence: list[Evidence], *, alpha: float = 0.05) -> list[Verdict]:
    """A verdict for each feature."""
    there = [one.p_found for one in evidence]
    first = step_up(np.array(there), alpha / 2)
    p_values = [one.p_values() for one in evidence]
    best = [min(p, key=lambda name: p[name]) for p in p_values]
    least = np.array([p[name] for p, name in zip(p_values, best, strict=True)])
    among = least[[p <= first for p in there]]
    second = step_up(among, alpha / 2) if len(among) else 0.0
    return [
        _verdict(one, name, float(p), first, second, alpha) for one, name, p in zip(evidence, best, least, strict=True)
    ]


def _verdict(one: Evidence, best: str, p: float, first: float, second: float, alpha: float) -> Verdict:
    if one.p_found > first:
        why = f"D: not found in the activations (r {one.r:.3f}, p {one.p_found:.3g})"
        return Verdict("undecided", one.p_found, first, alpha, why, one)
    if p > second:
        return Verdict("undecided", p, second, alpha, open_question(one, second), one)
    return Verdict(best, p, second, alpha, "", one)


def step_up(p: np.ndarray, level: float) -> float:
    """The largest p-value that Benjamini and Hochberg's procedure would accept; at least level / number of them."""
    order = np.sort(p)
    lines = level * np.arange(1, len(p) + 1) / len(p)
    passed = np.flatnonzero(order <= lines)
    return float(lines[passed[-1]] if len(passed) else lines[0])


def open_question(one: Evidence, threshold: float) -> str:
    """In words: which axis of a feature that is there could not be settled."""
    asked = {"D": one.token, "W": one.training, "C": one.causal}
    for name, axis in asked.items():
        if axis is not None and axis.why and min(axis.p, axis.p_absent) > threshold:
            return f"{name}: {axis.why}"
    origin_open = min(one.computed, one.inherited) > threshold
    if origin_open and one.token is not None and min(one.token.p, one.token.p_absent) > threshold:
        return f"D: {_told(one.token, threshold)}"
    if origin_open:
        return f"W: {_told(one.training, threshold)}"
    return f"C: {_told(one.causal, threshold)}"


def _told(axis: Axis, threshold: float) -> str:
    low, high = axis.interval()
    return f"effect {axis.effect:.2f} [{low:.2f}, {high:.2f}], p {axis.p:.3g}, absent p {axis.p_absent:.3g}"
