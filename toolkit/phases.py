"""The phase diagram of one feature too many, in closed form: dropped, dropping another, or in superposition."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.metrics import represented

PHASES = ("extra feature dropped", "another dropped", "superposition")
"""What becomes of n features in n - 1 dimensions, the last of them the extra one."""


def analytic_losses(
    features: int, importance: Float[np.ndarray, " importances"], density: Float[np.ndarray, " densities"]
) -> Float[np.ndarray, "3 importances densities"]:
    """Losses of the three zero-bias solutions, in the order of PHASES; the other features have importance 1.

    Dropping feature k costs I_k (p/3 - p^2/4), with its bias at the mean; an antipodal pair of a and b costs
    p^2 (I_a + I_b)/6, as E min(x_a, x_b)^2 = 1/6 (Elhage et al. 2022, section 3).
    """
    extra, p = np.meshgrid(importance, density, indexing="ij")
    dropped = p / 3 - p**2 / 4
    pair = np.minimum(1 + extra, 2) if features > 2 else 1 + extra
    return np.stack([extra * dropped, dropped, p**2 * pair / 6])


def phase(W: Float[Tensor, "instances hidden features"]) -> Int[Tensor, " instances"]:
    """Phase of each model, a place in PHASES, by which features are represented."""
    kept = represented(W)
    return torch.where(kept.all(-1), 2, torch.where(kept[:, -1], 1, 0))


def boundary(
    losses: Float[np.ndarray, "3 importances densities"], density: Float[np.ndarray, " densities"]
) -> Float[np.ndarray, " importances"]:
    """Density at which superposition's loss meets the better of the other two, for each importance."""
    gain = np.log(losses[2] / losses[:2].min(0))  # (importances, densities), rising with density
    return np.array([np.exp(np.interp(0.0, row, np.log(density))) for row in gain])
