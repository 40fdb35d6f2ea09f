"""What N9's measurements come to.

Bars were set after pilot runs with other planted weights and shorter training, before these settings and any model were
measured; that three additions are too few to judge principal components by was seen at scale smoke. Of three blocks
mixed evenly two thirds of the interaction are across blocks; planted blocks leave none, up to eigenvalues so near each
other that sampling mixes their directions. Where the next layer is linear the interaction basis is one-to-one by
construction (both sides are uncorrelated there), so that for modular addition only the pair with the ReLUs between
counts.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, at_most, interval, share, within
from experiments.figures import Figure, Heatmap, Plot, Series
from experiments.network.interaction_measures import BASES, LOCAL, OTHER, PCA, QUANTITIES
from experiments.registry import Outcome

Found = Sequence[Mapping[str, Tensor]]
NEEDED, EFFECTIVE, DIRECTIONS = (QUANTITIES.index(name) for name in ("needed", "effective", "directions"))
MORE = 1.5
"""Times as many edges."""
SEVERAL = 5
"""Fewer networks do not tell principal components from the interaction basis in modular addition: no check is made."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """Every basis over the interaction basis."""
    parts: dict[str, Mapping[str, Tensor]] = {
        kind: _stacked(cells, found, "kind", kind) for kind in ("planted", "nothing idle")
    }
    parts["modular addition"] = next(f for c, f in zip(cells, found, strict=True) if c["part"] == "addition")
    model = {c["at"]: f for c, f in zip(cells, found, strict=True) if c["part"] == "model"}
    checks = [*_planted_checks(parts), *_addition_checks(parts["modular addition"]), *_model_checks(settings, model)]
    figures = [_blocks_figure(found[0]), _edges_figure(settings, parts, model)]
    metrics = {name: part["quantities"].mean(0).tolist() for name, part in parts.items()}
    metrics |= {f"{settings.model} {at}": one["quantities"].mean(1).tolist() for at, one in model.items()}
    table = _table(settings, parts, model)
    return Outcome(_conclusion(settings, parts, model), tuple(checks), tuple(figures), metrics, table=table)


def _stacked(cells: Sequence[Mapping[str, Any]], found: Found, key: str, value: str) -> dict[str, Tensor]:
    """Of all networks of a kind: quantities (networks, bases, pairs, quantities) and so on."""
    own = [f for c, f in zip(cells, found, strict=True) if c.get(key) == value]
    return {name: torch.stack([one[name] for one in own]) for name in ("quantities", "across", "kept")}


def ratios(values: Tensor, quantity: int) -> dict[str, Tensor]:
    """log of each basis's quantity over the interaction basis's, mean over pairs of layers, by basis: (networks,)."""
    logs = values[..., quantity].clamp(min=1).log()  # (networks, bases, pairs)
    return {b: (logs[:, i] - logs[:, 0]).mean(1) for i, b in enumerate(BASES) if b != LOCAL}


def _planted_checks(parts: Mapping[str, Mapping[str, Tensor]]) -> list[Check]:
    planted, plain = parts["planted"], parts["nothing idle"]
    kept = planted["kept"].flatten(0, 1)  # (networks * pairs, 3)
    across = dict(zip(BASES, planted["across"].mean(2).mT, strict=True))
    bars = {PCA: 0.1, "neurons": 0.3, "random rotation": 0.3, OTHER: 0.1}
    title = "planted: share of the interaction across blocks"
    return [
        share("planted: layers where it keeps as many directions as matter", kept[:, 0] == kept[:, 1], 1),
        at_most("planted: share of the outputs' variance that the directions left out cost", kept[:, 2], 1e-6),
        at_most(f"{title}, {LOCAL}", across[LOCAL], 0.1),
        *(at_least(f"{title}, {b} less {LOCAL}", across[b] - across[LOCAL], bar) for b, bar in bars.items()),
        *(
            at_least(f"planted: log ratio of edges needed, {b} over {LOCAL}", ratio, torch.tensor(MORE).log().item())
            for b, ratio in ratios(planted["quantities"], NEEDED).items()
        ),
        at_most("nothing idle: share of the interaction across blocks, principal", plain["across"][:, 1].mean(1), 0.2),
    ]


def _addition_checks(found: Mapping[str, Tensor]) -> list[Check]:
    first = found["quantities"][:, :, :1]
    claim = "modular addition, through the ReLUs: log ratio of edges needed"
    return [
        at_least("modular addition: accuracy held out", found["held_out"], 0.95),
        *(
            above(f"{claim}, {b} over {LOCAL}", ratio, 0)
            for b, ratio in ratios(first, NEEDED).items()
            if b != PCA or len(first) >= SEVERAL
        ),
    ]


def _over_groups(one: Mapping[str, Tensor], quantity: int) -> dict[str, Tensor]:
    """log ratio to the interaction basis by basis, (groups of documents,)."""
    logs = one["quantities"][..., quantity].clamp(min=1).log()  # (bases, groups)
    return {b: logs[i] - logs[0] for i, b in enumerate(BASES) if b != LOCAL}


def _model_checks(settings: Any, model: Mapping[str, Mapping[str, Tensor]]) -> list[Check]:
    """The published answer is that it does not help."""
    each = [_over_groups(one, NEEDED)[PCA] for one in model.values()]
    claim = f"{settings.model}: log ratio of edges needed, {PCA} over {LOCAL}"
    return [within(claim, torch.stack(each).mean(0), -math.inf, math.log(MORE))] if each else []


def _told(logs: Tensor) -> str:
    found = interval(logs)
    middle, low, high = torch.tensor([found.mean, found.low, found.high]).exp().tolist()
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _conclusion(
    settings: Any, parts: Mapping[str, Mapping[str, Tensor]], model: Mapping[str, Mapping[str, Tensor]]
) -> str:
    planted, addition = parts["planted"], parts["modular addition"]
    across = ", ".join(f"{b} {v:.3f}" for b, v in zip(BASES, planted["across"].mean((0, 2)).tolist(), strict=True))
    right = int((planted["kept"][..., 0] == planted["kept"][..., 1]).sum())
    logs = ratios(addition["quantities"][:, :, :1], NEEDED)
    text = (
        f"Planted blocks: the interaction basis keeps just the directions that matter in {right} of "
        f"{planted['kept'][..., 0].numel()} layers; share of the interaction across blocks: {across}; edges needed "
        f"over its own: {_listed(ratios(planted['quantities'], NEEDED))}. Modular addition, through the ReLUs: edges "
        f"needed over its own: {_listed(logs)}; held-out accuracy {addition['held_out'].mean():.3f}."
    )
    if not model:
        return text
    each = {b: torch.stack([_over_groups(one, NEEDED)[b] for one in model.values()]).mean(0) for b in logs}
    return f"{text} {settings.model}: {_listed(each)}; {_verdict(each[PCA])}."


def _verdict(logs: Tensor) -> str:
    """Whether it helps, against principal components."""
    found = interval(logs)
    if found.low > 0:
        return "principal components need more edges than the interaction basis"
    if found.high < 0:
        return "principal components need fewer edges than the interaction basis"
    return "principal components and the interaction basis are not told apart"


def _listed(logs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{b} {_told(one)}" for b, one in logs.items())


def _blocks_figure(found: Mapping[str, Tensor]) -> Figure:
    """One planted network's interactions between hidden layers, in each basis."""
    panels = []
    for basis in BASES:
        strength = found[f"squared {basis}"].sqrt()
        panels.append(Heatmap(basis, strength / strength.max(), x="direction of layer 1", y="direction of layer 2"))
    caption = (
        "Root of the squared interactions between the hidden layers of one planted network, over the largest. "
        "Directions in order of importance."
    )
    return Figure("interactions", caption, tuple(panels))


