"""C6: with the context as an input and a wide layer to use it, a model learns to gate features by context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from experiments.checks import above, at_least, at_most, interval
from experiments.figures import Figure, Heatmap, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.contexts import Play, contextual, leak, reach, train_play
from toolkit.networks import Layer, Network, train_network


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    widths: tuple[int, ...] = (20, 40, 80)
    """Neurons of the layer before the bottleneck; 20 could gate every feature, but are seldom trained to."""
    seeds: int = 12
    """Models of each kind, all kept."""
    steps: int = 3000
    """Of training; C1's and C2's models take as many."""
    batch: int = 256
    """Rows in a step."""
    lr: float = 5e-3
    """Adam's rate; at 1e-2 neurons die."""
    shown: Literal["context", "coin"] = "context"
    """The further input of the models in question: the context, or a coin that tells nothing."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """C1's and C2's models; for each width, one shown the context and one shown a coin."""
    ends = [{"importance": "conditional"}, {"importance": "fixed", "values": "zeroed"}]
    return [*ends, *({"width": w, "shown": s} for w in settings.widths for s in (settings.shown, "coin"))]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train; loss, and how each feature reaches the bottleneck in either context."""
    training = ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=settings.lr)
    if "width" not in cell:
        return {"loss": train_play(Play(**cell), training, instances=settings.seeds, seed=seed).loss}
    source = contextual(Play(shown=cell["shown"]), instances=settings.seeds, seed=seed)
    network = Network(21, (Layer(cell["width"]), Layer(10, "linear", bias=False), Layer(20)))
    trained = train_network(network, source, training, seed=seed, snapshots=[0])
    untrained = {name: value[0] for name, value in trained.snapshots.items()}
    reached = {"code": reach(network, trained.parameters, 20), "untrained": reach(network, untrained, 20)}
    return {"loss": trained.loss, **reached}


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Share of the gap between C1's and C2's loss that is closed, and the gating that closes it."""
    never, always = found[0]["loss"], found[1]["loss"]
    told, untold = found[2::2], found[3::2]
    gap = never.mean() - always.mean()
    closed, control = ([(never - one["loss"]) / gap for one in kind] for kind in (told, untold))
    best, chance, width = told[-1], untold[-1], settings.widths[-1]
    gated, ungated, start = leak(best["code"]), leak(chance["code"]), leak(best["untrained"])
    checks = (
        at_least(f"width {width}: share of the gap from C1's to C2's loss closed", closed[-1], 0.75),
        above(f"width {width}: that share, less that with a coin shown", closed[-1] - control[-1], 0),
        at_most(f"width {width}: loss / loss with a coin shown", best["loss"] / chance["loss"], 0.5),
        at_most(f"width {width}: reach of features out of context / in context", gated, 0.5),
        above("the same, untrained, less that", start - gated, 0.3),
        above("the same, a coin shown, less that", ungated - gated, 0.3),
    )
    levels = {"C1": never.mean().item(), "C2": always.mean().item()}
    axes = ("feature", "last input: 1 above, 0 below")
    panels = (
        Plot("loss by the further input", "neurons before the bottleneck", "loss",
             (curve("context", settings.widths, told), curve("coin", settings.widths, untold)), levels=levels),
        Heatmap(f"width {width}, context shown", best["code"][best["loss"].argmin()], *axes, halves=True),
        Heatmap(f"width {width}, coin shown", chance["code"][chance["loss"].argmin()], *axes, halves=True),
    )  # fmt: skip
    caption = (
        "Left: loss. Then how far each feature at 1/2 reaches the bottleneck when the last input is 1 (comedy) and 0 "
        "(tragedy), in the models of lowest loss; comedy features come first."
    )
    by_width = zip(settings.widths, closed, control, strict=True)
    shares = ", ".join(f"{c.mean():.0%} at width {w} (coin: {k.mean():.0%})" for w, c, k in by_width)
    conclusion = (
        f"Share of the gap from C1's loss ({levels['C1']:.4f}) to C2's ({levels['C2']:.1e}) closed by a hidden layer "
        f"that sees the context: {shares}. Features reach the bottleneck out of context {gated.mean():.2f} times as "
        f"far as in it (coin shown: {ungated.mean():.2f}, untrained: {start.mean():.2f})."
    )
    metrics = {"closed": [c.tolist() for c in closed], "closed, coin shown": [c.tolist() for c in control]}
    return Outcome(conclusion, checks, (Figure("layer", caption, panels),), metrics)


def curve(name: str, widths: Sequence[int], found: Sequence[Mapping[str, Tensor]]) -> Series:
    """Mean loss with its interval at each width."""
    spans = [interval(one["loss"]) for one in found]
    return Series(name, widths, [s.mean for s in spans], "both", [s.low for s in spans], [s.high for s in spans])


SMOKE = Settings(widths=(80,), seeds=8, steps=800, batch=128)

EXPERIMENT = register(
    Experiment(
        name="context-layer",
        row="C6",
        question="Given the context as an input and a layer to use it, is the anti-correlated code learned?",
        claim="left open in the source; expected: yes, as 20 neurons can gate every feature by its context",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, Ideas for Further Work",
        controls=(
            "a coin in the place of the context; the untrained network",
            "C1's model (no layer, no context) and C2's (values zeroed) as the ends of the scale",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=32, steps=8000, batch=1024)},
        seconds={"smoke": 4, "default": 35, "paper": 1000},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, shown="coin"),
    )
)
