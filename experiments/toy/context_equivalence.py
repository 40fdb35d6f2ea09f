"""C3: conditional importance, with a place for each feature and context, is anti-correlation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.checks import above, at_most, near, within
from experiments.figures import Figure, Heatmap
from experiments.registry import Experiment, Outcome, register
from experiments.toy.halves import Training, measure
from toolkit.contexts import opposed, random_directions
from toolkit.metrics import gram, represented

PLACES = [*range(10), *range(30, 40)]
"""Entries of z that carry importance: comedy features in a comedy, tragedy features in a tragedy."""


@dataclass(frozen=True)
class Settings(Training):
    """What is trained, and the importance of entries that no context needs."""

    middle: Literal["none", "full"] = "none"
    """Importance of the 20 entries of z in the middle."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """z in 40 dimensions; C2's model; C1's model."""
    importance = "conditional" if settings.middle == "none" else "fixed"
    return [
        {"values": "doubled", "importance": importance},
        {"values": "zeroed", "importance": "fixed"},
        {"values": "kept", "importance": "conditional"},
    ]


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """The same Gram matrix once antipodes are lined up, the same loss, nothing in the middle."""
    kept = max(2, settings.seeds // 2)
    (z, z_loss), (W, loss), (never_W, never_loss) = ((one["W"][:kept], one["loss"][:kept]) for one in found)
    doubled = z[..., PLACES]
    apart, chance, to_c1 = (distances(W, other) for other in (doubled, random_directions(doubled, seed=0), never_W))
    middle = z[..., 10:30].norm(dim=1).amax(-1)
    count = represented(doubled).sum(-1).float()
    checks = (
        near("features represented among the 20 that carry importance", count, 20, 0.1),
        at_most("largest norm among the 20 that carry none", middle, 0.05),
        at_most("largest difference of Gram entries from C2's, antipodes lined up", apart, 0.05),
        above("the same for random directions of the same norms, less that", chance - apart, 0.5),
        above("the same for C1's model, less that", to_c1 - apart, 0.5),
        within("loss - C2's, as a share of C1's", (z_loss - loss) / never_loss.mean(), -0.02, 0.02),
    )
    panels = (
        Heatmap("z, all 40 entries", gram(z[0]), "entry of z", "entry of z", halves=True),
        *(
            Heatmap(title, gram(opposed(w)), "feature", "feature", halves=True)
            for title, w in (("z, the 20 that matter", doubled[0]), ("C2: values zeroed", W[0]), ("C1", never_W[0]))
        ),
    )
    caption = (
        "Gram matrices of the best models. z keeps nothing of the middle; what is left is the code of anti-correlated "
        "features (each feature of the second half is moved to its antipode's place)."
    )
    conclusion = (
        f"With its own place for each context, the model represents {count.mean():.3g} of the 20 entries that "
        f"carry importance and drops the middle (largest norm {middle.max():.1e}); its Gram matrix is that of "
        f"anti-correlated halves to within {apart.max():.1e} (random directions: {chance.mean():.2f}, C1's model: "
        f"{to_c1.mean():.2f}), and so is its loss: {z_loss.mean():.1e} and {loss.mean():.1e}, against "
        f"{never_loss.mean():.4f} in C1."
    )
    metrics = {"loss": {name: one["loss"].tolist() for name, one in zip(("z", "C2", "C1"), found, strict=True)}}
    return Outcome(conclusion, checks, (Figure("gram", caption, panels),), metrics, {"W_z": z, "W": W})


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Largest difference between the Gram matrices of pairs of models, antipodes lined up."""
    pairs = zip(first, second, strict=True)
    return torch.stack([(gram(opposed(a)) - gram(opposed(b))).abs().max() for a, b in pairs])


SMOKE = Settings(steps=800, batch=128)

EXPERIMENT = register(
    Experiment(
        name="context-equivalence",
        row="C3",
        question="What would a model do if features of one context had places of their own?",
        claim="conditional importance of x is constant importance of z = (x, 0) or (0, x): C2's Gram matrix and loss",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, Equivalence",
        controls=(
            "C2's model; C1's, which has one place for both contexts; random directions of the same norms",
            "full importance in the middle: 40 features compete for 10 dimensions",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=6000, batch=1024)},
        seconds={"smoke": 4, "default": 15, "paper": 400},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, middle="full"),
    )
)
