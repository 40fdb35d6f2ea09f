"""What E2's measurements come to: checks, maps, conclusion."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, interval
from experiments.embedding.labels import KINDS, names_of
from experiments.figures import Figure, Scatter
from experiments.registry import Outcome

NULLS = ("columns_shuffled", "covariance_matched", "step_zero")
SOURCES = ("observed", *NULLS)
SCORES = ("purity", "silhouette")
SPACES = ("full", "map")
CHECKED = (("full", "purity"), ("full", "silhouette"), ("map", "purity"))
"""Not the silhouette in the map, which is in the metrics: a label lies there on several islands, and a silhouette takes
it for one."""
Found = Mapping[str, Sequence[Mapping[str, Tensor]]]


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Each score against the best of the nulls, part by part."""
    by = {s: [one for cell, one in zip(cells, found, strict=True) if cell["source"] == s] for s in SOURCES}
    checks = tuple(_check(by, kind, space, score) for kind in KINDS for space, score in CHECKED)
    return Outcome(_conclusion(by, checks), checks, _figures(by), {"scores": _table(by)})


def _scores(by: Found, source: str, key: str) -> np.ndarray:
    return np.array([one[f"{key}.score"].item() for one in by[source]])


def _check(by: Found, kind: str, space: str, score: str) -> Check:
    key = f"{kind}.{space}.{score}"
    best = np.max([_scores(by, null, key) for null in NULLS], axis=0)
    where = {"full": "all dimensions", "map": "the map"}[space]
    return above(
        f"{kind}: {score} beyond chance in {where}, less the best null's", _scores(by, "observed", key) - best, 0
    )


def _table(by: Found) -> dict[str, Any]:
    """Mean score beyond chance, and share of permutations that reach it, of every source."""
    keys = [f"{kind}.{space}.{score}" for kind in KINDS for space in SPACES for score in SCORES]
    return {
        key: {
            source: {
                "beyond_chance": float(_scores(by, source, key).mean()),
                "permutations_reaching": float(np.mean([one[f"{key}.hits"].item() for one in by[source]])),
            }
            for source in SOURCES
        }
        for key in keys
    }


def _conclusion(by: Found, checks: Sequence[Check]) -> str:
    told = []
    for kind in KINDS:
        key = f"{kind}.full.purity"
        best = max(_scores(by, null, key).mean() for null in NULLS)
        told.append(f"{kind} {interval(_scores(by, 'observed', key)).mean:.2f} (best null {best:.2f})")
    hub = max(one["hub"].item() for one in by["observed"])
    held = sum(check.passed for check in checks)
    count = np.mean([len(one["plane"]) for one in by["observed"]])
    return (
        f"Of {count:,.0f} directions, the share of near ones with the same label, beyond chance: {', '.join(told)}; "
        f"the most popular direction is a near one of {hub:.0%} of all, and such hubs blur the score. "
        f"{held} of {len(checks)} scores beat every null."
    )


def _figures(by: Found) -> tuple[Figure, ...]:
    first = by["observed"][0]
    maps = tuple(_map(f"by {kind}", first, kind) for kind in KINDS)
    nulls = tuple(_map(null.replace("_", " "), by[null][0], "leading space") for null in NULLS)
    return (
        Figure("map", "UMAP of the directions of one part; a point shows its most typical tokens on hovering.", maps),
        Figure("map-of-nulls", "The same for the nulls, by leading space: shape alone says nothing.", nulls),
    )


def _map(title: str, one: Mapping[str, Tensor], kind: str) -> Scatter:
    hover = json.loads(bytes(one["texts"].tolist()))
    present = torch.unique(one[f"labels.{kind}"])
    groups = torch.searchsorted(present, one[f"labels.{kind}"])
    return Scatter(title, one["plane"], hover, groups, tuple(names_of(kind)[at] for at in present.tolist()))
