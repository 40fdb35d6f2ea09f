"""C4: averaged over the context, conditional importance is the average importance, whatever the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.checks import at_most, within
from experiments.figures import Figure, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.contexts import Play, pairs_at, play_loss, random_autoencoders, shared_direction_loss, train_play


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    networks: int = 32
    """Random networks."""
    seeds: int = 24
    """Trained models."""
    steps: int = 1800
    """Of training."""
    batch: int = 512
    """Rows in a step."""
    lr: float = 3e-2
    """Adam's rate."""
    rule: Literal["coin", "sum"] = "coin"
    """What decides the context."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Pairs and random networks, nothing trained; models trained with either importance."""
    return [{"trained": False}, {"trained": True}]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Losses of the same networks on the same features, by what their errors weigh."""
    plays = {"conditional": Play(rule=settings.rule), "average": Play(importance="average")}
    if not cell["trained"]:
        network = random_autoencoders(plays["average"], instances=settings.networks, seed=seed)
        return pairs(settings, seed) | {f"random {n}": play_loss(*network, p, seed=seed) for n, p in plays.items()}
    training = ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=settings.lr)
    toys = {n: train_play(p, training, instances=settings.seeds, seed=seed) for n, p in plays.items()}
    return {n: play_loss(t.network, t.parameters, plays["average"], seed=seed) for n, t in toys.items()}


def pairs(settings: Settings, seed: int) -> dict[str, Tensor]:
    """Loss of two features of weight 1 at a cosine: both important, one at a time, one on at a time."""
    pair = Play(features=2, decay=1.0, rule=settings.rule)
    both, one_on = replace(pair, rule="coin", importance="fixed"), replace(pair, values="zeroed")
    plays = {"both": both, "one at a time": pair, "one on at a time": one_on}
    network = pairs_at(torch.linspace(-1, 1, 41))
    return {name: play_loss(*network, play, seed=seed, batches=64) for name, play in plays.items()}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Half the loss at every overlap; the same loss for every network."""
    untrained, trained = found
    g = torch.linspace(-1, 1, 41)
    theory = shared_direction_loss(g, Play().density)
    both, one = (untrained[name] for name in ("both", "one at a time"))
    gaps = [((both - theory) / theory.max()).abs().max(), ((one - theory / 2) / theory.max()).abs().max()]
    fixed, random = untrained["random average"], untrained["random conditional"]
    apart, ratio = (random / fixed).log(), trained["conditional"] / trained["average"]
    checks = (
        at_most("pair: largest |measured - closed form|, both important", gaps[:1], 0.02),
        at_most("pair: largest |measured - half of it|, one at a time", gaps[1:], 0.02),
        within("pair: (one at a time - both / 2) / largest loss", (one - both / 2) / theory.max(), -0.01, 0.01),
        within("random networks: log of conditional loss / average-importance loss", apart, -0.01, 0.01),
        within("trained: loss after conditional / after average importance", ratio, 0.95, 1.05),
    )
    closed = tuple(Series("closed form, and half of it", g, part * theory, "dashed") for part in (1.0, 0.5))
    cases = ("both", "one at a time", "one on at a time")
    points = tuple(Series(f"{case}, measured", g, untrained[case], "points") for case in cases)
    axes = ("loss, average importance", "loss, conditional importance")
    networks = (Series("equal", fixed, fixed, "dashed"), Series("network", fixed, random, "points"))
    panels = (
        Plot("two features at an angle, density .1", "cosine of their directions", "loss", (*closed, *points)),
        Plot("random networks", *axes, networks, log_x=True, log_y=True),
    )
    caption = (
        "Left: overlap costs half as much when one of two features is important at a time, at every angle alike; when "
        "one is on at a time it costs nothing. Right: the losses agree for networks that nobody trained."
    )
    conclusion = (
        "The context is independent of x, so its average passes through the loss: E[I_i(c)] (x_i - x_i')^2. Measured, "
        f"one feature important at a time costs {one.sum() / both.sum():.4f} of both (theory: 1/2), at any angle; the "
        f"two losses of random networks differ by {apart.mean():+.2%} on average; training with conditional "
        f"importance ends {ratio.mean() - 1:+.1%} from training with the average."
    )
    return Outcome(conclusion, checks, (Figure("loss", caption, panels),), tensors={**untrained, **trained})


SMOKE = Settings(seeds=16, steps=600, batch=256)

EXPERIMENT = register(
    Experiment(
        name="why-nothing-changes",
        row="C4",
        question="Why does conditional importance change nothing?",
        claim="overlap costs half as much when one of two features is important at a time, whatever the overlap",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, Mathematical Intuition",
        controls=(
            "one feature on at a time: overlap then costs nothing",
            "networks that nobody trained",
            "a context decided by the sum of x: the identity fails",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(networks=256, seeds=64, steps=6000)},
        seconds={"smoke": 5, "default": 16, "paper": 240},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, rule="sum"),
    )
)
