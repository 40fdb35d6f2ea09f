"""T11: a toy model stores data points while there are few, features when there are many, and is worst in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.checks import above, near
from experiments.registry import Experiment, Outcome, register
from experiments.toy.memorisation_report import MEANS, conclusion, figures, largest
from toolkit.configs import ToyModel, ToyTraining
from toolkit.descent import EVALUATION
from toolkit.errors import check_types, require
from toolkit.hierarchies import unit_rows
from toolkit.metrics import feature_dimensionality
from toolkit.samplers import sample
from toolkit.toy import train


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    samples: tuple[int, ...] = (3, 5, 10, 30, 100, 200, 400, 800, 2000)
    """Rows in the training set, T; all of them in every step."""
    undecayed: tuple[int, ...] = (5, 400)
    """Further T without weight decay."""
    features: int = 1000
    """n, in two dimensions."""
    density: float = 0.01
    """Probability that a feature is on."""
    decay: float = 0.01
    """AdamW's weight decay."""
    activation: str = "relu"
    """At the output."""
    seeds: int = 8
    """Instances of each T; the half with the lower training loss is kept, since single seeds get stuck."""
    steps: int = 2000
    """Of training."""
    rate: float = 3e-3
    """Adam's learning rate."""

    def __post_init__(self) -> None:
        check_types(self)
        between = 5 in self.samples and any(5 < T < max(self.samples) for T in self.samples)
        require(between, f"samples must hold 5, a larger one and one between, got {self.samples}")
        require(self.decay > 0, f"decay must be above 0, got {self.decay:g}: undecayed names the runs without")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """A number of samples, 0 for fresh ones in every step; the slow ones first."""
    rows = [{"T": T, "decay": settings.decay} for T in (0, *sorted(settings.samples, reverse=True))]
    return rows + [{"T": T, "decay": 0.0} for T in settings.undecayed]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train; dimensionality of data points and of features, test loss; lowest training loss first."""
    n, instances, T = settings.features, settings.seeds, cell["T"]
    model = ToyModel(n, 2, instances, (settings.density,), output=settings.activation)  # type: ignore[arg-type]
    training = ToyTraining(settings.steps, 256, settings.rate)
    rows = unit_rows(instances, T or 100, n, settings.density, seed=seed)
    toy = train(model, training, seed=seed, rows=rows if T else None, weight_decay=cell["decay"])
    # Fresh samples are not scaled, so their error is taken relative to their squared norm; that of the others is 1.
    fresh = sample(torch.full((1, n), settings.density), 2000, seed=seed, step=EVALUATION)
    test = unit_rows(1, 2000, n, settings.density, seed=seed, step=EVALUATION) if T else fresh
    error = (toy(test.expand(instances, -1, -1)) - test).square().sum(-1).mean(-1) / test.square().sum(-1).mean()
    order = toy.history[-1].argsort()[: max(1, instances // 2)]
    h = toy.hidden(rows)[order].mT  # (I, 2, T)
    W = toy.W[order]
    kept = {"test": error[order], "train": toy.history[-1][order], "h": h[0], "W": W[0]}
    return kept | {"data": largest(feature_dimensionality(h)), "features": largest(feature_dimensionality(W))}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Few, some, many samples."""
    by = {(cell["T"], cell["decay"] > 0): result for cell, result in zip(cells, found, strict=True)}
    few, many = by[5, True], by[max(settings.samples), True]
    middle = [T for T in settings.samples if 5 < T < max(settings.samples)]
    worst = max(middle, key=lambda T: by[T, True]["test"].mean().item())
    peak = by[worst, True]["test"]
    checks = (
        near("T=5: D of the data points (a pentagon)", few["data"], 0.4, 0.02),
        above("T=5: five largest D, data points less features", few["data"] - few["features"], 0.2),
        above("largest T: five largest D, features less data points", many["features"] - many["data"], 0.2),
        above("log10 of test error, worst T over T=5", (peak / few["test"]).log10(), 0.0),
        above("log10 of test error, worst T over largest", (peak / many["test"]).log10(), 0.0),
        above("log10 of test error, worst T over fresh samples", (peak / by[0, True]["test"]).log10(), 0.0),
    )
    return Outcome(
        conclusion(by, max(settings.samples), worst, settings.undecayed),
        checks,
        figures(by, settings.samples, worst),
        {"means": {f"T={T}, decay {decay}": {k: r[k].mean().item() for k in MEANS} for (T, decay), r in by.items()}},
    )


SMOKE = Settings(samples=(5, 40, 500), undecayed=(40,), features=100, density=0.1, steps=1500)
PAPER = Settings(
    samples=(3, 5, 10, 30, 100, 300, 1000, 2000, 3000, 5000, 10000), undecayed=(5, 1000), features=10000, density=0.001,
    steps=50000, rate=1e-3,
)  # fmt: skip

EXPERIMENT = register(Experiment(
    name="memorisation-and-double-descent", row="T11",
    question="What does a toy model store when it is trained on few samples, and when on many?",
    claim="few samples: data points form the polygon; many: features do; test loss peaks in between",
    source="Henighan et al. 2023, Superposition, Memorization, and Double Descent",
    controls=("fresh samples in every step", "no weight decay", "the linear model, which forms no pentagon"),
    scales={"smoke": SMOKE, "default": Settings(), "paper": PAPER},
    seconds={"smoke": 6, "default": 65, "paper": 40000},
    cells=cells, measure=measure, summarise=summarise, broken=replace(SMOKE, activation="linear"),
))  # fmt: skip