def _edges_figure(
    settings: Any, parts: Mapping[str, Mapping[str, Tensor]], model: Mapping[str, Mapping[str, Tensor]]
) -> Figure:
    """Edges needed and effective edges in each basis."""
    series = {name: part["quantities"].mean(2) for name, part in parts.items()}  # (networks, bases, quantities)
    series["modular addition"] = parts["modular addition"]["quantities"][:, :, 0]
    series |= {f"{settings.model}, hook {at}": one["quantities"].transpose(0, 1) for at, one in model.items()}
    panels, shown = [], {NEEDED: "edges that must stay", EFFECTIVE: "effective edges", DIRECTIONS: "directions"}
    for quantity, title in shown.items():
        curves = tuple(_banded(name, values[..., quantity]) for name, values in series.items())
        panels.append(Plot(title, "basis, numbered below", title, curves, log_y=True))
    caption = (
        f"Bases: {', '.join(f'{i} {b}' for i, b in enumerate(BASES))}. Planted networks and addition: geometric "
        "means over networks, planted ones with the mean over pairs of layers, addition's through the ReLUs; models: "
        "over groups of documents. Bands are 95% intervals."
    )
    return Figure("edges", caption, tuple(panels))


def _banded(name: str, values: Tensor) -> Series:
    """Geometric means over the first axis, with intervals of the logarithm."""
    found = [interval(one) for one in values.clamp(min=1).log().mT]
    middle, low, high = (torch.tensor([getattr(f, end) for f in found]).exp() for end in ("mean", "low", "high"))
    return Series(name, list(range(len(BASES))), middle, "both", low, high)


def _table(settings: Any, parts: Mapping[str, Mapping[str, Tensor]], model: Mapping[str, Mapping[str, Tensor]]) -> str:
    rows = {f"{name}, {at} to {at + 1}": part["quantities"][:, :, at] for name, part in parts.items()
            for at in range(part["quantities"].shape[2])}  # fmt: skip
    rows |= {f"{settings.model}, hook {at}": one["quantities"].transpose(0, 1) for at, one in model.items()}
    lines = ["means; in addition 1 to 2 only a linear map lies between, and the interaction basis is one-to-one"]
    if model:
        lines.append("in neurons and a rotation a model's layers share coordinates: what passes by takes single edges")
    lines.append(f"{'':30}{'basis':>22}" + "".join(f"{name:>12}" for name in QUANTITIES))
    for name, values in rows.items():
        for i, basis in enumerate(BASES):
            lines.append(f"{name:30}{basis:>22}" + "".join(f"{v:12.1f}" for v in values.mean(0)[i].tolist()))
    shares = parts["modular addition"]["frequencies"].mean(0)  # (bases, 2)
    lines.append("addition: share of a direction's power in its main frequency, embeddings / hidden layer")
    lines += [f"{'':30}{b:>22}{e:12.3f}{h:12.3f}" for b, (e, h) in zip(BASES, shares.tolist(), strict=True)]
    return "\n".join(lines)
