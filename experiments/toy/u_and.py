"""U1: all pairwise ANDs of sparse Booleans from one hidden layer with fewer neurons than pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.u_and_report import summarise
from toolkit.boolean import affine_error, boolean, gates, held_out, least_squares, states
from toolkit.configs import ToyTraining
from toolkit.networks import Layer, Network, train_network

LOSSES = {"MSE": (2.0, 1.0), "L3": (3.0, 1.0), "L4": (4.0, 1.0), "ones x 30": (2.0, 30.0)}
"""Exponent of the error, and weight of the rows where the target is 1."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    inputs: int = 10
    """m; there are m(m-1)/2 pairs."""
    widths: tuple[int, ...] = (5, 10, 20, 40)
    """d, neurons of the hidden layer; the last is below the number of pairs."""
    densities: tuple[float, ...] = (0.05, 0.15, 0.5)
    """Probability that an input is 1; the last is a fair coin."""
    tasks: tuple[tuple[str, str], ...] = (*(("and", loss) for loss in LOSSES), ("xor", "MSE"), ("xor", "L4"))
    """Gates and losses."""
    seeds: int = 8
    """Instances of each combination."""
    steps: int = 1000
    """Of training."""
    activation: str = "relu"
    """Of the hidden layer."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each gate, loss and width; width 0 is the affine read-off of the inputs, fitted by least squares."""
    affine = [{"gate": gate, "loss": "MSE", "width": 0} for gate in ("and", "xor")]
    return affine + [{"gate": g, "loss": loss, "width": d} for g, loss in settings.tasks for d in settings.widths]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Error over that of the best affine function, and the largest error on rows with at most two ones."""
    power, ones = LOSSES[cell["loss"]]
    densities = torch.tensor(settings.densities).repeat_interleave(settings.seeds)
    source = boolean(densities, settings.inputs, cell["gate"], seed=seed, ones=ones)
    if cell["width"] == 0:
        answer: Any = least_squares(lambda x: x, source)
        error = held_out(answer, source, batches=16)
    else:
        layers = (Layer(cell["width"], settings.activation), Layer(source.outputs, "linear"))
        training = ToyTraining(toy_steps=settings.steps, toy_batch=256, toy_lr=1e-2)
        answer = train_network(Network(settings.inputs, layers), source, training, seed=seed, power=power)
        error = answer.loss / source.outputs
    affine = torch.tensor([affine_error(p, cell["gate"], power=power, ones=ones) for p in settings.densities])
    rows = states(settings.inputs, 2)
    worst = (answer(rows.expand(len(densities), -1, -1)) - gates(rows, cell["gate"])).abs().amax((1, 2))
    shape = (len(settings.densities), settings.seeds)
    return {"error": error.view(shape), "ratio": error.view(shape) / affine[:, None], "worst": worst.view(shape)}


SMOKE = Settings(
    inputs=7, widths=(5, 10, 20), densities=(0.1, 0.5), seeds=4, steps=1200,
    tasks=(("and", "MSE"), ("and", "L4"), ("xor", "MSE")),
)  # fmt: skip

EXPERIMENT = register(
    Experiment(
        name="u-and",
        row="U1",
        question="Can one hidden layer give all pairwise ANDs of sparse inputs with fewer neurons than pairs?",
        claim="error falls with width; with sparse inputs fewer neurons than pairs beat any affine function",
        source="Hänni, Mendel, Vaintrob and Chan 2024, Mathematical Models of Computation in Superposition",
        controls=(
            "the affine read-off of the inputs, in closed form and fitted",
            "fair inputs (p=.5)",
            "a hidden layer without non-linearity, which stays at the affine error",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(24, (24, 48, 96, 192, 264), steps=5000)},
        seconds={"smoke": 8, "default": 50, "paper": 3000},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, activation="linear"),
    )
)
