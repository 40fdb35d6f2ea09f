"""N2: several correlated attributes probed together: which vectors steer one and leave the others alone?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.network.steering_families import FAMILIES, families
from experiments.network.steering_report import KINDS, summarise
from experiments.network.steering_words import next_word_effects, word_ground
from experiments.network.steering_world import SteeringWorld, steering_world
from experiments.network.words import lacking
from experiments.registry import Experiment, register
from toolkit.steering import dual_basis
from toolkit.steering_effects import steering_effects
from toolkit.steering_results import SteeringEffects


@dataclass(frozen=True)
class Settings:
    """The toy world, and what is steered in a model."""

    model: str = ""
    """tiny-gpt2, a folder or a hub name; empty: the toy world alone."""
    corpus: str = ""
    """Words with parts of speech and morphology: a CoNLL-U file or a folder of them."""
    worlds: int = 20
    """Toy worlds of each kind."""
    rows: int = 4_000
    """Rows of each that probes are fitted on, and as many that are new."""
    noise: float = 0.2
    """In each dimension, where an attribute writes 1 in one."""
    correlation: float = 0.6
    """Of the Gaussians behind the attributes: .39 between the attributes themselves."""
    overlap: float = 0.5
    """Cosine between the directions of a group."""
    others: int = 6
    """Features without labels."""
    attributes: tuple[str, ...] = ("upos=NOUN", "upos=VERB", "upos=ADJ", "Number=Plur", "Tense=Past", "PronType=Prs")
    """Of words: layer=label."""
    block: int = -1
    """Steered after this block; -1: after the middle one."""
    words: int = 20_000
    """Of random documents: three fifths for probes, a fifth for expected effects, a fifth to steer in."""
    places: int = 128
    """Words steered, no more than these."""
    random: int = 19
    """Random directions beside each vector in a model; p is at least 1 / (1 + random)."""
    nats: float = 0.1
    """KL divergence matched in a model; small beside what it loses a token."""


TOY = tuple({"relu": relu, "others": others, "correlated": correlated} for relu, others, correlated in KINDS)
TOY_DISTANCE = 0.02
"""Half the squared distance matched in toy worlds: an output moved by .2, where an attribute moves it by .6 to 1."""
TOY_PLACES = 200
TOY_RANDOM = 19


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Worlds of each kind, then a cell a family of directions in the model."""
    toy = [{"part": "toy", "world": w, **kind} for kind in TOY for w in range(settings.worlds)]
    return toy + [{"part": "model", "family": family} for family in FAMILIES if settings.model]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Per family, attribute and place: divergence, what the expected effect explains of it, movements, loss."""
    if cell["part"] == "model":
        ground = word_ground(settings, seed)
        directions = {cell["family"]: ground.directions[cell["family"]]}
        found = next_word_effects(ground, directions, nats=settings.nats, random=settings.random, seed=seed)
        return _tensors(found) | {"documents": torch.as_tensor(ground.documents)}
    size: Any = {"rows": 2 * settings.rows, "overlap": settings.overlap, "noise": settings.noise}
    size |= {"others": settings.others * cell["others"], "correlation": settings.correlation * cell["correlated"]}
    world = steering_world(**size, relu=cell["relu"], seed=100 * (100 * seed + cell["world"]) % 2**31)
    half = settings.rows
    given = families(world.rows[:half].numpy(), world.labels[:half], groups=None, l2=1e-3, seed=seed + cell["world"])
    given["truth"] = dual_basis(world.reads).vectors[:, : len(world.effects)]
    return _tensors(_toy_effects(world, given, half, seed))


def _toy_effects(world: SteeringWorld, given: dict[str, np.ndarray], half: int, seed: int) -> SteeringEffects:
    fresh = world.rows[half : half + TOY_PLACES]
    how: Any = {"kl": TOY_DISTANCE, "divergence": "squared", "random": TOY_RANDOM, "seed": seed}
    return steering_effects(world, fresh, given, world.effects, **how)


def _tensors(found: SteeringEffects) -> dict[str, Tensor]:
    names = ("scales", "divergence", "explained", "along", "loss", "random_target", "random_explained")
    kept = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
    return {name: torch.as_tensor(value).float() for name, value in kept.items()}


SMOKE = Settings(worlds=3, rows=2_000)
EXPERIMENT = register(
    Experiment(
        name="steering",
        row="N2",
        question="Several correlated attributes are probed together: which vectors steer one and leave the rest alone?",
        claim="probes, plain duals, mean differences leak; the covariance-weighted dual less, patterns of labels least",
        source="question put by this project; Haufe et al. 2014, Theorem 1, for the pattern",
        controls=(
            "random directions of the same length at the same places",
            "the network's own dual, known in toy worlds",
            "no features without labels: then plain and weighted dual are one",
            "attributes uncorrelated: then the difference of means does not err",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(worlds=50, words=60_000, places=512, random=99)},
        seconds={"smoke": 15, "default": 450, "paper": 7_200},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, correlation=0.0, overlap=0.0, others=0),
        group="network",
        lacks=lambda settings: lacking(settings.corpus),
    )
)  # fmt: skip
