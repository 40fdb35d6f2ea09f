"""E4: circles, offsets shared by pairs, and a spectrum and cosines that no Gaussian cloud has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controls import weights as nulls
from experiments.embedding.data import Vocabulary, vocabulary
from experiments.embedding.outside_report import NOISE, RELATIONS, summarise
from experiments.embedding.word_sets import SETS, alike, members, pairs
from experiments.registry import Experiment, register
from toolkit.circularity import circularity
from toolkit.spectra import cosines, covariance_eigenvalues, marchenko_pastur_edge, shared_offset


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    model: str = ""
    """Hub name or folder; empty: a planted embedding."""
    null: str = ""
    """A null of controls.weights that takes the embedding's place."""
    folds: int = 8
    """Disjoint parts of the vocabulary, and of the pairs, that intervals are taken over."""
    draws: int = 9999
    """Permutations of a set's labels, and random sets."""
    most_pairs: int = 4096
    """Pairs of each relation; drawn at random where there are more."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The parts of the vocabulary, the sets and the relations."""
    parts = [{"part": "fold", "at": at} for at in range(settings.folds)]
    return [*parts, *({"part": "set", "at": s} for s in SETS), *({"part": "pairs", "at": r} for r in RELATIONS)]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Spectrum and cosines of a part, the circularity of a set, or the offset of a relation; each with its nulls."""
    tokens = vocabulary(settings, seed)
    part: Any = {"fold": _fold, "set": _set, "pairs": _pairs}[cell["part"]]
    return part(settings, tokens, cell["at"], seed)


def _fold(settings: Settings, tokens: Vocabulary, at: int, seed: int) -> dict[str, Tensor]:
    order = np.random.default_rng([seed, 11]).permutation(len(tokens.rows))
    chosen = torch.from_numpy(np.array_split(order, settings.folds)[at])
    rows, edge = tokens.rows[chosen], marchenko_pastur_edge(len(chosen), tokens.rows.shape[1])
    found = {"rows": torch.tensor(len(rows)), "left_out": torch.tensor(tokens.left_out)}
    for name in ("observed", *NOISE):
        values = covariance_eigenvalues(rows if name == "observed" else getattr(nulls, name)(rows, seed=seed + at))
        found |= {f"eigenvalues.{name}": values, f"above.{name}": (values > edge).sum()}
    surrogate = cosines(_surrogate(settings, seed)[chosen])
    limit = surrogate.beyond(1e-3)
    for name, one in (("observed", cosines(rows)), ("surrogate", surrogate)):
        numbers = {"kurtosis": one.kurtosis, "tail": one.above(limit), "nearest": one.nearest.mean().item()}
        found |= {f"{key}.{name}": torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}
        found[f"counts.{name}"] = one.counts.reshape(100, -1).sum(1)  # (4000,) -> (100, 40) -> (100,)
    return found


@lru_cache(maxsize=1)
def _surrogate(settings: Settings, seed: int) -> Tensor:
    """Of the whole embedding, whose covariance is known better than a part's."""
    return nulls.covariance_matched(vocabulary(settings, seed).rows, seed=seed + 1000)


def _set(settings: Settings, tokens: Vocabulary, at: str, seed: int) -> dict[str, Tensor]:
    chosen = members(tokens.texts, at)
    pool = tokens.rows[alike(tokens.texts, chosen) if chosen else []]
    if len(pool) < 10 * max(1, len(chosen)):
        return {"members": torch.tensor(chosen)}
    found = circularity(tokens.rows[chosen], pool, draws=settings.draws, seed=seed)
    return {"members": torch.tensor(chosen), **{name: torch.as_tensor(value) for name, value in vars(found).items()}}


def _pairs(settings: Settings, tokens: Vocabulary, at: str, seed: int) -> dict[str, Tensor]:
    found = pairs(tokens.texts, at)
    rng = np.random.default_rng([seed, 12])
    chosen = torch.from_numpy(rng.permutation(found)[: settings.most_pairs])
    if len(chosen) < 2 * settings.folds:
        return {"pairs": torch.tensor(len(chosen))}
    first, second = tokens.rows[chosen[:, 0]], tokens.rows[chosen[:, 1]]
    swapped = torch.from_numpy(rng.choice([-1.0, 1.0], (len(chosen), 1))).float()
    shuffled = second[torch.from_numpy(rng.permutation(len(chosen)))]
    differences = {"observed": second - first, "shuffled": shuffled - first, "swapped": swapped * (second - first)}
    shares = {name: shared_offset(each, folds=settings.folds, seed=seed) for name, each in differences.items()}
    return {"pairs": torch.tensor(len(chosen)), **shares}


SMOKE = Settings(draws=1999)
EXPERIMENT = register(
    Experiment(
        name="outside-superposition",
        row="E4",
        question="Which structure does a token embedding have that sparse superposition does not speak of?",
        claim="days, months, digits in order round a plane; a shared offset; spectrum and cosines not Gaussian",
        source="Engels et al. 2024, Not All Language Model Features Are Linear (circles, in hidden layers); Mikolov et "
        "al. 2013, Linguistic Regularities (offsets); Marchenko and Pastur 1967",
        controls=(
            "entries shuffled, columns shuffled, Gaussian entries (spectrum)",
            "Gaussian rows of the same mean and covariance (cosines)",
            "the set's labels permuted, and random sets of like tokens (circles)",
            "pairs shuffled, and pairs turned round at random (offsets)",
        ),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(draws=99_999, most_pairs=100_000)},
        seconds={"smoke": 5, "default": 40, "paper": 120},
        cells=cells, measure=measure, summarise=summarise,
        broken=replace(SMOKE, null="covariance_matched"),
        group="embedding",
    )
)  # fmt: skip
