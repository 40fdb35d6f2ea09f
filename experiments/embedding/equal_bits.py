"""E3: at equal bits a token, which code of a token embedding leaves least; and can an SAE as wide store the rows?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from experiments.embedding import coding
from experiments.embedding.bits_report import METHODS, summarise
from experiments.embedding.storing import left, stored
from experiments.registry import Experiment, register
from toolkit.bits import bits_a_row, quantised
from toolkit.pursuit import OMP
from toolkit.sae import SAE, SAEConfig


@dataclass(frozen=True)
class Settings:
    """What is learned and coded. Rows are centred at the mean of the training tokens; sizes were set by time."""

    model: str = ""
    """Hub name or folder; empty: a planted embedding."""
    null: str = ""
    """A null of controls.weights that takes the embedding's place."""
    replicates: int = 3
    """Splits of the tokens, each with first atoms of its own."""
    overcomplete: tuple[float, ...] = (1.0, 2.0)
    """Atoms for each dimension."""
    trained_at: tuple[int, ...] = (8, 32)
    """Atoms in the codes that dictionaries and SAEs are trained with; each is then coded with every one of `ks`."""
    ks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """Atoms in a code."""
    bits: int = 8
    """Of each coefficient and each entry of an atom, to which both are rounded before the error is measured: a byte,
    at which rounding should cost little beside sparsity; how little is reported."""
    budgets: tuple[float, ...] = (200.0, 400.0, 600.0)
    """Bits a token at which codes are compared."""
    epochs: int = 2
    """Passes over the training tokens, of dictionaries."""
    steps: int = 500
    """Of an SAE's training, on 1,024 rows each."""
    coded: int = 4096
    """Held-out tokens coded, at most."""
    stored: int = 1024
    """Tokens that a dictionary and an SAE of as many atoms are to store."""
    storing_steps: int = 800
    """Of that SAE's training."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """The ways to code at each width and sparsity, and storing; the longest first."""
    runs, parts = range(settings.replicates), []
    for c in sorted(settings.overcomplete, reverse=True):
        for method in METHODS:
            ks = settings.trained_at if method != "subset" else (0,)
            parts += [{"part": method, "overcomplete": c, "k": k, "replicate": r} for k in ks for r in runs]
    return [*({"part": "stored", "replicate": r} for r in runs), *parts]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """FVU of held-out tokens at every k, as it is and after rounding, with the bits it takes; or what is stored."""
    seed = (997 * seed + cell["replicate"]) % 2**31
    rows = coding.split(settings, "observed", settings.coded, seed)
    if cell["part"] == "stored":
        return stored(rows, settings.stored, steps=settings.storing_steps, seed=seed)
    x, d = rows.held_out, rows.held_out.shape[1]
    n, k = round(cell["overcomplete"] * d), cell["k"]
    if cell["part"] == "sae":
        config = SAEConfig(width=n, k=k, steps=settings.steps, batch=1024, dead_after=200)
        sae = coding.trained_sae(rows.train, config, seed=seed)
        atoms, offset = sae.W_dec[0].numpy(), sae.parameters["b_dec"][0].numpy()
        codes = [_latents(sae, x, at) for at in settings.ks]
    else:
        subset, offset = cell["part"] == "subset", np.zeros(d, np.float32)
        how: Any = {"n": n, "seed": seed} if subset else {"n": n, "seed": seed, "k": k, "epochs": settings.epochs}
        atoms = (coding.row_subset if subset else coding.learned)(rows.train, **how)
        codes = [OMP(atoms, n_nonzero=at).transform(x) for at in settings.ks]
    active = [z.nnz / len(x) for z in codes]
    tokens = len(rows.vocabulary.rows)
    bits = [bits_a_row(a, n=n, d=d, rows=tokens, bits=settings.bits) for a in active]
    exact = [left(x, z @ atoms + offset) for z in codes]
    rounded = [left(x, _rounded(z, settings.bits) @ quantised(atoms, settings.bits) + offset) for z in codes]
    found = {"bits": bits, "active": active, "exact": exact, "fvu": rounded}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def _latents(sae: SAE, x: np.ndarray, k: int) -> sparse.csr_array:
    at = replace(sae, config=replace(sae.config, k=k))
    return sparse.csr_array(at.encode(torch.from_numpy(x)[None])[0].numpy())


def _rounded(codes: sparse.csr_array, bits: int) -> sparse.csr_array:
    return sparse.csr_array((quantised(codes.data, bits), codes.indices, codes.indptr), shape=codes.shape)


SMOKE = Settings(
    trained_at=(4,), ks=(1, 2, 4, 8), budgets=(40.0, 60.0, 80.0), epochs=8, steps=300, coded=512, stored=128
)  # fmt: skip
EXPERIMENT = register(
    Experiment(
        name="equal-bits",
        row="E3",
        question="At equal bits a token, which sparse code of a token embedding leaves least of it?",
        claim="learned atoms with pursuit leave less than an SAE's own encoder, or than rows; both can store rows",
        source="question put by this project; Ayonrinde, Pearce and Sharkey 2024 (SAEs by their description length)",
        controls=("atoms that are rows, drawn at random", "the error before rounding", "tokens that were not stored"),
        scales={"smoke": SMOKE, "default": Settings(model="tiny-gpt2"),
                "paper": Settings(replicates=5, overcomplete=(1.0, 2.0, 4.0), epochs=10, steps=3000)},
        seconds={"smoke": 8, "default": 32, "paper": 3000},
        cells=cells, measure=measure, summarise=summarise,
        # Not covariance_matched: an uneven spectrum alone lets a dictionary leave less than rows do.
        broken=replace(SMOKE, null="gaussian"),
        group="embedding",
    )
)  # fmt: skip
