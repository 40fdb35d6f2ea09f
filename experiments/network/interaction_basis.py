"""N9: are interactions between layers sparser in the local interaction basis than in other bases?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from experiments.network.interaction_basis_report import summarise
from experiments.network.interaction_toys import KINDS, measure_addition, measure_planted
from experiments.network.interaction_words import measure_model
from experiments.registry import Experiment, register
from toolkit.errors import check_types, require


@dataclass(frozen=True)
class Settings:
    """The toys, and what is looked at in a model."""

    model: str = ""
    """tiny-gpt2, a folder or a hub name; empty: the toys alone."""
    corpus: str = ""
    """Text: a file, a folder, nltk:NAME."""
    hook: str = ""
    """`blocks.<n>.hook_resid_post`, with commas between many, each looked at with the next block's; empty: after
    `layers` evenly spaced blocks."""
    layers: int = 3
    """How many blocks, where no hook is named; the last one is left out."""
    networks: int = 10
    """Planted networks of each kind."""
    independent: bool = True
    """Whether their blocks do not touch."""
    modulus: int = 23
    """Of the addition."""
    additions: int = 10
    """Networks trained on it."""
    addition_steps: int = 1_000
    """Of their training."""
    rows: int = 20_000
    """Tokens of text; three fifths are what directions of variance are fitted on."""
    places: int = 96
    """Tokens that Jacobians are taken at: two thirds to fit the basis and rank edges, a third, of other documents, to
    measure it."""
    nats: float = 0.1
    """KL divergence that edges left out may cost a model."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("layers", "networks", "additions", "addition_steps", "rows"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.places >= 24, f"places must be at least 24, got {self.places}: they are dealt to fit and measure")
        require(self.nats > 0, f"nats must be positive, got {self.nats}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Planted networks of each kind one by one, the additions together, hooks of the model."""
    toys = [{"part": "planted", "kind": kind, "network": n} for kind in KINDS for n in range(settings.networks)]
    hooks = settings.hook.split(",") if settings.hook else [str(number) for number in range(settings.layers)]
    model = [{"part": "model", "at": at.strip()} for at in hooks if settings.model]
    return [*toys, {"part": "addition"}, *model]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """For every basis: how sparse interactions are, how few edges and directions do; what is known of the truth."""
    if cell["part"] == "model":
        return measure_model(settings, cell["at"], seed)
    if cell["part"] == "addition":
        return measure_addition(
            settings.modulus, instances=settings.additions, steps=settings.addition_steps, seed=seed
        )
    return measure_planted(cell["kind"], settings.independent, seed=1_000 * seed + cell["network"])


SMOKE = Settings(networks=3, additions=3)
EXPERIMENT = register(
    Experiment(
        name="interaction-basis",
        row="N9",
        question="Are interactions between layers sparser in the local interaction basis than in the principal one?",
        claim="yes where sub-circuits are planted and for modular addition; of little help in language models",
        source="Bushnaq et al. 2024, The Local Interaction Basis",
        controls=(
            "principal components, neurons, a random rotation",
            "the interaction basis that the Jacobians of another network give on the same activations",
            "planted networks with nothing idle, where principal components keep blocks apart too",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(networks=50, additions=50, modulus=47, addition_steps=3_000, places=384)},
        seconds={"smoke": 8, "default": 55, "paper": 3_600},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, independent=False),
        group="network",
        lacks=lambda settings: "--hook needs --model" if settings.hook and not settings.model else "",
    )
)  # fmt: skip
