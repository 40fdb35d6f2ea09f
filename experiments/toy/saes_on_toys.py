"""S1: sparse autoencoders on toy models find every feature, and why tied ones do so more often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.registry import Experiment, Outcome, register
from experiments.toy import saes_on_toys_report as report
from toolkit.configs import ARCHITECTURES, PRESETS, ToyModel, ToyTraining
from toolkit.toy import train
from toolkit.tying import chance_matching, compared, configured, fit_variant, random_toy


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    around: tuple[str, ...] = report.AROUND
    """SAEs on the pentagon, one factor changed at a time; see `tying.configured` for the words."""
    architectures: tuple[str, ...] = ARCHITECTURES
    """SAEs on the pentagon, all tied and resampled."""
    importances: tuple[float, ...] = (0.9, 0.7)
    """Further models of five features, feature i weighs importance**i; with random directions besides."""
    densities: tuple[float, ...] = (0.03, 0.01, 0.003)
    """Of the large models' features; recovery is asked for below .1."""
    large: tuple[int, int] = (400, 30)
    """Their features and dimensions."""
    large_k: int = 2
    """Latents a row of their SAEs."""
    seeds: int = 24
    """Toy models and SAEs of each kind with five features; the large ones are one a density."""
    toy_steps: int = 3000
    """Of the toy models."""
    steps: int = 1500
    """Of the SAEs."""
    batch: int = 512
    """Rows a step of the SAEs on five features."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """A toy model and the SAEs fitted to it."""
    five: dict[str, Any] = {"density": 0.05, "importance": 1.0, "random": False}
    rows = [{**five, "fits": settings.around}, {**five, "fits": settings.architectures}]
    rows += [{**five, "importance": i, "fits": report.TYING} for i in settings.importances]
    rows += [{**five, "random": True, "fits": report.TYING}] if settings.importances else []
    rows += [{**five, "density": d, "large": True, "fits": report.TYING[:2]} for d in settings.densities]
    return sorted(({"large": False, **row, "fits": list(row["fits"])} for row in rows), key=lambda row: -row["large"])


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the toy models and each kind of SAE on them; compare with the truth."""
    n, m = settings.large if cell["large"] else (5, 2)
    model = ToyModel(n, m, 1 if cell["large"] else settings.seeds, (cell["density"],), cell["importance"])
    toy = train(model, ToyTraining(settings.toy_steps), seed=seed)
    toy = random_toy(toy, seed=seed) if cell["random"] else toy
    base = replace(PRESETS["pentagon"].sae, steps=settings.steps, batch=settings.batch)
    if cell["large"]:
        base = replace(PRESETS["geometry"].sae, steps=settings.steps, k=settings.large_k)
    found = {"W": toy.W, "represented": toy.represented}
    for name in cell["fits"]:
        config = configured(name, base, n)
        sae = fit_variant(toy, name, config, seed=seed)
        found |= {f"{name}/{key}": value for key, value in compared(toy, sae, seed=seed).items()}
        found |= {f"{name}/chance": chance_matching(toy, config.width, seed=seed)["matching"]}
        found |= {} if cell["large"] else {f"{name}/decoder": sae.W_dec}
    return found


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Recovery beside chance; tied against untied with and without resampling."""
    five = [(cell, r) for cell, r in zip(cells, found, strict=True) if not cell["large"]]
    large = [(cell, r) for cell, r in zip(cells, found, strict=True) if cell["large"]]
    p = {key: value for _, r in five[:2] for key, value in r.items()}  # the pentagon, all SAEs
    recovered = {name[:-10]: value for name, value in p.items() if name.endswith("/recovered")}
    elsewhere = {report.label(cell): report.means(cell, r) for cell, r in five[2:] + large}
    metrics = {"pentagon": {key: {n: p[f"{n}/{key}"].mean().item() for n in recovered} for key in report.SCORES}}
    return Outcome(
        report.conclusion(p, recovered, elsewhere),
        report.claims(p, recovered, torch.cat([r["topk/recovered"] for cell, r in large if cell["density"] < 0.1])),
        report.figures(p, recovered, [(cell["density"], report.means(cell, r)) for cell, r in large]),
        metrics | {"recovered elsewhere": elsewhere},
    )


SMOKE = Settings(
    around=(*report.TYING, "topk untied from-tied"), architectures=("l1",), importances=(), densities=(0.01,),
    large=(60, 8), large_k=1, seeds=8, toy_steps=1500, steps=1000,
)  # fmt: skip

PAPER = Settings(
    around=(*report.AROUND, *sorted({*report.FACTORIAL} - {*report.AROUND, *ARCHITECTURES})),
    densities=(0.1, 0.03, 0.01, 0.003), seeds=64, toy_steps=5000, steps=3000,
)  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="saes-on-toy-models",
        row="S1",
        question="Which SAE finds every feature of a toy model, and why do tied weights help on symmetric ones?",
        claim="tied weights help; left open is why, and what varying importances do",
        source="Sharkey et al. 2022, Taking features out of superposition; Elhage et al. 2022, Toy Models",
        controls=(
            "random decoders of the same width beside every score",
            "the same features along random directions: a toy model that has learned nothing",
            "untied SAEs: full encoders for re-drawn latents, no resampling, drawn apart, started at the tied solution",
            "SAEs of one training step",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": PAPER},
        seconds={"smoke": 8, "default": 90, "paper": 1800},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, steps=1),
    )
)
