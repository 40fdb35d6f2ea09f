"""What N5's measurements come to: peaks at directions, spikes beyond smooth circles, and how near maxima lie to them.

Bars were set before a language model was measured. On a quadratic KL the most sensitive direction stands above its
circle's points at 30 degrees by up to log 4/3 = .29 and by nothing where all directions are alike: .1 is asked of it on
the smallest sphere. Everything else is a difference whose interval must lie above 0, or a p of .05. In the planted
network a direction that is on is read linearly, which peaks and does not spike; one that is off spikes once the sphere
reaches its threshold.

After the first default run had been looked at, two comparisons were added, without a check: with random directions that
lie as far along the activation as those on there, which point along it more than others, and layer norm mutes movement
along it; and the maxima's nearness to directions on there with the activation projected out of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.checks import Check, Interval, above, at_least, interval, rare
from experiments.figures import Figure, Plot, Series
from experiments.network.networks import TRAINED
from experiments.network.sphere_measures import FAMILIES, TOP
from experiments.network.sphere_scores import (
    FLOOR,
    MATCHED,
    MEASURES,
    OFF,
    ON,
    Group,
    aligned,
    documents,
    drawn_nearness,
    more,
    nearer_than_draws,
    p_of,
    peaks,
    per_place,
    spiked,
    top_peaks,
)
from experiments.registry import Outcome

PLANTED = "planted"
"""The network that reads its dictionary."""
LEAST = 0.1
"""Of the most sensitive direction's peak on the smallest sphere."""
_PEAK, _SPIKE = MEASURES
_CLAIMED = {
    PLANTED: ((_PEAK, ON), (_SPIKE, OFF)),
    TRAINED: ((_PEAK, ON), (_SPIKE, ON), (_PEAK, OFF), (_SPIKE, OFF)),
}
WHERE = {ON: "on at the place", OFF: "off there"}
"""Families compared with random ones, in words."""
ALIGNED = {"near": "maxima, dictionary", "own": "maxima, on there", "own_across": "maxima, on there, without x"}
"""What maxima lie near to, in words."""

Cells = Sequence[Mapping[str, Any]]


def summarise(settings: Any, cells: Cells, found: Group) -> Outcome:
    """Networks side by side, hooks of each averaged place by place."""
    kinds = dict.fromkeys(cell["network"] for cell in cells)
    groups = {kind: [one for cell, one in zip(cells, found, strict=True) if cell["network"] == kind] for kind in kinds}
    metrics = {kind: _numbers(group, settings) for kind, group in groups.items()}
    figures = (_circles(groups, settings), _by_radius(groups, settings))
    is_claimed = bool(settings.model)
    return Outcome(
        _conclusion(groups, settings), checks(groups, is_claimed), figures, metrics, table=_table(groups, settings)
    )


def checks(groups: Mapping[str, Group], is_claimed: bool) -> tuple[Check, ...]:
    """What must hold where the dictionary is read; then the claim on a language model, where one is named."""
    found = list[Check]()
    for kind in [kind for kind in (PLANTED, TRAINED) if kind in groups]:
        group = groups[kind]
        if kind == TRAINED:
            claim = f"{kind}: peak at the most sensitive direction, smallest sphere (log ratio)"
            found.append(at_least(claim, top_peaks(group), LEAST))
            if not is_claimed:
                continue
        found += [_more_at_directions(kind, group, *each) for each in _CLAIMED[kind]]
        claim = f"{kind}: maxima near the dictionary, against random dictionaries"
        found.append(rare(claim, *aligned(group, "near"), 0.05))
        claim = f"{kind}: maxima near directions on there, against other places'"
        found.append(rare(claim, *aligned(group, "own"), 0.05))
        claim = f"{kind}: nearness beyond random dictionaries', maxima less draws that climbs began at (|cosine|)"
        found.append(above(claim, nearer_than_draws(group), 0))
    return tuple(found)


def _more_at_directions(kind: str, group: Group, name: str, family: int) -> Check:
    claim = f"{kind}: {name}, decoder directions {WHERE[family]} less random ones like them"
    return above(claim, more(group, MEASURES[name], family), 0)


