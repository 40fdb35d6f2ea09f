"""T4: as 400 equal features become sparse, dimensions per feature stick at 1 and 1/2 and polytopes appear.

The size of the source (20 densities, 8 seeds, 10,000 steps, batch 1,024) is 1.6 million instance-steps. Half the batch
took 2 ms a step on one core, over all densities, so the whole takes about an hour on two cores; a worker needs some
100 MB. On a GPU, by calculation: with all instances side by side 147 MFLOP and 13 MB of traffic an instance-step make
2.4e14 FLOP and 21 TB, 8 s of float32 at 30 TFLOP/s or 5 s at 4.8 TB/s, and 2.3 GB of activations.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.geometry_report import summarise
from toolkit.configs import ToyModel, ToyTraining
from toolkit.errors import check_types, require
from toolkit.metrics import dimensions_per_feature, feature_dimensionality, represented
from toolkit.plateaus import LEVELS
from toolkit.toy import train

TOGETHER = 2
"""Instances of one cell: the dearest of the paper's size then takes two minutes."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    features: int = 400
    """n."""
    hidden: int = 30
    """m."""
    sparsities: tuple[float, ...] = (
        1, 1.5, 1.8, 2.1, 2.4, 2.7, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.5, 6.1, 6.8, 8, 10, 15, 30, 100,
    )  # fmt: skip
    """Values of 1/(1-S), ascending; closest where the geometry changes."""
    levels: tuple[str, ...] = tuple(LEVELS)
    """Named values of D_i at which a peak is checked for; all are reported."""
    seeds: int = 4
    """Instances of each density, an even number; one half chooses where to look for peaks in the other."""
    steps: int = 2500
    """Of training; with half as many, or batches of 256, the polytopes are blurred."""
    batch: int = 512
    """Rows a step."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output."""

    def __post_init__(self) -> None:
        check_types(self)
        paired = self.seeds >= TOGETHER and self.seeds % TOGETHER == 0
        require(paired, f"seeds must be an even number, got {self.seeds}: one half chooses where the other is judged")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """A few instances of one density each, dearest first."""
    parts = range(settings.seeds // TOGETHER)
    return [{"sparsity": x, "part": p} for x in settings.sparsities for p in parts]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; D* and, beside random directions of the same lengths, D_i of the represented features."""
    model = ToyModel(
        features=settings.features, hidden=settings.hidden, instances=TOGETHER, density=(1 / cell["sparsity"],),
        output=settings.output,
    )  # fmt: skip
    training = ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=5e-3)
    toy = train(model, training, seed=seed + 1000 * cell["part"])
    directions = torch.randn(toy.W.shape, generator=torch.Generator().manual_seed(seed))
    control = torch.nn.functional.normalize(directions, dim=1) * toy.W.norm(dim=1, keepdim=True)
    kept = represented(toy.W)
    return {
        "stars": dimensions_per_feature(toy.W),
        "D": torch.where(kept, feature_dimensionality(toy.W), torch.nan),
        "control": torch.where(kept, feature_dimensionality(control), torch.nan),
        "dropped": (toy.feature_dimensionality < 0.02).double().mean(-1),
    }


SMOKE = Settings(
    features=80, hidden=12, seeds=4, steps=600, levels=("digon",), sparsities=(1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 7, 15, 50)
)

EXPERIMENT = register(
    Experiment(
        name="geometry-plateaus",
        row="T4",
        question="Which shapes do many equally important features take as they become sparse?",
        claim="D* sticks at 1 and 1/2; D_i cluster at 1, 3/4, 2/3, 1/2, 2/5, 3/8 and 0",
        source="Elhage et al. 2022, Toy Models of Superposition, section The Geometry of Superposition",
        controls=("random directions of the same lengths", "D_i smoothed over ±.05", "the linear model: D* stays at 1"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=8, steps=10000, batch=1024)},
        seconds={"smoke": 12, "default": 170, "paper": 3600},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
