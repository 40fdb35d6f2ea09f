"""C2: halves that are never on together share the dimensions; halves that never matter together do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from experiments.checks import above, at_most, near, share
from experiments.figures import Figure, Heatmap
from experiments.registry import Experiment, Outcome, register
from experiments.toy.halves import Training, measure
from toolkit.contexts import interference, random_directions
from toolkit.metrics import gram, represented


@dataclass(frozen=True)
class Settings(Training):
    """What is trained, and what becomes of the other half."""

    values: Literal["kept", "zeroed"] = "zeroed"
    """What becomes of the other half."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The values zeroed, with fixed and with conditional importance; C1's model."""
    return [
        {"values": settings.values, "importance": "fixed"},
        {"values": settings.values, "importance": "conditional"},
        {"values": "kept", "importance": "conditional"},
    ]


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Every feature represented, none in the way of another of its half."""
    kept = max(2, settings.seeds // 2)
    (W, loss), (free_W, free_loss), (never_W, never_loss) = ((one["W"][:kept], one["loss"][:kept]) for one in found)
    never_count = represented(never_W).sum(-1).float()
    checks = [at_most("loss, fixed importance / C1's", loss / never_loss, 0.2)]
    for name, w in (("fixed", W), ("conditional", free_W)):
        sums, chance = interference(w), interference(random_directions(w, seed=0))
        part, by_chance = (s.across / (s.within + s.across) for s in (sums, chance))
        checks += [
            near(f"features represented, {name} importance", represented(w).sum(-1).float(), 20, 0.1),
            share(f"no |G_ij| > .25 within a half, {name} importance", sums.largest_within <= 0.25, 0.9),
            share(f"interference across halves >= 95% of all, {name} importance", part >= 0.95, 0.9),
            above(f"that share, less that of random directions of the same norms, {name} importance",
                  part - by_chance, 0.3),
        ]  # fmt: skip
    opposite = -gram(W)[:, :10, 10:].amin(-1)  # (I, 10): how nearly each comedy feature has an antipode
    checks.append(
        share("fixed importance: each feature has an antipode in the other half", opposite.amin(-1) > 0.9, 0.9)
    )
    panels = tuple(
        Heatmap(f"{name}, loss {one['loss'][0]:.2g}", gram(one["W"][0]), "feature", "feature", halves=True)
        for name, one in zip(
            ("zeroed, fixed importance", "zeroed, conditional", "kept, conditional (C1)"), found, strict=True
        )
    )
    caption = (
        "Gram matrices of the best models: comedy features first, tragedy features behind the line. With values zeroed "
        "each half is orthogonal; it shares its dimensions with the other half, as antipodes where importance is fixed "
        "and at any angle where the other half does not matter."
    )
    conclusion = (
        f"{represented(W).sum(-1).float().mean():.3g} of 20 features are represented against "
        f"{never_count.mean():.3g} with the values kept, at a loss of {loss.mean():.1e} (conditional importance: "
        f"{free_loss.mean():.1e}) against {never_loss.mean():.4f}. The largest overlap within a half is "
        f"{interference(W).largest_within.max():.1e}; with fixed "
        f"importance {opposite.amin(-1).gt(0.9).float().mean():.0%} of models give every feature an antipode across. "
        f"Over all {settings.seeds} seeds, stuck ones included, the mean loss is {found[0]['loss'].mean():.1e}."
    )
    metrics = {
        "loss": {panel.title.split(", loss")[0]: one["loss"].tolist() for panel, one in zip(panels, found, strict=True)}
    }
    tensors = {"W": W, "W_conditional": free_W, "W_kept": never_W}
    return Outcome(conclusion, tuple(checks), (Figure("gram", caption, panels),), metrics, tensors)


SMOKE = Settings(steps=800, batch=128)

EXPERIMENT = register(
    Experiment(
        name="anticorrelated-halves",
        row="C2",
        question="Do two halves share the hidden dimensions when they are never on together?",
        claim="yes: all 20 features represented, interference only across halves, loss a fifth of C1's or less",
        source="james__p 2025, Conditional Importance in Toy Models of Superposition, anti-correlated features",
        controls=(
            "C1's model: only the importance depends on the context, the values are kept",
            "random directions of the same norms",
            "fixed importance and values kept: independent features",
        ),
        scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=6000, batch=1024)},
        seconds={"smoke": 3, "default": 13, "paper": 340},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, values="kept"),
    )
)
