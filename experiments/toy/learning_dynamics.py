"""T7: the loss falls in jumps, and at each jump the geometry changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import above, at_most, share
from experiments.figures import Figure, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.errors import check_types, require
from toolkit.jumps import ALPHA, coincidence, covered, jumps, steady
from toolkit.metrics import feature_dimensionality, gram
from toolkit.networks import autoencoder, error, forward, train_network
from toolkit.sources import grouped

BIN = 20
"""Steps over which speeds are taken."""
START = 5
"""Bins left out: Adam's moments build up, and everything moves."""
WINDOW = 5
"""Bins between a jump and the change of geometry that belongs to it."""
LEAST = 0.01
"""A jump gains 1% of the loss, or .01 in D or the Gram matrix, over the pace before it."""


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    cells: int = 4
    """Of eight instances each."""
    steps: int = 2500
    """Of training, small and with large batches, which keep the noise below the plateaus."""
    paired: bool = True
    """Compare each loss with its own geometry, or with the next instance's."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.steps >= 20 * BIN, f"steps must be at least {20 * BIN}, got {self.steps}: speeds are over {BIN}")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Parts of one population."""
    return [{"part": part} for part in range(settings.cells)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """W at every step; from it the loss on one large batch, D and the Gram matrix, at the end of every bin."""
    own = 1000 * (seed + 1) + cell["part"]
    source = grouped(torch.full((8,), 0.1), ((0, 1, 2), (3, 4, 5)), kind="correlated", seed=own)
    training = ToyTraining(toy_steps=settings.steps, toy_batch=4096, toy_lr=2e-3)
    trained = train_network(autoencoder(6, 3), source, training, seed=own, snapshots=range(settings.steps + 1))
    batch, ends = source.batch(2**40, 16384), range(0, settings.steps + 1, BIN)
    kept = [{name: value[t] for name, value in trained.snapshots.items()} for t in ends]
    loss = torch.stack([error(forward(trained.network, at, batch.x)[-1], batch) for at in kept])
    W = trained.snapshots["W_1"][::BIN].mT.transpose(0, 1)  # (bins, I, n, m) -> (I, bins, m, n)
    return {"loss": loss.T, "D": feature_dimensionality(W), "gram": gram(W).flatten(2)}  # ... (I, bins, n x n)


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Jumps of the loss with changes of geometry in the window, against other instances and steady curves."""
    loss, D, G = (torch.cat([result[name] for result in found]) for name in ("loss", "D", "gram"))
    fall = -loss.log().diff(dim=1).numpy()[:, START:]
    speeds = (fall, *(shape.diff(dim=1).norm(dim=2).numpy()[:, START:] for shape in (D, G)))
    drops, in_D, in_G = ([jumps(speed, least=LEAST) for speed in one] for one in speeds)
    turns = [sorted({*a, *b}) for a, b in zip(in_D, in_G, strict=True)]
    others = [*turns[1:], turns[0]]
    partners = turns if settings.paired else others
    jumped = [i for i, one in enumerate(drops) if one]
    require(bool(jumped), f"the loss of no instance jumps in steps={settings.steps}: take more steps or cells")
    hits = [coincidence(drops[i], partners[i], WINDOW) for i in jumped]
    chance = [covered(partners[i], WINDOW, fall.shape[1]) for i in jumped]
    swapped = np.concatenate([coincidence(drops[i], others[i], WINDOW) for i in jumped])
    alarms = [bool(jumps(steady(speed, seed=i), least=LEAST)) for i, speed in enumerate(fall)]
    every, gain = np.concatenate(hits), np.array([np.mean(one) for one in hits]) - np.array(chance)
    checks = (
        above("instances whose loss jumps, against the false-alarm rate", [bool(one) for one in drops], ALPHA),
        share(f"jumps with a change of D or of the Gram matrix within {WINDOW * BIN} steps", every, 0.8),
        above("that share minus the share of time near a change (rotated times)", gain, 0),
        at_most("control: curves of steady decline that seem to jump", alarms, 0.05),
    )
    conclusion = (
        f"{len(jumped)} of {len(drops)} instances have jumps in the loss, {len(every)} in all; {every.mean():.0%} come "
        f"with a change of D or of the Gram matrix within {WINDOW * BIN} steps (times rotated: {np.mean(chance):.0%}, "
        f"other instance: {swapped.mean():.0%}). Curves of steady decline seem to jump in {np.mean(alarms):.0%}."
    )
    return Outcome(conclusion, checks, (_figure(loss, D, drops, turns),), {"jumps": drops, "changes": turns})


def _figure(loss: Tensor, D: Tensor, drops: list[list[int]], turns: list[list[int]]) -> Figure:
    steps = torch.arange(loss.shape[1]) * BIN
    losses, shapes = [], []
    for i in sorted(range(len(loss)), key=lambda i: -len(drops[i]))[:4]:
        at, turned = (torch.tensor(one[i], dtype=torch.long) + START for one in (drops, turns))
        curves = (Series("loss", steps, loss[i]), Series("jump", steps[at], loss[i][at], "points"))
        losses.append(Plot(f"instance {i}", "step", "loss", curves, log_y=True))
        features = [Series(f"feature {k + 1}", steps, D[i, :, k]) for k in range(6)]
        change = Series("change", steps[turned], torch.zeros(len(turned)), "points")
        shapes.append(Plot(f"instance {i}", "step", "D_i", (*features, change)))
    caption = "Above the loss with its detected jumps, below the feature dimensionalities with their detected changes."
    return Figure("dynamics", caption, (*losses, *shapes))


SMOKE = Settings(cells=2, steps=1600)
EXPERIMENT = register(Experiment(
    name="learning-dynamics", row="T7", question="Does the loss fall in jumps, and is each a change of geometry?",
    claim="plateaus and jumps in the loss; each jump is a change of geometry",
    source="Elhage et al. 2022, Toy Models of Superposition, section 5 (superposition and learning dynamics)",
    controls=("rotated times", "another instance's geometry (broken)", "each curve's speeds in falling order"),
    scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(cells=16, steps=10000)},
    seconds={"smoke": 16, "default": 27, "paper": 450},
    cells=cells, measure=measure, summarise=summarise, broken=replace(SMOKE, paired=False),
))  # fmt: skip
