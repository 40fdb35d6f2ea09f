"""What U1 concludes and draws."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.checks import above, at_least, at_most, near, share
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome
from experiments.toy.boolean_plots import banded


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Squared error keeps to the bound of the rank; with sparse inputs, other losses fall far below affine."""
    by = {(c["gate"], c["loss"], c["width"]): result for c, result in zip(cells, found, strict=True)}
    ratio = {key: result["ratio"] for key, result in by.items()}  # (densities, seeds)
    pairs, (*_, middle, most) = settings.inputs * (settings.inputs - 1) // 2, settings.widths
    bound = 1 - middle / pairs
    squared = torch.cat([ratio[k].flatten() / (1 - k[2] / pairs) for k in by if k[1] == "MSE" and k[2]])
    curves = torch.cat([torch.stack([ratio[*t, d] for d in settings.widths]).flatten(1) for t in settings.tasks], 1)
    falls = [spearmanr(settings.widths, curve).statistic for curve in curves.T]
    affine = torch.stack([ratio["and", "MSE", 0], ratio["xor", "MSE", 0]])
    gain = {gate: 1 / ratio[gate, "MSE", most][0] for gate in ("and", "xor")}
    fourth, worst = ratio["and", "L4", middle], by["and", "L4", most]["worst"][0]
    checks = (
        share("least squares on the inputs: error within 5% of (c p (1-p))^2", (affine.flatten() - 1).abs() < 0.05, 1),
        near("fair inputs: rms error of the affine AND", by["and", "MSE", 0]["error"][-1].sqrt(), 0.25, 0.005),
        near("fair inputs: share of XOR's variance that the affine function leaves", affine[1, -1], 1.0, 0.01),
        *(at_least(f"{g.upper()}, MSE, d={most}, sparsest: affine error over ours", gain[g], 3) for g in gain),
        at_most("rank correlation of error with d, every task, density and seed", falls, -0.9),
        share("MSE: error not below the bound 1 - d/pairs of its rank (3% for noise)", squared > 0.97, 1),
        above(f"AND, L4, d={middle}: error over affine, fair less sparsest", fourth[-1] - fourth[0], 0.1),
        at_least(f"AND, L4, d={most}, sparsest: affine error over ours", 1 / ratio["and", "L4", most][0], 5),
        at_most(f"AND, L4, d={most}, sparsest: largest error on rows with <= 2 ones (affine: .25)", worst, 0.25),
    )
    relative = {loss: ratio["and", loss, middle].mean(1) for gate, loss in settings.tasks if gate == "and"}
    told = "; ".join(f"{loss} {r[0]:.2f} sparse, {r[-1]:.2f} fair" for loss, r in relative.items())
    conclusion = (
        f"With d={middle} neurons for {pairs} pairs, the AND error over that of the best affine function is {told}. "
        f"In squared error no linear read-off of d neurons gets below 1 - d/pairs = {bound:.2f}, however sparse the "
        f"inputs; losses that weigh large errors or ones more do profit from sparsity. With d={most} and MSE, sparse "
        f"inputs, the affine error is {gain['and'].mean():.1f} times ours for AND and {gain['xor'].mean():.1f} for XOR."
    )
    return Outcome(conclusion, checks, (_figure(settings, by, pairs),))


def _figure(settings: Any, by: Mapping[Any, Mapping[str, Tensor]], pairs: int) -> Figure:
    d = settings.widths
    bound = Series("rank bound", d, [1 - width / pairs for width in d], "dashed")

    def curves(gate: str, loss: str, quantity: str) -> tuple[Series, ...]:
        of = [by[gate, loss, width][quantity] for width in d]
        return tuple(banded(f"p={p:g}", d, [one[i] for one in of]) for i, p in enumerate(settings.densities))

    panels = [
        Plot(
            f"{g.upper()}, {loss}",
            "neurons d",
            "error / affine error",
            curves(g, loss, "ratio"),
            log_y=True,
        )
        for g, loss in settings.tasks
    ]
    panels = [replace(p, series=(*p.series, bound)) if p.title.endswith("MSE") else p for p in panels]
    panels += [
        Plot(f"AND, {loss}: rows with at most 2 ones", "neurons d", "largest |error|", curves("and", loss, "worst"),
             levels={"affine": 0.25})
        for loss in ("MSE", "L4")
    ]  # fmt: skip
    caption = (
        f"Error of all {pairs} pairs against the hidden width, over the best affine function's (95% bands over seeds). "
        "Squared error stays above the rank bound at every density; other losses fall below it with sparse inputs."
    )
    return Figure("error-by-width", caption, tuple(panels))
