"""N4: latents of an SAE moved with as many on as before: worse than changes of the activation of the same length?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from experiments.network.ground import ground
from experiments.network.latent_moves_report import summarise
from experiments.network.latent_subjects import LEARNED, LIKE_ROWS, UNIFORM, Moved, moved, random_decoders
from experiments.network.networks import RANDOM, TRAINED
from experiments.network.over_layers import block_of, check_networks, own_sae
from experiments.network.subject import Subject
from experiments.registry import Experiment, register
from toolkit.errors import require


@dataclass(frozen=True)
class Settings(Subject):
    """Which moves, and by how many draws they are compared."""

    shares: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of each latent's value moved, and of the latents on swapped."""
    draws: int = 4
    """Of every move at every place, each with one of each control of its length."""
    networks: tuple[str, ...] = (TRAINED, RANDOM)
    """Asked; SAEs with random decoders in the first alone."""
    subject: str = LEARNED
    """Whose latents are said to be the SAE's; `random decoder`: of one that learned no directions."""
    decoders: tuple[str, ...] = (UNIFORM, LIKE_ROWS)
    """Random ones held beside it."""
    dictionaries: int = 4
    """Drawn of each at every hook: intervals are over them too."""
    predicted: bool = True
    """Whether the whole prediction is checked; else what shows that the measure works: no covariance, no swaps under
    random decoders."""
    least: float = 1.0
    """Above it lie intervals of moves that are worse than noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draws >= 1, f"draws must be at least 1, got {self.draws}")
        two = "one alone has no spread"
        require(self.dictionaries >= 2, f"dictionaries must be at least 2, got {self.dictionaries}: {two}")
        check_networks(self.networks)
        random = bool(self.decoders) and set(self.decoders) <= {UNIFORM, LIKE_ROWS}
        require(random, f"decoders must be some of {UNIFORM!r} and {LIKE_ROWS!r}, got {self.decoders}")
        shares = all(0 < share <= 1 for share in self.shares)
        require(bool(self.shares) and shares, f"shares lie in (0, 1], got {self.shares}")
        known = self.subject in (LEARNED, UNIFORM)
        require(known, f"subject must be {LEARNED!r} or {UNIFORM!r}, got {self.subject!r}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each network and hook."""
    return [{"network": kind, "at": at} for kind in settings.networks for at in settings.at]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """For each SAE what its moves do, from the activation and from the reconstruction; dictionaries first."""
    kind, at = cell["network"], cell["at"]
    g = ground(own_sae(settings, kind, at), at, kind=kind, seed=seed)
    how: Any = {"shares": settings.shares, "draws": settings.draws}
    draw: Any = {"steps": settings.steps, "seed": seed}
    subject: Any = g.sae
    if settings.subject == UNIFORM:  # one more than those beside it
        ((subject, _),) = random_decoders(g, UNIFORM, [settings.dictionaries], **draw)
    found = {LEARNED: [moved(g, subject, rebuilt=False, seed=seed, **how)]}
    for name in settings.decoders if kind == TRAINED else ():
        some = random_decoders(g, name, range(settings.dictionaries), **draw)
        found[name] = [moved(g, sae, rebuilt=False, seed=own, **how) for sae, own in some]
    found["rebuilt"] = [moved(g, subject, rebuilt=True, seed=seed, **how)]
    kept = {f"{name}: {field}": value for name, each in found.items() for field, value in _tensors(each).items()}
    return kept | {"documents": torch.as_tensor(g.documents), "block": block_of(g.hook)}


def _tensors(each: Sequence[Moved]) -> dict[str, Tensor]:
    names = [field.name for field in fields(Moved)]
    return {name: torch.stack([torch.as_tensor(getattr(one, name)) for one in each]) for name in names}


SMOKE = Settings(
    rows=6_000, places=128, layers=1, steps=150, width=256, draws=2, shares=(0.3,), networks=(TRAINED,),
    decoders=(UNIFORM,), dictionaries=2, predicted=False, least=1.3,
)  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="latent-moves",
        row="N4",
        question="Are moves of an SAE's latents that keep L0 worse than other changes of the activation of their size?",
        claim="predicted, untested: worse than isotropic and covariance noise where the SAE's directions are "
        "read; with a random decoder not",
        source="prediction put by this project",
        controls=(
            "isotropic noise of each move's length",
            "noise from the activations' covariance",
            "SAEs with random decoder directions and a trained encoder, a latent for each live one, of the same L0",
            "the same with directions drawn from the activations' covariance; several of each, seeds of their own",
            "moves of the reconstruction in the place of the activation",
            "the network before training, with an SAE of its own, of as many latents and the same L0",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(rows=200_000, places=1_000, layers=6, width=4_096, k=32, steps=5_000, draws=16)},
        seconds={"smoke": 12, "default": 170, "paper": 90_000},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, subject=UNIFORM),
        group="network",
    )
)  # fmt: skip
