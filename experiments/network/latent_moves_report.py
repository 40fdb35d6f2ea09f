"""What N4's measurements come to: ratios of the KL of latents' moves to that of controls of their length.

Bars were set before anything was measured. The prediction holds where whole intervals lie above 1, over isotropic noise
and over noise from the activations' covariance, for both moves. A random decoder has moves in directions drawn as those
of the control: over isotropic noise for uniform directions, over the covariance's for directions from it, the interval
is to lie below 1.3.

Changed after the first run at scale default: that had one random dictionary of each kind at a layer, with intervals
over documents alone, and others' seeds moved their ratios by as much as the effect. Now there are several, intervals
are over them as well as over documents, and the spread from one to the next is told; the bars are as they were. The
trained SAE is one at each layer: intervals leave out that another seed would have trained another.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from experiments.checks import Check, Interval, at_most
from experiments.figures import Figure, Plot, Series
from experiments.network.by_document import bounded
from experiments.network.latent_subjects import COVARIANCE, ISOTROPIC, LEARNED, LIKE_ROWS, MASS, MOVES, UNIFORM
from experiments.network.networks import TRAINED
from experiments.network.over_layers import (
    as_ratio,
    layer,
    of_each_dictionary,
    pooled_excess,
    pooled_log_ratio,
    pooled_ratio,
    spread,
)
from experiments.registry import Outcome

REBUILT = "rebuilt"
"""Moves of the trained SAE's latents, from its reconstruction."""
OVER = (ISOTROPIC, COVARIANCE)
BAR = 1.3
"""A ratio that is worth speaking of."""
KEPT = 1e-5
"""The most that L0 or a share of the latents' total may change: rounding."""
_Found = Mapping[tuple[str, str], Mapping[str, Tensor]]


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Ratios by SAE, move, control and size, layers counted alike; and by layer."""
    by = {(cell["network"], layer(cell, one)): one for cell, one in zip(cells, found, strict=True)}
    main = len(settings.shares) // 2
    metrics = {f"{kind}, {where}": _numbers(one, settings) for (kind, where), one in by.items()}
    figures = (_sizes(by, settings), _layers(by, main, settings))
    checks = _checks(by, main, settings)
    return Outcome(_conclusion(by, main, settings), checks, figures, metrics, table=_table(by, main, settings))


def _subjects(by: _Found) -> list[tuple[str, str]]:
    """Networks with the SAEs whose latents were moved in them."""
    return [
        (kind, name)
        for kind in dict.fromkeys(kind for kind, _ in by)
        for name in (LEARNED, REBUILT, UNIFORM, LIKE_ROWS)
        if any(network == kind and f"{name}: kl" in one for (network, _), one in by.items())
    ]


def _pooled(by: _Found, kind: str, name: str, move: int, share: int, over: str, *, log: bool = False) -> Interval:
    return (pooled_log_ratio if log else pooled_ratio)(*_pairs(by, kind, name, move, share, over))


def _pairs(by: _Found, kind: str, name: str, move: int, share: int, over: str) -> tuple[Any, Any, Tensor]:
    """KLs of a move and of its control, for each layer (dictionaries, draws, places); and documents."""
    some = [one for (network, _), one in by.items() if network == kind]
    kl, control = ([one[f"{name}: {key}"][:, move, share] for one in some] for key in ("kl", over))
    return kl, control, some[0]["documents"]


def _checks(by: _Found, main: int, settings: Any) -> tuple[Check, ...]:
    """That moves are what they are to be; the prediction; random decoders."""
    broken = [
        float(one[f"{name}: broken"].max())
        for one in by.values()
        for name in (LEARNED, UNIFORM)
        if f"{name}: broken" in one
    ]
    found = [
        at_most("moves change L0, and the share of the latents' total, by no more than rounding", [max(broken)], KEPT)
    ]
    count = len(next(iter(by.values()))["documents"].unique())
    for move, what in enumerate(MOVES):
        for over in OVER if settings.predicted else (ISOTROPIC,):
            ratio = _pooled(by, TRAINED, LEARNED, move, main, over)
            claim = f"{what}, trained SAE: KL over {over} noise of its length"
            passes = partial(_is_above, settings.least)
            found.append(bounded(claim, f"interval above {settings.least:g}", ratio, count, passes))
        for name in settings.decoders if settings.predicted or what == MASS else ():
            over = ISOTROPIC if name == UNIFORM else COVARIANCE
            ratio = _pooled(by, TRAINED, name, move, main, over)
            claim = f"{what}, {name}: KL over {over} noise"
            found.append(bounded(claim, f"interval below {BAR:g}", ratio, count, lambda i: i.high < BAR))
    return tuple(found)


def _is_above(least: float, found: Interval) -> bool:
    return found.low > least


def _numbers(one: Mapping[str, Tensor], settings: Any) -> dict[str, Any]:
    """Of one network at one layer."""
    found = dict[str, Any]()
    for name in (LEARNED, REBUILT, UNIFORM, LIKE_ROWS):
        if f"{name}: kl" not in one:
            continue
        found[name] = {key: float(one[f"{name}: {key}"].mean()) for key in ("unexplained", "l0", "mismatch")}
        found[name]["broken"] = float(one[f"{name}: broken"].max())
        for move, what in enumerate(MOVES):
            found[name][what] = {
                f"{size:g}": {
                    "kl": float(one[f"{name}: kl"][:, move, share].mean()),
                    "length": float(one[f"{name}: norms"][:, move, share].mean()),
                    **{
                        over: _ratio(
                            one[f"{name}: kl"][:, move, share], one[f"{name}: {over}"][:, move, share], one["documents"]
                        )
                        for over in OVER
                    },
                }
                for share, size in enumerate(settings.shares)
            }
    return found


def _ratio(kl: Tensor, control: Tensor, documents: Tensor) -> dict[str, Any]:
    """At one layer, over all dictionaries and of each."""
    found = pooled_ratio([kl], [control], documents)
    each = of_each_dictionary([kl], [control], documents)
    return {"ratio": [found.mean, found.low, found.high], "by_dictionary": each}


def _table(by: _Found, main: int, settings: Any) -> str:
    """Layers alike: ratios of mean KLs, and paired logarithms as ratios; a line an SAE."""
    heads = [f"{what} / {over}" for what in MOVES for over in OVER]
    lines = [
        f"share {settings.shares[main]:g}, layers alike: ratio of mean KLs, and exp of the paired mean log ratio; of "
        f"random decoders over {settings.dictionaries} at each layer, then the ratio's least and largest of one draw",
        f"{'':50}" + "".join(f"{head:>56}" for head in heads),
    ]
    for kind, name in _subjects(by):
        texts = [
            f"{spread(_pooled(by, kind, name, move, main, over))}, "
            f"{as_ratio(_pooled(by, kind, name, move, main, over, log=True))}{_range(by, name, move, main, over)}"
            for move in range(len(MOVES))
            for over in OVER
        ]
        lines.append(f"{_named(kind, name):50}" + "".join(f"{text:>56}" for text in texts))
    return "\n".join(lines)


def _range(by: _Found, name: str, move: int, share: int, over: str) -> str:
    """From one random dictionary to the next; nothing to tell of an SAE that is one."""
    if name not in (UNIFORM, LIKE_ROWS):
        return ""
    each = of_each_dictionary(*_pairs(by, TRAINED, name, move, share, over))
    return f" ({min(each):.2f} to {max(each):.2f})"


def _named(kind: str, name: str) -> str:
    what = "trained SAE, from its reconstruction" if name == REBUILT else "trained SAE" if name == LEARNED else name
    return what if kind == TRAINED else f"{what}, {kind} network"


def _conclusion(by: _Found, main: int, settings: Any) -> str:
    told, held = [], dict.fromkeys(OVER, 0)
    for move, what in enumerate(MOVES):
        ratios = {over: _pooled(by, TRAINED, LEARNED, move, main, over) for over in OVER}
        for over, ratio in ratios.items():
            held[over] += ratio.low > settings.least
        told.append(f"{what} {spread(ratios[ISOTROPIC])} and {spread(ratios[COVARIANCE])}")
    text = (
        f"KL of moves that keep L0 (share {settings.shares[main]:g}, layers alike) over isotropic and over covariance "
        f"noise of their length: {'; '.join(told)}. The prediction that they are worse {_fate(held)}."
    )
    return f"{text} {_control(by, main, settings)} {_beside(by, main)}"


def _control(by: _Found, main: int, settings: Any) -> str:
    """Whether random decoders keep to what was said of them, and how far the learned one goes beyond them."""
    told = []
    for name in settings.decoders:
        over = ISOTROPIC if name == UNIFORM else COVARIANCE
        ratios = {what: _pooled(by, TRAINED, name, move, main, over) for move, what in enumerate(MOVES)}
        each = ", ".join(
            f"{what} {spread(ratio)}{_range(by, name, move, main, over)}"
            f"{'' if ratio.high < BAR else ', not below the bar'}"
            for move, (what, ratio) in enumerate(ratios.items())
        )
        more = ", ".join(as_ratio(_excess(by, name, move, main, over)) for move in range(len(MOVES)))
        told.append(f"{name}, over {over} noise: {each}, the trained one's paired ratio is {more} times as high")
    return (
        f"With random decoders ratios were to be below {BAR:g} (intervals over documents and {settings.dictionaries} "
        f"dictionaries at each layer; in parentheses the least and the largest of one draw): {'; '.join(told)}."
    )


def _excess(by: _Found, name: str, move: int, main: int, over: str) -> Interval:
    first, second = (_pairs(by, TRAINED, which, move, main, over) for which in (LEARNED, name))
    learned, random = (list(zip(*each[:2], strict=True)) for each in (first, second))
    return pooled_excess(learned, random, first[2])


def _fate(held: Mapping[str, int]) -> str:
    every = len(MOVES)
    if all(count == every for count in held.values()):
        return "holds over both, for both moves"
    told = [f"{'holds' if n == every else 'fails' if n == 0 else f'holds for {n} of {every} moves'} over {over} noise"
            for over, n in held.items()]  # fmt: skip
    return " and ".join(told)


def _beside(by: _Found, main: int) -> str:
    told = []
    for kind, name in _subjects(by):
        if (kind, name) != (TRAINED, LEARNED):
            each = "; ".join(
                " and ".join(spread(_pooled(by, kind, name, move, main, over)) for over in OVER)
                for move in range(len(MOVES))
            )
            told.append(f"{_named(kind, name)}: {each}")
    return f"The same for both moves, {'. '.join(told)}."


def _sizes(by: _Found, settings: Any) -> Figure:
    """Ratio by size of the move: a panel a move and control, a curve an SAE."""
    panels = []
    for move, what in enumerate(MOVES):
        for over in OVER:
            series = []
            for kind, name in _subjects(by):
                found = [_pooled(by, kind, name, move, share, over) for share in range(len(settings.shares))]
                if name == REBUILT:
                    continue
                low, high = [i.low for i in found], [i.high for i in found]
                series.append(Series(_named(kind, name), settings.shares, [i.mean for i in found], "both", low, high))
            panels.append(_plot(f"{what}, over {over} noise", "share moved or swapped", series))
    caption = (
        "KL of moves of latents that keep L0 over that of noise of their length, layers alike; 1 is no difference."
    )
    return Figure("latent-moves", caption, tuple(panels))


def _layers(by: _Found, main: int, settings: Any) -> Figure:
    """Ratio by layer in the trained network."""
    panels = []
    for move, what in enumerate(MOVES):
        for over in OVER:
            series = []
            for name in (LEARNED, *settings.decoders):
                *pairs, of = _pairs(by, TRAINED, name, move, main, over)
                found = [pooled_ratio([kl], [control], of) for kl, control in zip(*pairs, strict=True)]
                low, high = [i.low for i in found], [i.high for i in found]
                at = list(range(1, len(found) + 1))
                series.append(Series(_named(TRAINED, name), at, [i.mean for i in found], "both", low, high))
            panels.append(_plot(f"{what}, over {over} noise", "layer, in order", series))
    return Figure("latent-moves-by-layer", "The same by layer of the trained network.", tuple(panels))


def _plot(title: str, x: str, series: Sequence[Series]) -> Plot:
    return Plot(title, x, "KL ratio", tuple(series), levels={"1": 1.0})
