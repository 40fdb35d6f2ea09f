"""The SAEs of S2, what it says and shows."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, within
from experiments.figures import Figure, Plot, Series
from toolkit.configs import SAEConfig
from toolkit.hierarchies import Dependent, dependent_target
from toolkit.sae import SAE, fit_sae

ByArchitecture = Mapping[str, Mapping[str, Tensor]]
"""What each architecture yielded."""
PANELS = (
    ("absorption", "Absorption", "share of rows"),
    ("hedging narrow", "Hedging, half as many latents as features", "cosine with the partner"),
    ("hedging wide", "Hedging, as many latents as features", "cosine with the partner"),
)


BUDGETS: dict[str, dict[str, float]] = {
    "l1": {"sparsity": 0.3},
    "topk": {"k": 3},
    "batchtopk": {"k": 1.3},
    "jumprelu": {"sparsity": 0.5},
    "gated": {"sparsity": 0.3},
    "matryoshka": {"k": 1.3},
}
"""For about as many latents a row as there are features on, 1.3; topk needs room for a family. For 20 features."""


def fit(data: Dependent, directions: Tensor, architecture: Any, width: int, *, steps: int, seed: int) -> SAE:
    """SAEs on the features, with a budget in proportion to how many there are."""
    budget = BUDGETS[architecture]
    k = budget.get("k", 1) * len(data.depends_on) / 20
    config = SAEConfig(
        architecture=architecture, width=width, k=math.ceil(k) if architecture == "topk" else k,
        sparsity=budget.get("sparsity", 1), steps=steps, batch=256, lr=3e-3, dead_after=200,
    )  # fmt: skip
    return fit_sae(dependent_target(data, directions), config, seed=seed)


def claims(found: ByArchitecture) -> tuple[Check, ...]:
    """Rates of dependent features above those of independent ones, which are about zero."""
    checks = []
    for name, r in found.items():
        if name != "matryoshka":
            checks.append(above(f"{name}: absorption less control", r["absorption"] - r["control absorption"], 0.0))
        checks.append(within(f"{name}: absorption of the control", r["control absorption"], -0.05, 0.05))
        narrow, control = r["hedging narrow"], r["control hedging narrow"]
        checks.append(above(f"{name}: hedging of the narrow dictionary less control", narrow - control, 0.0))
        checks.append(within(f"{name}: hedging of the control", control, -0.1, 0.1))
    for other in [name for name in ("topk", "batchtopk") if name in found]:
        less = found[other]["absorption"] - found["matryoshka"]["absorption"]
        checks.append(above(f"absorption, {other} less matryoshka", less, 0.0))
    return tuple(checks)


def conclusion(rates: Mapping[str, Mapping[str, float]]) -> str:
    """The mean rates, each with its control."""
    absorbed = "; ".join(f"{n} {r['absorption']:.2f} ({r['control absorption']:.2f})" for n, r in rates.items())
    narrow = "; ".join(f"{n} {r['hedging narrow']:.2f} ({r['control hedging narrow']:.2f})" for n, r in rates.items())
    least = min(rates, key=lambda n: rates[n]["absorption"])
    wide = "; ".join(f"{n} {r['hedging wide']:.2f}" for n, r in rates.items())
    return (
        "In brackets the rate of independent features with the same marginals. Share of rows with a parent and "
        f"a child on where the parent is absorbed: {absorbed}; least in {least}. Cosine of a latent with its feature's "
        f"partner, half as many latents as features: {narrow}; as many: {wide}."
    )


def figures(found: ByArchitecture) -> tuple[Figure, ...]:
    """Every SAE's rates, beside the controls'."""
    caption = "One point an SAE. Dependent features are absorbed and mixed, independent ones as dense are not."
    return (Figure("rates", caption, tuple(_panel(title, y, found, key) for key, title, y in PANELS)),)


def _panel(title: str, y: str, found: ByArchitecture, key: str) -> Plot:
    names = ", ".join(f"{i} {name[:5]}" for i, name in enumerate(found, start=1))
    series = []
    for label, prefix, shift in (("dependent", "", -0.1), ("control", "control ", 0.1)):
        x = [i + shift for i, r in enumerate(found.values(), start=1) for _ in r[key]]
        series.append(Series(label, x, torch.cat([r[f"{prefix}{key}"] for r in found.values()]), "points"))
    return Plot(title, names, y, tuple(series))
