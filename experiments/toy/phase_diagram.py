"""T3: where a feature is dropped, given a dimension of its own, or shares one: trained models against theory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from experiments.checks import share
from experiments.figures import Figure, Heatmap, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import REPRESENTED
from toolkit.phases import PHASES, analytic_losses, boundary
from toolkit.quadrature import expected_loss, train_exactly
from toolkit.toy import train

PROBLEMS = ((2, 1), (3, 2))
"""Features into dimensions; the last feature is the extra one."""


@dataclass(frozen=True)
class Settings:
    """The grid and the training."""

    grid: int = 21
    """Values of the extra feature's relative importance (.1 to 10) and of the density (.01 to 1), both logarithmic."""
    seeds: int = 8
    """Instances of each cell; the one with the least loss counts."""
    steps: int = 1000
    """Of training, on the expected loss."""
    sampled: int = 4
    """Every so many rows and columns the same models are trained on samples too, for twice the steps."""
    band: float = 1.25
    """Cells count as away from the boundary where the two least analytic losses differ by more than this factor."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each problem, importance and way of training."""
    rows = range(settings.grid)
    kinds = ((True, rows), (False, rows[:: settings.sampled]))
    return [{"features": n, "hidden": m, "row": r, "exact": e} for e, kept in kinds for n, m in PROBLEMS for r in kept]


def axes(settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Relative importances and densities of the grid."""
    return np.geomspace(0.1, 10, settings.grid), np.geomspace(0.01, 1, settings.grid)


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """One row of the diagram: the best instance's phase and exact loss at each density."""
    importance, densities = axes(settings)
    kept = densities if cell["exact"] else densities[:: settings.sampled]
    count = len(kept) * settings.seeds
    model = ToyModel(features=cell["features"], hidden=cell["hidden"], instances=count, output=settings.output)
    chances = torch.tensor(kept).float().repeat_interleave(settings.seeds)[:, None].repeat(1, model.features)
    weights = torch.ones(count, model.features)
    weights[:, -1] = importance[cell["row"]]
    data: dict[str, Any] = {"densities": chances, "importances": weights}
    fit = train_exactly if cell["exact"] else train
    steps = settings.steps * (1 if cell["exact"] else 2)
    toy = fit(model, ToyTraining(toy_steps=steps, toy_lr=1e-2), seed=seed, **data)
    loss = expected_loss(model, toy.W, toy.b, **data).reshape(-1, settings.seeds)  # (I,) -> (densities, seeds)
    norms = toy.W.square().sum(1).reshape(*loss.shape, -1)  # (I, n) -> (densities, seeds, n)
    best = loss.argmin(1)
    represented = norms[torch.arange(len(best)), best] > REPRESENTED
    phase = torch.where(represented.all(1), 2, torch.where(represented[:, -1], 1, 0))
    return {
        "phase": phase,
        "loss": loss.min(1).values,
        "agree": (loss <= 1.01 * loss.min(1, keepdim=True).values).sum(1),
    }


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Compare the trained phases with the least analytic loss."""
    importance, density = axes(settings)
    results = list(zip(cells, found, strict=True))
    checks, panels, said = [], [], []
    tensors: dict[str, Tensor] = {}
    for n, m in PROBLEMS:
        exact = [r for cell, r in results if cell["features"] == n and cell["exact"]]
        phase, loss = torch.stack([r["phase"] for r in exact]).numpy(), torch.stack([r["loss"] for r in exact]).numpy()
        theory = analytic_losses(n, importance, density)
        ordered = np.sort(theory, axis=0)
        away = ordered[1] > settings.band * ordered[0]
        right = phase == theory.argmin(0)
        name = f"{n} to {m}"
        claim = f"{name}: phase as in theory, away from the boundary ({away.mean():.0%} of cells)"
        checks += [
            share(claim, right[away], 0.95),
            share(f"{name}: no worse than the best analytic solution", (loss <= 1.001 * ordered[0]).ravel(), 0.99),
        ]
        thinned = [r["phase"] for cell, r in results if cell["features"] == n and not cell["exact"]]
        thin = (slice(None, None, settings.sampled),) * 2
        same = (torch.stack(thinned).numpy() == phase[thin])[away[thin]]
        checks.append(share(f"{name}: trained on samples, the same phase (away from it)", same, 0.95))
        line = Series("analytic boundary", boundary(theory, density), importance, "dashed")
        labels: dict[str, Any] = {"x": "density 1-S", "y": "importance of the extra feature", "categories": PHASES}
        panels.append(Heatmap(f"{n} features in {m}", phase, x_at=density, y_at=importance, lines=(line,), **labels))
        tensors |= {f"phase_{n}": torch.from_numpy(phase), f"loss_{n}": torch.from_numpy(loss)}
        said.append(f"{name}: {right[away].mean():.1%} of the cells away from the boundary, {right.mean():.1%} of all")
    conclusion = f"Best of {settings.seeds} seeds, phase as the least analytic loss has it. {'; '.join(said)}."
    caption = "Phase of the best seed in each cell; dashed: where zero-bias superposition stops paying."
    return Outcome(conclusion, tuple(checks), (Figure("phases", caption, tuple(panels)),), tensors=tensors)


SMOKE = Settings(grid=7, sampled=3)

EXPERIMENT = register(
    Experiment(
        name="phase-diagram",
        row="T3",
        question="When is a feature dropped, when does it get a dimension, when does it share one?",
        claim="two and three features into one and two dimensions change phase where p(1+I)/6 = min(1,I)(1/3 - p/4)",
        source="Elhage et al. 2022, Toy Models of Superposition, section 3 (Superposition as a Phase Change)",
        controls=("the linear model, which has no phase of superposition", "the same models trained on samples"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(grid=101, seeds=10, sampled=10)},
        seconds={"smoke": 3, "default": 40, "paper": 1000},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
