"""A network made of sub-circuits that do not touch, hidden by a rotation of every layer: the truth to be found.

True activations of a layer are those of its blocks, b, and idle ones, i, that nothing downstream of a block reads:
b' = f(W b + a), f a leaky ReLU, where W joins no two blocks, and i' = scale * tanh(C [b, i / scale]), of large variance
and correlated with every block. What can be seen is R [b, i] with R orthogonal, drawn for each layer; the next layer
reads through R^T. W's singular values lie between a half and three halves, so that every true activation matters.
Outputs are the last blocks' activations, unrotated and with nothing idle among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

SIZE, SLOPE = 4, 0.3
"""Activations of a block; slope of the leaky ReLU below zero: none is ever off."""


@dataclass(frozen=True, eq=False)
class BlockNetwork:
    """Its layers, what they hold on random inputs, and the truth."""

    layers: tuple[Callable[[Tensor], Tensor], ...]
    """From each layer's activations to the next's."""
    activations: tuple[Float[Tensor, "rows _"], ...]
    """Of the input and every layer, float64."""
    rotations: tuple[Float[Tensor, "_ _"], ...]
    """R of each: column m is the direction of true activation m; blocks come first."""
    blocks: Int[Tensor, " active"]
    """The block of each true activation that is not idle."""


def block_network(
    *,
    rows: int,
    blocks: int = 3,
    idle: int = 6,
    depth: int = 3,
    scale: float = 5.0,
    independent: bool,
    seed: int,
) -> BlockNetwork:
    """Draw one.

    Args:
        depth: layers after the input.
        scale: of idle activations, about their standard deviation.
        independent: whether W joins no two blocks; else it joins all.
    """
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    active = blocks * SIZE
    size = SIZE if independent else active

    def orthogonal(n: int) -> Tensor:
        return torch.linalg.qr(draw(n, n)).Q

    def mixing() -> Tensor:
        gains = [0.5 + torch.rand(size, dtype=torch.float64, generator=generator) for _ in range(active // size)]
        return torch.block_diag(*(orthogonal(size) * gain @ orthogonal(size) for gain in gains))

    hidden = active + idle
    rotations = [orthogonal(hidden) for _ in range(depth)]
    rotations.append(torch.eye(active, dtype=torch.float64))
    first = draw(rows, active) @ mixing().mT
    other = scale * (first @ draw(active, idle) / active**0.5 + draw(rows, idle))
    layers = [
        partial(_layer, mixing(), 0.5 * draw(active), draw(idle, hidden) / hidden**0.5, scale, before, after)
        for before, after in pairwise(rotations)
    ]
    reached = [torch.cat([first, other], 1) @ rotations[0].mT]
    for layer in layers:
        reached.append(layer(reached[-1]))
    return BlockNetwork(tuple(layers), tuple(reached), tuple(rotations), torch.arange(active) // SIZE)


def _layer(W: Tensor, a: Tensor, C: Tensor, scale: float, before: Tensor, after: Tensor, x: Tensor) -> Tensor:
    true = x @ before
    b, i = true[:, : len(a)], true[:, len(a) :]
    reached = torch.nn.functional.leaky_relu(b @ W.mT + a, SLOPE)
    if len(after) > len(a):
        reached = torch.cat([reached, scale * torch.tanh(torch.cat([b, i / scale], 1) @ C.mT)], 1)
    return reached @ after.mT
