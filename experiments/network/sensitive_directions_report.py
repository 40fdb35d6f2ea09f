"""What N7's measurements come to: distances to thresholds by family, paired over places, intervals over documents.

Bars were set before anything was measured. The Jacobian's first singular vector must be the most sensitive as the
threshold goes to 0, in any network; on the trained one its distance to .01 nats is to lie within 15% of the quadratic
prediction sqrt(2 t / v^T G v). Distances are averaged as logarithms; one that is censored counts as the furthest looked
at, so that what reaches no threshold looks more sensitive than it is.

After the first default run had been looked at, the comparison of SAE directions that are on with random ones as far
along the activation was added, without a check: those on point along it more than others, and layer norm mutes movement
along it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.checks import Check, Interval, above, interval, near
from experiments.figures import Figure, Plot, Series
from experiments.network.by_document import means
from experiments.network.networks import TRAINED
from experiments.network.over_layers import as_ratio
from experiments.network.sensitive_families import ANY, DATA, FAMILIES, LIKE, MATCHED, MEANS, NEXT, OFF, ON, PCA, TOP
from experiments.registry import Outcome

CLOSE = 0.15
"""How far from its quadratic prediction the smallest distance may lie."""
TOLD = 0.1
"""Nats at which families are compared in words, where that is among the thresholds."""
SHOWN = (TOP, NEXT, ON, PCA, ANY)
"""Whose distances are drawn as they are."""
PAIRS = ((ON, PCA), (PCA, LIKE), (ON, LIKE), (ON, MATCHED), (ON, DATA), (OFF, LIKE), (MEANS, DATA), (DATA, ANY))
"""Compared place by place: the log of the second's distance over the first's."""

Cells = Sequence[Mapping[str, Any]]
Group = Sequence[Mapping[str, Tensor]]
"""Cells of one network, a hook each; places are the same at all of them."""


def summarise(settings: Any, cells: Cells, found: Group) -> Outcome:
    """Families side by side, hooks of each network averaged place by place."""
    kinds = dict.fromkeys(cell["network"] for cell in cells)
    groups = {kind: [one for cell, one in zip(cells, found, strict=True) if cell["network"] == kind] for kind in kinds}
    metrics = {kind: _numbers(group, settings) for kind, group in groups.items()}
    return Outcome(
        _conclusion(groups, settings), checks(groups, settings), (_figure(groups, settings),), metrics,
        table=_table(groups, settings),
    )  # fmt: skip


def logs(one: Mapping[str, Tensor], family: str, furthest: float) -> Float[np.ndarray, "thresholds places"]:
    """Mean log distance of a family's directions, in typical distances, censored ones at the furthest."""
    distance = one[f"{family}.distance"].double().numpy()
    return np.asarray(np.log(np.minimum(distance, furthest)).mean(1))


def _documents(group: Group, values: Float[np.ndarray, " places"]) -> Float[np.ndarray, " documents"]:
    return means(values, group[0]["documents"].numpy())


def _level(group: Group, family: str, t: int, furthest: float) -> Float[np.ndarray, " documents"]:
    return _documents(group, np.mean([logs(one, family, furthest)[t] for one in group], 0))


def further(group: Group, family: str, other: str, t: int, furthest: float) -> Float[np.ndarray, " documents"]:
    """Log of the other's distance over the family's at the same place: above 0 where the family is more sensitive."""
    each = [logs(one, other, furthest)[t] - logs(one, family, furthest)[t] for one in group]
    return _documents(group, np.mean(each, 0))


def predicted(group: Group, family: str, t: int) -> Float[np.ndarray, " documents"]:
    """Measured distance over sqrt(2 t / v^T G v), geometric mean over directions and hooks; by document.

    Places with a distance beyond the furthest are left out.
    """
    each = []
    for one in group:
        quadratic = 0.5 * (2 * one["thresholds"][t].double() / one[f"{family}.fisher"].double().clamp(min=1e-30)).log()
        measured = one[f"{family}.distance"][t].double()
        each.append((measured.where(measured.isfinite(), torch.nan).log() - quadratic).mean(0).numpy())
    return np.exp(_documents(group, np.mean(each, 0)))


def checks(groups: Mapping[str, Group], settings: Any) -> tuple[Check, ...]:
    """The near-theorem in every network, then the trained one's."""
    found, far = list[Check](), settings.furthest
    smallest = len(settings.nats) + int(np.argmin(settings.shares))
    for kind, group in groups.items():
        rivals = {name: further(group, TOP, name, smallest, far) for name in FAMILIES[1:]}
        rival = min(rivals, key=lambda name: float(rivals[name].mean()))
        share = f"{min(settings.shares):g} of the usual KL"
        claim = f"{kind}: log distance to {share}, nearest rival ({rival}) over {TOP}"
        found.append(above(claim, rivals[rival], 0))
    if TRAINED in groups:
        group, least = groups[TRAINED], int(np.argmin(settings.nats))
        claim = f"{TRAINED}: distance to {min(settings.nats):g} nats over the quadratic prediction, {TOP}"
        found.append(near(claim, predicted(group, TOP, least), 1, CLOSE))
        claim = f"{TRAINED}: log distance to {settings.nats[_told(settings)]:g} nats, isotropic over {DATA}"
        found.append(above(claim, further(group, DATA, ANY, _told(settings), far), 0))
    return tuple(found)


def _told(settings: Any) -> int:
    return int(np.argmin(np.abs(np.log(np.array(settings.nats) / TOLD))))


