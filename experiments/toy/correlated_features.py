"""T6: correlated features are kept orthogonal or share a component, anti-correlated ones lie opposite each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.checks import above, at_least, at_most, near
from experiments.figures import Arrows, Figure, Heatmap, Panel, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.errors import check_types, require
from toolkit.groups import cosines_within, interference_within, weight_in_sums
from toolkit.metrics import gram
from toolkit.networks import autoencoder, train_network
from toolkit.sources import grouped

LAYOUTS = {"pairs": (2, 2, 2), "triples": (2, 3, 2), "three pairs": (3, 2, 2), "two tens": (2, 10, 10)}
"""Number of sets, features in each, hidden dimensions."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    densities: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
    """Of the correlated pairs."""
    seeds: int = 32
    """Instances of each cell; the best quarter by loss is kept, since single seeds get stuck."""
    steps: int = 1500
    """Of training."""
    linked: bool = True
    """Whether features of a set know of each other; off makes every cell its own control."""

    def __post_init__(self) -> None:
        check_types(self)
        claimed = {0.05, 0.5} <= set(self.densities)
        require(claimed, f"densities must hold .05 and .5, which claims are about, got {self.densities}")
        require(self.seeds >= 4, f"seeds must be at least 4, got {self.seeds}: the best quarter is kept")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Anti-correlated pairs at .2, where the wrong partner costs enough to be left again."""
    kinds = [("two tens", kind, 0.05) for kind in ("correlated", "anticorrelated", "independent")]
    kinds += [("three pairs", "correlated", 0.05), ("triples", "correlated", 0.5)]
    kinds += [("pairs", "anticorrelated", 0.2), ("pairs", "independent", 0.5)]
    kinds += [("pairs", "correlated", p) for p in settings.densities]
    return [{"layout": layout, "kind": kind, "density": p} for layout, kind, p in kinds]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; the best quarter, best first, with cosines and the share of weight in the sets' sums."""
    sets, size, hidden = LAYOUTS[cell["layout"]]
    members = [range(size * s, size * (s + 1)) for s in range(sets)]
    kind: Any = cell["kind"] if settings.linked else "independent"
    source = grouped(torch.full((settings.seeds,), cell["density"]), members, kind=kind, seed=seed)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=512, toy_lr=1e-2)
    trained = train_network(autoencoder(sets * size, hidden), source, training, seed=seed)
    kept = trained.loss.argsort()[: settings.seeds // 4]
    W = trained.W[kept]
    shares = {"share": interference_within(W, members), "sums": weight_in_sums(W, members)}
    return {"W": W, "loss": trained.loss[kept], "within": cosines_within(W, members)} | shares


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Orthogonal, opposite, side by side or collapsed, each against independent features."""
    by = {(cell["layout"], cell["kind"], cell["density"]): result for cell, result in zip(cells, found, strict=True)}
    tens, opposite, free = (by["two tens", kind, 0.05] for kind in ("correlated", "anticorrelated", "independent"))
    pairs, merged = (by["pairs", "correlated", p] for p in (0.05, 0.5))
    beside, triples, anti, control = list(by.values())[3:7]
    checks = (
        at_most("correlated pairs, p=.05: largest |cosine| within a pair", pairs["within"].abs().amax(1), 0.05),
        near("anti-correlated pairs, p=.2: cosine within a pair", anti["within"].mean(1), -1, 0.02),
        at_most("two correlated tens: largest |cosine| within a set", tens["within"].abs().amax(1), 0.1),
        at_most("two correlated tens: share of squared cosines that lies within sets", tens["share"], 0.05),
        at_least("two anti-correlated tens: that share", opposite["share"], 0.95),
        near("two independent tens: that share is a random partner's, 9/19", free["share"], 9 / 19, 0.15),
        above("three correlated pairs in a plane: cosine within a pair", beside["within"].mean(1), 0.2),
        near("correlated pairs, p=.5: share of weight in the pairs' sums", merged["sums"], 1, 0.02),
        near("correlated triples, p=.5: that share", triples["sums"], 1, 0.02),
        above("that share, correlated pairs minus independent ones", merged["sums"] - control["sums"], 0),
        near("loss of the collapsed pairs over p/6", merged["loss"] * 6 / 0.5, 1, 0.03),
    )
    conclusion = (
        f"Correlated tens are orthogonal within (mean |cosine| {tens['within'].abs().mean():.3f}); "
        f"{opposite['share'].mean():.3f} of anti-correlated tens' squared cosines lies within sets (independent: "
        f"{free['share'].mean():.2f}). Pairs without room lie side by side (cosine {beside['within'].mean():.2f}); at "
        f"p=.5 {merged['sums'].mean():.3f} of their weight is in sums (independent: {control['sums'].mean():.2f})."
    )
    return Outcome(conclusion, checks, (_figure(by, settings.densities),))


def _figure(by: Mapping[Any, Mapping[str, Tensor]], densities: tuple[float, ...]) -> Figure:
    panels: list[Panel] = []
    for (layout, kind, p), result in by.items():
        W, title = result["W"][0], f"{layout}, {kind}, p={p:g}"
        if layout == "two tens":
            panels.append(Heatmap(title, gram(W), halves=True))
        elif kind != "correlated" or p in (0.05, 0.5):
            panels.append(Arrows(title, W.T, [i // LAYOUTS[layout][1] for i in range(W.shape[1])]))
    sums = torch.stack([by["pairs", "correlated", p]["sums"] for p in densities])  # (densities, instances)
    curve = Series("", densities, sums.mean(1), "both", sums.amin(1), sums.amax(1))
    panels.append(Plot("pairs, correlated", "density p", "share of weight in sums", (curve,)))
    caption = "Best instances, one colour a set: correlated ones orthogonal, side by side or merged, others opposite."
    return Figure("directions", caption, tuple(panels))


SMOKE = Settings(densities=(0.05, 0.5), seeds=16, steps=800)
EXPERIMENT = register(Experiment(
    name="correlated-features", row="T6", question="How are features arranged that tend to be on together, or never?",
    claim="correlated: orthogonal, side by side, or merged into a principal component; anti-correlated: antipodal",
    source="Elhage et al. 2022, Toy Models of Superposition, section 4 (correlated and anticorrelated features)",
    controls=("independent features of the same density", "all sets made independent (broken)"),
    scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=5000)},
    seconds={"smoke": 14, "default": 33, "paper": 220},
    cells=cells, measure=measure, summarise=summarise, broken=replace(SMOKE, linked=False),
))  # fmt: skip
