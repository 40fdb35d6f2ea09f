"""C7: do other non-linearities at the output superpose more than ReLU?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.nonlinearities_report import ALIKE, FEWER, summarise
from toolkit.configs import ToyTraining
from toolkit.metrics import represented
from toolkit.networks import Layer, Network, autoencoder, train_network
from toolkit.sources import sparse


@dataclass(frozen=True)
class Settings:
    """What is trained: tied autoencoders of 20 features in 10 dimensions."""

    outputs: tuple[str, ...] = ("linear", "relu", *FEWER, *ALIKE, "topk-2")
    """Non-linearities at the output."""
    densities: tuple[float, ...] = (0.1, 0.03)
    """Probability that a feature is on."""
    seeds: int = 12
    """Instances of each combination; instance i starts alike and sees the same samples whatever the non-linearity."""
    steps: int = 1500
    """Of training, 512 rows each."""
    trained_as: str = ""
    """Stands in for every non-linearity where given."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each non-linearity."""
    return [{"output": output} for output in settings.outputs]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Features by norm and by their own error; loss over the linear model's, of W trained and of W left random."""
    features, hidden, output = 20, 10, settings.trained_as or cell["output"]
    importance = 0.7 ** torch.arange(1, hidden + 1).float().repeat_interleave(2)  # both halves: .7^k, k = 1..10
    p = torch.tensor(settings.densities).repeat_interleave(settings.seeds)
    source = sparse(p[:, None].expand(-1, features).contiguous(), importance.expand(len(p), -1), seed=seed)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=512, toy_lr=1e-2)
    trained = train_network(autoencoder(features, hidden, output=output), source, training, seed=seed)
    frozen = (Layer(hidden, "linear", bias=False, frozen=True), Layer(features, output, tied=True))
    random = train_network(
        Network(features, frozen), source, replace(training, toy_steps=settings.steps // 3), seed=seed
    )
    x, y, _ = source.batch(2**41, 8192)
    unexplained = (trained(x) - y).square().mean(1) / y.var(1)
    linear = (p / 3 - p.square() / 4) * importance[hidden:].sum()  # PCA drops the ten least important
    shape = (len(settings.densities), settings.seeds)
    return {
        "represented": represented(trained.W).sum(-1).float().view(shape),
        "explained": (unexplained < 0.5).sum(-1).float().view(shape),
        "loss": (trained.loss / linear).view(shape),
        "random": (random.loss / linear).view(shape),
        "W": trained.W.unflatten(0, shape),  # (densities, seeds, m, n)
    }


SMOKE = Settings(outputs=("linear", "relu", "gelu", "abs", "topk-4"), densities=(0.03,), seeds=4, steps=600)

EXPERIMENT = register(
    Experiment(
        name="other-nonlinearities",
        row="C7",
        question="Do other non-linearities at the output superpose more than ReLU?",
        claim="ReLU superposes, linear does not; the others are measured against ReLU",
        source="after Elhage et al. 2022, Toy Models of Superposition, section 2; sizes and importances as in C1",
        controls=(
            "the linear model, which represents as many features as dimensions",
            "random directions with a trained bias",
            "every non-linearity replaced by none",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=48, steps=6000)},
        seconds={"smoke": 3, "default": 40, "paper": 600},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, trained_as="linear"),
    )
)
