"""What T4's models show: plateaus of D* and peaks of D_i."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, at_most
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome
from toolkit.plateaus import LEVELS, peak, stay

BETWEEN = (0.75, 0.35)
"""Values of D* away from the plateaus, for comparison."""


def _peaks(D: Tensor, level: float) -> np.ndarray:
    """Excess mass at a level for each row of D that has represented features."""
    rows = [row[~row.isnan()] for row in D.flatten(0, -2)]  # (points, seeds, n) -> rows of n
    return np.array([peak(row, level) for row in rows])


def _checks(
    x: Tensor, stars: Tensor, D: Tensor, control: Tensor, dropped: Tensor, levels: Sequence[str]
) -> tuple[Check, ...]:
    spent = {v: np.array([stay(x.log(), column, v) for column in stars.T]) for v in (1.0, 0.5, *BETWEEN)}
    beside = np.mean([spent[v] for v in BETWEEN], axis=0)
    total = sum(_peaks(D, level) - _peaks(control, level) for level in LEVELS.values())
    near = [f"D* near {v:g}: stretch of ln 1/(1-S) within 5%, less the mean of that at .75 and .35" for v in (1, 0.5)]
    return (
        at_most("densest: |D* - 1|", (stars[0] - 1).abs(), 0.05),
        above(near[0], spent[1.0] - beside, 0),
        above(near[1], spent[0.5] - beside, 0),
        above("excess mass of D_i at the named values, less that of random directions", total, 0),
        *(_peak_check(D, name) for name in levels),
        at_least("D_i = 0: largest share of features, over densities", dropped.amax(0), 0.5),
    )


def _peak_check(D: Tensor, name: str) -> Check:
    """A tenth of the features stand on the level, at the density chosen by one half of the seeds, in the other half."""
    masses = _peaks(D, LEVELS[name]).reshape(D.shape[:2])  # (points, seeds)
    chosen, tested = np.array_split(masses, 2, axis=1)
    claim = f"D_i at {LEVELS[name]:.3g} ({name}): excess mass, at the density where the other seeds have most"
    return at_least(claim, tested[chosen.mean(1).argmax()], 0.1)


def _figure(x: Tensor, stars: Tensor, D: Tensor) -> Figure:
    """D* and the strip of D_i of the first instances, up to 120 features a density, spread sideways."""
    at, height = [], []
    for place, row in zip(x, D[:, 0], strict=True):
        values = row[~row.isnan()][:120]
        at.append(place * 1.1 ** torch.linspace(-0.3, 0.3, max(1, len(values)))[: len(values)])
        height.append(values)
    curves = tuple(Series("one instance", x, column, "both") for column in stars.T)
    strip = (Series("", torch.cat(at), torch.cat(height), "points"),)
    star = Plot("dimensions per feature", "1/(1-S)", "D*", curves, log_x=True, levels={"1": 1.0, "1/2": 0.5})
    points = Plot("represented features", "1/(1-S)", "D_i", strip, log_x=True, levels=LEVELS)
    return Figure(
        "plateaus", "D* sticks at 1 and 1/2; D_i of represented features beside named values.", (star, points)
    )


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Plateaus of D* and peaks of D_i."""
    x = torch.tensor(settings.sparsities)
    # Cells of one density stand together: (cells, instances, ...) -> (points, seeds, ...)
    joined = {name: torch.stack([r[name] for r in found]) for name in found[0]}
    shaped = {name: v.reshape(len(x), settings.seeds, *v.shape[2:]) for name, v in joined.items()}
    stars, D = shaped["stars"], shaped["D"]
    half = x[((stars - 0.5).abs() <= 0.025).all(1)]
    masses = {name: _peaks(D, value) for name, value in LEVELS.items()}
    best = {name: x[mass.reshape(len(x), -1).mean(1).argmax()] for name, mass in masses.items()}
    seen = [name for name in LEVELS if masses[name].max() > 0]
    where = ", ".join(f"{name} {masses[name].max():.0%} at {best[name]:.3g}" for name in seen)
    absent = ", ".join(name for name in LEVELS if name not in seen) or "none"
    conclusion = (
        f"D* falls from {stars[0].mean():.3g} to {stars[-1].mean():.3g} and lies within 5% of 1/2 in all instances for "
        f"1/(1-S) in [{', '.join(f'{v:.3g}' for v in half)}]. Largest excess mass of one instance at each value of "
        f"D_i, and the 1/(1-S) where it is largest on average: {where}; never above 0: {absent}. Up to "
        f"{shaped['dropped'].max():.0%} of the features have D_i = 0."
    )
    metrics = {"peaks": {name: mass.tolist() for name, mass in masses.items()}, "stars": stars.tolist()}
    checks = _checks(x, stars, D, shaped["control"], shaped["dropped"], settings.levels)
    return Outcome(conclusion, checks, (_figure(x, stars, D),), metrics, {"D": D, "stars": stars})
