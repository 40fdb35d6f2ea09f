"""What C2 and C3 share: models of halves of features that never play together, trained many at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from toolkit.configs import ToyTraining
from toolkit.contexts import Play, train_play


@dataclass(frozen=True)
class Training:
    """What is trained."""

    seeds: int = 16
    """Models of each kind; the half with the lower loss is kept, since single seeds get stuck."""
    steps: int = 1800
    """Of training: 12 epochs of 150."""
    batch: int = 512
    """Rows in a step."""
    lr: float = 3e-2
    """Adam's rate; at a third of it one seed in ten is stuck."""


def measure(settings: Training, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train; best first."""
    training = ToyTraining(toy_steps=settings.steps, toy_batch=settings.batch, toy_lr=settings.lr)
    toy = train_play(Play(**cell), training, instances=settings.seeds, seed=seed)
    order = toy.loss.argsort()
    return {"W": toy.W[order], "loss": toy.loss[order]}
