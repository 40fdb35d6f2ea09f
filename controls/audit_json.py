"""Axes and outcomes as JSON, and an audit's result as its page and other programs read it."""

from collections import Counter
from dataclasses import asdict
from typing import Any

import numpy as np

from controls.axes import Axis, Bounds
from controls.outcomes import Outcome
from controls.settling import settle
from controls.verdict import VERDICTS, Verdict

SHOWN = 200
"""Numbers of a null that result.json holds, by rank; the tensors hold all."""


def outcome_json(one: Outcome) -> dict[str, Any]:
    """All of it."""
    return {**asdict(one), "null": one.null.tolist()}


def outcome_from(given: dict[str, Any]) -> Outcome:
    """And back."""
    return Outcome(**{**given, "null": np.array(given["null"], dtype=float)})


def axis_json(axis: Axis) -> dict[str, Any]:
    """All of it; what is not finite as text."""
    between = None if axis.between is None else [axis.between.low, axis.between.high]
    numbers = {name: repr(getattr(axis, name)) for name in ("effect", "error", "p", "p_absent")}
    return {**numbers, "why": axis.why, "between": between, "outcomes": [outcome_json(one) for one in axis.outcomes]}


def axis_from(given: dict[str, Any]) -> Axis:
    """And back."""
    numbers = {name: float(given[name]) for name in ("effect", "error", "p", "p_absent")}
    between = None if given["between"] is None else Bounds(*given["between"])
    return Axis(
        **numbers, why=given["why"], between=between, outcomes=tuple(outcome_from(one) for one in given["outcomes"])
    )


def counts(verdicts: list[Verdict]) -> dict[str, int]:
    """Features of each verdict."""
    found = Counter(one.verdict for one in verdicts)
    return {name: found[name] for name in VERDICTS}


def feature_json(one: Verdict, family: str, *, rows: int) -> dict[str, Any]:
    """A feature as the page shows it."""
    e, level = one.evidence, one.alpha / 2
    low, high = e.r - 1.96 * e.error, e.r + 1.96 * e.error
    return {
        "feature": e.feature,
        "family": family,
        "verdict": one.verdict,
        "p": one.p,
        "threshold": one.threshold,
        "place": one.place,
        "why": one.why,
        "settle": settle(one, rows=rows),
        "rate": e.rate,
        "r": {"effect": e.r, "low": low, "high": high, "p": e.p_found},
        "D": shown(e.token) if e.token else None,
        "W": shown(e.training),
        "C": shown(e.causal),
        "controls": [control_json(outcome, level) for outcome in e.outcomes],
        "steering": asdict(e.curve) if e.curve else None,
    }


def shown(axis: Axis) -> dict[str, Any]:
    """An axis as the page shows it."""
    low, high = axis.interval()
    return {
        "effect": axis.effect,
        "low": low,
        "high": high,
        "p": axis.p,
        "p_absent": axis.p_absent,
        "settled": axis.settled,
        "why": axis.why,
        "bounds": None if axis.between is None else [axis.between.low, axis.between.high],
    }


def control_json(one: Outcome, level: float) -> dict[str, Any]:
    """A control as the page shows it."""
    null = np.sort(one.null)
    if len(null) > SHOWN:
        null = np.quantile(null, (np.arange(SHOWN) + 0.5) / SHOWN)
    return {
        "control": one.control,
        "feature": one.feature,
        "statistic": one.statistic,
        "observed": one.observed,
        "p": one.p,
        "draws": len(one.null),
        "survived": one.survived(level),
        "is_test": one.is_test,
        "larger": one.larger,
        "note": one.note,
        "null": null.tolist(),
    }
