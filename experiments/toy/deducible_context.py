"""C5: conditional importance is used, a little, where x tells which context it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from experiments.checks import above, at_most, interval, within
from experiments.figures import Figure, Heatmap
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.contexts import Play, interference, play_loss, train_play
from toolkit.metrics import gram, represented

RULES = {"sum": ("sum x above its median", 0.5), "first": ("x_1 > 0", 0.1)}
"""Name and share of comedies."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    seeds: int = 32
    """Models of each kind, all kept; those of one seed start alike and see the same features."""
    steps: int = 1800
    """Of training: 12 epochs of 150."""
    batch: int = 256
    """Rows in a step."""
    lr: float = 3e-2
    """Adam's rate; at a third of it, local minima hide small differences."""
    deduced: bool = True
    """Whether the models in question are trained in the context that x tells."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """For each rule: the context told by x, by each feature's own value alone, by a coin with as many comedies."""
    return [{"rule": rule, "kind": kind} for rule in RULES for kind in ("deduced", "own value", "coin")]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train, then take the loss in the context that x tells."""
    deduced, coin = Play(rule=cell["rule"]), Play(comedies=RULES[cell["rule"]][1])
    asked = deduced if settings.deduced else replace(deduced, detached=True)
    play = {"deduced": asked, "own value": replace(deduced, detached=True), "coin": coin}[cell["kind"]]
    training = ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=settings.lr)
    toy = train_play(play, training, instances=settings.seeds, seed=seed)
    return {"W": toy.W, "loss": play_loss(toy.network, toy.parameters, deduced, seed=seed, batches=8)}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Loss, features and interference against both controls, seed by seed."""
    by = {(cell["rule"], cell["kind"]): one for cell, one in zip(cells, found, strict=True)}
    checks, answers, metrics = [], [], {}
    for rule, (name, _) in RULES.items():
        own, other = by[rule, "deduced"], by[rule, "own value"]
        gain = 1 - own["loss"] / other["loss"]
        count = {kind: represented(by[rule, kind]["W"]).sum(-1).float() for kind in ("deduced", "own value", "coin")}
        sums, before = interference(own["W"]), interference(other["W"])
        differences = {
            "features, deduced - own value": count["deduced"] - count["own value"],
            "features, deduced - coin": count["deduced"] - count["coin"],
            "interference within, deduced - own value": sums.within - before.within,
            "interference across, deduced - own value": sums.across - before.across,
            "loss, coin / deduced": by[rule, "coin"]["loss"] / own["loss"],
        }
        spans = {key: interval(value) for key, value in differences.items()}
        metrics[name] = {key: [span.mean, span.low, span.high] for key, span in spans.items()}
        checks += [
            above(f"{name}: share of the loss saved, against own value", gain, 0)
            if rule == "sum"
            # A comedy in ten: what x_1 tells is worth little.
            else within(f"{name}: share of the loss saved, against own value", gain, -0.1, 0.1),
            at_most(f"{name}: that share (anti-correlated halves save all)", gain, 0.5),
            at_most(f"{name}: features represented (anti-correlated halves: 20)", count["deduced"], 19),
        ]
        share = interval(gain)
        inside, beyond = (spans[f"interference {where}, deduced - own value"] for where in ("within", "across"))
        answers.append(
            f"{name}: {share.mean:.1%} [{share.low:.1%}, {share.high:.1%}] of the loss is saved by what other features "
            f"tell of the context, {count['deduced'].mean():.3g} features are represented against "
            f"{count['own value'].mean():.3g} (coin: {count['coin'].mean():.3g}), interference changes by "
            f"{inside.mean:+.2f} [{inside.low:.2f}, {inside.high:.2f}] within halves and by {beyond.mean:+.2f} "
            f"[{beyond.low:.2f}, {beyond.high:.2f}] across"
        )
    caption = (
        "Gram matrices of the models of lowest loss in the context that x tells, trained in it; in a context that "
        "tells of each feature's own value only; with a coin of as many comedies. Comedy features come first."
    )
    tensors = {f"W_{rule}_{kind.replace(' ', '_')}": one["W"] for (rule, kind), one in by.items()}
    figures = []
    for rule, (name, _) in RULES.items():
        best = {kind: one["W"][one["loss"].argmin()] for (of, kind), one in by.items() if of == rule}
        panels = tuple(Heatmap(f"{name}: {k}", gram(W), "feature", "feature", halves=True) for k, W in best.items())
        figures.append(Figure(rule, caption, panels))
    return Outcome("; ".join(answers) + ".", tuple(checks), tuple(figures), metrics, tensors)


SMOKE = Settings(seeds=24, steps=300, batch=128)

EXPERIMENT = register(
    Experiment(
        name="deducible-context",
        row="C5",
        question="Is conditional importance used where the context can be deduced from x?",
        claim="left open in the source; expected: a lower loss, which falls short of the anti-correlated code's",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, with its comments",
        controls=(
            "the context from each feature's own value and fresh draws of the others: the same importance given x_i",
            "a coin with the same share of comedies; the first control in both places: nothing is saved",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=128, steps=6000)},
        seconds={"smoke": 5, "default": 27, "paper": 350},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, deduced=False),
    )
)
