"""N3: are SAE errors pathological? KL of the error against changes of the same length, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.network.ground import Ground, ground
from experiments.network.networks import RANDOM, SPECTRUM, TRAINED
from experiments.network.over_layers import AT_ONCE, block_of, check_networks, own_sae
from experiments.network.sae_errors_report import BAR, COVARIANCE, ISOTROPIC, summarise
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.errors import require
from toolkit.metrics import fvu
from toolkit.same_norm import (
    Subspace,
    from_covariance,
    isotropic,
    of_other_rows,
    rotated_about,
    rotated_in_bands,
    subspace,
    towards,
)

BAND = 8
"""Principal directions of the activations in a band inside which errors are rotated."""
ENERGY = 0.9
"""Share of the errors' squares, in other documents, that their subspace holds."""


@dataclass(frozen=True)
class Settings(Subject):
    """What is asked, and by how many draws."""

    draws: int = 8
    """Of each control, at every place."""
    networks: tuple[str, ...] = (TRAINED, RANDOM, SPECTRUM)
    """Asked, each with an SAE of its own activations."""
    bars: tuple[float, ...] = (BAR, BAR)
    """Intervals lie above the first where errors are worse than isotropic noise, below the second over covariance."""
    errors: str = "sae"
    """sae: the SAE's; isotropic: a draw of each one's length in its place, whose answer is known to be 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draws >= 2, f"draws must be at least 2, got {self.draws}: one is held against the others")
        check_networks(self.networks)
        require(len(self.bars) == 2, f"bars are two, got {self.bars}")
        require(self.errors in ("sae", "isotropic"), f"errors must be sae or isotropic, got {self.errors!r}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each network and hook."""
    return [{"network": kind, "at": at} for kind in settings.networks for at in settings.at]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """KL of the error at every place, and of every draw of each control."""
    kind, at = cell["network"], cell["at"]
    g = ground(own_sae(settings, kind, at), at, kind=kind, seed=seed)
    here = g.rebuilt(g.x) - g.x
    norms = here.norm(dim=1)
    if settings.errors == "isotropic":
        here = isotropic(norms, here.shape[1], draws=1, seed=seed + 1)[0]
    elsewhere = torch.cat([g.rebuilt(some) - some for some in g.unseen.split(AT_ONCE)])
    inside = subspace(elsewhere, energy=ENERGY)
    controls = controls_of(g, here, elsewhere, inside, draws=settings.draws, seed=1_000 * seed)
    found = {name: g.divergences(g.x + rows).float() for name, rows in controls.items()}
    kept = {"kl": g.divergences((g.x + here)[None])[0].float(), "norms": norms, "lengths": g.x.norm(dim=1)}
    kept |= {"documents": torch.as_tensor(g.documents), "positions": torch.as_tensor(g.positions)}
    kept |= {"unexplained": torch.tensor(fvu(g.x, g.rebuilt(g.x))), "block": block_of(g.hook)}
    return kept | {"directions": torch.tensor(len(inside.energies)), **found}


def controls_of(
    g: Ground, here: Tensor, elsewhere: Tensor, inside: Subspace, *, draws: int, seed: int
) -> dict[str, Tensor]:
    """Changes of the error's length at every place, (draws, places, d) each; learned from other documents."""
    norms = here.norm(dim=1)
    return {
        ISOTROPIC: isotropic(norms, here.shape[1], seed=seed, draws=draws),
        COVARIANCE: from_covariance(norms, g.covariance, seed=seed + 100, draws=draws),
        "towards another activation": towards(g.x, norms, g.learn, seed=seed + 200, draws=draws),
        "in the errors' subspace": inside.within(norms, seed=seed + 300, draws=draws),
        "errors' covariance": inside.within(norms, shaped=True, seed=seed + 400, draws=draws),
        "rotated about the activation": rotated_about(here, g.x, seed=seed + 500, draws=draws),
        "rotated in bands": rotated_in_bands(here, g.covariance, size=BAND, seed=seed + 600, draws=draws),
        "another place's error": of_other_rows(norms, elsewhere, seed=seed + 700, draws=draws),
    }


SMOKE = Settings(rows=6_000, places=192, layers=1, steps=200, width=256, draws=2, networks=(TRAINED,), bars=(1.1, 1.8))
EXPERIMENT = register(
    Experiment(
        name="sae-errors",
        row="N3",
        question="Are SAE errors pathological: do they move a network's outputs more than other changes of their size?",
        claim="KL of SAE errors is above 1.3 times isotropic noise's (published: 2 to 4.5), not covariance noise's",
        source="Gurnee 2024, SAE reconstruction errors are (empirically) pathological; Lee and Heimersheim 2024",
        controls=(
            "isotropic noise of each error's length",
            "noise from the activations' covariance, steps towards another real activation",
            "noise in the errors' subspace (principal directions of 90% of their squares), and with their covariance",
            "the error rotated about the activation, and inside bands of the activations' principal directions",
            "another place's error, brought to this one's length",
            "the network before training, and with its matrices' singular values alone: SAEs of their own, of one size",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(rows=200_000, places=1_000, layers=6, width=4_096, k=32, steps=5_000, draws=16)},
        seconds={"smoke": 10, "default": 70, "paper": 36_000},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, errors="isotropic"),
        group="network",
    )
)  # fmt: skip
