"""T5: as one of five features gains weight or density, two digons without it jump to a pentagon with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.one_feature_report import summarise
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import geometry
from toolkit.sources import uniforms
from toolkit.toy import loss, train

FEATURES, DENSITY = 5, 0.05
SHAPES = ({"digon": 2}, {"pentagon": 1})


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    points: int = 14
    """Values of the varied feature's importance (.1 to 1.4) and of its density (.002 to .2, in equal ratios)."""
    repeats: int = 4
    """Sweeps of each kind, with seeds of their own."""
    seeds: int = 8
    """Instances of each value; the best by loss counts."""
    steps: int = 2000
    """Of training."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each sweep."""
    return [{"varied": v, "repeat": r} for v in ("importance", "density") for r in range(settings.repeats)]


def values(settings: Settings, varied: str) -> np.ndarray:
    """The grid of a sweep."""
    places = settings.points
    return np.linspace(0.1, 1.4, places) if varied == "importance" else np.geomspace(0.002, 0.2, places)


@torch.no_grad()
def common_loss(model: ToyModel, W: Tensor, b: Tensor, densities: Tensor, importances: Tensor, seed: int) -> Tensor:
    """Losses on 2^18 rows drawn from the same uniforms for every instance, so that differences carry little noise."""
    total = torch.zeros(len(W), dtype=torch.float64)
    for step in range(64):
        coins, sizes = (uniforms(1, 4096, FEATURES, seed=seed, step=step, draw=d) for d in range(2))
        x = (coins < densities[:, None]) * sizes  # (I, rows, n)
        total += loss(model, W, b, x, importances).double() / 64
    return total


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """One sweep: the best instance of every value, its loss, squared norm of the varied feature, and shape."""
    instances = settings.points * settings.seeds
    model = ToyModel(features=FEATURES, hidden=2, instances=instances, output=settings.output)
    given = {"densities": torch.full((instances, FEATURES), DENSITY), "importances": torch.ones(instances, FEATURES)}
    name = "importances" if cell["varied"] == "importance" else "densities"
    given[name][:, 0] = torch.tensor(values(settings, cell["varied"])).float().repeat_interleave(settings.seeds)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=2048, toy_lr=1e-2)
    toy = train(model, training, seed=seed + 1000 * cell["repeat"], **given)
    losses = common_loss(model, toy.W, toy.b, **given, seed=seed).reshape(-1, settings.seeds)  # (I,) -> (points, seeds)
    best = losses.argmin(1) + settings.seeds * torch.arange(settings.points)
    W = toy.W[best]
    shapes = [geometry(one) for one in W]
    shape = torch.tensor([SHAPES.index(s) if s in SHAPES else len(SHAPES) for s in shapes])
    norms = W[:, :, 0].square().sum(1)
    x = torch.from_numpy(values(settings, cell["varied"]))
    return {
        "x": x,
        "W": W,
        "norms": norms,
        "D": toy.feature_dimensionality[best],
        "loss": losses.min(1).values,
        "shape": shape,
    }


SMOKE = Settings(repeats=1, points=10, steps=800)

EXPERIMENT = register(
    Experiment(
        name="one-feature-varied",
        row="T5",
        question="Does the geometry change smoothly as one feature becomes less important or sparser than the others?",
        claim="no: the pentagon jumps to a square (two digons) without it, where two branches of the loss cross",
        source="Elhage et al. 2022, Toy Models of Superposition, section Non-Uniform Superposition",
        controls=("the other values of the sweep, where nothing jumps", "the linear model, which has neither shape"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(points=53, repeats=8, seeds=32, steps=10000)},
        seconds={"smoke": 10, "default": 42, "paper": 3000},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
