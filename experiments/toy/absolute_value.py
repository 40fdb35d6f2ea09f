"""T9: absolute values in superposition. W2 starts at |W1^T|: drawn apart from W1, most outputs start dead."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.checks import above, at_most, near
from experiments.figures import Figure, Heatmap
from experiments.registry import Experiment, Outcome, register
from toolkit import motifs
from toolkit.configs import ToyTraining
from toolkit.networks import Layer, Network, error, forward, train_network
from toolkit.sources import sparse


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    features: int = 100
    """n."""
    neurons: int = 40
    """m, of the hidden layer."""
    densities: tuple[float, ...] = (0.1, 0.003)
    """Probability that a feature is on; the claims are about the last."""
    seeds: int = 8
    """Instances of a cell; losses are of the best quarter of a density's, since single seeds get stuck."""
    steps: int = 4000
    """Of training."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Parts of the instances of each density."""
    return [{"density": p, "part": part} for p in settings.densities for part in range(2)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; loss in units of the monosemantic baseline, and motifs beside their controls."""
    n, p, own = settings.features, cell["density"], 1000 * (seed + 1) + cell["part"]
    layers = (Layer(settings.neurons, "relu", bias=False), Layer(n, mirrored=True))
    importances = (0.8 ** torch.arange(n)).repeat(settings.seeds, 1)
    source = sparse(torch.full_like(importances, p), importances, seed=own, signed=True, target=torch.abs)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=512, toy_lr=3e-3)
    trained = train_network(Network(n, layers), source, training, seed=own)
    formula = motifs.monosemantic_loss(importances[0], settings.neurons, p)
    hand, relu = motifs.monosemantic(settings.seeds, n, settings.neurons, p), Network(n, (layers[0], Layer(n)))
    batches = [source.batch(2**40 + s, 4096) for s in range(16)]
    built = torch.stack([error(forward(relu, hand, batch.x)[-1], batch) for batch in batches]).mean(0)
    W_in, W_out = trained.parameters["W_1"], trained.parameters["W_2"]
    return {
        **{"W_in": W_in, "W_out": W_out, "ratio": trained.loss / formula, "built": built / formula},
        "served": motifs.served(W_in, W_out).sum(2).mean(1),
        "asymmetry": motifs.asymmetry(W_in, W_out),
        "relabelled": motifs.asymmetry(*motifs.relabelled(W_in, W_out, seed=own)),
        "left": motifs.false_positives(W_in, W_out),
        "shuffled": motifs.false_positives(W_in, motifs.shuffled_inhibition(W_out, seed=own)),
    }


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Loss against the baseline at the lowest density, motifs at both ends."""
    of = [[r for cell, r in zip(cells, found, strict=True) if cell["density"] == p] for p in settings.densities]
    by = [{name: torch.cat([result[name] for result in parts]) for name in parts[0]} for parts in of]
    common, rare, high, low = by[0], by[-1], settings.densities[0], settings.densities[-1]
    dense, best = (one["ratio"].sort().values[: len(one["ratio"]) // 4] for one in (common, rare))
    checks = (
        near("measured loss of the monosemantic network over its formula", rare["built"], 1, 0.05),
        at_most(f"p={low:g}: loss over the monosemantic baseline", best, 0.95),
        above(f"loss over the baseline, p={high:g} minus p={low:g}", dense - best, 0),
        above(
            f"p={low:g}: log2 asymmetry in shared neurons, minus relabelled", rare["asymmetry"] - rare["relabelled"], 0
        ),
        above(f"p={low:g}: uncancelled excitation, shuffled inhibition minus true", rare["shuffled"] - rare["left"], 0),
        above(f"p={high:g}: the same", common["shuffled"] - common["left"], 0),
    )
    mean = {name: value.mean().item() for name, value in rare.items()}
    conclusion = (
        f"The loss is {dense.mean():.2f} of the monosemantic baseline's at p={high:g}, {best.mean():.2f} at p={low:g} "
        f"(best quarter; all: {mean['ratio']:.2f}). There neurons serve {mean['served']:.1f} features; the more "
        f"important of two disturbs the other 2^{mean['asymmetry']:.2f} times as much as it is disturbed (relabelled: "
        f"2^{mean['relabelled']:.2f}); inhibition leaves {mean['left']:.2f} of the false excitation (shuffled: "
        f"{mean['shuffled']:.2f}; at p={high:g}: {common['left'].mean():.2f} and {common['shuffled'].mean():.2f})."
    )
    return Outcome(conclusion, checks, (_figure(settings, by),))


def _figure(settings: Settings, by: Sequence[Mapping[str, Tensor]]) -> Figure:
    shown, panels = min(30, settings.features), []
    for p, one in zip(settings.densities, by, strict=True):
        at = one["ratio"].argmin()
        W_in, W_out = one["W_in"][at].T, one["W_out"][at]  # (neurons, features)
        order = (W_in.abs() * W_out).argmax(1).argsort()
        for name, W in (("read", W_in), ("written", W_out)):
            panels.append(Heatmap(f"{name}, p={p:g}", W[order, :shown], x="feature", y="neuron"))
    caption = "Best instances. Sparse: a neuron reads important features strongly and writes lesser ones strongly."
    return Figure("weights", caption, tuple(panels))


SMOKE = Settings(features=30, neurons=12, densities=(0.1, 0.003), seeds=6, steps=1500)
EXPERIMENT = register(
    Experiment(
        name="absolute-value",
        row="T9",
        question="Can a network compute absolute values of more features than it has neurons for?",
        claim="asymmetric superposition with inhibition; a loss below the best monosemantic network's at high sparsity",
        source="Elhage et al. 2022, Toy Models of Superposition, section 7 (computation in superposition)",
        controls=("a monosemantic network built by hand", "shuffled or relabelled weights", "dense inputs (broken)"),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=32, steps=30000)},
        seconds={"smoke": 9, "default": 58, "paper": 1700},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, densities=(0.9, 1.0)),
    )
)
