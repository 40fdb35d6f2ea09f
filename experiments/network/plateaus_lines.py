"""Lines that activations are drawn along, and which networks they are drawn along in."""

import re

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm

from experiments.network.ground import Ground
from experiments.network.networks import FIRST
from toolkit.errors import require
from toolkit.model_files import checkpoint_order, model_folder

REAL, COVARIANCE, RANDOM_END = "real", "covariance", "random"
ENDS = {
    REAL: "real activation",
    COVARIANCE: "draw from the covariance",
    RANDOM_END: "random direction, same norm",
}
"""Of lines, and what they are called."""
BETWEEN = 3
"""Checkpoints asked at most between the first and the end of training."""


def line_ends(here: Ground, seed: int) -> dict[str, Float[Tensor, "places d"]]:
    """Where the line from each place ends, by ENDS.

    Real: the activation of a place in another document, each used once. Covariance: a draw from N(mean, covariance) of
    the rows to learn from. Random: as far from their mean as the real one, in a direction of uniform law.

    Raises:
        UserError: more than half of the places stand in one document.
    """
    rng = np.random.default_rng([seed, 71])
    names, of, counts = np.unique(here.documents, return_inverse=True, return_counts=True)
    many = f"{counts.max()} of {len(of)} places stand in one document"
    require(2 * counts.max() <= len(of), f"{many}, and lines lead to other documents: give more text")
    order = np.lexsort((rng.permutation(len(of)), rng.permutation(len(names))[of]))  # by document, these shuffled
    real = torch.empty_like(here.x)
    real[order] = here.x[np.roll(order, -counts.max())]
    z, u = (torch.from_numpy(rng.normal(size=tuple(here.x.shape))) for _ in range(2))
    values, vectors = torch.linalg.eigh(here.covariance)
    drawn = here.mean + ((z * values.clamp(min=0).sqrt()) @ vectors.mT).to(here.x)
    u = (u / u.norm(dim=1, keepdim=True)).to(here.x)
    return {REAL: real, COVARIANCE: drawn, RANDOM_END: here.mean + (real - here.mean).norm(dim=1, keepdim=True) * u}


def normalised(rows: Float[Tensor, "rows d"], at: Tensor) -> Float[Tensor, "rows d"]:
    """Layer norm of rows, which stands in for a network that does nothing else."""
    return layer_norm(rows, rows.shape[1:])


def blocks_after(here: Ground) -> float:
    """How many whole blocks follow the hook; NaN where it stands neither in one nor before all."""
    layers = int(here.model.bridge.cfg.n_layers)
    if here.hook in ("hook_embed", "hook_pos_embed"):
        return float(layers)
    block = re.match(r"blocks\.(\d+)\.(hook_resid_pre$)?", here.hook)
    return float(layers - 1 - int(block[1]) + bool(block[2])) if block else float("nan")


def between(model: str) -> list[str]:
    """Checkpoints after the first, evenly spaced; none for a model that kept none."""
    folder = model_folder(model)
    kept = [] if folder is None else [path.name for path in (folder / "checkpoints").glob("step_*") if path.is_dir()]
    kept = sorted({*kept} - {FIRST}, key=checkpoint_order)
    return [kept[i] for i in dict.fromkeys(np.linspace(0, len(kept) - 1, min(BETWEEN, len(kept))).round().astype(int))]
