"""What N6's measurements come to: curves, plateau widths and slopes, by network, hook and end of the line.

The primary output distance is Euclidean, of logits less their mean: all that is linear up to the logits gives a
straight line. KL begins as the square of a step, so that every smooth network would have a plateau by it; its root is
shown beside. Bars were set before anything was measured. A slope of 1.5 and a width of .2 are the least that count as
a plateau: layer norm alone bends a line between orthogonal rows of one length to a slope of 1.31, a width of .125.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from experiments.checks import Check, Interval, above, at_least, at_most, interval
from experiments.figures import Figure, Plot, Series
from experiments.network.by_document import means
from experiments.network.over_layers import spread
from experiments.network.plateaus_lines import COVARIANCE, ENDS, RANDOM_END, REAL
from experiments.registry import Outcome

LOGITS, KL, NORM = "logits", "kl", "norm"
"""L2 of centred logits; sqrt KL; L2 of the line's own layer norm, no network."""
MEASURES = ("width", "slope", "fitted width", "fitted slope", "residual")
"""Share of the line until outputs went a tenth of their way; largest slope; both of the sigmoid; its misfit."""
SLOPE, WIDTH = 1.5, 0.2
"""The least of a plateau."""
STEEPER, WIDER = ("steeper", "less steep"), ("wider", "narrower")
"""What a difference is called above 0 and below."""

Cells = Sequence[Mapping[str, Any]]
Found = Mapping[tuple[int, int], Mapping[str, Tensor]]
"""By number of the network (0 is the one that claims are about) and of the hook, by depth, then as they were named."""


