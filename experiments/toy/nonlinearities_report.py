"""What C7 concludes and draws."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from experiments.checks import Check, above, interval, near, within
from experiments.figures import Figure, Heatmap, Plot, Series
from experiments.registry import Outcome
from toolkit.metrics import gram

FEWER = ("gelu", "silu", "softplus", "tanh", "abs")
"""Claimed to explain fewer features than ReLU, at a higher loss."""
ALIKE = ("leaky_relu", "topk-4")
"""Claimed to explain as many, within one."""
By = Mapping[str, Mapping[str, Tensor]]
"""What was measured for each non-linearity."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Each non-linearity against ReLU, seed by seed."""
    by = {cell["output"]: result for cell, result in zip(cells, found, strict=True)}
    checks = tuple(check for i, p in enumerate(settings.densities) for check in _checks(by, i, f"p={p:g}"))
    more = [f"{n} at p={p:g}" for i, p in enumerate(settings.densities) for n in by if _gain(by, n, i).low > 0]
    base = ", ".join(
        f"{by['relu']['explained'][i].mean():.1f} at p={p:g} (loss {by['relu']['loss'][i].mean():.2f} of linear)"
        for i, p in enumerate(settings.densities)
    )
    told = "; ".join(
        f"{name} " + ", ".join(_told(by, name, i) for i in range(len(settings.densities)))
        for name in by if name not in ("linear", "relu")
    )  # fmt: skip
    conclusion = (
        f"More features than ReLU: {', '.join(more) or 'none'}. Of 20 features in 10 dimensions ReLU explains {base}. "
        f"Difference from ReLU, paired by seed, with loss over the linear model's, at the same densities: {told}. "
        "Softplus cannot answer exactly 0, GELU and SiLU only at 0 or far below it, so interference leaks through; "
        "tanh lets negative interference through, and the absolute value turns it positive."
    )
    kept = ("represented", "explained", "loss", "random")
    means = {name: {key: result[key].mean(1).tolist() for key in kept} for name, result in by.items()}
    return Outcome(conclusion, checks, (_scores(settings, by), _grams(settings, by)), metrics={"means": means})


def _gain(by: By, name: str, i: int) -> Any:
    return interval(by[name]["explained"][i] - by["relu"]["explained"][i])


def _told(by: By, name: str, i: int) -> str:
    gain = _gain(by, name, i)
    return f"{gain.mean:+.1f} [{gain.low:.1f}, {gain.high:.1f}] ({by[name]['loss'][i].mean():.2f})"


def _checks(by: By, i: int, at: str) -> list[Check]:
    count, loss = by["relu"]["explained"][i], by["relu"]["loss"][i]
    fewer, alike = ([name for name in names if name in by] for names in (FEWER, ALIKE))
    return [
        near(f"{at}: linear, features represented", by["linear"]["represented"][i], 10, 0.1),
        near(f"{at}: linear, loss over PCA's in closed form", by["linear"]["loss"][i], 1, 0.03),
        above(f"{at}: ReLU, features represented less dimensions", by["relu"]["represented"][i] - 10, 0),
        above(f"{at}: linear loss less ReLU's, over the linear", 1 - loss, 0),
        above(f"{at}: ReLU, loss of random directions less its own", by["relu"]["random"][i] - loss, 0),
        *(above(f"{at}: features explained, ReLU less {n}", count - by[n]["explained"][i], 0) for n in fewer),
        *(above(f"{at}: loss over linear, {n} less ReLU", by[n]["loss"][i] - loss, 0) for n in fewer),
        *(within(f"{at}: features explained, {n} less ReLU", by[n]["explained"][i] - count, -1, 1) for n in alike),
    ]


def _scores(settings: Any, by: By) -> Figure:
    panels = tuple(
        Plot(
            f"{kind}, p={p:g}", "features explained", "loss / linear model's loss",
            tuple(Series(n, by[n]["explained"][i], by[n]["loss"][i], "points") for n in names if n in by),
            log_y=True, levels={"linear": 1.0},
        )
        for i, p in enumerate(settings.densities)
        for kind, names in (("others", ("relu", *FEWER)), ("like ReLU", ("relu", *ALIKE, "topk-2")))
    )  # fmt: skip
    caption = "One point an instance: features of which at least half the variance is explained, and loss."
    return Figure("features-and-loss", caption, panels)


def _grams(settings: Any, by: By) -> Figure:
    best = {name: result["W"][-1][result["loss"][-1].argmin()] for name, result in by.items()}
    panels = tuple(Heatmap(name, gram(W), "feature", "feature") for name, W in best.items())
    caption = f"Gram matrices of the best instance at p={settings.densities[-1]:g}; features by falling importance."
    return Figure("grams", caption, panels)
