"""What N8's measurements come to: rank correlations with true ablation per place, and their intervals over documents.

The metric is the log-probability of the token that the clean network finds likeliest. Signed attributions are ranked
over a place's active latents, the SAE's error left out, against signed ablations; baseline: every latent at zero, or
the mean activation. Probes of labels may take the latents' place: every one counts, what they leave out does not. All
bars were set before anything was measured; that against another place's gradient was set for the gradient of that
place's own token, and held against the same token's, a stronger control, after a first run.

Why gradient x activation may come closer to ablation, to second order (H the Hessian, D_i the move of latent i): it
misses D_i H D_i / 2, the latent's own curvature, where integrated gradients miss D_i H (D - D_i) / 2, its interaction
with all others; these are the mean of ablation and insertion (one latent added to the baseline), which is why they are
compared with that as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from experiments.checks import Check, Interval, above, at_least, interval, near, share
from experiments.figures import Figure, Plot, Series
from experiments.network.attribution_ranks import ENDS, correlations
from experiments.network.by_document import means
from experiments.registry import Outcome
from toolkit.attribution import FLOOR, TOLERANCE

BASELINES = ("zero latents", "mean activation")
"""What latents are put back to; probes know the second alone. Claims are about the first there is."""
WAYS = {
    "integrated": "integrated gradients",
    "gradient": "gradient x activation",
    "size": "size alone",
    "elsewhere": "the token's gradient elsewhere",
    "permuted": "dealt anew",
}
"""What is compared with ablation."""
"""Active latents of a place whose ranks are compared."""
BETTER, APART, NONE = 0.3, 0.2, 0.15
"""Bars: better than attributions dealt anew; better than another place's gradient; those dealt anew, about 0: with 16
latents at 48 places the standard error of a correlation of nothing is .04."""
Cells = Mapping[tuple[str, str], Mapping[str, Tensor]]
"""Measurements by network and hook."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Checks on the first network, numbers for all."""
    every = {(c["network"], c["at"]): f for c, f in zip(cells, found, strict=True)}
    metrics = {
        f"{kind}, {_hook(at, one)}": {name: _numbers(one, b) for b, name in enumerate(_baselines(one))}
        for (kind, at), one in every.items()
    }
    first = {at: one for (kind, at), one in every.items() if kind == settings.networks[0]}
    first = dict(sorted(first.items(), key=lambda each: int(each[1]["block"])))
    figures = (_figure(settings, every, first),)
    return Outcome(
        _conclusion(settings, first), checks(every, first), figures, metrics, table=_table(every, _parts(settings))
    )


def _baselines(one: Mapping[str, Tensor]) -> tuple[str, ...]:
    return BASELINES[-len(one["change"]) :]


def _by_document(
    one: Mapping[str, Tensor], way: str, less: str = "", baseline: int = 0, end: str = "ablation"
) -> np.ndarray:
    """Means by document of a correlation, or of how much it is above another's."""
    values = correlations(one, way, baseline, end=end)
    return means(values - correlations(one, less, baseline, end=end) if less else values, one["documents"].numpy())


def checks(every: Cells, first: Mapping[str, Mapping[str, Tensor]]) -> tuple[Check, ...]:
    """Completeness everywhere; ranks in the first network by hook; with several hooks, the early against the late."""
    complete = np.concatenate([_complete(one).flatten() for one in every.values()])
    allowed = f"{TOLERANCE:g} of the change + {FLOOR:g} nats"
    found = [share(f"attributions sum to the change, to {allowed}", complete, 1.0)]
    for at, one in first.items():
        hook = _hook(at, one)
        better = _by_document(one, "integrated", "permuted")
        found.append(at_least(f"{hook}: rank correlation above that of attributions dealt anew", better, BETTER))
        apart = _by_document(one, "integrated", "elsewhere")
        found.append(at_least(f"{hook}: above that of the same token's gradient elsewhere", apart, APART))
        found.append(near(f"{hook}: attributions dealt anew", _by_document(one, "permuted"), 0, NONE))
    return tuple(found) + (_claims(first) if len(first) > 1 else ())


