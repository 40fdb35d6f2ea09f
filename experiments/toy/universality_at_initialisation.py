"""U2: a random, frozen layer holds every pair's AND and XOR, if it is wide enough."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.universality_report import summarise
from toolkit.boolean import affine_error, boolean, gates, held_out, least_squares, sign_readoff, states
from toolkit.configs import ToyTraining
from toolkit.networks import Layer, Network, train_network


@dataclass(frozen=True)
class Settings:
    """What is trained and fitted."""

    inputs: int = 12
    """m; there are m(m-1)/2 pairs."""
    density: float = 0.15
    """Probability that an input is 1."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """d, neurons of the hidden layer, each twice the one before."""
    constructed: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Widths at which the constructed read-off is measured."""
    seeds: int = 8
    """Instances of each."""
    steps: int = 2000
    """Of training."""
    activation: str = "relu"
    """Of the hidden layer."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each gate and width; width 0 stands for all widths of the constructed read-off."""
    return [{"gate": gate, "width": d} for d in (*reversed(settings.widths), 0) for gate in ("and", "xor")]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Errors over the best affine function's: all trained, read-off trained or solved for, and controls."""
    if cell["width"] == 0:
        return _constructed(settings, cell["gate"], seed)
    density = torch.full((settings.seeds,), settings.density)
    source = boolean(density, settings.inputs, cell["gate"], seed=seed)
    shuffled = boolean(density, settings.inputs, cell["gate"], seed=seed, shuffled=True)

    def trained(frozen: bool) -> Any:
        layer = Layer(cell["width"], settings.activation, bias=not frozen, frozen=frozen)
        training = ToyTraining(toy_steps=settings.steps, toy_batch=256, toy_lr=1e-2)
        network = Network(settings.inputs, (layer, Layer(source.outputs, "linear")))
        return train_network(network, source, training, seed=seed)

    def solved(features: Any, task: Any) -> Tensor:
        read = least_squares(features, task)
        return held_out(lambda x: read(features(x)), task)

    whole, frozen = trained(False), trained(True)
    first, W = (lambda x: frozen.layer(x, 1)), frozen.parameters["W_1"]
    affine = affine_error(settings.density, cell["gate"])
    variance = source.batch(0, 4096).y.var((1, 2), unbiased=False)
    return {
        "trained": held_out(whole, source) / affine,
        "frozen, gradient": held_out(frozen, source) / affine,
        "frozen, least squares": solved(first, source) / affine,
        "linear layer": solved(lambda x: x @ W, source) / affine,
        "shuffled targets": solved(first, shuffled) / variance,
    }


def _constructed(settings: Settings, gate: str, seed: int) -> dict[str, Tensor]:
    """Mean squared and largest error of the sign read-off on every row with at most two ones, by width.

    Besides, the rms error of the affine read-off of fair inputs.
    """
    rows = states(settings.inputs, 2)
    squared, largest = [], []
    for d in settings.constructed:
        generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(settings.seeds)]
        W = torch.stack([torch.randn(settings.inputs, d, generator=g) for g in generators])
        hidden = rows @ W if settings.activation == "linear" else (rows @ W).relu()
        error = sign_readoff(W, gate)(hidden) - gates(rows, gate)
        squared.append(error.square().mean((1, 2)))
        largest.append(error.abs().amax((1, 2)))
    fair = boolean(torch.full((settings.seeds,), 0.5), settings.inputs, gate, seed=seed)
    affine = held_out(least_squares(lambda x: x, fair), fair).sqrt()
    return {"squared": torch.stack(squared), "largest": torch.stack(largest), "affine": affine}


SMOKE = Settings(inputs=7, widths=(16, 32), constructed=(1024, 4096, 16384), seeds=4, steps=1500)

EXPERIMENT = register(
    Experiment(
        name="universality-at-initialisation",
        row="U2",
        question="Can all pairwise ANDs and XORs be read linearly from a random layer that was never trained?",
        claim="a random layer gives AND and XOR an error comparable to a trained one's; an affine read-off has 1/4",
        source="Vaintrob, Mendel and Hänni 2024, Toward a mathematical framework for computation in superposition",
        controls=(
            "the same layer without non-linearity, which stays at the affine error",
            "targets from other rows, of which nothing is explained",
            "the trained layer",
        ),
        scales={
            "smoke": SMOKE,
            "default": Settings(),
            "paper": Settings(inputs=24, widths=(32, 64, 128, 256, 512), steps=5000),
        },
        seconds={"smoke": 5, "default": 45, "paper": 1500},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, activation="linear"),
    )
)
