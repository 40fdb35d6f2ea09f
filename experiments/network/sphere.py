"""N5: do outputs spike where a small sphere round an activation meets an SAE's directions?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.network.ground import ground
from experiments.network.latent_directions import Dictionary, Gaussian
from experiments.network.networks import RANDOM, TRAINED
from experiments.network.over_layers import check_networks, own_sae
from experiments.network.sphere_measures import along_circles, maxima
from experiments.network.sphere_report import PLANTED, summarise
from experiments.network.sphere_scenes import planted, scene_of
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.errors import require
from toolkit.sphere_search import require_radius


@dataclass(frozen=True)
class Settings(Subject):
    """What is asked, and on which spheres."""

    rows: int = 12_000
    """Rows of activations in all."""
    places: int = 48
    """Of them, those that are moved at most."""
    networks: tuple[str, ...] = (TRAINED, RANDOM)
    """Which networks; all but the trained one at the middle hook alone."""
    radii: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    """Of the spheres, in typical distances of a row from the mean."""
    directions: int = 4
    """Of each family at each place, a great circle each."""
    angles: int = 24
    """Points of a great circle, evenly spaced."""
    restarts: int = 4
    """Climbs on each sphere, from draws of the activations' covariance."""
    draws: int = 199
    """Random dictionaries, and permutations of documents; p is at least 1 / (1 + draws)."""
    shuffled: bool = False
    """Random directions of the decoders' covariance take the decoders' place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_networks(self.networks)
        require(len(self.radii) > 0, "no radius given: radii are numbers above 0, in typical distances from the mean")
        for radius in self.radii:
            require_radius(radius)
        require(list(self.radii) == sorted(self.radii), f"radii must rise, got {self.radii}")
        require(self.angles >= 24 and self.angles % 12 == 0, f"angles must be 24, 36, 48, ..., got {self.angles}")
        for name in ("directions", "restarts", "draws"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The planted network, then networks at hooks."""
    middle = settings.at[len(settings.at) // 2]
    named = [(kind, at) for kind in settings.networks for at in settings.at if kind == TRAINED or at == middle]
    return [{"network": PLANTED, "at": ""}, *({"network": kind, "at": at} for kind, at in named)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """KL along great circles, and how near the maxima lie to the dictionary and to random ones."""
    if cell["network"] == PLANTED:
        scene = planted(settings.places, seed)
    else:
        own = own_sae(settings, cell["network"], cell["at"])
        scene = scene_of(ground(own, cell["at"], kind=cell["network"], seed=seed))
    if settings.shuffled:
        given = scene.dictionary
        rows = Gaussian.like(given.rows).units((len(given.rows),), np.random.default_rng([seed, 89]))
        scene = replace(scene, dictionary=Dictionary(rows.to(given.rows), given.on))
    circles: Any = {"count": settings.directions, "angles": settings.angles}
    climbs: Any = {"restarts": settings.restarts, "draws": settings.draws}
    found = along_circles(scene, settings.radii, **circles, seed=seed)
    found |= maxima(scene, settings.radii, **climbs, seed=seed)
    return {**found, "documents": torch.as_tensor(scene.documents)}


SMOKE = Settings(
    layers=1, rows=3_000, places=32, steps=150, width=256, networks=(TRAINED,), radii=(0.03, 1.0), directions=2,
    restarts=2, draws=99,
)  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="sphere",
        row="N5",
        question="Do outputs spike where a small sphere round an activation meets an SAE's directions?",
        claim="if the network reads an SAE's directions, KL peaks at those on at a place more than at random ones, and "
        "the sphere's maxima lie nearer to them",
        source="question put by this project; for the baselines Lee and Heimersheim 2024, sensitive directions",
        controls=(
            "directions drawn with the mean and covariance of the decoder's",
            "the same turned to lie as far along the activation as directions on there",
            "directions drawn from the activations' covariance",
            "random dictionaries of the same size; directions on at other places",
            "a planted network that reads its dictionary; the most sensitive direction, where there must be a peak",
            "the network before training, with an SAE of its own",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(rows=200_000, places=256, width=4_096, k=32, steps=4_000, directions=8, restarts=8)},
        seconds={"smoke": 15, "default": 90, "paper": 14_400},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, shuffled=True),
        group="network",
    )
)  # fmt: skip