def _claims(first: Mapping[str, Mapping[str, Tensor]]) -> tuple[Check, ...]:
    gains = {at: _by_document(one, "integrated", "gradient") for at, one in first.items()}
    found = [above(f"{_hook(at, first[at])}: above gradient x activation", gain, 0) for at, gain in gains.items()]
    found += [above(f"{_hook(at, one)}: above size alone", _by_document(one, "integrated", "size"), 0)
              for at, one in first.items()]  # fmt: skip
    claim = "more above gradient x activation at the first hook than at the last"
    found.append(above(claim, _earlier(first), 0))
    for at, one in first.items():
        nearer = correlations(one, "integrated", end="both") - correlations(one, "integrated")
        claim = f"{_hook(at, one)}: correlation with the mean of ablation and insertion above that with ablation"
        found.append(above(claim, means(nearer, one["documents"].numpy()), 0))
    return tuple(found)


def _complete(one: Mapping[str, Tensor]) -> np.ndarray:
    return (one["missing"] <= TOLERANCE * one["change"].abs() + FLOOR).numpy()


def _hook(at: str, one: Mapping[str, Tensor]) -> str:
    return f"after block {int(one['block'])}" if at.isdigit() else at


def _numbers(one: Mapping[str, Tensor], baseline: int) -> dict[str, Any]:
    """Of a network at a hook."""
    change = one["change"][baseline].abs().mean()
    found = {way: vars(interval(_by_document(one, way, baseline=baseline))) for way in WAYS}
    found["integrated less gradient"] = vars(interval(_by_document(one, "integrated", "gradient", baseline)))
    for end in ("insertion", "both"):
        for way in ("integrated", "gradient"):
            values = _by_document(one, way, baseline=baseline, end=end)
            found[f"{way}, with {ENDS[end]}"] = vars(interval(values))
    return found | {
        "missing, largest share of what is allowed": float(_strain(one)[baseline].max()),
        "places complete": float(_complete(one)[baseline].mean()),
        "gradients a place, mean": float(one["steps"][baseline].double().mean()),
        "gradients a place, most": int(one["steps"][baseline].max()),
        "|change|, mean, nats": float(change),
        "|attribution of what no part holds| / |change|": float(one["rest_integrated"][baseline].abs().mean() / change),
        "mean |integrated - ablation|, nats": _distance(one, "integrated", baseline),
        "mean |gradient - ablation|, nats": _distance(one, "gradient", baseline),
    }


def _strain(one: Mapping[str, Tensor]) -> Tensor:
    return one["missing"] / (TOLERANCE * one["change"].abs() + FLOOR)


def _distance(one: Mapping[str, Tensor], way: str, baseline: int) -> float:
    return float((one[way][baseline] - one["ablation"][baseline]).abs().nanmean())


