"""What E6's measurements come to: gaps in nats between arms that share a seed, curves, conclusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, interval, share, within
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome

ARMS = {
    "learned": "learned", "random": "frozen, random", "unbounded": "frozen, random, no cosine bound",
    "small": "frozen, random, initial norms", "untied": "frozen, random, output learned",
    "good": "frozen at the learned",
}  # fmt: skip
SETTLED = 0.01
"""Nats that the last fifth of the steps may still take off the best validation loss, once it no longer falls."""
SMALL = 0.1
"""Nats that the cosine bound should not matter by."""
Found = Sequence[Mapping[str, Tensor]]


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """Each arm's loss at the last step and at its best, and what it is above the learned arm's, seed by seed."""
    curves = {arm: gathered(found, f"curve.{arm}") for arm in ARMS}  # (seeds, measurements)
    last, best = {arm: c[:, -1] for arm, c in curves.items()}, {arm: c.amin(1) for arm, c in curves.items()}
    known = gathered(found, "baselines").mean(0)
    extra = {
        name: {arm: gathered(found, f"{name}.{arm}").tolist() for arm in ARMS} for name in ("train", "norm", "cosine")
    }
    metrics: dict[str, Any] = {"last": _listed(last), "best": _listed(best), **extra}
    metrics |= {"best_step": {a: (c.argmin(1) * settings.every).tolist() for a, c in curves.items()}}
    metrics |= {"unigram": known[0].item(), "bigram": known[1].item()}
    told = _conclusion(settings, last, best, known, metrics)
    return Outcome(
        told, checks(curves, last, best, known), (_figure(settings, curves, known),), metrics,
        {f"curve.{arm}": c for arm, c in curves.items()}, _table(last, best, metrics),
    )  # fmt: skip


def gathered(found: Found, name: str) -> Tensor:
    """What the cells that have it yielded under a name, one a seed, in float64."""
    return torch.stack([one[name].double() for one in found if name in one])


def _listed(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {arm: each.tolist() for arm, each in values.items()}


def checks(
    curves: Mapping[str, Tensor], last: Mapping[str, Tensor], best: Mapping[str, Tensor], known: Tensor
) -> tuple[Check, ...]:
    """Gaps in nats; the share of them that is randomness; whether both arms came to their best."""
    settled = torch.cat([_settled(curves[arm]) for arm in ("learned", "random")])
    found = [
        above("learned: nats below the unigram, at its best", known[0] - best["learned"], 0),
        above("frozen random: nats gained by training, at its best", curves["random"][:, 0] - best["random"], 0),
        share("the validation loss no longer falls (both arms, each seed)", settled, 1.0),
    ]
    for at, when in ((last, "at equal steps"), (best, "at convergence")):
        gap = at["random"] - at["learned"]
        found += [
            above(f"{when}: nats lost by the frozen random embedding", gap, 0),
            above(f"{when}: nats lost by it to the embedding frozen when learned", at["random"] - at["good"], 0),
            at_least(f"{when}: share of the gap that goes with a frozen learned embedding",
                     (at["random"] - at["good"]) / _nonzero(gap), 0.5),
            within(f"{when}: nats lost without the cosine bound", at["unbounded"] - at["random"], -SMALL, SMALL),
        ]  # fmt: skip
    return tuple(found)


def _settled(curve: Tensor) -> Tensor:
    """Whether the last fifth of a curve (seeds, measurements) takes less than SETTLED off its best."""
    before = curve[:, : round(0.8 * curve.shape[1])].amin(1)
    return before - curve.amin(1) <= SETTLED


def _nonzero(gap: Tensor) -> Tensor:
    return torch.where(gap.abs() < 1e-6, torch.full_like(gap, torch.inf), gap)


def _shown(values: Tensor) -> str:
    found = interval(values)
    return f"{found.mean:.3f}" + ("" if np.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]")


def _table(last: Mapping[str, Tensor], best: Mapping[str, Tensor], metrics: Mapping[str, Any]) -> str:
    heads = ("last step", "above learned", "best", "above learned", "at step", "row norm", "largest |cos|")
    lines = [f"{'validation loss, nats a token':34}" + "".join(f"{h:>22}" for h in heads[:4]) + f"{heads[4]:>9}"
             + "".join(f"{h:>15}" for h in heads[5:])]  # fmt: skip
    for arm, label in ARMS.items():
        gaps = [f"{at[arm].mean():22.3f}{_shown(at[arm] - at['learned']):>22}" for at in (last, best)]
        step = np.mean(metrics["best_step"][arm])
        looks = "".join(f"{np.mean(metrics[name][arm]):15.2f}" for name in ("norm", "cosine"))
        lines.append(f"{label:34}{''.join(gaps)}{step:9.0f}{looks}")
    return "\n".join(lines)


def _conclusion(
    settings: Any, last: Mapping[str, Tensor], best: Mapping[str, Tensor], known: Tensor, metrics: Mapping[str, Any]
) -> str:
    told = []
    for at, when in ((last, "at equal steps"), (best, "each at its best")):
        told.append(
            f"{when} {_shown(at['random'] - at['learned'])} nats a token ({at['random'].mean():.3f} against "
            f"{at['learned'].mean():.3f}), {_shown(at['small'] - at['learned'])} with the norms that rows start with, "
            f"{_shown(at['unbounded'] - at['learned'])} without the cosine bound, "
            f"{_shown(at['untied'] - at['learned'])} with a learned output of its own, "
            f"{_shown(at['good'] - at['learned'])} frozen at the learned embedding"
        )
    steps = {arm: np.mean(each) for arm, each in metrics["best_step"].items()}
    return (
        f"On {settings.tokens:,} training tokens a frozen random embedding (rows as long as the learned ones) costs "
        f"{'; '.join(told)}. The learned arm is at its best at step "
        f"{steps['learned']:.0f}, the random one at {steps['random']:.0f}; unigram {known[0]:.2f}, bigram "
        f"{known[1]:.2f}."
    )


def _figure(settings: Any, curves: Mapping[str, Tensor], known: Tensor) -> Figure:
    series, gaps = [], []
    for arm, curve in curves.items():
        at = np.arange(curve.shape[1]) * settings.every
        series.append(_series(ARMS[arm], at, curve))
        if arm != "learned":
            gaps.append(_series(ARMS[arm], at, curve - curves["learned"]))
    panels = (
        Plot("Validation loss", "step", "nats a token", tuple(series), levels={"unigram": known[0].item()}),
        Plot("Above the learned embedding", "step", "nats a token", tuple(gaps), levels={"": 0.0}),
    )
    return Figure("frozen-embedding", "Arms that share seeds; bands are 95% intervals over seeds.", panels)


def _series(name: str, at: np.ndarray, curve: Tensor) -> Series:
    spans = [interval(each) for each in curve.T]
    low, high = ([getattr(s, end) for s in spans] for end in ("low", "high"))
    return Series(name, at, [s.mean for s in spans], "line", low, high)
