"""What N3's measurements come to: ratios of the SAE error's KL to that of controls of its length.

Bars were set before anything was measured. The published ratio to isotropic noise is 2 to 4.5 (Gurnee 2024); a ratio
counts as above 1 where its whole interval lies above 1.3, and as not above where the whole interval lies below: between
the two nothing is settled, and neither half of the claim holds. Scale smoke, with a poor SAE and few places, has bars
of its own, far from where its numbers lie: it is there to see that the measure works.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from experiments.checks import Check, Interval
from experiments.figures import Figure, Plot, Series
from experiments.network.by_document import bounded
from experiments.network.networks import RANDOM, TRAINED
from experiments.network.over_layers import as_ratio, layer, log_ratio, pooled_ratio, ratio_of_means, spread
from experiments.registry import Outcome

ISOTROPIC, COVARIANCE = "isotropic", "covariance"
CONTROLS = (
    ISOTROPIC,
    COVARIANCE,
    "towards another activation",
    "in the errors' subspace",
    "errors' covariance",
    "rotated about the activation",
    "rotated in bands",
    "another place's error",
)
BAR = 1.3
"""A ratio that is worth speaking of."""
PUBLISHED = (2.0, 4.5)
"""Ratio to isotropic noise."""
BINS = ((1, 8), (8, 24), (24, 10**6))
"""Positions in a sequence, from and up to."""
CHANCE = (0.7, 1.4)
"""Where the ratio of one isotropic draw to the others must lie: the measure finds nothing where nothing is."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Ratios by network, layer, control and position."""
    by = {(cell["network"], layer(cell, one)): one for cell, one in zip(cells, found, strict=True)}
    ratios = {key: {name: ratio_of_means(one["kl"][None], one[name], one["documents"]) for name in CONTROLS}
              for key, one in by.items()}  # fmt: skip
    metrics = {f"{kind}, {where}": _numbers(one, ratios[kind, where]) for (kind, where), one in by.items()}
    figures = (_layers(ratios), _positions(by))
    checks = _checks(by, ratios, settings.bars)
    return Outcome(_conclusion(by, ratios, settings), checks, figures, metrics, table=_table(by, ratios))


def _checks(
    by: Mapping[tuple[str, str], Mapping[str, Tensor]], ratios: Mapping[Any, Any], bars: tuple[float, ...]
) -> tuple[Check, ...]:
    """Both halves at each layer of the trained network; then what must show nothing."""
    found = []
    for (kind, where), one in by.items():
        if kind != TRAINED:
            continue
        count = len(one["documents"].unique())
        over = ratios[kind, where]
        claim = f"{where}: KL of the SAE error over isotropic noise of its length"
        found.append(bounded(claim, f"interval above {bars[0]:g}", over[ISOTROPIC], count, lambda i: i.low > bars[0]))
        claim = f"{where}: over noise from the activations' covariance"
        found.append(bounded(claim, f"interval below {bars[1]:g}", over[COVARIANCE], count, lambda i: i.high < bars[1]))
        low, high = CHANCE
        alone = ratio_of_means(one[ISOTROPIC][:1], one[ISOTROPIC][1:], one["documents"])
        claim = f"{where}: an isotropic draw over the others"
        found.append(
            bounded(claim, f"interval within [{low:g}, {high:g}]", alone, count,
                    lambda i: CHANCE[0] <= i.low and i.high <= CHANCE[1])
        )  # fmt: skip
    if any(kind == RANDOM for kind, _ in by):
        before = _pooled(by, RANDOM, ISOTROPIC)
        claim = "before training, layers alike: KL of the SAE error over isotropic noise"
        found.append(bounded(claim, f"interval below {BAR:g}", before, count, lambda i: i.high < BAR))
    return tuple(found)


def _pooled(by: Mapping[Any, Any], kind: str, control: str) -> Interval:
    some = [one for (network, _), one in by.items() if network == kind]
    return pooled_ratio(
        [one["kl"][None, None] for one in some], [one[control][None] for one in some], some[0]["documents"]
    )


def _numbers(one: Mapping[str, Tensor], ratios: Mapping[str, Interval]) -> dict[str, Any]:
    logs = {name: log_ratio(one["kl"][None], one[name], one["documents"]) for name in CONTROLS}
    return {
        "kl": float(one["kl"].mean()),
        "unexplained": float(one["unexplained"]),
        "relative_length": float((one["norms"] / one["lengths"]).mean()),
        "directions_of_90_percent": int(one["directions"]),
        "documents": len(one["documents"].unique()),
        "ratio": {name: [i.mean, i.low, i.high] for name, i in ratios.items()},
        "log_ratio": {name: [i.mean, i.low, i.high] for name, i in logs.items()},
        "ratio_by_position": {
            f"{low} to {high - 1}": {name: [i.mean, i.low, i.high] for name, i in of.items()}
            for (low, high), of in _by_position(one).items()
        },
    }


def _by_position(one: Mapping[str, Tensor]) -> dict[tuple[int, int], dict[str, Interval]]:
    """Ratios in each bin of positions with places in two documents or more; the last bin ends where places do."""
    found = {}
    last = int(one["positions"].max()) + 1
    for low, high in BINS:
        here = (one["positions"] >= low) & (one["positions"] < high)
        if len(one["documents"][here].unique()) > 1:
            places = one["documents"][here]
            found[low, min(high, last)] = {
                name: ratio_of_means(one["kl"][None, here], one[name][:, here], places) for name in CONTROLS
            }
    return found


