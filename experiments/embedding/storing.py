"""A dictionary and an SAE with an atom for each token: what they store, and what that is worth for other tokens."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.embedding.coding import Split, learned, trained_sae
from toolkit.pursuit import OMP
from toolkit.sae import SAEConfig


def left(x: Float[np.ndarray, "rows d"], rebuilt: Float[np.ndarray, "rows d"]) -> float:
    """FVU about zero."""
    return float(np.square(x - rebuilt).sum() / np.square(x).sum())


def stored(rows: Split, tokens: int, *, steps: int, seed: int) -> dict[str, Tensor]:
    """FVU at one atom a token of so many training tokens and of the held-out ones, for dictionary and SAE.

    The dictionary is given one epoch: between epochs the learner replaces atoms with few uses, which is to say those
    that store a token. The SAE is tied and resampled: of 1,024 Gaussian rows such a one stored all, untied ones half.
    """
    x = np.random.default_rng([seed, 24]).permutation(rows.train)[:tokens]
    n = len(np.unique(x, axis=0))
    atoms = learned(x, n=n, k=1, epochs=1, seed=seed)
    config = SAEConfig(width=n, k=1, steps=steps, batch=max(1, n // 2), lr=3e-3, tied=True, resample=True,
                       dead_after=50)  # fmt: skip
    sae = trained_sae(x, config, seed=seed)
    found = {}
    for name, part in (("stored", x), ("others", rows.held_out)):
        found[f"{name}.sae"] = left(part, sae(torch.from_numpy(part)[None])[0].numpy())
        found[f"{name}.learned"] = left(part, OMP(atoms, n_nonzero=1).transform(part) @ atoms)
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