def summarise(settings: Any, cells: Cells, found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Networks, hooks and ends side by side."""
    kinds = {cell["role"]: cell["network"] for cell in cells}
    after = {cell["at"]: float(one["after"]) for cell, one in zip(cells, found, strict=True)}
    order = sorted(settings.at, key=lambda at: -after[at] if after[at] == after[at] else 0)
    by = {(cell["role"], order.index(cell["at"])): one for cell, one in zip(cells, found, strict=True)}
    metrics = {
        f"{kinds[role]} {role}, hook {hook + 1}": {end: _numbers(one, end) for end in ENDS}
        for (role, hook), one in by.items()
    }
    figures = (_curves(by, kinds), _slopes(by, kinds))
    return Outcome(_conclusion(by, kinds), checks(by, kinds), figures, metrics, table=_table(by, kinds))


def _values(one: Mapping[str, Tensor], end: str, measure: str, distance: str = LOGITS) -> np.ndarray:
    """One number a place."""
    return one[f"{end}.{distance}.measures"][:, MEASURES.index(measure)].double().numpy()


def _documents(one: Mapping[str, Tensor], values: np.ndarray) -> np.ndarray:
    """One number a document."""
    return means(values, one["documents"].numpy())


def _mean(one: Mapping[str, Tensor], end: str, measure: str, distance: str = LOGITS) -> Interval:
    return interval(_documents(one, _values(one, end, measure, distance)))


def _more(one: Mapping[str, Tensor], other: Mapping[str, Tensor], end: str, measure: str) -> np.ndarray:
    """What one has more than the other, place by place, a number a document."""
    return _documents(one, _values(one, end, measure) - _values(other, end, measure))


def checks(by: Found, kinds: Mapping[int, str]) -> tuple[Check, ...]:
    """Claims of the sources at the first hook: trained against random; the rest where every network was asked."""
    own, start = by[0, 0], by[1, 0]
    bare = _documents(start, _values(start, REAL, "slope"))
    found = [
        above(f"largest slope, {kinds[0]} less random", _more(own, start, REAL, "slope"), 0),
        above(f"fitted slope, {kinds[0]} less random", _more(own, start, REAL, "fitted slope"), 0),
        at_most("largest slope of random", bare, SLOPE),
    ]
    return (*found, *_further(by, kinds)) if len(kinds) > 2 else tuple(found)


def _further(by: Found, kinds: Mapping[int, str]) -> list[Check]:
    """Other ends of the line, width, size, then training, weights and depth."""
    own, start, last = by[0, 0], by[1, 0], max(hook for _, hook in by)
    found = [
        above(f"to a {ENDS[end]}: largest slope, {kinds[0]} less random", _more(own, start, end, "slope"), 0)
        for end in (COVARIANCE, RANDOM_END)
    ]
    found.append(above(f"plateau width, {kinds[0]} less random", _more(own, start, REAL, "width"), 0))
    found.append(at_least(f"largest slope of {kinds[0]}", _documents(own, _values(own, REAL, "slope")), SLOPE))
    for role, kind in list(kinds.items())[2:]:
        found.append(above(f"largest slope, {kinds[0]} less {kind}", _more(own, by[role, 0], REAL, "slope"), 0))
    if last:
        found.append(above("largest slope, first hook less last", _more(own, by[0, last], REAL, "slope"), 0))
    return found


def _plateau(one: Mapping[str, Tensor], end: str) -> np.ndarray:
    """Whether each line has a plateau, read off the curve without a fit."""
    slope, width = _values(one, end, "slope"), _values(one, end, "width")
    has = np.where(np.isnan(slope), np.nan, (slope >= SLOPE) & (width >= WIDTH))
    return _documents(one, has)


def _numbers(one: Mapping[str, Tensor], end: str) -> dict[str, Any]:
    """Means over documents with their intervals, as plain values."""
    told = {f"{d} {m}": _mean(one, end, m, d) for d in (LOGITS, KL, NORM) for m in MEASURES}
    told["plateaus"] = interval(_plateau(one, end))
    told["nats at the end"] = interval(_documents(one, one[f"{end}.{KL}.reach"].double().square().numpy()))
    told["length"] = interval(_documents(one, one[f"{end}.length"].double().numpy()))
    return {name: [i.mean, i.low, i.high] for name, i in told.items()} | {"blocks after": float(one["after"])}


def _table(by: Found, kinds: Mapping[int, str]) -> str:
    heads = ("width", "largest slope", "fitted width", "fitted slope", "misfit", "plateaus", "slope of sqrt KL",
             "of layer norm", "nats at the end")  # fmt: skip
    first = f"{'network':10}{'blocks after':>13}  {'towards a':28}"
    lines = ["distances of logits unless another is named; means and 95% intervals over documents",
             first + "".join(f"{head:>19}" for head in heads)]  # fmt: skip
    for (role, _), one in by.items():
        for end, name in ENDS.items():
            told = [spread(_mean(one, end, measure)) for measure in MEASURES]
            told.append(spread(interval(_plateau(one, end))))
            told += [spread(_mean(one, end, "slope", distance)) for distance in (KL, NORM)]
            nats = _documents(one, one[f"{end}.{KL}.reach"].double().square().numpy())
            told.append(spread(interval(nats)))
            lines.append(f"{kinds[role]:10}{float(one['after']):13.0f}  {name:28}" + "".join(f"{t:>19}" for t in told))
    return "\n".join(lines)


def _conclusion(by: Found, kinds: Mapping[int, str]) -> str:
    own, start = by[0, 0], by[1, 0]
    slope, bare = _mean(own, REAL, "slope"), _mean(start, REAL, "slope")
    width, thin = _mean(own, REAL, "width"), _mean(start, REAL, "width")
    text = (
        f"Towards a real activation, {_blocks(own)}, the steepest part of the way is {spread(slope)} times as steep "
        f"as a straight line in the {kinds[0]} network and {spread(bare)} times before training; outputs have gone a "
        f"tenth of their way after {spread(width)} and {spread(thin)} of the line (.10 for a straight one). Plateaus "
        f"by both bars (slope {SLOPE:g}, width {WIDTH:g}): {_share(own)} "
        f"of lines, and {_share(start)} before training. "
    )
    text += f"Widths: {_sharper(kinds[0], interval(_more(own, start, REAL, 'width')), WIDER)} random. "
    last = max(hook for _, hook in by)
    told = []
    for role in list(kinds)[1:]:
        each = [interval(_more(by[0, hook], by[role, hook], REAL, "slope")) for hook in range(last + 1)]
        later = f" (later hooks: {', '.join(map(_difference, each[1:]))})" if last else ""
        told.append(f"{_sharper(kinds[0], each[0])} {kinds[role]}{later}")
    text += f"Slopes: {'; '.join(told)}."
    if last:
        more = interval(_more(own, by[0, last], REAL, "slope"))
        text += f" {_sharper(f'With {_blocks(own)}', more)} with {_blocks(by[0, last])}."
    others = ", ".join(f"a {name} {spread(_mean(own, end, 'slope'))}" for end, name in ENDS.items())
    return f"{text} By end of the line: {others}."


def _share(one: Mapping[str, Tensor]) -> str:
    """Of lines to a real activation that have a plateau."""
    found = interval(_plateau(one, REAL))
    return f"{found.mean:.0%} [{max(0.0, found.low):.0%}, {min(1.0, found.high):.0%}]"


def _blocks(one: Mapping[str, Tensor]) -> str:
    after = float(one["after"])
    return f"{after:.0f} {'block' if after == 1 else 'blocks'} after the hook" if after == after else "from the hook on"


def _sharper(what: str, more: Interval, words: tuple[str, str] = STEEPER) -> str:
    """Which way a difference goes by its interval, and the difference."""
    word = words[0] if more.low > 0 else words[1] if more.high < 0 else f"neither {words[0]} nor {words[1]}"
    return f"{what} {word} ({_difference(more)}) than"


def _difference(more: Interval) -> str:
    return f"{more.mean:+.3f} [{more.low:+.3f}, {more.high:+.3f}]"


def _curve(one: Mapping[str, Tensor], end: str, name: str, distance: str = LOGITS) -> Series:
    """Mean over documents, and its interval."""
    curves = one[f"{end}.{distance}.curves"].double().numpy()
    each = [interval(_documents(one, column)) for column in curves.T]
    s = np.linspace(0, 1, len(each))
    mean, low, high = ([getattr(i, part) for i in each] for part in ("mean", "low", "high"))
    return Series(name, s, mean, low=low, high=high)


def _curves(by: Found, kinds: Mapping[int, str]) -> Figure:
    own = by[0, 0]
    straight = Series("straight line", [0.0, 1.0], [0.0, 1.0], "dashed")
    networks = [_curve(by[role, 0], REAL, kind) for role, kind in kinds.items()]
    hooks = [_curve(one, REAL, _blocks(one)) for (role, _), one in by.items() if role == 0]
    ends = [_curve(own, end, f"to a {name}") for end, name in ENDS.items()]
    networks.append(_curve(own, REAL, "layer norm alone", NORM))
    panels = [("networks, to a real activation, first hook", networks), (f"{kinds[0]}, first hook, by end", ends)]
    panels += [(f"{kinds[0]}, to a real activation, by hook", hooks)] if len(hooks) > 1 else []
    caption = "How far logits have moved along lines from one activation to another; means and intervals over documents"
    axes = ("share of the line", "output distance over that at the end")
    return Figure("plateau-curves", caption, tuple(Plot(t, *axes, (*some, straight)) for t, some in panels))


def _slopes(by: Found, kinds: Mapping[int, str]) -> Figure:
    panels = []
    for measure, level, straight in (("slope", SLOPE, 1.0), ("width", WIDTH, 0.1)):
        lines = []
        for role, kind in kinds.items():
            at = sorted((hook, one) for (r, hook), one in by.items() if r == role)
            each = [_mean(one, REAL, measure) for _, one in at]
            mean, low, high = ([getattr(i, part) for i in each] for part in ("mean", "low", "high"))
            x = [hook + 1 for hook, _ in at]
            lines.append(Series(kind, x, mean, "both", low=low, high=high))
        name = {"slope": "largest slope", "width": "plateau width (share of the line)"}[measure]
        levels = {"straight line": straight, "counts as a plateau": level}
        panels.append(Plot(f"{name}, to a real activation", "hook, from the first", name, tuple(lines), levels=levels))
    return Figure("plateau-slopes", "Largest slopes and plateau widths by network and hook", tuple(panels))