def _table(by: Mapping[Any, Any], ratios: Mapping[Any, Any]) -> str:
    """Ratios of means, and paired logarithms as ratios, a line a control."""
    lines = []
    for kind in dict.fromkeys(kind for kind, _ in by):
        where = [name for network, name in by if network == kind]
        lines += [f"{kind}: ratio of mean KLs, and exp of the paired mean log ratio",
                  f"{'':30}" + "".join(f"{name:>44}" for name in where)]  # fmt: skip
        for control in CONTROLS:
            cellsof = [(ratios[kind, name][control], by[kind, name]) for name in where]
            texts = [f"{spread(i)}, {as_ratio(log_ratio(one['kl'][None], one[control], one['documents']))}"
                     for i, one in cellsof]  # fmt: skip
            lines.append(f"{control:30}" + "".join(f"{text:>44}" for text in texts))
        kls = [f"{float(by[kind, name]['kl'].mean()):.3g} nats, {float(by[kind, name]['unexplained']):.3f} unexplained"
               for name in where]  # fmt: skip
        lines += [f"{'KL of the error':30}" + "".join(f"{text:>44}" for text in kls), ""]
    return "\n".join(lines)


def _conclusion(by: Mapping[Any, Any], ratios: Mapping[Any, Any], settings: Any) -> str:
    trained = {where: of for (kind, where), of in ratios.items() if kind == TRAINED}
    above, below = settings.bars
    what = "The SAE error" if settings.errors == "sae" else "An isotropic draw in the SAE error's place"
    text = f"{what} {_first_half(trained, above)} {_second_half(trained, below)} {_strong(trained)}"
    others = [kind for kind in dict.fromkeys(kind for kind, _ in by) if kind != TRAINED]
    names = (ISOTROPIC, COVARIANCE, "rotated about the activation")
    told = [f"{kind} weights {', '.join(spread(_pooled(by, kind, name)) for name in names)}" for kind in others]
    recipe = ", with SAEs trained here in the place of the one named" if settings.sae else ""
    return text + (f" Over {', '.join(names)}, layers alike{recipe}: {'; '.join(told)}." if told else "")


def _first_half(trained: Mapping[str, Mapping[str, Interval]], bar: float) -> str:
    over = {where: of[ISOTROPIC] for where, of in trained.items()}
    above = [where for where, i in over.items() if i.low > bar]
    within = [where for where, i in over.items() if PUBLISHED[0] <= i.mean <= PUBLISHED[1]]
    each = ", ".join(f"{spread(i)} at {where}" for where, i in over.items())
    return (
        f"moves the next token {each} times as far in KL as isotropic noise of its length: worse by the "
        f"bar of {bar:g} at {len(above)} of {len(over)} layers, within the published 2 to 4.5 at {len(within)}."
    )


def _second_half(trained: Mapping[str, Mapping[str, Interval]], bar: float) -> str:
    over = {where: of[COVARIANCE] for where, of in trained.items()}
    each = ", ".join(f"{spread(i)} at {where}" for where, i in over.items())
    told = {
        "no worse": sum(i.high < bar for i in over.values()),
        "worse here too": sum(i.low > bar for i in over.values()),
    }
    told["not settled"] = len(over) - sum(told.values())
    counts = ", ".join(f"{name} at {n}" for name, n in told.items() if n)
    return f"Over noise from the activations' covariance it is {each}: {counts}."


def _strong(trained: Mapping[str, Mapping[str, Interval]]) -> str:
    """Against what has most of the error's own shape."""
    names = ("rotated about the activation", "rotated in bands", "another place's error")
    each = [f"{name} {', '.join(spread(of[name]) for of in trained.values())}" for name in names]
    return f"Over controls that keep the error's shape: {'; '.join(each)}."


def _layers(ratios: Mapping[tuple[str, str], Mapping[str, Interval]]) -> Figure:
    """A panel a network: the ratio by layer, a curve a control."""
    panels = []
    for kind in dict.fromkeys(kind for kind, _ in ratios):
        of = [each for (network, _), each in ratios.items() if network == kind]
        panels.append(_panel(f"{kind}", "layer, in order", list(range(1, len(of) + 1)), of))
    caption = (
        "KL of the SAE error over that of changes of its length, a curve a control, with 95% intervals over documents "
        "for the first two; 1 is one more draw of the control, 2 to 4.5 over isotropic noise was published."
    )
    return Figure("sae-errors", caption, tuple(panels))


def _positions(by: Mapping[tuple[str, str], Mapping[str, Tensor]]) -> Figure:
    """A panel a layer of the trained network: the ratio by position."""
    panels = []
    for (kind, where), one in by.items():
        if kind == TRAINED:
            found = _by_position(one)
            middle = [(low * high) ** 0.5 for low, high in found]
            panels.append(_panel(where, "position in the sequence", middle, list(found.values())))
    return Figure("sae-errors-by-position", "The same in the trained network, by position.", tuple(panels))


def _panel(title: str, x: str, at: Sequence[float], of: Sequence[Mapping[str, Interval]]) -> Plot:
    series = []
    for name in CONTROLS:
        found = [each[name] for each in of]
        banded = name in (ISOTROPIC, COVARIANCE)
        low, high = ([i.low for i in found], [i.high for i in found]) if banded else (None, None)
        series.append(Series(name, at, [i.mean for i in found], "both", low, high))
    return Plot(title, x, "KL ratio", tuple(series), levels={"1": 1.0, f"{BAR:g}": BAR})
