"""What N1's measurements come to: accuracy, control accuracy, selectivity and bits a word, by layer and probe."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, interval, within
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome

ARMS = ("trained", "random")
PROBES = ("linear", "rank-limited", "MLP")
MEASURES = ("accuracy", "control accuracy", "ceiling", "bits", "control bits", "uniform bits")
"""In the order of a cell's numbers."""
CODED = "MLP"
"""The probe whose bits tell trained from random: the source's is an MLP."""
ALIKE = 0.02
"""Accuracies that differ by less tell nothing apart: the sources' differences between layers are of this size."""
Measures = Mapping[str, Tensor]
"""Each of MEASURES and the selectivity, (replicates,)."""
Key = tuple[str, int, str]
"""Arm, depth (0 is the embedding), probe."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Every layer and probe, over the parts of the corpus."""
    groups = gathered(cells, found)
    near = nearest(groups)
    sizes = torch.stack([one["sizes"] for one in found]).double().mean(0).tolist()
    metrics: dict[str, Any] = {"sizes": dict(zip(("words", "types", "documents", "labels"), sizes, strict=True))}
    metrics |= {
        f"{arm}, {layer_name(depth)}, {probe}": {name: values.tolist() for name, values in group.items()}
        for (arm, depth, probe), group in groups.items()
    }
    metrics["nearest"] = [layer_name(depth) for depth in near]
    return Outcome(_conclusion(groups, near, sizes), checks(groups), (_figure(groups),), metrics, table=_table(groups))


