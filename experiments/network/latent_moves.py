"""N4: latents of an SAE moved with as many on as before: worse than changes of the activation of the same length?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.network.ground import Subject, ground
from experiments.network.latent_moves_report import summarise
from experiments.network.latent_subjects import LEARNED, LIKE_ROWS, UNIFORM, Moved, moved, random_decoder
from experiments.network.networks import RANDOM, TRAINED
from experiments.network.over_layers import block_of, with_own_sae
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
    predicted: bool = True
    """Whether the whole prediction is checked; else what shows that the measure works: no covariance, no swaps under
    random decoders."""
    least: float = 1.0
    """Above it lie intervals of moves that are worse than noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.draws >= 1, f"draws must be at least 1, got {self.draws}")
        shares = all(0 < share <= 1 for share in self.shares)
        require(bool(self.shares) and shares, f"shares lie in (0, 1], got {self.shares}")
        known = self.subject in (LEARNED, UNIFORM)
        require(known, f"subject must be {LEARNED!r} or {UNIFORM!r}, got {self.subject!r}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each network and hook."""
    return [{"network": kind, "at": at} for kind in settings.networks for at in settings.at]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """For each SAE what its moves do, from the activation and from the reconstruction."""
    kind, at = cell["network"], cell["at"]
    g = ground(with_own_sae(settings, kind, at), at, kind=kind, seed=seed)
    saes: dict[str, Any] = {LEARNED: g.sae}
    for name in settings.decoders if kind == TRAINED else ():
        saes[name] = random_decoder(g, name, steps=settings.steps, seed=seed)
    if settings.subject == UNIFORM:
        saes[LEARNED] = random_decoder(g, UNIFORM, steps=settings.steps, seed=seed + 1)
    how: Any = {"shares": settings.shares, "draws": settings.draws, "seed": seed}
    found = {name: moved(g, sae, rebuilt=False, **how) for name, sae in saes.items()}
    found["rebuilt"] = moved(g, saes[LEARNED], rebuilt=True, **how)
    kept = {f"{name}: {field}": value for name, one in found.items() for field, value in _tensors(one).items()}
    return kept | {"documents": torch.as_tensor(g.documents), "block": block_of(g.hook)}


def _tensors(one: Moved) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in asdict(one).items()}


SMOKE = Settings(
    rows=6_000, places=128, layers=1, steps=200, width=256, draws=2, shares=(0.3,), networks=(TRAINED,),
    decoders=(UNIFORM,), predicted=False, least=1.3,
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
            "SAEs with random decoder directions and a trained encoder, of as many live latents and the same L0",
            "the same with directions drawn from the activations' covariance",
            "moves of the reconstruction in the place of the activation",
            "the network before training, with an SAE of its own",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(rows=200_000, places=1_000, layers=6, width=4_096, k=32, steps=5_000, draws=16)},
        seconds={"smoke": 10, "default": 180, "paper": 36_000},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, subject=UNIFORM),
        group="network",
    )
)  # fmt: skip
