"""What a network is trained on: batches of inputs, targets and importances, a pure function of the step.

Every draw follows from (seed, instance, step), so a resumed run sees the same batches and an instance sees the
same ones alone as among many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require
from toolkit.samplers import fill_uniforms


class Batch(NamedTuple):
    """One step's rows, for every instance."""

    x: Float[Tensor, "instances rows inputs"]
    """What the network reads."""
    y: Float[Tensor, "instances rows outputs"]
    """What it should answer."""
    weight: Float[Tensor, "instances #rows outputs"]
    """Weight of each output's error: the importance, which may differ from row to row."""


@dataclass(frozen=True)
class Source:
    """An endless supply of batches."""

    instances: int
    """Networks fed side by side, each with its own draws."""
    inputs: int
    """Entries of an input row."""
    outputs: int
    """Entries of a target row."""
    batch: Callable[[int, int], Batch]
    """(step, rows) -> that step's batch."""


def uniforms(
    instances: int, rows: int, columns: int, *, seed: int, step: int, draw: int = 0
) -> Float[Tensor, "instances rows columns"]:
    """Independent uniforms on (0, 1); `draw` tells several sets of one step apart."""
    out = torch.empty(instances, rows, columns)
    fill_uniforms(seed, step, draw, out.numpy())
    return out


def sparse(
    densities: Float[Tensor, "instances features"],
    importances: Float[Tensor, "instances features"],
    *,
    seed: int,
    signed: bool = False,
    target: Callable[[Tensor], Tensor] = lambda x: x,
) -> Source:
    """Independent features: off with probability 1 - density, else uniform on (0, 1), or (-1, 1) where signed.

    Args:
        target: what the network should answer, as a function of x (Elhage et al. 2022, section 7, takes |x|).
    """
    instances, features = densities.shape

    def batch(step: int, rows: int) -> Batch:
        on = uniforms(instances, rows, features, seed=seed, step=step) < densities[:, None]
        value = uniforms(instances, rows, features, seed=seed, step=step, draw=1)
        x = on * (2 * value - 1 if signed else value)
        return Batch(x, target(x), importances[:, None])

    return Source(instances, features, features, batch)


def grouped(
    densities: Float[Tensor, " instances"],
    sets: Sequence[Sequence[int]],
    *,
    kind: Literal["correlated", "anticorrelated", "independent"],
    seed: int,
    importances: Float[Tensor, "instances features"] | None = None,
) -> Source:
    """Features in sets, each on with the same probability whatever the kind (Elhage et al. 2022, section 4).

    correlated: the features of a set share one coin. anticorrelated: at most one of a set is on. independent: the
    control. Values are independent and uniform on (0, 1) in each.

    Raises:
        UserError: the sets do not hold each feature once, or an anti-correlated set would be on more than always.
    """
    members = [i for one in sets for i in one]
    features, instances = len(members), len(densities)
    require(sorted(members) == list(range(features)), f"sets must hold each of {features} features once, got {sets}")
    largest = max(len(one) for one in sets) * float(densities.max())
    require(
        kind != "anticorrelated" or largest <= 1 + 1e-6,  # a density such as .2 is rounded up in float32
        f"anti-correlated sets are on with probability size x density, which is {largest:g}: at most 1",
    )
    weights = torch.ones(instances, features) if importances is None else importances

    def batch(step: int, rows: int) -> Batch:
        value = uniforms(instances, rows, features, seed=seed, step=step, draw=1)
        coins = uniforms(instances, rows, features, seed=seed, step=step) / densities[:, None, None]
        on = torch.zeros_like(value, dtype=torch.bool)
        for one in sets:
            shared = coins[:, :, [one[0]]]
            for rank, i in enumerate(one):
                coin = coins[:, :, [i]] if kind == "independent" else shared
                low = rank if kind == "anticorrelated" else 0
                on[:, :, [i]] = (coin >= low) & (coin < low + 1)
        x = on * value
        return Batch(x, x, weights[:, None])

    return Source(instances, features, features, batch)