def gathered(cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> dict[Key, Measures]:
    """The numbers of all parts, by arm, depth and probe."""
    each: dict[Key, list[Tensor]] = {}
    for cell, one in zip(cells, found, strict=True):
        for name in set(one) - {"sizes"}:
            depth, _, probe = name.partition(".")
            each.setdefault((cell["arm"], int(depth), probe), []).append(one[name])
    groups: dict[Key, Measures] = {}
    for key, values in sorted(each.items(), key=lambda item: _order(item[0])):
        group = dict(zip(MEASURES, torch.stack(values, 1), strict=True))  # (measures, replicates)
        groups[key] = group | {"selectivity": group["accuracy"] - group["control accuracy"]}
    return groups


def _order(key: Key) -> tuple[int, int, int]:
    arm, depth, probe = key
    return ARMS.index(arm), depth, PROBES.index(probe)


def layer_name(depth: int) -> str:
    """As it is shown."""
    return f"block {depth}" if depth else "embedding"


def depths(groups: Mapping[Key, Measures]) -> list[int]:
    """The layers there are."""
    return sorted({depth for _, depth, _ in groups})


def nearest(groups: Mapping[Key, Measures]) -> list[int]:
    """For each part the layer whose accuracies, of CODED, are most alike in trained and random model by the others.

    By the other parts alone: a part that had helped to choose would seem more alike at its layer than it is.
    """
    apart = torch.stack([_apart(groups, depth, "accuracy") for depth in depths(groups)])  # (layers, parts)
    others = (apart.sum(1, keepdim=True) - apart).abs()
    return [depths(groups)[row] for row in others.argmin(0).tolist()]


def _at(groups: Mapping[Key, Measures], arm: str, layers: Sequence[int], measure: str) -> Tensor:
    """Of CODED, each part at a layer of its own."""
    return torch.stack([groups[arm, depth, CODED][measure][part] for part, depth in enumerate(layers)])


def _apart(groups: Mapping[Key, Measures], depth: int, measure: str) -> Tensor:
    """Trained less random, part by part."""
    return groups["trained", depth, CODED][measure] - groups["random", depth, CODED][measure]


def _selective(groups: Mapping[Key, Measures], probe: str) -> Tensor:
    """Selectivity in the trained model, mean over layers, part by part."""
    return torch.stack([groups["trained", depth, probe]["selectivity"] for depth in depths(groups)]).mean(0)


def checks(groups: Mapping[Key, Measures]) -> tuple[Check, ...]:
    """The claims, each stated before any number was seen."""
    linear, limited, mlp = (_selective(groups, probe) for probe in PROBES)
    near = nearest(groups)
    place = "the layer where accuracies of the other parts are nearest"
    apart, cheaper = (_at(groups, "trained", near, each) - _at(groups, "random", near, each)
                      for each in ("accuracy", "bits"))  # fmt: skip
    every = depths(groups)
    trained = [groups["trained", depth, CODED] for depth in every]
    dearer = torch.stack([group["control bits"] - group["bits"] for group in trained]).mean(0)
    return (
        above("selectivity, linear less MLP, mean over layers", linear - mlp, 0),
        above("selectivity, rank-limited less full rank, mean over layers", limited - linear, 0),
        above("bits a word, control labels less parts of speech, MLP, mean over layers", dearer, 0),
        within(f"accuracy, trained less random, MLP, {place}", apart, -ALIKE, ALIKE),
        above(f"bits a word, random less trained, MLP, {place}", -cheaper, 0),
    )


def _table(groups: Mapping[Key, Measures]) -> str:
    heads = ("accuracy", "control", "ceiling", "selectivity", "bits a word", "control", "uniform")
    lines = [f"{'':36}" + "".join(f"{head:>18}" for head in heads)]
    for (arm, depth, probe), group in groups.items():
        shown = ("accuracy", "control accuracy", "ceiling", "selectivity", "bits", "control bits", "uniform bits")
        lines.append(f"{f'{arm}, {layer_name(depth)}, {probe}':36}" + "".join(f"{_told(group[n]):>18}" for n in shown))
    return "\n".join(lines)


def _told(values: Tensor) -> str:
    found = interval(values)
    return f"{found.mean:.3f} ± {found.high - found.mean:.3f}"


def _conclusion(groups: Mapping[Key, Measures], near: Sequence[int], sizes: Sequence[float]) -> str:
    chosen = ", ".join(f"{_selective(groups, probe).mean():.3f} ({probe})" for probe in PROBES)
    accuracies, bits = ([_at(groups, arm, near, each).mean() for arm in ARMS] for each in ("accuracy", "bits"))
    places = ", ".join(sorted({layer_name(depth) for depth in near}, key=[layer_name(d) for d in near].index))
    words, types, documents, _ = sizes
    return (
        f"Selectivity in the trained model, mean over layers: {chosen}. Where the other parts' accuracies of trained "
        f"and random model are nearest ({places}), those of a part are {accuracies[0]:.3f} and {accuracies[1]:.3f} by "
        f"the MLP, and a word's part of speech costs {bits[0]:.2f} and {bits[1]:.2f} bits. Intervals are over "
        f"{len(near)} parts of the corpus, of {words:.0f} words, {types:.0f} types and {documents:.0f} documents each."
    )


def _figure(groups: Mapping[Key, Measures]) -> Figure:
    trained = [("trained", probe, probe) for probe in PROBES]
    arms = [(arm, CODED, arm) for arm in ARMS]
    controls = [(arm, CODED, f"{arm}, control task") for arm in ARMS]
    layer = "layer (0: embedding)"
    panels = (
        Plot("accuracy, trained", layer, "share of held-out words", _curves(groups, trained, "accuracy")),
        Plot("control accuracy, trained", layer, "share of held-out words",
             _curves(groups, trained, "control accuracy")),
        Plot("selectivity, trained", layer, "accuracy less control accuracy", _curves(groups, trained, "selectivity")),
        Plot(f"accuracy, {CODED}", layer, "share of held-out words",
             (*_curves(groups, arms, "accuracy"), *_curves(groups, controls, "control accuracy"))),
        Plot(f"description length, {CODED}", layer, "bits a word",
             (*_curves(groups, arms, "bits"), *_curves(groups, controls, "control bits"))),
    )  # fmt: skip
    caption = "Parts of speech and control tasks by layer; bands are 95% intervals over parts of the corpus."
    return Figure("control-tasks", caption, panels)


def _curves(groups: Mapping[Key, Measures], wanted: Sequence[tuple[str, str, str]], measure: str) -> tuple[Series, ...]:
    """A curve over layers for each (arm, probe, name)."""
    found = []
    for arm, probe, name in wanted:
        each = [interval(groups[arm, depth, probe][measure]) for depth in depths(groups)]
        low, high = ([getattr(one, end) for one in each] for end in ("low", "high"))
        found.append(Series(name, depths(groups), [one.mean for one in each], "both", low, high))
    return tuple(found)
