"""C1: importance that depends on a context changes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.checks import above, near, within
from experiments.figures import Figure, Heatmap
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyTraining
from toolkit.contexts import Play, interference, random_directions, train_play
from toolkit.metrics import gram, represented


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    seeds: int = 48
    """Pairs of models that start alike; counts are of the quarter of lowest loss, since single seeds get stuck."""
    epoch: int = 150
    """Steps; at 12 epochs the loss is flat."""
    batch: int = 512
    """Rows in a step."""
    epochs: tuple[int, ...] = (0, 4, 12)
    """When the Gram matrix is shown; the last ends the training."""
    lr: float = 3e-2
    """Adam's rate; a third of it ends in local minima of higher loss."""
    values: Literal["kept", "zeroed"] = "kept"
    """What the conditional model sees of the half that does not matter."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """Importance given by the context, or its average over contexts."""
    return [{"importance": "conditional", "values": settings.values}, {"importance": "average", "values": "kept"}]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train; both cells start alike and see the same features."""
    training = ToyTraining(toy_steps=settings.epochs[-1] * settings.epoch, toy_batch=settings.batch, toy_lr=settings.lr)
    shown = [epoch * settings.epoch for epoch in settings.epochs]
    toy = train_play(Play(**cell), training, instances=settings.seeds, seed=seed, snapshots=shown)
    return {"W": toy.snapshots["W_1"].mT, "loss": toy.loss}  # (epochs, I, m, n)


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """The same features, as much interference, in the same places."""
    best = (found[0]["loss"] + found[1]["loss"]).argsort()[: settings.seeds // 4]
    W, fixed_W = (one["W"] for one in found)
    count, fixed_count = (represented(w[-1]).sum(-1).float() for w in (W, fixed_W))
    own, other = interference(W[-1]), interference(fixed_W[-1])
    chance = interference(random_directions(W[-1], seed=0))
    alike, by_chance = correlations(W[-1], fixed_W[-1]), correlations(W[-1], fixed_W[-1].roll(1, 0))
    apart_within = (own.within - other.within) / other.within.mean()
    apart_across = (own.across - other.across) / other.across.mean()
    checks = (
        near("best quarter: about 17 features (16 to 18 in the source), conditional importance", count[best], 17, 1.5),
        near("best quarter: about 17 features (16 to 18 in the source), fixed importance", fixed_count[best], 17, 1.5),
        within("difference in features represented, conditional - fixed", count - fixed_count, -1, 1),
        within("interference within halves, (conditional - fixed) / mean fixed", apart_within, -0.25, 0.25),
        within("interference across halves, (conditional - fixed) / mean fixed", apart_across, -0.25, 0.25),
        within("loss, conditional / fixed", found[0]["loss"] / found[1]["loss"], 0.95, 1.05),
        above("same overlaps: correlation of the Gram matrices, less that with another seed's", alike - by_chance, 0.3),
    )
    caption = (
        "Gram matrices of the pair of lowest loss: comedy features first, tragedy features behind the line. Whether "
        "importance depends on the context or not, the same features are kept and the same ones overlap."
    )
    conclusion = (
        f"{count[best].mean():.3g} features are represented with conditional importance and "
        f"{fixed_count[best].mean():.3g} with fixed in the best of {settings.seeds} pairs ({count.mean():.3g} and "
        f"{fixed_count.mean():.3g} in all). Interference differs by {apart_within.mean():+.1%} within halves and by "
        f"{apart_across.mean():+.1%} across; the Gram matrices of a pair correlate by {alike.mean():.2f}, those of "
        f"different seeds by {by_chance.mean():.2f}."
    )
    sums = {"conditional": own, "fixed": other, "random directions of the same norms": chance}
    grams = {"conditional": gram(W[:, best[0]]), "fixed": gram(fixed_W[:, best[0]])}
    figures = tuple(
        Figure(name, caption, tuple(Heatmap(f"{name}, epoch {epoch}", one, "feature", "feature", halves=True)
                                    for epoch, one in zip(settings.epochs, G, strict=True)))
        for name, G in grams.items()
    )  # fmt: skip
    metrics = {name: {"within": s.within.mean().item(), "across": s.across.mean().item()} for name, s in sums.items()}
    tensors = {"W": W[-1, best], "fixed_W": fixed_W[-1, best], "count": count, "fixed_count": fixed_count}
    return Outcome(conclusion, checks, figures, {"interference": metrics}, tensors)


def correlations(W: Tensor, other: Tensor) -> Tensor:
    """Correlation of the two Gram matrices off the diagonal, one for each instance."""
    above_diagonal = torch.triu_indices(W.shape[-1], W.shape[-1], 1).unbind()
    pairs = zip(gram(W), gram(other), strict=True)
    return torch.stack([torch.corrcoef(torch.stack([a[above_diagonal], b[above_diagonal]]))[0, 1] for a, b in pairs])


SMOKE = Settings(seeds=32, epoch=50, batch=256)

EXPERIMENT = register(
    Experiment(
        name="conditional-importance",
        row="C1",
        question="Does a model that is told which half of the features matters only through the loss make use of it?",
        claim="no: 16 to 18 of 20 features, overlapping as with fixed importance",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, Preliminary Results",
        controls=(
            "fixed importance, the average over contexts: the same start, the same inputs",
            "random directions of the same norms; the Gram matrix at initialisation",
            "the values of the other half zeroed: then the models differ",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(epoch=500, batch=1024)},
        seconds={"smoke": 5, "default": 25, "paper": 260},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, values="zeroed"),
    )
)
