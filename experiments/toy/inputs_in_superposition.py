"""U3: the pairwise ANDs of inputs that are themselves in superposition."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, register
from experiments.toy.superposed_inputs_report import summarise
from toolkit.boolean import GATES, affine_error, boolean, held_out, least_squares, nearly_orthogonal
from toolkit.configs import ToyTraining
from toolkit.networks import Layer, Network, train_network


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    inputs: int = 12
    """m; there are m(m-1)/2 pairs."""
    dims: tuple[int, ...] = (12, 9, 6, 4)
    """Dimensions that the inputs are embedded in; the compression is m over it."""
    densities: tuple[float, ...] = (0.05, 0.15)
    """Probability that an input is 1."""
    width: int = 64
    """d, neurons of the hidden layer."""
    seeds: int = 8
    """Instances of each combination, each with its own directions."""
    steps: int = 1000
    """Of training."""
    activation: str = "relu"
    """Of the hidden layer."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each gate and number of dimensions; 0 dimensions are the inputs as they are."""
    return [{"gate": gate, "dims": d} for d in (0, *settings.dims) for gate in GATES]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Errors over the best affine function's of the inputs themselves: trained, affine, shuffled targets."""
    densities = torch.tensor(settings.densities).repeat_interleave(settings.seeds)
    embedding = None
    if cell["dims"]:
        embedding = nearly_orthogonal(len(densities), settings.inputs, cell["dims"], seed=seed)
    source = boolean(densities, settings.inputs, cell["gate"], seed=seed, embedding=embedding)
    shuffled = boolean(densities, settings.inputs, cell["gate"], seed=seed, embedding=embedding, shuffled=True)
    network = Network(source.inputs, (Layer(settings.width, settings.activation), Layer(source.outputs, "linear")))
    training = ToyTraining(toy_steps=settings.steps, toy_batch=256, toy_lr=1e-2)
    trained = train_network(network, source, training, seed=seed)
    read = least_squares(lambda x: trained.layer(x, 1), shuffled)
    affine = torch.tensor([affine_error(p, cell["gate"]) for p in settings.densities])[:, None]
    variance = source.batch(0, 4096).y.var((1, 2), unbiased=False)
    shape = (len(settings.densities), settings.seeds)
    return {
        "trained": held_out(trained, source, batches=16).view(shape) / affine,
        "affine read-off": held_out(least_squares(lambda x: x, source), source, batches=16).view(shape) / affine,
        "shuffled targets": (held_out(lambda x: read(trained.layer(x, 1)), shuffled) / variance).view(shape),
    }


SMOKE = Settings(inputs=8, dims=(8, 6, 4), densities=(0.15,), width=32, seeds=4)

EXPERIMENT = register(
    Experiment(
        name="inputs-in-superposition",
        row="U3",
        question="Can the pairwise ANDs be computed when the inputs are themselves in superposition?",
        claim="yes, at an error that grows with the number of inputs per dimension",
        source="Hänni, Mendel, Vaintrob and Chan 2024, Mathematical Models of Computation in Superposition",
        controls=(
            "bare inputs",
            "as many dimensions as inputs",
            "targets from other rows",
            "a layer without non-linearity",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(24, (24, 18, 12, 8), width=192, steps=5000)},
        seconds={"smoke": 5, "default": 40, "paper": 1500},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, activation="linear"),
    )
)
