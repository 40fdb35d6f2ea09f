"""What an SAE is fitted to: a target hands out batches of rows and knows the true directions where there are any."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import require
from toolkit.samplers import row_buffers, sample, sample_rows
from toolkit.toy import TrainedToy


@dataclass(frozen=True)
class Target:
    """A source of rows; batches are a pure function of the step, so a resumed run sees the same ones."""

    name: str
    """What is being fitted, for messages and saved SAEs."""
    d: int
    """Width of a row."""
    instances: int
    """SAEs trained side by side, each on its own rows."""
    batches: Callable[[int, int], Float[Tensor, "instances rows d"]]
    """(step, rows) -> that step's rows for every instance."""
    directions: Float[Tensor, "instances features d"] | None = None
    """True feature directions, or None where nobody knows them."""


@numba.njit(cache=True, parallel=True)
def _hidden_rows(seed, step, density, W, out):
    """out (I, rows, m) = sparse features times W (I, n, m), without ever making the features dense."""
    instances, rows, m = out.shape
    n = W.shape[1]
    for i in numba.prange(instances):
        starts, features, values = row_buffers(rows, n)
        sample_rows(seed, i, step, rows, density[i], starts, features, values)
        for r in range(rows):
            for e in range(starts[r], starts[r + 1]):
                for k in range(m):
                    out[i, r, k] += values[e] * W[i, features[e], k]


def tms_target(toy: TrainedToy, *, seed: int = 0) -> Target:
    """Hidden activations of trained toy models, one SAE an instance; the true directions are the columns of W."""
    chances = toy.densities
    W = toy.W.mT.contiguous()  # (I, n, m)

    def batches(step: int, rows: int) -> Tensor:
        if W.device.type != "cpu":
            return toy.hidden(sample(chances.to(W.device), rows, seed=seed, step=step))
        out = torch.zeros(len(W), rows, W.shape[2])
        _hidden_rows(seed, step, chances.numpy(), W.numpy(), out.numpy())
        return out.relu_() if toy.model.hidden_activation == "relu" else out

    return Target("tms", toy.model.hidden, toy.model.instances, batches, W)


def rows_target(
    x: Float[Tensor, "rows d"], *, weights: Float[Tensor, " rows"] | None = None, seed: int = 0, name: str = "rows"
) -> Target:
    """The rows of a matrix: each once an epoch in a new order, or drawn in proportion to `weights`.

    Raises:
        UserError: a value is NaN or infinite, or the shapes do not fit.
    """
    require(x.ndim == 2 and len(x) > 0, f"rows must be a (rows, d) matrix with a row in it, got shape {tuple(x.shape)}")
    finite = x.isfinite().all(1)
    require(bool(finite.all()), f"row {int((~finite).int().argmax())} of {name} holds NaN or infinity: cannot fit it")
    if weights is not None:
        require(
            weights.shape == x.shape[:1] and bool(((weights >= 0) & weights.isfinite()).all()) and weights.sum() > 0,
            f"weights must be finite and non-negative, one for each of {len(x)} rows, got shape {tuple(weights.shape)}",
        )

    def batches(step: int, rows: int) -> Tensor:
        if weights is not None:
            generator = np.random.default_rng([seed, 1, step])
            chosen = np.searchsorted(cumulative, generator.random(rows), side="right")
        else:
            chosen = _epoch_rows(len(x), step * rows, rows, seed)
        return x[torch.from_numpy(chosen).to(x.device)][None]  # (rows, d) -> (1, rows, d)

    if weights is not None:
        cumulative = np.cumsum(weights.double().cpu().numpy() / weights.double().sum().item())
        cumulative[-1] = 1.0
    return Target(name, x.shape[1], 1, batches)


def mapped_target(
    rows: Float[np.ndarray, "rows d"],
    index: Int[np.ndarray, " some"],
    *,
    mean: Float[Tensor, " d"],
    scale: float,
    seed: int = 0,
    name: str = "rows",
) -> Target:
    """(row - mean) * scale for some rows of a memory-mapped matrix, each once an epoch in a new order.

    Only a step's rows are read, in the order in which they lie; an epoch's order takes eight bytes a row.
    """

    def batches(step: int, count: int) -> Tensor:
        chosen = np.sort(index[_epoch_rows(len(index), step * count, count, seed)])
        x = torch.from_numpy(np.asarray(rows[chosen])).float()
        return ((x - mean) * scale)[None]  # (rows, d) -> (1, rows, d)

    return Target(name, rows.shape[1], 1, batches)


def _epoch_rows(count: int, first: int, rows: int, seed: int) -> np.ndarray:
    """Positions first .. first + rows of an endless stream in which every epoch is a fresh permutation."""
    epochs = range(first // count, (first + rows - 1) // count + 1)
    start, stop = first - epochs[0] * count, first + rows - epochs[0] * count
    orders = [_order(count, seed, epoch) for epoch in epochs]
    return orders[0][start:stop] if len(orders) == 1 else np.concatenate(orders)[start:stop]


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """One epoch's order; kept, because the next step wants it again."""
    return np.random.default_rng([seed, 0, epoch]).permutation(count)
