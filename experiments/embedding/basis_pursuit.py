"""E1: how small does the error of sparse codes of a token embedding get in an overcomplete basis that is learned?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.embedding import coding
from experiments.embedding.basis_figures import NULLS
from experiments.embedding.basis_report import summarise
from experiments.registry import Experiment, register
from toolkit.errors import check_types, require
from toolkit.sae import SAEConfig
from toolkit.unigrams import model_unigram


@dataclass(frozen=True)
class Settings:
    """What is learned and coded. Rows are centred at the mean of the training tokens, nulls likewise."""

    model: str = ""
    """Hub name or folder; empty: a planted embedding."""
    frequencies: str = ""
    """Text that tokens are counted in; without it their frequencies are those in text that the model writes."""
    null: str = ""
    """A null of controls.weights that takes the embedding's place."""
    replicates: int = 3
    """Splits of the tokens, each with first atoms and draws of the nulls of its own."""
    overcomplete: float = 4.0
    """Atoms for each dimension."""
    k: int = 32
    """Atoms in the codes that dictionaries learn with, and the SAE's; what is compared is the error at this k."""
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Atoms in the codes whose error is measured; k is one of them."""
    epochs: int = 2
    """Passes over the training tokens, of dictionaries."""
    steps: int = 1000
    """Of the SAE's training, on 1,024 rows each; with `epochs` set by time, before any error was seen."""
    coded: int = 4096
    """Held-out tokens coded, at most."""
    alphas: tuple[float, ...] = (0.3, 0.2, 0.1, 0.05, 0.02)
    """Weights of the lasso, for rows of mean squared norm 1."""
    certified: int = 128
    """Of the tokens coded, how many are solved by the lasso and tried for Fuchs' condition."""
    written: int = 64
    """Sequences of 128 tokens that the model writes for the frequencies."""

    def __post_init__(self) -> None:
        check_types(self)
        require(len(self.ks) > 1 and list(self.ks) == sorted({*self.ks}), f"ks must rise, two or more, got {self.ks}")
        require(self.k in self.ks, f"k={self.k} must be one of ks={self.ks}: the error is compared there")


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The longest first: frequencies and what is learned with them, SAEs, dictionaries, and what is not learned."""
    runs = range(settings.replicates)
    parts = [{"part": "sae", "source": "observed", "replicate": r} for r in runs]
    parts += [{"part": "learned", "source": s, "replicate": r} for s in ("observed", *NULLS) for r in runs]
    parts += [{"part": "fixed", "source": "observed", "replicate": r} for r in runs]
    return [{"part": "weighted", "source": "observed", "replicate": 0}, *parts]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Squared errors of the held-out tokens at every k, (tokens, ks), under the name of what coded them."""
    seed = (997 * seed + cell["replicate"]) % 2**31
    rows = coding.split(settings, cell["source"], settings.coded, seed)
    n = round(settings.overcomplete * rows.train.shape[1])
    if cell["part"] == "fixed":
        found = coding.unlearned(rows, n=n, ks=settings.ks, seed=seed)
    else:
        part: Any = {"weighted": _weighted, "sae": _sae, "learned": _learned}[cell["part"]]
        found = part(settings, rows, n, seed, cell["source"])
    return {"tokens": rows.tokens, "squares": coding.squares(rows.held_out), **found}


def _learned(settings: Settings, rows: coding.Split, n: int, seed: int, source: str) -> dict[str, Tensor]:
    atoms = coding.learned(rows.train, n=n, k=settings.k, epochs=settings.epochs, seed=seed)
    found = {f"errors.{source}": coding.pursued(rows.held_out, atoms, settings.ks)}
    if source != "observed":
        return found
    sample = np.random.default_rng([seed, 23]).permutation(rows.held_out)[: settings.certified]
    return found | coding.certified(sample, atoms, alphas=settings.alphas, ks=settings.ks)


def _weighted(settings: Settings, rows: coding.Split, n: int, seed: int, source: str) -> dict[str, Tensor]:
    weights = rows.vocabulary.weights
    if weights is None:
        weights = model_unigram(settings.model, sequences=settings.written, length=128, seed=seed)
    how: Any = {"n": n, "k": settings.k, "epochs": settings.epochs, "seed": seed}
    atoms = coding.learned(rows.train, weights=weights[rows.vocabulary.train], **how)
    return {"weights": weights, "errors.weighted": coding.pursued(rows.held_out, atoms, settings.ks)}


def _sae(settings: Settings, rows: coding.Split, n: int, seed: int, source: str) -> dict[str, Tensor]:
    config = SAEConfig(width=n, k=settings.k, steps=settings.steps, batch=1024, dead_after=200)
    sae = coding.trained_sae(rows.train, config, seed=seed)
    x = torch.from_numpy(rows.held_out)
    own = torch.full((len(x), len(settings.ks)), torch.nan)
    own[:, settings.ks.index(settings.k)] = (x - sae(x[None])[0]).square().sum(1)
    shifted = rows.held_out - sae.parameters["b_dec"].numpy()  # (tokens, d)
    return {"errors.sae": own, "errors.decoder": coding.pursued(shifted, sae.W_dec[0].numpy(), settings.ks)}


SMOKE = Settings(k=4, ks=(1, 2, 4, 8), epochs=8, steps=400, coded=512, certified=32)
EXPERIMENT = register(Experiment(
    name="basis-pursuit", row="E1",
    question="Is there an overcomplete basis in which token embeddings have sparse codes of small error?",
    claim="a learned basis leaves less of held-out rows than of the nulls' rows, and than rows or Gaussians do",
    source="question put by this project; Chen, Donoho and Saunders 1998 (basis pursuit); Mairal et al. 2009",
    controls=("the same on Gaussian rows of the same covariance, on shuffled columns and on the matrix at step 0",
              "principal components, a subset of rows, Gaussian atoms of the same covariance, an SAE at equal L0"),
    scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
            "paper": Settings(replicates=5, epochs=10, steps=5000)},
    seconds={"smoke": 8, "default": 47, "paper": 3000}, group="embedding",
    cells=cells, measure=measure, summarise=summarise, broken=replace(SMOKE, null="covariance_matched"),
))  # fmt: skip
