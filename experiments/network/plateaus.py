"""N6: an activation is drawn along a line towards another one: do outputs stay, then jump, or move in step?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.network.ground import ground
from experiments.network.networks import RANDOM, SPECTRUM, TRAINED
from experiments.network.over_layers import check_networks
from experiments.network.plateaus_lines import between, blocks_after, line_ends, normalised
from experiments.network.plateaus_report import KL, LOGITS, NORM, summarise
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.errors import require
from toolkit.model_files import DEFAULT
from toolkit.plateau_curves import (
    first_share,
    fit_sigmoids,
    largest_slope,
    logit_distance,
    output_distances,
    relative,
    root_divergence,
    shares,
)


@dataclass(frozen=True)
class Settings(Subject):
    """What is asked, and how finely."""

    rows: int = 12_000
    """Rows of activations in all."""
    points: int = 21
    """Steps on each line, both ends included."""
    network: str = TRAINED
    """Whose plateaus are claimed; another one is held to the same claims."""
    every: bool = True
    """Beside the network before training also its checkpoints and one with spectrum-matched weights, and all claims."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_networks((self.network,), claimed="")
        require(self.points >= 5, f"points must be at least 5, got {self.points}: a sigmoid has no shape on fewer")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Every network at every hook; the one that claims are about comes first."""
    kinds = [settings.network, RANDOM]
    kinds += [*between(settings.model or DEFAULT), SPECTRUM] if settings.every else []
    return [{"role": n, "network": kind, "at": at} for n, kind in enumerate(kinds) for at in settings.at]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """By kind of end and distance: relative curves, MEASURES of the report, and how far outputs went in all."""
    here = ground(settings, cell["at"], kind=cell["network"], seed=seed)
    s, places = shares(settings.points), torch.arange(len(here.x))
    found = {"documents": torch.from_numpy(here.documents), "after": torch.tensor(blocks_after(here))}
    for end, ends in line_ends(here, seed).items():
        how = {"steps": settings.points}
        rest = output_distances(here.rest, here.x, ends, places, {LOGITS: logit_distance, KL: root_divergence}, **how)
        rest |= output_distances(normalised, here.x, ends, places, {NORM: logit_distance}, **how)
        found[f"{end}.length"] = (ends - here.x).norm(dim=1) / here.covariance.trace().sqrt().float()
        for name, distances in rest.items():
            y = relative(distances)
            fit = fit_sigmoids(s, y)
            measures = [first_share(s, y), largest_slope(s, y), fit.width, fit.sharpness, fit.residual]
            found[f"{end}.{name}.curves"] = y.float()
            found[f"{end}.{name}.measures"] = torch.stack(measures, 1).float()  # (places, measures)
            found[f"{end}.{name}.reach"] = distances[:, -1].float()
    return found


SMOKE = Settings(hook="blocks.0.hook_resid_post", rows=5_000, places=96, points=11, every=False)
EXPERIMENT = register(
    Experiment(
        name="plateaus",
        row="N6",
        question="An activation is drawn along a line towards another: do the outputs stay and then jump?",
        claim="outputs have plateaus in trained networks, sharper with training and with the layers that follow, and "
        "none at random initialisation",
        source="Janiak et al. 2024 (stable regions); Heimersheim and Mendel 2024 (activation plateaus)",
        controls=(
            "the same places in the network before training, in a checkpoint, and with spectrum-matched weights",
            "layer norm alone of the same lines: what normalising bends",
            "lines towards draws from the covariance, and towards random directions of the same norm",
            "a straight line, which a linear network would give: width .1, slope 1",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"), "paper": Settings(rows=60_000, places=512,
                points=41, layers=6)},
        seconds={"smoke": 8, "default": 35, "paper": 3_600},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, network=RANDOM),
        group="network",
    )
)  # fmt: skip