def _numbers(group: Group, settings: Any) -> dict[str, Any]:
    """Means with intervals, as plain values."""
    found: dict[str, Any] = {"documents": len(group[0]["documents"].unique()), "places": len(group[0]["documents"])}
    for name, measure in (("peak", peaks), ("spike", spiked)):
        values = per_place(group, measure)
        found[name] = {
            family: [astuple(interval(documents(group, values[i, r]))) for r in range(len(settings.radii))]
            for i, family in enumerate(FAMILIES)
        }
        found[f"{name}_more_than_random"] = {WHERE[i]: astuple(interval(more(group, measure, i))) for i in WHERE}
        found[f"{name}_on_more_than_as_far_along"] = astuple(interval(more(group, measure, ON, MATCHED)))
        found[f"{name}_by_hook"] = [astuple(interval(more([one], measure, ON))) for one in group]
    for name in ("near", "own", "own_across"):
        observed, null = aligned(group, name)
        found[name] = {"observed": observed, "null": float(null.mean()), "p": p_of(observed, null)}
        found[f"{name}_by_hook"] = [
            [o, float(n.mean()), p_of(o, n)] for o, n in (aligned([one], name) for one in group)
        ]
    found["drawn"] = drawn_nearness(group)
    found["nats_at_maxima"] = np.mean([one["highest"].double().mean(1).numpy() for one in group], 0).tolist()
    found["settled"] = np.mean([one["settled"].double().mean(1).numpy() for one in group], 0).tolist()
    return found