def _text(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _parts(settings: Any) -> str:
    return "probes" if settings.labels else "active latents"


def _table(every: Cells, parts: str) -> str:
    baselines = _baselines(next(iter(every.values())))
    lines = [f"Spearman's rho with true ablation over a place's {parts}; intervals over documents"]
    for b, baseline in enumerate(baselines):
        lines += ["", f"{'baseline: ' + baseline:32}" + "".join(f"{name:>27}" for name in WAYS.values())]
        for (kind, at), one in every.items():
            cells = [_text(interval(_by_document(one, way, baseline=b))) for way in WAYS]
            lines.append(f"{kind + ', ' + _hook(at, one):32}" + "".join(f"{cell:>27}" for cell in cells))
    heads = [(way, end) for end in ("insertion", "both") for way in ("integrated", "gradient")]
    lines += ["", f"{'baseline: ' + baselines[0]:32}"
              + "".join(f"{f'{way}, {ENDS[end]}':>33}" for way, end in heads)]  # fmt: skip
    for (kind, at), one in every.items():
        cells = [_text(interval(_by_document(one, way, end=end))) for way, end in heads]
        lines.append(f"{kind + ', ' + _hook(at, one):32}" + "".join(f"{cell:>33}" for cell in cells))
    return "\n".join(lines)


def _conclusion(settings: Any, first: Mapping[str, Mapping[str, Tensor]]) -> str:
    told = []
    for at, one in first.items():
        rho = {way: _text(interval(_by_document(one, way))) for way in ("integrated", "gradient", "size", "permuted")}
        gain = interval(_by_document(one, "integrated", "gradient"))
        told.append(
            f"{_hook(at, one)} integrated gradients rank {_parts(settings)} as ablation does with rho "
            f"{rho['integrated']}, gradient x activation {rho['gradient']} ({_verdict(gain)}), size alone "
            f"{rho['size']}, attributions dealt anew {rho['permuted']}"
        )
    missing = max(float(_strain(one).max()) for one in first.values())
    allowed = f"{TOLERANCE:g} of the change + {FLOOR:g} nats"
    sums = f"Sums miss the change by at most {missing:.2g} of what is allowed, {allowed}."
    return f"{'; '.join(told)}. {_ends(first)} {sums}"


def _ends(first: Mapping[str, Mapping[str, Tensor]]) -> str:
    """With the mean of ablation and insertion, and where the gain is larger."""
    told = [
        f"{_hook(at, one)} {_text(interval(_by_document(one, 'integrated', end='both')))} and "
        f"{_text(interval(_by_document(one, 'gradient', end='both')))}"
        for at, one in first.items()
    ]
    text = f"With the mean of ablation and insertion both correlate, in the same order: {'; '.join(told)}."
    if len(first) == 1:
        return text
    more = interval(_earlier(first))
    word = "more" if more.low > 0 else "less" if more.high < 0 else "neither more nor less"
    return f"{text} At the first hook integrated gradients gain {word} on one gradient than at the last, {_text(more)}."


def _earlier(first: Mapping[str, Mapping[str, Tensor]]) -> np.ndarray:
    """What integrated gradients gain on one gradient at the first hook, less that at the last, by document."""
    early, late = (first[at] for at in (next(iter(first)), list(first)[-1]))
    gains = [correlations(one, "integrated") - correlations(one, "gradient") for one in (early, late)]
    return means(gains[0] - gains[1], early["documents"].numpy())


def _verdict(gain: Interval) -> str:
    word = "closer" if gain.low > 0 else "less close" if gain.high < 0 else "not told apart"
    return f"integrated gradients are {word}, by {_text(gain)}"


def _figure(settings: Any, every: Cells, first: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    baselines = _baselines(next(iter(first.values())))
    panels = [_layers(first, b, baseline) for b, baseline in enumerate(baselines)]
    series = []
    for kind in settings.networks:
        hooks = [every[kind, at] for at in first]
        series.append(_curve(kind, [_by_document(one, "integrated", "gradient") for one in hooks]))
    panels.append(
        Plot(f"integrated less gradient, {baselines[0]}", "hook, from the first", "rho gained", tuple(series))
    )
    at, one = next(iter(first.items()))
    points = [
        Series(WAYS[way], one["ablation"][0].flatten(), one[way][0].flatten(), "points")
        for way in ("integrated", "gradient")
    ]
    panels.append(Plot(f"{_hook(at, one)}, {baselines[0]}", "ablation (nats)", "attribution (nats)", tuple(points)))
    caption = (
        f"Spearman's rho of attributions with true ablation over each place's {_parts(settings)}, by hook, bands 95% "
        "over documents; how much integrated gradients gain; and each one's attribution against its ablation."
    )
    return Figure("attribution", caption, tuple(panels))


def _layers(first: Mapping[str, Mapping[str, Tensor]], baseline: int, title: str) -> Plot:
    curves = [_curve(name, [_by_document(one, way, baseline=baseline) for one in first.values()])
              for way, name in WAYS.items()]  # fmt: skip
    return Plot(f"baseline: {title}", "hook, from the first", "rho with ablation", tuple(curves))


def _curve(name: str, values: Sequence[np.ndarray]) -> Series:
    found = [interval(each) for each in values]
    x = list(range(len(found)))
    return Series(name, x, [f.mean for f in found], "both", [f.low for f in found], [f.high for f in found])
