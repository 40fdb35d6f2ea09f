"""E2: do the directions of a dictionary learned on an embedding cluster by what their tokens look like?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.embedding.data import Vocabulary, vocabulary
from experiments.embedding.labels import KINDS, labels
from experiments.embedding.map_report import SOURCES, summarise
from experiments.registry import Experiment, register
from toolkit.cluster_scores import cosine_distances, euclidean_distances, nearest, scores
from toolkit.dictionaries import DictionaryLearner
from toolkit.language import ascii_safe
from toolkit.maps import umap_plane


@dataclass(frozen=True)
class Settings:
    """What is learned and scored."""

    model: str = ""
    """Hub name or folder; empty: a planted embedding."""
    frequencies: str = ""
    """Text that tokens are counted in, for the frequency bands; without it they go by the tokens' numbers."""
    null: str = ""
    """A null of controls.weights that takes the embedding's place."""
    parts: int = 4
    """Disjoint parts of the training tokens, each with a dictionary of its own, that intervals are taken over."""
    overcomplete: float = 2.0
    """Directions for each dimension."""
    n_nonzero: int = 8
    """Directions in a token's code."""
    typical: int = 10
    """Tokens that name a direction: those with the largest coefficients on it."""
    least: int = 5
    """Directions in the codes of fewer tokens are left out."""
    neighbours: int = 10
    """Near directions whose labels are compared."""
    draws: int = 499
    """Permutations of the labels."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The embedding and its nulls, each with every part."""
    return [{"source": source, "part": part} for source in SOURCES for part in range(settings.parts)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Learn a dictionary on a part, name its directions by their tokens, map them and score the clusters."""
    tokens = vocabulary(settings, seed)
    observed = cell["source"] == "observed"
    rows = tokens.rows if observed else vocabulary(replace(settings, null=cell["source"]), seed + 1).rows
    order = torch.from_numpy(np.random.default_rng([seed, 13]).permutation(len(tokens.train)))
    part = tokens.train[order.tensor_split(settings.parts)[cell["part"]]]
    directions, top = _directions(settings, rows[part], seed=(997 * seed + cell["part"]) % 2**31)
    plane = umap_plane(directions, seed=seed, neighbours=min(15, len(directions) - 1))
    spaces = {"full": cosine_distances(directions), "map": euclidean_distances(plane)}
    popular = nearest(spaces["full"], settings.neighbours).flatten().bincount().max() / len(directions)
    found = {"plane": plane, "texts": _texts(tokens, part[top]), "hub": popular}
    for kind in KINDS:
        named = labels(kind, tokens).codes[part[top]].mode(1).values  # (directions, typical) -> (directions,)
        found[f"labels.{kind}"] = named
        for space, distances in spaces.items():
            each = scores(distances, named, k=settings.neighbours, draws=settings.draws, seed=seed)
            for name, score in each.items():
                key, hits = f"{kind}.{space}.{name}", (score.permuted >= score.found).double().mean()
                found |= {f"{key}.score": torch.tensor(score.beyond_chance), f"{key}.hits": hits}
    return found


def _directions(settings: Settings, rows: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """The directions in use (directions, d), turned to their heavier side, and the rows that use each most."""
    x = (rows - rows.mean(0)).numpy()
    count = round(settings.overcomplete * x.shape[1])
    learner = DictionaryLearner(n_components=count, n_nonzero=settings.n_nonzero, held_out=0.0, random_state=seed)
    codes = torch.from_numpy(learner.fit_transform(x).toarray()).float()  # (rows, atoms)
    sides = codes.pow(3).sum(0).sign()
    used = (codes * sides > 0).sum(0) >= settings.least
    top = (codes * sides)[:, used].topk(min(settings.typical, len(rows)), dim=0).indices
    return (torch.from_numpy(learner.components_).float() * sides[:, None])[used], top.T


def _texts(tokens: Vocabulary, top: Tensor) -> Tensor:
    """The first five typical tokens of each direction, as the bytes of a JSON list: what a cell yields are tensors."""
    lines = [" · ".join(ascii_safe(tokens.texts[at]) for at in line) for line in top[:, :5].tolist()]
    return torch.tensor(list(json.dumps(lines).encode()), dtype=torch.uint8)


SMOKE = Settings(parts=3, n_nonzero=4, least=3, typical=5, neighbours=4, draws=199)
EXPERIMENT = register(
    Experiment(
        name="dictionary-umap",
        row="E2",
        question="Do the directions of a dictionary learned on a token embedding cluster by how their tokens look?",
        claim="directions near each other have tokens that look alike, more than those of the embedding's nulls",
        source="question put by this project; McInnes, Healy and Melville 2018 (UMAP); Rousseeuw 1987 (silhouette)",
        controls=(
            "the same on shuffled columns, on Gaussian rows of the same covariance and on the matrix at step 0",
            "the directions' labels permuted",
        ),
        scales={
            "smoke": SMOKE,
            "default": Settings(model="tiny-gpt2"),
            "paper": Settings(overcomplete=4.0, draws=1999),
        },
        seconds={"smoke": 40, "default": 27, "paper": 600},
        cells=cells,
        measure=measure,
        summarise=summarise,
        broken=replace(SMOKE, null="covariance_matched"),
        group="embedding",
    )
)
