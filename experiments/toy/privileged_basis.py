"""T8: a ReLU on the hidden layer makes neurons mean one feature when inputs are dense, several when they are sparse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.checks import above, at_least, at_most
from experiments.figures import Figure, Plot, Series, Stack
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.networks import autoencoder, train_network
from toolkit.sources import sparse

FEATURES, NEURONS, IMPORTANCE = 10, 5, 0.75
MONOSEMANTIC = 0.9
"""A neuron means one feature when that one has this share of its squared weights."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    densities: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01)
    """Probability that a feature is on, dense first."""
    seeds: int = 16
    """Instances of each cell; the better half by loss is kept, since single seeds get stuck."""
    steps: int = 3000
    """Of training: at p=1 the neurons hardly ever fall silent, and turn to the features slowly."""
    hidden: str = "relu"
    """Activation of the neurons."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each density, with the linear hidden layer beside it."""
    return [{"hidden": hidden, "density": p} for p in settings.densities for hidden in (settings.hidden, "linear")]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; the better half, best first."""
    importances = (IMPORTANCE ** torch.arange(FEATURES)).repeat(settings.seeds, 1)
    source = sparse(torch.full_like(importances, cell["density"]), importances, seed=seed)
    network = autoencoder(FEATURES, NEURONS, hidden_activation=cell["hidden"])
    training = ToyTraining(toy_steps=settings.steps, toy_batch=512, toy_lr=2e-2)
    trained = train_network(network, source, training, seed=seed)
    kept = trained.loss.argsort()[: settings.seeds // 2]
    squares = trained.W[kept].square()  # (I, neurons, features)
    # Only positive weights make a ReLU fire: negative ones silence it, and how large they are beyond that is free.
    firing = trained.W[kept].clamp(min=0).square()
    return {
        "W": trained.W[kept],
        # The participation ratio: k for k equal weights.
        "features": (firing.sum(2).square() / firing.square().sum(2).clamp(min=1e-12)).mean(1),
        "single": (squares.amax(2) / squares.sum(2) > MONOSEMANTIC).float().mean(1),
    }


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Single features when dense, more of them with sparsity; none of it without the ReLU."""
    neurons, control = found[::2], found[1::2]  # in the order of `cells`
    dense, sparsest, rotated = neurons[0], neurons[-1], control[0]
    counts = torch.stack([one["features"] for one in neurons])  # (densities, instances)
    order = [spearmanr(range(len(counts)), counts[:, i])[0] for i in range(counts.shape[1])]
    low, high = min(settings.densities), max(settings.densities)
    checks = (
        at_least(f"p={high:g}: share of neurons with one feature", dense["single"], 0.8),
        at_most(f"p={high:g}: features a neuron", dense["features"], 1.2),
        above("the same share, minus that of a linear hidden layer", dense["single"] - rotated["single"], 0.5),
        at_most(f"p={low:g}: share of neurons with one feature", sparsest["single"], 0.2),
        above(f"features a neuron at p={low:g}, minus p={high:g}", sparsest["features"] - dense["features"], 1),
        at_least("rank correlation of features a neuron with sparsity", order, 0.8),
    )
    means = ", ".join(f"{mean:.2f}" for mean in counts.mean(1).tolist())
    conclusion = (
        f"Features a neuron (participation ratio of positive weights), p={high:g} to {low:g}: {means}. At p={high:g}, "
        f"{dense['single'].mean():.0%} of neurons mean one feature; with a linear hidden layer, which has no "
        f"preferred basis, {rotated['single'].mean():.0%} do."
    )
    return Outcome(conclusion, checks, (_figure(settings.densities, neurons, control),))


def _figure(densities: tuple[float, ...], neurons: Sequence[Mapping[str, Tensor]], control: Any) -> Figure:
    curves = []
    for name, results in (("ReLU", neurons), ("linear", control)):
        y = torch.stack([one["features"] for one in results])
        curves.append(Series(name, densities, y.mean(1), "both", y.amin(1), y.amax(1)))
    bars = [
        Stack(f"ReLU, p={p:g}", one["W"][0].clamp(min=0), y="positive weight")
        for p, one in zip(densities, neurons, strict=True)
    ]
    bars += [Stack(f"linear, p={densities[at]:g}", control[at]["W"][0].abs()) for at in (0, -1)]
    curve = Plot("polysemanticity", "density p", "features a neuron", tuple(curves), log_x=True)
    caption = (
        "Weights of each neuron by feature, best instances (dark: important). Right: mean and range over instances."
    )
    return Figure("neurons", caption, (*bars, curve))


SMOKE = Settings(densities=(1.0, 0.1), seeds=8)
EXPERIMENT = register(
    Experiment(
        name="privileged-basis",
        row="T8",
        question="When does a neuron mean one feature?",
        claim="with a hidden ReLU neurons are monosemantic for dense inputs, polysemantic for sparse ones",
        source="Elhage et al. 2022, Toy Models of Superposition, section 6 (superposition in a privileged basis)",
        controls=("a linear hidden layer, whose weights may be rotated at no cost (also broken)",),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=20000)},
        seconds={"smoke": 13, "default": 32, "paper": 850},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, hidden="linear"),
    )
)
