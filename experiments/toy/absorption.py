"""S2: parents absorbed by their children, and correlated features mixed in narrow dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, Outcome, register
from experiments.toy.absorption_report import claims, conclusion, figures, fit
from toolkit import hierarchies
from toolkit.configs import ARCHITECTURES
from toolkit.descent import EVALUATION


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    architectures: tuple[str, ...] = ARCHITECTURES
    """Kinds of SAE, untied and not resampled."""
    linked: bool = True
    """Whether features depend on one another; False leaves only the controls."""
    parents: int = 5
    """Parents, each with three children; and half as many correlated pairs as there are features in all."""
    dimensions: tuple[int, ...] = (20, 14)
    """Of the rows: with as many as features the directions are orthonormal, with fewer in superposition."""
    correlation: float = 0.5
    """Of a pair's coins."""
    seeds: int = 12
    """SAEs of each kind."""
    steps: int = 2400
    """Of training, and a third as many on pairs."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """An architecture in a number of dimensions; in superposition for the architectures that are compared."""
    rows = [{"architecture": a, "d": settings.dimensions[0]} for a in settings.architectures]
    return rows + [{"architecture": a, "d": d} for d in settings.dimensions[1:] for a in ("batchtopk", "matryoshka")]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Fit to dependent features and to independent ones of the same marginals; rates from the truth."""
    n = 4 * settings.parents
    directions = hierarchies.feature_directions(settings.seeds, n, cell["d"], seed=seed)
    found = {}
    for name, linked in (("", settings.linked), ("control ", False)):
        tree = hierarchies.hierarchy(
            settings.seeds, settings.parents, 3, parent=0.15, child=0.25, linked=linked, spread=0.1, seed=seed
        )
        sae = fit(tree, directions, cell["architecture"], n, steps=settings.steps, seed=seed)
        features = tree.draw(EVALUATION, 4096)
        latents = sae.encode(torch.bmm(features, directions))  # (I, B, n) @ (I, n, d) -> (I, B, d)
        found[f"{name}absorption"] = hierarchies.absorption(tree, directions, features, latents, sae.W_dec)
        found[f"{name}l0"] = (latents > 0).float().sum(-1).mean(-1)
        correlation = settings.correlation if linked else 0.0
        pairs = hierarchies.correlated_pairs(
            settings.seeds, n // 2, density=0.1, correlation=correlation, spread=0.1, seed=seed
        )
        for width, kind in ((n // 2, "narrow"), (n, "wide")):
            sae = fit(pairs, directions, cell["architecture"], width, steps=settings.steps // 3, seed=seed)
            found[f"{name}hedging {kind}"] = hierarchies.hedging(pairs, directions, sae.W_dec)
    return found


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Rates against the same marginals without dependence, for each architecture."""
    by = {(cell["architecture"], cell["d"]): result for cell, result in zip(cells, found, strict=True)}
    plain = {a: by[a, settings.dimensions[0]] for a in settings.architectures}
    rates = {f"{a}, d={d}": {key: value.mean().item() for key, value in r.items()} for (a, d), r in by.items()}
    return Outcome(conclusion(rates), claims(plain), figures(plain), {"rates": rates})


SMOKE = Settings(architectures=("topk", "matryoshka"), dimensions=(20,), seeds=8, steps=750)

EXPERIMENT = register(
    Experiment(
        name="absorption-and-hedging",
        row="S2",
        question="How often do SAEs absorb a parent feature into its children, and mix correlated features?",
        claim="sparsity absorbs parents into children, Matryoshka least; narrow dictionaries mix correlated features",
        source="Chanin et al. 2024, A is for Absorption; Chanin et al. 2025, Feature Hedging; Bussmann et al. 2025",
        controls=(
            "children that are on as often, whatever their parents do",
            "pairs as dense, but independent",
            "dictionaries as wide as there are features",
            "every data set replaced by its control",
        ),
        scales={
            "smoke": SMOKE,
            "default": Settings(),
            "paper": Settings(parents=10, dimensions=(40, 28), seeds=64, steps=5000),
        },
        seconds={"smoke": 10, "default": 80, "paper": 2500},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, linked=False),
    )
)
