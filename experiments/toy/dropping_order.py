"""T12: as features become denser, the least important are dropped first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import at_least, share
from experiments.figures import Figure, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import represented
from toolkit.plateaus import rank_correlation
from toolkit.toy import train

FEATURES, HIDDEN = 20, 10


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    points: int = 12
    """Densities from .08 to 1, in equal ratios."""
    seeds: int = 16
    """Instances of each density; the best half by loss is kept, since single seeds get stuck."""
    steps: int = 2000
    """Of training."""
    importance: float = 0.9
    """Feature i weighs importance**i; with 1 its number is an arbitrary rank."""


def densities(settings: Settings) -> np.ndarray:
    """The sweep, sparsest first."""
    return np.geomspace(0.08, 1, settings.points)


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each density, dearest first."""
    return [{"density": float(p)} for p in densities(settings)[::-1]]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; squared norms of the best half, best first."""
    model = ToyModel(
        features=FEATURES, hidden=HIDDEN, instances=settings.seeds, density=(cell["density"],),
        importance=settings.importance,
    )  # fmt: skip
    toy = train(model, ToyTraining(toy_steps=settings.steps, toy_lr=1e-2), seed=seed)
    kept = toy.loss.argsort()[: settings.seeds // 2]
    return {"W": toy.W[kept]}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """The density up to which each feature is represented, against its importance."""
    p = densities(settings)
    W = torch.stack([r["W"] for r in found]).flip(0)  # (points, instances, m, n), sparsest first
    kept = represented(W)
    lasting = torch.from_numpy(p)[(kept.sum(0) - 1).clamp(min=0)]  # (instances, n)
    rank = -torch.arange(FEATURES)
    dropped = ~kept[-1]
    correlations = [rank_correlation(rank, row) for row in lasting]
    among = [rank_correlation(rank[gone], row[gone]) for gone, row in zip(dropped, lasting, strict=True)]
    checks = (
        share("sparsest: every feature is represented", kept[0].all(-1), 1),
        at_least(
            "densest: features dropped, all but as many as there are dimensions", dropped.sum(-1).double(), HIDDEN - 0.5
        ),
        at_least("rank correlation of importance and the density at which a feature is dropped", correlations, 0.9),
        at_least("the same among the features that are dropped", among, 0.9),
    )
    features = range(FEATURES)
    spread = (lasting.min(0).values, lasting.max(0).values)
    curve = Series("represented up to", features, lasting.mean(0), "both", *spread)
    panels = (
        Plot("where features are dropped", "feature, most important first", "density 1-S", (curve,), log_y=True),
        Plot(
            "features represented", "density 1-S", "‖Wᵢ‖² > ½",
            tuple(Series("one instance", p, kept.sum(-1)[:, i], "both") for i in range(kept.shape[1])), log_x=True,
        ),
    )  # fmt: skip
    conclusion = (
        f"From density {p[0]:g} to 1 the features represented fall from {kept[0].sum(-1).double().mean():.3g} to "
        f"{kept[-1].sum(-1).double().mean():.3g}, the least important first: rank correlation of importance and the "
        f"density of dropping {np.mean(correlations):.3f}, {np.mean(among):.3f} among those that are dropped."
    )
    caption = "Highest density at which each feature is represented: mean and range over instances."
    return Outcome(conclusion, checks, (Figure("order", caption, panels),), tensors={"lasting": lasting})


SMOKE = Settings(points=9, seeds=8, steps=500)

EXPERIMENT = register(
    Experiment(
        name="dropping-order",
        row="T12",
        question="Which features are dropped first as they become denser?",
        claim="the least important collapse first",
        source="Elhage et al. 2022, Toy Models of Superposition, section Superposition as a Phase Change",
        controls=("equal importances, with the features' numbers as an arbitrary rank",),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(points=28, seeds=64, steps=10000)},
        seconds={"smoke": 9, "default": 40, "paper": 1600},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, importance=1.0),
    )
)
