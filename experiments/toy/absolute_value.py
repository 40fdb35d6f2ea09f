"""T9: absolute values of sparse features are computed in superposition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.checks import above, at_least, at_most, near
from experiments.figures import Figure, Heatmap, Plot, Series, Stack
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.motifs import (
    asymmetry,
    false_positives,
    monosemantic,
    monosemantic_loss,
    served,
    shuffled_inhibition,
)
from toolkit.networks import Layer, Network, error, forward, train_network
from toolkit.sources import sparse


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    features: int = 100
    """n."""
    neurons: int = 40
    """m, of the hidden layer."""
    importance: float = 0.8
    """Feature i weighs importance**i."""
    densities: tuple[float, ...] = (0.1, 0.003)
    """Probability that a feature is on; the claims are about the last."""
    parts: int = 2
    """Cells of each density."""
    seeds: int = 6
    """Instances of a cell; the better half of a density's is kept, since single seeds get stuck."""
    steps: int = 5000
    """Of training."""
    output: str = "relu"
    """Activation at the output; linear cannot cut off interference."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Parts of the instances of each density."""
    return [{"density": p, "part": part} for p in settings.densities for part in range(settings.parts)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; loss in units of the monosemantic baseline, and motifs beside those of shuffled weights."""
    n, p, own = settings.features, cell["density"], 1000 * (seed + 1) + cell["part"]
    layers = (Layer(settings.neurons, "relu", bias=False), Layer(n, settings.output, mirrored=True))
    importances = (settings.importance ** torch.arange(n)).repeat(settings.seeds, 1)
    source = sparse(torch.full_like(importances, p), importances, seed=own, signed=True, target=torch.abs)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=512, toy_lr=3e-3)
    trained = train_network(Network(n, layers), source, training, seed=own)
    formula = monosemantic_loss(importances[0], settings.neurons, p)
    relu = Network(n, (layers[0], Layer(n)))
    batches = [source.batch(2**40 + s, 4096) for s in range(16)]
    built = [error(forward(relu, monosemantic(n, settings.neurons, p), b.x[:1])[-1], b._replace(x=b.x[:1], y=b.y[:1], weight=b.weight[:1])) for b in batches]  # fmt: skip
    W_in, W_out = trained.parameters["W_1"], trained.parameters["W_2"]
    return {
        "W_in": W_in,
        "W_out": W_out,
        "ratio": trained.loss / formula,
        "built": torch.cat(built).mean(0, keepdim=True) / formula,
        "served": served(W_in, W_out).sum(2).mean(1),
        "asymmetry": asymmetry(W_in, W_out),
        "left": false_positives(W_in, W_out),
        "shuffled": false_positives(W_in, shuffled_inhibition(W_out, seed=own)),
    }


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Loss against the baseline at the lowest density, motifs at both ends."""
    by = [_kept(settings, p, cells, found) for p in settings.densities]
    common, rare = by[0], by[-1]
    high, low = settings.densities[0], settings.densities[-1]
    built = torch.cat([result["built"] for result in found])
    skewed = common["asymmetry"][common["asymmetry"].isfinite()]
    checks = (
        near("measured loss of the monosemantic network over its formula", built, 1, 0.05),
        at_most(f"p={low:g}: loss over the monosemantic baseline", rare["ratio"], 0.95),
        above(f"loss over the baseline, p={high:g} minus p={low:g}", common["ratio"] - rare["ratio"], 0),
        at_least(f"p={high:g}: asymmetry of features that share a neuron, log2 (tied: 0)", skewed, 0.5),
        at_most(f"p={high:g}: excitation of wrong outputs that inhibition leaves", common["left"], 0.5),
        above(f"p={high:g}: the same with shuffled inhibition, minus this", common["shuffled"] - common["left"], 0.1),
        above(f"p={low:g}: the same difference", rare["shuffled"] - rare["left"], 0),
    )
    conclusion = (
        f"Over the monosemantic baseline the loss is {common['ratio'].mean():.2f} at p={high:g} and "
        f"{rare['ratio'].mean():.2f} at p={low:g}. At p={high:g} neurons serve {common['served'].mean():.2f} features; "
        f"where two share one, interference differs between directions by 2^{skewed.mean():.2f}; inhibition leaves "
        f"{common['left'].mean():.2f} of the false excitation (shuffled: {common['shuffled'].mean():.2f}), at "
        f"p={low:g} {rare['left'].mean():.2f} ({rare['shuffled'].mean():.2f})."
    )
    return Outcome(conclusion, checks, (_figure(settings, by),))


def _kept(settings: Settings, density: float, cells: Sequence[Any], found: Sequence[Any]) -> dict[str, Tensor]:
    ours = [result for cell, result in zip(cells, found, strict=True) if cell["density"] == density]
    joined = {name: torch.cat([result[name] for result in ours]) for name in ours[0]}
    order = joined["ratio"].argsort()[: len(joined["ratio"]) // 2]
    return {name: value[order] for name, value in joined.items() if name != "built"}


def _figure(settings: Settings, by: Sequence[Mapping[str, Tensor]]) -> Figure:
    shown, panels = min(20, settings.features), []
    for p, one in zip(settings.densities, by, strict=True):
        order = (one["W_in"][0].abs() * one["W_out"][0].T).argmax(0).argsort()  # neurons by the feature they serve best
        W_in, W_out = one["W_in"][0][:shown, order].T, one["W_out"][0][order, :shown]
        panels.append(Stack(f"read, p={p:g}", W_in.abs(), y="|W1|"))
        panels.append(Heatmap(f"written, p={p:g}", W_out, x="feature", y="neuron"))
    ratio = torch.stack([one["ratio"] for one in by])
    curve = Series("trained", settings.densities, ratio.mean(1), "both", ratio.amin(1), ratio.amax(1))
    levels = {"monosemantic": 1.0}
    panels.append(Plot("loss", "density p", "loss over baseline", (curve,), log_x=True, log_y=True, levels=levels))
    caption = (
        "Weights of the best instances for the most important features: output weights excite (red), inhibit (blue)."
    )
    return Figure("weights", caption, tuple(panels))


SMOKE = Settings(features=30, neurons=12, densities=(0.1, 0.003), parts=1, seeds=8, steps=1500)
EXPERIMENT = register(
    Experiment(
        name="absolute-value",
        row="T9",
        question="Can a network compute absolute values of more features than it has neurons for?",
        claim="asymmetric superposition with inhibition; a loss below the best monosemantic network's at high sparsity",
        source="Elhage et al. 2022, Toy Models of Superposition, section 7 (computation in superposition)",
        controls=(
            "the best monosemantic network, built by hand and measured",
            "inhibitory weights shuffled within each neuron",
            "a linear output, which cannot cut off interference (broken)",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=32, steps=30000)},
        seconds={"smoke": 6, "default": 50, "paper": 3000},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, output="linear"),
    )
)
