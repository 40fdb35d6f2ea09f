"""N7: how far along an SAE's, principal, Jacobian or random directions do outputs hold still?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.network.ground import Ground, divergence, ground
from experiments.network.networks import RANDOM, SPECTRUM, TRAINED
from experiments.network.over_layers import check_networks, own_sae
from experiments.network.sensitive_directions_report import summarise
from experiments.network.sensitive_families import families, isotropic
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.errors import require
from toolkit.sensitivity import along, fisher_forms, threshold_distances


@dataclass(frozen=True)
class Settings(Subject):
    """What is asked, and how far."""

    rows: int = 12_000
    """Rows of activations in all."""
    places: int = 64
    """Of them, those that are moved at most."""
    networks: tuple[str, ...] = (TRAINED, RANDOM, SPECTRUM)
    """Which networks; all but the trained one at the middle hook alone."""
    nats: tuple[float, ...] = (0.01, 0.1, 0.5)
    """Thresholds of KL."""
    shares: tuple[float, ...] = (0.01, 0.1)
    """More, as shares of the mean KL between outputs of two places: networks differ in how much they say."""
    directions: int = 4
    """Of each family at each place."""
    furthest: float = 4.0
    """How far it is looked, in typical distances of a row from the mean."""
    shuffled: bool = False
    """Isotropic directions take the place of every family."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("nats", "shares"):
            given = getattr(self, name)
            require(len(given) > 0 and min(given) > 0, f"{name} are thresholds above 0, one at least, got {given}")
        require(self.directions >= 2, f"directions must be at least 2, got {self.directions}")
        require(self.furthest > 0, f"furthest must be above 0, got {self.furthest:g}: it is a distance")
        check_networks(self.networks)


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each network and hook."""
    middle = settings.at[len(settings.at) // 2]
    return [
        {"network": kind, "at": at}
        for kind in settings.networks
        for at in settings.at
        if kind == TRAINED or at == middle
    ]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Distances to each threshold, and v^T G v, of each family's directions at each place."""
    g = ground(own_sae(settings, cell["network"], cell["at"]), cell["at"], kind=cell["network"], seed=seed)
    typical = float(g.covariance.trace().sqrt())
    far, thresholds = (
        settings.furthest * typical,
        torch.tensor([*settings.nats, *(s * usual(g) for s in settings.shares)]),
    )
    rng = np.random.default_rng([seed, 101])
    found = {"documents": torch.as_tensor(g.documents), "typical": torch.tensor(typical), "thresholds": thresholds}
    for name, given in families(g, settings.directions, seed=seed).items():
        units = isotropic(given.shape[:2], given.shape[2], rng).to(g.x) if settings.shuffled else given
        known = units.nan_to_num()
        curves = along(g.rest, g.x, g.clean, known)
        wanted = thresholds.double()[:, None].expand(-1, known.shape[0] * known.shape[1])
        distances = threshold_distances(curves, wanted.shape[1], wanted, furthest=far).unflatten(1, known.shape[:2])
        lost = units[..., 0].isnan()
        found[f"{name}.distance"] = (distances / typical).masked_fill(lost, torch.nan)
        found[f"{name}.fisher"] = fisher_forms(g.rest, g.x, known).double().masked_fill(lost, torch.nan) * typical**2
    return found


def usual(g: Ground) -> float:
    """Mean KL between outputs of two places, in nats: each place against the one half the list further on."""
    return float(divergence(g.clean, g.clean.roll(len(g.clean) // 2, 0)).mean())


SMOKE = Settings(
    layers=1, rows=3_000, places=40, steps=150, width=256, networks=(TRAINED,), directions=3, shares=(0.001, 0.1)
)
EXPERIMENT = register(
    Experiment(
        name="sensitive-directions",
        row="N7",
        question="How far do outputs hold still along an SAE's directions, and principal, Jacobian and random ones?",
        claim="the Jacobian's first singular vectors are the most sensitive for small thresholds; directions from the "
        "activations' covariance more than isotropic ones; an SAE's against principal ones is measured",
        source="Heimersheim and Mendel 2024, activation plateaus; Lee and Heimersheim 2024, sensitive directions",
        controls=(
            "random directions: isotropic, from the activations' covariance, with the decoders' mean and covariance",
            "the last of these turned to lie as far along the activation as SAE directions on there",
            "the network before training, and with each matrix's singular values alone, SAEs of their own",
            "thresholds in nats, and as shares of the KL between outputs of two places",
            "isotropic directions in the place of every family",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(rows=200_000, places=512, width=4_096, k=32, steps=4_000, directions=8)},
        seconds={"smoke": 12, "default": 80, "paper": 14_400},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, shuffled=True),
        group="network",
    )
)  # fmt: skip