def _spread(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _table(groups: Mapping[str, Group], settings: Any) -> str:
    """Peaks and spikes by network, radius and family; alignments by radius."""
    lines = ["peak: log KL at the direction over that 30 degrees aside; spike: above the smooth circle, over its mean",
             "x: the activation that the sphere stands round"]  # fmt: skip
    for kind, group in groups.items():
        lines += ["", f"{kind + '; radius':42}" + "".join(f"{r:>27g}" for r in settings.radii)]
        for name, measure in (("peak", peaks), ("spike", spiked)):
            values = per_place(group, measure)
            shown = {**dict(zip(FAMILIES, values, strict=True)), "on less as far along": values[ON] - values[MATCHED]}
            for what, each in shown.items():
                told = [_spread(interval(documents(group, of_radius))) for of_radius in each]
                lines.append(f"{name + ', ' + what:42}" + "".join(f"{one:>27}" for one in told))
        for name, what in ALIGNED.items():
            told = [_by_radius_of(group, name, r) for r in range(len(settings.radii))]
            lines.append(f"{what:42}" + "".join(f"{one:>27}" for one in told))
        settled = np.mean([one["settled"].double().mean(1).numpy() for one in group], 0)
        lines.append(f"{'climbs that settled':42}" + "".join(f"{share:>27.0%}" for share in settled))
        lines.append(f"{'draws, dictionary':42}{_by_radius_of(group, 'near', len(settings.radii)):>27}")
    return "\n".join(lines)


def _by_radius_of(group: Group, name: str, r: int) -> str:
    observed = float(np.mean([one[name][r].double().mean() for one in group]))
    null = np.mean([one[f"{name}_null"][r].double().numpy() for one in group], 0)
    return f"{observed:.3f}, null {null.mean():.3f}, p {p_of(observed, null):.3f}"


def _conclusion(groups: Mapping[str, Group], settings: Any) -> str:
    told = [_of(kind, group) for kind, group in groups.items()]
    radii = ", ".join(f"{r:g}" for r in settings.radii)
    return f"On spheres of radius {radii} typical distances: {'; '.join(told)}."


def _of(kind: str, group: Group) -> str:
    peaked = {i: interval(more(group, peaks, i)) for i in WHERE}
    stood = {i: interval(more(group, spiked, i)) for i in WHERE}
    observed, null = aligned(group, "near")
    p, drawn = p_of(observed, null), drawn_nearness(group)
    beyond = interval(nearer_than_draws(group))
    own, elsewhere = aligned(group, "own")
    across, others = aligned(group, "own_across")
    matched = [interval(more(group, each, ON, MATCHED)) for each in (peaks, spiked)]
    ends = f"smallest sphere {_by_radius_of(group, 'near', 0)}; largest {_by_radius_of(group, 'near', -2)}"
    return (
        f"in the {kind} network KL at decoder directions on at a place peaks {_than(peaked[ON])} random ones like them "
        f"(log ratio to 30 degrees aside {_signed(peaked[ON])}) and stands above the smooth circle {_than(stood[ON])} "
        f"these ({_signed(stood[ON])} of its mean), and it peaks {_than(matched[0])} random ones as far along the "
        f"activation ({_signed(matched[0])}; above the smooth circle {_signed(matched[1])}); at those off there it "
        f"peaks {_than(peaked[OFF])} random ones like them "
        f"({_signed(peaked[OFF])}) and stands above {_than(stood[OFF])} these ({_signed(stood[OFF])}); maxima lie "
        f"{'nearer to' if p <= 0.05 else 'no nearer to'} the dictionary than to random ones (mean largest |cosine| "
        f"{observed:.3f}, {null.mean():.3f}, p {p:.3f}; draws that no network chose {drawn['observed']:.3f}, "
        f"{drawn['null']:.3f}, p {drawn['p']:.3f}; maxima beyond draws {_signed(beyond)}; {ends}), and at {own:.3f} to "
        f"directions on there, {elsewhere.mean():.3f} to those on elsewhere (p {p_of(own, elsewhere):.3f}; with the "
        f"activation projected out {across:.3f}, {others.mean():.3f}, p {p_of(across, others):.3f})"
    )


def _than(found: Interval) -> str:
    return "more than at" if found.low > 0 else "less than at" if found.high < 0 else "not measurably more than at"


def _signed(found: Interval) -> str:
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _circles(groups: Mapping[str, Group], settings: Any) -> Figure:
    """KL round the circle over its mean, on the smallest and the largest sphere of each network."""
    panels = []
    for kind, group in groups.items():
        for r in dict.fromkeys((0, len(settings.radii) - 1)):
            lines = [_profile(group, family, r) for family in range(len(FAMILIES))]
            title = f"{kind}, radius {settings.radii[r]:g}"
            panels.append(Plot(title, "degrees from the direction", "KL over the circle's mean", tuple(lines)))
    caption = "KL along great circles from random directions through directions (0 degrees); means over documents"
    return Figure("sphere-circles", caption, tuple(panels))


def _profile(group: Group, family: int, r: int) -> Series:
    kl = np.mean([_relative(one["kl"][r, family].double().numpy()) for one in group], 0)  # (places, angles)
    each = [interval(documents(group, column)) for column in kl.T]
    degrees = np.degrees(group[0]["angles"].numpy())
    mean, low, high = ([getattr(i, part) for i in each] for part in ("mean", "low", "high"))
    return Series(FAMILIES[family], degrees, mean, low=low, high=high)


def _relative(kl: Float[np.ndarray, "count places angles"]) -> Float[np.ndarray, "places angles"]:
    return np.asarray((kl / np.maximum(kl.mean(2, keepdims=True), FLOOR)).mean(0))


def _by_radius(groups: Mapping[str, Group], settings: Any) -> Figure:
    panels = []
    for kind, group in groups.items():
        values, lines = per_place(group, peaks), list[Series]()
        for i, family in enumerate(FAMILIES):
            each = [interval(documents(group, values[i, r])) for r in range(len(settings.radii))]
            mean, low, high = ([getattr(j, part) for j in each] for part in ("mean", "low", "high"))
            lines.append(Series(family, settings.radii, mean, "both", low=low, high=high))
        axes = ("radius (typical distances)", "log KL over that 30 degrees aside")
        panels.append(Plot(f"{kind}: peaks", *axes, tuple(lines), log_x=True))
        near = [np.mean([one["near"][:-1].double().mean(1).numpy() for one in group], 0),
                np.mean([one["near_null"][:-1].double().numpy() for one in group], 0)]  # fmt: skip
        low, high = np.quantile(near[1], [0.025, 0.975], axis=1)
        maxima = (
            Series("its dictionary", settings.radii, near[0], "both"),
            Series("random dictionaries", settings.radii, near[1].mean(1), "dashed", low=low, high=high),
        )
        panels.append(Plot(f"{kind}: maxima", axes[0], "mean largest |cosine|", maxima, log_x=True))
    caption = f"Peaks at directions, and how near maxima lie to a dictionary; {TOP} directions are in the checks alone"
    return Figure("sphere-radii", caption, tuple(panels))
