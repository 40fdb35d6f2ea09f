"""The SAEs of S1, what it says and shows."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, at_most, within
from experiments.figures import Arrows, Figure, Plot, Series
from toolkit.configs import ARCHITECTURES

TYING = ("topk", "topk untied", "topk untied full")
"""SAEs on every kind of toy model with five features; `tying.configured` says what the words mean."""
AROUND = (
    *TYING, "topk unsampled", "topk untied unsampled", "topk untied full apart", "topk untied from-tied", "topk narrow",
    "l1 untied", "l1 unsampled",
)  # fmt: skip
"""SAEs on the pentagon, one factor changed at a time."""
FACTORIAL = tuple(f"{a}{tied}{drawn}{wide}" for a in ARCHITECTURES for tied in ("", " untied")
                  for drawn in ("", " unsampled") for wide in ("", " narrow"))  # fmt: skip
"""All factors crossed."""

SCORES = ("matching", "chance", "recovered", "f1", "shrinkage", "error", "apart", "live")
"""What is kept of each."""


def label(cell: Mapping[str, Any]) -> str:
    """A toy model in words."""
    kind = "n large" if cell["large"] else "random directions" if cell["random"] else f"I={cell['importance']:g}^i"
    return f"{kind}, density {cell['density']:g}"


def means(cell: Mapping[str, Any], result: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean share recovered by each SAE."""
    return {name: result[f"{name}/recovered"].mean().item() for name in cell["fits"]}


def claims(p: Mapping[str, Tensor], recovered: Mapping[str, Tensor], large: Tensor) -> tuple[Check, ...]:
    """Recovery, and tied less untied where they differ and where they should not."""
    gain, same = (recovered["topk"] - recovered[name] for name in ("topk untied", "topk untied full"))
    checks = [
        at_least("pentagon, tied L1: signed matching", p["l1/matching"], 0.99),
        at_least("pentagon, tied TopK: signed matching", p["topk/matching"], 0.99),
        at_most("pentagon: signed matching of random decoders as wide", p["topk/chance"], 0.95),
        at_least("large models, tied TopK: share of represented features recovered",
                 large, 0.95),
        above("pentagon, TopK, resampled: share recovered, tied less untied", gain, 0.0),
        within("the same, untied with re-drawn encoders as long as live ones: tied less untied", same, -0.15, 0.15),
        within("untied TopK started at the tied solution: share recovered, tied less untied",
               recovered["topk"] - recovered["topk untied from-tied"], -0.05, 0.05),
        at_most("untied TopK: share of live latents with encoder-decoder cosine < .95", p["topk untied/apart"], 0.1),
    ]  # fmt: skip
    if "topk unsampled" in recovered:
        plain = recovered["topk unsampled"] - recovered["topk untied unsampled"]
        checks.append(within("the same without resampling: tied less untied", plain, -0.15, 0.15))
    return tuple(checks)


def conclusion(p: Mapping[str, Tensor], recovered: Mapping[str, Tensor], others: Mapping[str, Any]) -> str:
    """The answer, from `p`, what every SAE on the pentagon yielded, and the shares recovered there and elsewhere."""
    every = ", ".join(f"{name} {int((share == 1).sum())}" for name, share in recovered.items())
    stuck = recovered["topk untied"] < 1
    wrong, right = (p["topk untied/error"][rows].mean() for rows in (stuck, ~stuck))
    rest = "; ".join(f"{k}: " + ", ".join(f"{n} {v:.2f}" for n, v in row.items()) for k, row in others.items())
    return (
        f"Seeds of {len(stuck)} in which all five features of the pentagon are found: {every}. Share recovered, tied "
        f"less untied: {(recovered['topk'] - recovered['topk untied']).mean():+.2f}, with full encoders for re-drawn "
        f"latents {(recovered['topk'] - recovered['topk untied full']).mean():+.2f}. Error of untied SAEs that "
        f"miss a feature {wrong:.4f}, of those that miss none {right:.4f}; "
        f"{p['topk untied/apart'].mean():.0%} of their live latents read another direction than they write. Share of "
        f"represented features recovered elsewhere (symmetry is not needed): {rest}."
    )


def figures(
    p: Mapping[str, Tensor], recovered: Mapping[str, Tensor], large: Sequence[tuple[float, Mapping[str, float]]]
) -> tuple[Figure, ...]:
    """Recovery seed by seed, error against recovery, recovery by density, and one seed's directions."""
    phases = Plot("Large models, represented features", "density", "share recovered", tuple(
        Series(n, [density for density, _ in large], [means[n] for _, means in large], "both") 
        for n in ("topk", "topk untied")
    ), log_x=True)  # fmt: skip
    shown = [name for name in ("topk", "topk untied", "topk untied full", "l1") if name in recovered]
    curves = tuple(Series(n, range(1, len(recovered[n]) + 1), recovered[n].sort().values, "both") for n in shown)
    scatter = tuple(Series(n, p[f"{n}/error"], recovered[n], "points") for n in ("topk", "topk untied"))
    seed = int(recovered["topk untied"].argmin())
    arrows = tuple(
        Arrows(f"{n}: {recovered[n][seed]:.0%}", torch.cat([1.3 * p["W"][seed].T, p[f"{n}/decoder"][seed]]),
               [0] * 5 + [1] * p[f"{n}/decoder"].shape[1])
        for n in shown
    )  # fmt: skip
    counts = Plot("Pentagon: share of features recovered", "seeds, worst first", "share", curves)
    minima = Plot("What is missed costs error", "squared error at the end", "share recovered", scatter)
    return (
        Figure("recovery", "Share recovered seed by seed, against the error at the end, and by density.",
               (counts, minima, phases)),
        Figure("directions", "Long: the five features. Short: decoder directions of the seed where untied TopK does "
               "worst, with the share of features it recovers.", arrows),
    )  # fmt: skip