def _names(settings: Any) -> list[str]:
    return [*(f"{t:g} nats" for t in settings.nats), *(f"{s:g} of usual KL" for s in settings.shares)]


def _censored(group: Group, family: str, t: int) -> float:
    """Share of distances beyond the furthest."""
    values = np.concatenate([one[f"{family}.distance"][t].numpy().ravel() for one in group])
    return float(np.isinf(values[~np.isnan(values)]).mean())


def _numbers(group: Group, settings: Any) -> dict[str, Any]:
    far = settings.furthest
    found: dict[str, Any] = {"documents": len(group[0]["documents"].unique()),
                             "typical_distance": [float(one["typical"]) for one in group],
                             "thresholds_nats": [one["thresholds"].tolist() for one in group]}  # fmt: skip
    for t, name in enumerate(_names(settings)):
        found[name] = {
            family: {"distance": astuple(_exp(interval(_level(group, family, t, far)))),
                     "by_hook": [float(np.exp(_level([one], family, t, far).mean())) for one in group],
                     "censored": _censored(group, family, t)}
            for family in FAMILIES
        }  # fmt: skip
        found[f"{name}, compared"] = {
            f"{other} over {family}": astuple(_exp(interval(further(group, family, other, t, far))))
            for family, other in PAIRS
        }
        found[f"{name}, {ON} and {PCA} by hook"] = [
            astuple(_exp(interval(further([one], ON, PCA, t, far)))) for one in group
        ]
    return found


def _exp(found: Interval) -> Interval:
    return Interval(*np.exp([found.mean, found.low, found.high]).tolist())


def _table(groups: Mapping[str, Group], settings: Any) -> str:
    """Distances by family and threshold, then ratios of pairs."""
    names, far = _names(settings), settings.furthest
    lines = [f"distance in typical ones, geometric means over places (share beyond {far:g}); x: the activation"]
    for kind, group in groups.items():
        reached = ", ".join(f"{float(t):.3g}" for t in group[len(group) // 2]["thresholds"][len(settings.nats) :])
        lines += ["", f"{kind + f' (shares are {reached} nats)':54}" + "".join(f"{name:>28}" for name in names)]
        for family in FAMILIES:
            told = [f"{as_ratio(interval(_level(group, family, t, far)))} ({_censored(group, family, t):.0%})"
                    for t in range(len(names))]  # fmt: skip
            lines.append(f"{family:54}" + "".join(f"{one:>28}" for one in told))
        for family, other in PAIRS:
            told = [as_ratio(interval(further(group, family, other, t, far))) for t in range(len(names))]
            lines.append(f"{other + ' over ' + family:54}" + "".join(f"{one:>28}" for one in told))
    return "\n".join(lines)


def _conclusion(groups: Mapping[str, Group], settings: Any) -> str:
    far, t = settings.furthest, _told(settings)
    told = []
    for kind, group in groups.items():
        at = t if kind == TRAINED else len(settings.nats) + int(np.argmax(settings.shares))
        order = sorted(FAMILIES, key=lambda name: float(_level(group, name, at, far).mean()))
        each = ", ".join(f"{name} {as_ratio(interval(_level(group, name, at, far)))}" for name in order)
        pairs = "; ".join(_pair(group, family, other, at, far) for family, other in PAIRS)
        told.append(
            f"In the {kind} network outputs move by {_names(settings)[at]} at these typical distances: {each}. {pairs}."
        )
    return " ".join(told)


def _pair(group: Group, family: str, other: str, t: int, furthest: float) -> str:
    found = interval(further(group, family, other, t, furthest))
    if found.low > 0:
        verdict = f"{family} is more sensitive than {other}"
    elif found.high < 0:
        verdict = f"{family} is less sensitive than {other}"
    else:
        verdict = f"{family} is not told from {other}"
    return f"{verdict} ({as_ratio(found)})"


def _figure(groups: Mapping[str, Group], settings: Any) -> Figure:
    """Distances in the first network, then each network's over those of isotropic directions at the same place."""
    far, (first, group) = settings.furthest, next(iter(groups.items()))
    panels = [_panel(first, SHOWN, lambda family, t: _level(group, family, t, far), settings)]
    for kind, each in groups.items():
        rest = [family for family in FAMILIES[2:] if family != ANY]
        panels.append(
            _panel(kind, rest, lambda family, t, each=each: further(each, ANY, family, t, far), settings, True)
        )
    caption = (
        "How far along directions of each family outputs pass a threshold; geometric means, intervals over documents"
    )
    return Figure("sensitive-directions", caption, tuple(panels))


def _panel(kind: str, families: Sequence[str], values: Any, settings: Any, is_ratio: bool = False) -> Plot:
    """A line a family over thresholds: nats in the trained network, shares of its usual KL in others."""
    first = len(settings.nats) * (kind != TRAINED)
    given = settings.nats if kind == TRAINED else settings.shares
    order, lines = np.argsort(given), list[Series]()
    for family in families:
        each = [_exp(interval(values(family, first + int(t)))) for t in order]
        mean, low, high = ([getattr(i, part) for i in each] for part in ("mean", "low", "high"))
        lines.append(Series(family, [given[t] for t in order], mean, "both", low=low, high=high))
    x = "threshold (nats)" if kind == TRAINED else "threshold (share of the KL between two places)"
    y = "distance over isotropic" if is_ratio else "distance (typical distances)"
    return Plot(kind, x, y, tuple(lines), log_x=True, log_y=not is_ratio, levels={ANY: 1.0} if is_ratio else None)
