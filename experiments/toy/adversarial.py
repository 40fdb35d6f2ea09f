"""T10: small attacks on the input do more harm the more features share a dimension."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.adversarial_report import summarise
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import dimensions_per_feature
from toolkit.plateaus import attack
from toolkit.samplers import sample
from toolkit.toy import train


@dataclass(frozen=True)
class Settings:
    """What is trained and attacked."""

    features: int = 100
    """n; all of importance 1."""
    hidden: int = 10
    """m."""
    points: int = 12
    """Values of 1/(1-S) from 1 to 100, in equal ratios."""
    seeds: int = 8
    """Instances of each density."""
    steps: int = 1500
    """Of training."""
    batch: int = 512
    """Rows a step."""
    rows: int = 256
    """Inputs attacked, of each instance."""
    size: float = 0.1
    """L2 norm of the attack."""
    output: str = "relu"
    """Activation at the output."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each density, and the linear model at both ends."""
    grid = [float(x) for x in np.geomspace(1, 100, settings.points)]
    ends = [{"sparsity": x, "output": "linear", "role": "linear"} for x in (grid[0], grid[-1])]
    return [{"sparsity": x, "output": settings.output, "role": "model"} for x in grid] + ends


def harm(W: Tensor, b: Tensor, x: Tensor, size: float, relu: bool, direction: Tensor | None = None) -> float:
    """Mean squared error that the optimal attack, or one along given directions, adds."""
    delta = attack(W, b, x, size, relu=relu) if direction is None else size * direction

    def errors(given: Tensor) -> Tensor:
        z = given @ W.mT @ W + b
        return ((z.relu() if relu else z) - x).square().sum(-1)

    return (errors(x + delta) - errors(x)).mean().item()


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train; harm of the optimal attack and of random directions over that to a model without superposition."""
    n, m, relu = settings.features, settings.hidden, cell["output"] == "relu"
    model = ToyModel(n, m, settings.seeds, density=(1 / cell["sparsity"],), output=cell["output"])
    toy = train(model, ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=1e-2), seed=seed)
    inputs = sample(toy.densities, settings.rows, seed=seed + 1)
    plain = torch.eye(m, n)  # a dimension for each of m features, and the mean for the others
    means = torch.where(torch.arange(n) < m, 0, toy.densities[0] / 2)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(seed))
    random = torch.nn.functional.normalize(noise, dim=-1)
    found = []
    for W, b, rows, noises in zip(toy.W, toy.b, inputs, random, strict=True):
        # With 100 features a third of the sparsest rows are empty, with the source's 400 next to none: leave them out.
        x, direction = rows[rows.any(-1)], noises[rows.any(-1)]
        base = harm(plain, means, x, settings.size, relu)
        harms = (harm(W, b, x, settings.size, relu), harm(W, b, x, settings.size, relu, direction))
        found.append([value / base for value in harms])
    attacked, null = torch.tensor(found, dtype=torch.float64).T
    return {"attacked": attacked, "random": null, "stars": dimensions_per_feature(toy.W).double()}


SMOKE = Settings(features=50, hidden=5, points=7, steps=600, rows=128, batch=256)

EXPERIMENT = register(
    Experiment(
        name="adversarial-vulnerability",
        row="T10",
        question="Does superposition make a model vulnerable to small perturbations of its input?",
        claim="vulnerability rises at least threefold with features per dimension",
        source="Elhage et al. 2022, Toy Models of Superposition, section Superposition and Adversarial Robustness",
        controls=("the linear model", "random directions of the same norm", "a model without superposition"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(400, 30, 24, 8, 10000, 1024)},
        seconds={"smoke": 12, "default": 46, "paper": 2300},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
