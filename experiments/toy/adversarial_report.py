"""What T10's attacks show: vulnerability against features per dimension."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import above, at_least, at_most, interval
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome
from toolkit.plateaus import rank_correlation


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Vulnerability against features per dimension."""
    results = list(zip(cells, found, strict=True))
    model, linear = ([(c, r) for c, r in results if c["role"] == role] for role in ("model", "linear"))
    x = [cell["sparsity"] for cell, _ in model]
    attacked, null, stars = (torch.stack([r[name] for _, r in model]) for name in ("attacked", "random", "stars"))
    ranks = [rank_correlation(1 / s, v) for s, v in zip(stars.T, attacked.T, strict=True)]
    rise = attacked[-1] / attacked[0]
    plain = torch.stack([r["attacked"] for _, r in linear])
    checks = (
        at_least("vulnerability, sparsest over densest", rise, 3),
        at_least("rank correlation of vulnerability and 1/D*", ranks, 0.9),
        above("optimal attack less random direction of the same norm", (attacked - null).mean(0), 0),
        at_most("linear model: vulnerability, sparsest over densest", plain[-1] / plain[0], 1.5),
    )
    curves = []
    for name, rows in (("optimal attack", attacked), ("random direction", null), ("1/D*", 1 / stars)):
        spread = [interval(row) for row in rows]
        band = ([s.low for s in spread], [s.high for s in spread])
        curves.append(Series(name, x, [s.mean for s in spread], "both", *band))
    ends = Series(
        "linear model, attacked", [c["sparsity"] for c, _ in linear], [r["attacked"].mean() for _, r in linear]
    )
    scatter = Series("instances", (1 / stars).flatten(), attacked.flatten(), "points")
    panels = (
        Plot(
            "vulnerability and features per dimension",
            "1/(1-S)",
            "times that without superposition",
            (*curves, ends),
            True,
        ),
        Plot("the same against each other", "1/D*, features per dimension", "vulnerability", (scatter,), True, True),
    )
    conclusion = (
        f"An attack of norm {settings.size:g} adds {attacked[0].mean():.3g} times the error it adds without "
        f"superposition to dense models, {attacked[-1].mean():.3g} times to the sparsest ({rise.mean():.3g} times as "
        f"much), while features per dimension go from {(1 / stars[0]).mean():.3g} to {(1 / stars[-1]).mean():.3g}; "
        f"rank correlation {np.mean(ranks):.3f}. Random directions add {null[-1].mean():.2g} times at the sparsest."
    )
    caption = "Error that an L2 attack adds, over what it adds to a model without superposition; 95% intervals."
    return Outcome(conclusion, checks, (Figure("vulnerability", caption, panels),), {"attacked": attacked.tolist()})
