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
from toolkit.phases import PHASES, analytic_losses, boundary, phase
from toolkit.quadrature import expected_loss, train_exactly
from toolkit.toy import train

PROBLEMS = ((2, 1), (3, 2))  # features into dimensions; the last feature is the extra one


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
    """Every so many rows and columns also trained on samples, for twice the steps."""
    band: float = 1.25
    """Cells count as away from the boundary where the two least analytic losses differ by more than this factor."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output."""

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Relative importances and densities of the grid."""
        return np.geomspace(0.1, 10, self.grid), np.geomspace(0.01, 1, self.grid)


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each problem, importance and way of training."""
    rows = range(settings.grid)
    kinds = ((True, rows), (False, rows[:: settings.sampled]))
    return [{"features": n, "hidden": m, "row": r, "exact": e} for e, kept in kinds for n, m in PROBLEMS for r in kept]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """One row of the diagram: the best instance's phase and exact loss at each density."""
    importance, densities = settings.axes
    kept = densities if cell["exact"] else densities[:: settings.sampled]
    count = len(kept) * settings.seeds
    model = ToyModel(features=cell["features"], hidden=cell["hidden"], instances=count, output=settings.output)
    chances = torch.tensor(kept).float().repeat_interleave(settings.seeds)[:, None].repeat(1, model.features)
    weights = torch.ones(count, model.features)
    weights[:, -1] = importance[cell["row"]]
    data: dict[str, Any] = {"densities": chances, "importances": weights}
    fit = train_exactly if cell["exact"] else train
    training = ToyTraining(toy_steps=settings.steps * (1 if cell["exact"] else 2), toy_lr=1e-2)
    toy = fit(model, training, seed=seed, **data)
    loss = expected_loss(model, toy.W, toy.b, **data).reshape(-1, settings.seeds)  # (I,) -> (densities, seeds)
    best = loss.argmin(1, keepdim=True)
    phases = phase(toy.W).reshape(loss.shape)  # (I,) -> (densities, seeds)
    return {"phase": phases.gather(1, best)[:, 0], "loss": loss.gather(1, best)[:, 0]}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Compare the trained phases with the least analytic loss."""
    importance, density = settings.axes
    results = list(zip(cells, found, strict=True))
    checks, panels, said = [], [], []
    for n, m in PROBLEMS:
        exact = [r for cell, r in results if cell["features"] == n and cell["exact"]]
        best, loss = (torch.stack([r[name] for r in exact]).numpy() for name in ("phase", "loss"))
        theory = analytic_losses(n, importance, density)
        ordered = np.sort(theory, axis=0)
        away = ordered[1] > settings.band * ordered[0]
        right = best == theory.argmin(0)
        name = f"{n} to {m}"
        thinned = [r["phase"] for cell, r in results if cell["features"] == n and not cell["exact"]]
        thin = (slice(None, None, settings.sampled),) * 2
        same = (torch.stack(thinned).numpy() == best[thin])[away[thin]]
        checks += [
            share(f"{name}: phase as in theory, away from the boundary ({away.mean():.0%})", right[away], 0.95),
            share(f"{name}: no worse than the best analytic solution", (loss <= 1.001 * ordered[0]).ravel(), 0.99),
            share(f"{name}: trained on samples, the same phase (away from it)", same, 0.95),
        ]
        line = Series("analytic boundary", boundary(theory, density), importance, "dashed")
        panels.append(Heatmap(f"{n} features in {m}", best, "density 1-S", "importance of the extra feature",
                              categories=PHASES, x_at=density, y_at=importance, lines=(line,)))  # fmt: skip
        said.append(f"{name}: {right[away].mean():.1%} of the cells away from the boundary, {right.mean():.1%} of all")
    conclusion = f"Best of {settings.seeds} seeds, phase as the least analytic loss has it. {'; '.join(said)}."
    figure = Figure("phases", "Best seed of each cell; dashed: the analytic boundary.", tuple(panels))
    return Outcome(conclusion, tuple(checks), (figure,))


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
        seconds={"smoke": 8, "default": 40, "paper": 600},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
