"""What E7's measurements come to: how far rows and losses come back, band by band, for the row alone and the whole."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, interval
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome

WAYS = {"rows": "the row alone", "all": "the whole model"}
KINDS = ("input", "target")
HARDLY = 0.1
"""Nats; of a smaller damage no share is told."""
Group = Mapping[str, Tensor]
"""What was found of the tokens of a band, (tokens,) each."""
Key = tuple[str, int, bool]
"""How it was trained, the band, whether its text was withheld."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Every token's return, by band."""
    gathered: dict[Key, list[Group]] = {}
    for cell, one in zip(cells, found, strict=True):
        gathered.setdefault((cell["train"], cell["band"], cell["withheld"]), []).append(returned(one))
    groups = {
        key: {name: torch.stack([one[name] for one in each]) for name in each[0]} for key, each in gathered.items()
    }
    metrics = {
        f"{train}, band {band}{', withheld' if withheld else ''}": {name: v.tolist() for name, v in group.items()}
        for (train, band, withheld), group in groups.items()
    }
    return Outcome(_conclusion(groups), checks(groups), (_figure(groups),), metrics, table=_table(groups))


def returned(one: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cosines about the mean row and losses of one token, averaged over the starts from random rows.

    The damage is what the loss rose by when the row was drawn anew; what is left of it is the loss after fine-tuning
    less that of the same fine-tuning without a row drawn anew or, where the token's text was withheld, which by itself
    harms the token, less that of the model as it was.
    """
    before, after = (
        torch.nn.functional.normalize(one[w].double() - one["mean"].double(), dim=1) for w in ("before", "after")
    )
    was, starts = before[0], slice(1, None)
    found = {"count": one["counts"][0].double(), "token": one["token"].double(), "stays": after[0] @ was}
    found |= {"cosine.before": (before[starts] @ was).mean(), "cosine.after": (after[starts] @ was).mean()}
    found |= {"meet.before": _among(before[starts]), "meet.after": _among(after[starts])}
    losses = {when: one[f"losses.{when}"].double() for when in ("before", "after")}
    whole = losses["after" if one["counts"][0] > 0 else "before"][0]
    hurt, left = losses["before"][1:].mean(0) - losses["before"][0], losses["after"][1:].mean(0) - whole
    for kind, damage, rest in zip(KINDS, hurt, left, strict=True):
        found |= {f"damage.{kind}": damage, f"left.{kind}": rest}
    return found


def _among(rows: Tensor) -> Tensor:
    """Mean cosine between different rows of norm 1."""
    n = len(rows)
    return ((rows @ rows.T).sum() - n) / (n * (n - 1))


def undone(group: Group) -> Tensor:
    """Share of each token's damage that fine-tuning undid, as input and as target together."""
    damage, left = (sum(group[f"{what}.{kind}"].nan_to_num() for kind in KINDS) for what in ("damage", "left"))
    return _share(torch.as_tensor(damage), torch.as_tensor(left))


def _share(damage: Tensor, left: Tensor) -> Tensor:
    """NaN where there was hardly a damage to undo."""
    return torch.where(damage > HARDLY, 1 - left / damage, torch.nan)


def checks(groups: Mapping[Key, Group]) -> tuple[Check, ...]:
    """Nearer to where the row was, nearer to each other, by frequency, and not without the token's text."""
    found = []
    for train, told in WAYS.items():
        bands = [group for (way, _, withheld), group in groups.items() if way == train and not withheld] or [
            group for (way, _, _), group in groups.items() if way == train
        ]
        pooled = {name: torch.cat([group[name] for group in bands]) for name in bands[0]}
        middle = next(group for (way, band, withheld), group in groups.items()
                      if way == train and withheld and band == len(bands) // 2)  # fmt: skip
        gain, seen, unseen = (_gain(group) for group in (pooled, bands[len(bands) // 2], middle))
        met = pooled["meet.after"] - pooled["meet.before"]
        found += [
            above(f"{told}: cosine with the row as it was, gained over the random row's", gain, 0),
            above(f"{told}: correlation of that cosine with the log of the token's count", _products(pooled), 0),
            above(f"{told}: the same, middle band less with its text withheld", seen - unseen, 0),
            above(f"{told}: cosine between two starts, gained", met, 0),
            at_least(f"{told}: share of the damage undone, most frequent band", undone(bands[0]), 0.5),
            at_least(f"{told}: not drawn anew, cosine with the row as it was", pooled["stays"], 0.9),
        ]
    return tuple(found)


def _gain(group: Group) -> Tensor:
    return group["cosine.after"] - group["cosine.before"]


def _products(group: Group) -> Tensor:
    """One term a token, whose mean is the correlation of the last cosine with log(1 + count)."""
    both = [x - x.mean() for x in (group["count"].log1p(), group["cosine.after"])]
    scale = torch.stack([x.square().mean().sqrt() for x in both]).prod()
    return both[0] * both[1] / scale.clamp(min=1e-9)


def _table(groups: Mapping[Key, Group]) -> str:
    heads = ("tokens", "occur", "cosine before", "after", "two starts", "not redrawn", "damage input", "undone",
             "damage target", "undone")  # fmt: skip
    lines = [f"{'cosines about the mean row (before: chance)':48}" + "".join(f"{h:>15}" for h in heads)]
    for (train, band, withheld), group in groups.items():
        name = f"{WAYS[train]}, band {band + 1}{', its text withheld' if withheld else ''}"
        cosine = interval(group["cosine.after"])
        values = [f"{len(group['count'])}", f"{group['count'].mean():.0f}", f"{group['cosine.before'].mean():.2f}",
                  f"{cosine.mean:.2f} ± {cosine.high - cosine.mean:.2f}", f"{group['meet.after'].mean():.2f}",
                  f"{group['stays'].mean():.2f}"]  # fmt: skip
        for kind in KINDS:
            damage, left = group[f"damage.{kind}"].nanmean(), group[f"left.{kind}"].nanmean()
            values += [f"{damage:.2f}", _percent(_share(damage, left))]
        lines.append(f"{name:48}" + "".join(f"{value:>15}" for value in values))
    return "\n".join(lines)


def _percent(share: Tensor) -> str:
    return "-" if share.isnan() else f"{share:.0%}"


def _conclusion(groups: Mapping[Key, Group]) -> str:
    told = []
    for train, name in WAYS.items():
        each = [(g, held) for (way, _, held), g in groups.items() if way == train]
        cosines = ", ".join(f"{g['cosine.after'].mean():.2f}" for g, held in each if not held)
        withheld = ", ".join(f"{g['cosine.after'].mean():.2f}" for g, held in each if held)
        shares = ", ".join(_percent(undone(g).nanmean()) for g, held in each if not held)
        met = torch.cat([g["meet.after"] for g, held in each if not held] or [g["meet.after"] for g, _ in each])
        told.append(
            f"with {name} trained a row drawn anew comes to a cosine with what it was of {cosines or 'nothing'} from "
            f"the most frequent band to the rarest ({withheld} with its text withheld), {shares or 'nothing'} of the "
            f"damage to the loss is undone, and two starts end at a cosine of {met.mean():.2f} with each other"
        )
    chance, apart = (torch.cat([g[f"{name}.before"] for g in groups.values()]).mean() for name in ("cosine", "meet"))
    counts = [g["count"].mean() for (way, _, held), g in groups.items() if way == "rows"]
    return (
        f"Cosines are about the mean row; by chance, that is before fine-tuning, {chance:.2f} with what it was and "
        f"{apart:.2f} between two starts: {'; '.join(told)}. The tokens occur {max(counts):.0f} to {min(counts):.0f} "
        "times in the text they are fine-tuned on."
    )


def _figure(groups: Mapping[Key, Group]) -> Figure:
    panels = []
    for name, what in (("cosine.after", "cosine with the row as it was"), ("meet.after", "cosine between two starts")):
        panels.append(Plot(what, "occurrences + 1", "cosine about the mean row", _points(groups, name), log_x=True))
    panels.append(Plot("damage undone", "occurrences + 1", "share", _points(groups, ""), log_x=True))
    caption = "Each point is a token whose row was drawn anew and fine-tuned; withheld: without any text that holds it."
    return Figure("one-row", caption, tuple(panels))


def _points(groups: Mapping[Key, Group], name: str) -> tuple[Series, ...]:
    return tuple(
        Series(WAYS[train] + (", withheld" if withheld else ""), group["count"] + 1,
               group[name] if name else undone(group), "points")
        for (train, _, withheld), group in groups.items()
    )  # fmt: skip
