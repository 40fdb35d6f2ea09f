"""T2: five sparse features in two dimensions form a pentagon; dense ones do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.checks import at_most, near, share
from experiments.figures import Arrows, Figure
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyModel, ToyTraining
from toolkit.errors import check_types, require
from toolkit.metrics import gram
from toolkit.toy import train


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    sparsities: tuple[float, ...] = (0.0, 0.8, 0.9, 0.95)
    """S, the probability that a feature is off."""
    importances: tuple[float, ...] = (0.9, 1.0)
    """Feature i weighs importance**i."""
    seeds: int = 16
    """Instances of each combination; the best three quarters are kept, since single seeds get stuck."""
    steps: int = 5000
    """Of training."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output."""

    def __post_init__(self) -> None:
        check_types(self)
        claimed = {0.9, 1.0} <= set(self.importances)
        require(claimed, f"importances must hold .9 and 1, which claims are about, got {self.importances}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each sparsity and importance."""
    return [{"sparsity": s, "importance": i} for s in settings.sparsities for i in settings.importances]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; best first."""
    model = ToyModel(
        features=5, hidden=2, instances=settings.seeds, density=(1 - cell["sparsity"],), importance=cell["importance"],
        output=settings.output,
    )  # fmt: skip
    toy = train(model, ToyTraining(toy_steps=settings.steps), seed=seed)
    order = toy.loss.argsort()[: max(1, settings.seeds * 3 // 4)]
    return {"W": toy.W[order], "D": toy.feature_dimensionality[order], "loss": toy.loss[order]}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Two orthogonal features at S=0, the pentagon at the highest sparsity."""
    by = {(cell["sparsity"], cell["importance"]): result for cell, result in zip(cells, found, strict=True)}
    low, high = min(settings.sparsities), max(settings.sparsities)
    dense, sparse = by[low, 0.9], by[high, 1.0]
    counts = (dense["W"].square().sum(1) > 0.5).sum(-1)
    largest_two = dense["W"].square().sum(1).topk(2).indices  # (I, 2)
    pairs = torch.stack([gram(W[:, kept])[0, 1].abs() for W, kept in zip(dense["W"], largest_two, strict=True)])
    checks = (
        near(f"S={low:g}, I=0.9^i: features represented", counts, 2, 0.1),
        at_most(f"S={low:g}, I=0.9^i: |cosine| of the two", pairs, 0.05),
        near(f"S={high:g}, I=1: mean D_i", sparse["D"].mean(-1), 0.4, 0.01),
        share(f"S={high:g}, I=1: every D_i within .02 of 2/5", (sparse["D"] - 0.4).abs().amax(-1) < 0.02, 0.9),
    )
    panels = tuple(Arrows(f"S={s:g}, I={i:g}^i, loss {r['loss'][0]:.3g}", r["W"][0].T) for (s, i), r in by.items())
    caption = "Feature directions of the best instance."
    conclusion = (
        f"At S={high:g} the best three quarters of {settings.seeds} seeds have D_i between {sparse['D'].min():.3f} and "
        f"{sparse['D'].max():.3f} (a pentagon: .4); at S={low:g} with unequal importance, {counts.float().mean():.3g} "
        f"features are represented, |cosine| of the largest two at most {pairs.max():.2g}."
    )
    return Outcome(
        conclusion,
        checks,
        (Figure("directions", caption, panels),),
        tensors={"W": torch.stack([r["W"] for r in found])},
    )


SMOKE = Settings(sparsities=(0.0, 0.95), seeds=8, steps=3000)

EXPERIMENT = register(
    Experiment(
        name="pentagon",
        row="T2",
        question="What do five features do in two dimensions as they become sparse?",
        claim="two orthogonal features when dense, five in a pentagon (D_i = 2/5) when sparse",
        source="Elhage et al. 2022, Toy Models of Superposition, introduction and section 2",
        controls=("dense inputs (S=0)", "the linear model, which stays orthogonal at any sparsity"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=10000)},
        seconds={"smoke": 2, "default": 10, "paper": 80},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
