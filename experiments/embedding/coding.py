"""Tokens to learn a dictionary on and others to code with it, and what the codes leave."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls import weights as nulls
from experiments.embedding.data import Given, Vocabulary, vocabulary
from toolkit.certificates import fuchs, lasso_gaps
from toolkit.dictionaries import DictionaryLearner
from toolkit.pursuit import OMP, Lasso
from toolkit.sae import SAE, SAEConfig, fit_sae


@dataclass(frozen=True)
class Split:
    """Rows less the mean of the training rows, in units in which those have a mean squared norm of 1."""

    train: Float[np.ndarray, "kept d"]
    """To learn on."""
    held_out: Float[np.ndarray, "others d"]
    """To code; the error is measured on these."""
    tokens: Int[Tensor, " others"]
    """Which tokens those are."""
    vocabulary: Vocabulary
    """Where they come from."""


@lru_cache(maxsize=1)
def split(settings: Given, source: str, most: int, seed: int) -> Split:
    """Training rows and at most `most` held-out rows of the embedding or, if `source` names one, of a null of it."""
    return split_of(vocabulary(settings, seed), source, most, seed)


def split_of(tokens: Vocabulary, source: str, most: int, seed: int) -> Split:
    """The same of a vocabulary."""
    rows = tokens.rows if source == "observed" else getattr(nulls, source)(tokens.rows, seed=seed + 1000)
    order = torch.from_numpy(np.random.default_rng([seed, 21]).permutation(len(tokens.held_out)))
    chosen = tokens.held_out[order[:most]].sort().values
    mean = rows[tokens.train].mean(0)
    train, held_out = rows[tokens.train] - mean, rows[chosen] - mean
    scale = train.square().sum(1).mean().rsqrt()
    return Split((train * scale).numpy(), (held_out * scale).numpy(), chosen, tokens)


def learned(
    X: Float[np.ndarray, "rows d"], *, n: int, k: int, epochs: int, seed: int, weights: Tensor | None = None,
    device: str = "cpu",
) -> Float[np.ndarray, "n d"]:  # fmt: skip
    """A dictionary learned on all of X, with codes of k atoms."""
    how: Any = {"epochs": epochs, "held_out": 0.0, "random_state": seed, "device": device}
    learner = DictionaryLearner(n_components=n, n_nonzero=k, **how)
    return learner.fit(X, sample_weight=None if weights is None else weights.numpy()).components_


def row_subset(X: Float[np.ndarray, "rows d"], *, n: int, seed: int) -> Float[np.ndarray, "n d"]:
    """A dictionary of n rows of X, at norm 1."""
    useful = np.flatnonzero(X.any(1))
    chosen = X[np.random.default_rng([seed, 22]).choice(useful, n, replace=False)]
    return chosen / np.linalg.norm(chosen, axis=1, keepdims=True)


def trained_sae(X: Float[np.ndarray, "rows d"], config: SAEConfig, *, seed: int) -> SAE:
    """An SAE for X. It trains on rows of squared norm d, which its learning rate is made for."""
    scale = X.shape[1] ** 0.5
    return fit_sae(torch.from_numpy(X) * scale, config, seed=seed).unscaled(torch.zeros(X.shape[1]), scale)


def squares(X: Float[np.ndarray, "rows d"]) -> Float[Tensor, " rows"]:
    """Squared norm of each row."""
    return torch.from_numpy(np.square(X).sum(1))


def pursued(
    X: Float[np.ndarray, "rows d"], atoms: Float[np.ndarray, "n d"], ks: Sequence[int]
) -> Float[Tensor, "rows ks"]:
    """Squared error of each row coded by matching pursuit with so many atoms."""
    return torch.stack([squares(X - OMP(atoms, n_nonzero=k).transform(X) @ atoms) for k in ks], 1)


def unlearned(rows: Split, *, n: int, ks: Sequence[int], seed: int) -> dict[str, Float[Tensor, "rows ks"]]:
    """Squared errors with principal components, a subset of the rows, and Gaussian atoms of the rows' covariance."""
    train, X = rows.train, rows.held_out
    gaussian = nulls.covariance_matched(torch.from_numpy(train), seed=seed + 2000).numpy()
    return {
        "errors.components": components(rows, ks),
        "errors.subset": pursued(X, row_subset(train, n=n, seed=seed), ks),
        "errors.gaussian": pursued(X, row_subset(gaussian, n=n, seed=seed), ks),
    }


def components(rows: Split, ks: Sequence[int]) -> Float[Tensor, "held_out ks"]:
    """Squared error of each held-out row on the first principal components of the training rows."""
    X = rows.held_out
    vectors = np.linalg.eigh(rows.train.T.astype(np.float64) @ rows.train)[1][:, ::-1]
    kept = np.square(X @ vectors).cumsum(1)[:, [min(k, X.shape[1]) - 1 for k in ks]]  # (rows, ks)
    return (squares(X)[:, None] - torch.from_numpy(kept)).clamp(min=0).float()


def certified(
    X: Float[np.ndarray, "rows d"], atoms: Float[np.ndarray, "n d"], *, alphas: Sequence[float], ks: Sequence[int]
) -> dict[str, Tensor]:
    """Squared errors, atoms, duality gaps and Fuchs' coefficients along the lasso's path, (rows, alphas) each.

    "omp.fuchs", (rows, ks), are those of matching pursuit's codes.
    """
    path = Lasso(atoms).path(X, alphas)
    codes = [path[alpha] for alpha in alphas]
    found = {
        "lasso.errors": [np.square(X - z @ atoms).sum(1) for z in codes],
        "lasso.active": [np.diff(z.indptr) for z in codes],
        "lasso.gaps": [lasso_gaps(X, z, atoms, alpha).relative for z, alpha in zip(codes, alphas, strict=True)],
        "lasso.fuchs": [fuchs(z, atoms) for z in codes],
        "omp.fuchs": [fuchs(OMP(atoms, n_nonzero=k).transform(X), atoms) for k in ks],
    }
    return {"lasso.squares": squares(X), **{name: torch.from_numpy(np.stack(e, 1)) for name, e in found.items()}}
