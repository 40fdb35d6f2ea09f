"""Sparse Boolean inputs, every pair's AND or XOR as targets, and read-offs that need no gradient.

The task is the universal AND of Hänni, Mendel, Vaintrob and Chan 2024, "Mathematical Models of Computation in
Superposition": one layer of d neurons from which all m(m-1)/2 conjunctions of m inputs can be read linearly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.descent import EVALUATION
from toolkit.errors import require, unknown
from toolkit.networks import error
from toolkit.sources import Batch, Source, uniforms

GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "and": lambda a, b: a * b,
    "xor": lambda a, b: a + b - 2 * a * b,
}
"""Functions of two Booleans, by name."""
_ROWS = 4096
Features = Callable[[Tensor], Tensor]
"""(instances, rows, inputs) -> (instances, rows, d): what a linear read-off reads."""


def gates(x: Float[Tensor, "*rows m"], gate: str) -> Float[Tensor, "*rows pairs"]:
    """The gate of every pair i < j, in the order (0, 1), (0, 2), ..., (m-2, m-1).

    Raises:
        UserError: there is no such gate (the nearest name is suggested).
    """
    if gate not in GATES:
        raise unknown("gate", gate, GATES)
    i, j = torch.triu_indices(x.shape[-1], x.shape[-1], offset=1)
    return GATES[gate](x.index_select(-1, i), x.index_select(-1, j))


def boolean(
    densities: Float[Tensor, " instances"],
    inputs: int,
    gate: str,
    *,
    seed: int,
    ones: float = 1.0,
    embedding: Float[Tensor, "instances inputs dims"] | None = None,
    shuffled: bool = False,
) -> Source:
    """Independent Booleans, each 1 with the instance's density; the target is the gate of every pair.

    Args:
        ones: weight of an output's error on rows where its target is 1; elsewhere it is 1.
        embedding: direction of each input; the network then reads x E in place of x.
        shuffled: targets come from another, independent draw of the inputs: the control that nothing can be learned.
    """
    instances, pairs = len(densities), inputs * (inputs - 1) // 2
    if embedding is not None:
        wanted, given = (instances, inputs), tuple(embedding.shape)
        require(given[:2] == wanted, f"the embedding must have shape ({instances}, {inputs}, dims), got {given}")

    def on(step: int, rows: int, draw: int) -> Tensor:
        return (uniforms(instances, rows, inputs, seed=seed, step=step, draw=draw) < densities[:, None, None]).float()

    def batch(step: int, rows: int) -> Batch:
        x = on(step, rows, 0)
        y = gates(on(step, rows, 1) if shuffled else x, gate)
        weight = torch.ones(instances, 1, pairs) if ones == 1 else 1 + (ones - 1) * y
        return Batch(x if embedding is None else torch.bmm(x, embedding), y, weight)  # (I, B, m) @ (I, m, D)

    return Source(instances, inputs if embedding is None else embedding.shape[-1], pairs, batch)


def nearly_orthogonal(instances: int, vectors: int, dims: int, *, seed: int) -> Float[Tensor, "instances vectors dims"]:
    """Unit vectors: the first `dims` columns of a random rotation, rows normalised; orthogonal where dims = vectors."""
    require(0 < dims <= vectors, f"{vectors} vectors are squeezed into 1 to {vectors} dimensions, got {dims}")
    draws = [np.random.default_rng([seed, i]).standard_normal((vectors, vectors)) for i in range(instances)]
    cut = torch.from_numpy(np.linalg.qr(np.stack(draws)).Q[:, :, :dims]).float()
    return torch.nn.functional.normalize(cut, dim=-1)


def affine_error(density: float, gate: str, *, power: float = 2.0, ones: float = 1.0) -> float:
    """Least mean |error|^power of any affine function of the inputs, for one pair, in closed form.

    An affine function leaves the contrast c = f(1,1) - f(1,0) - f(0,1) + f(0,0) of the residuals as it is (1 for AND,
    -2 for XOR). With states of weight w_s, Hoelder's inequality gives |c|^q / (sum_s w_s^(-1/(q-1)))^(q-1); for q = 2
    it is (c p (1-p))^2, and the q-th root tends to |c|/4 as q grows: the sup-norm error 1/4 of AND and 1/2 of XOR.
    """
    p = torch.tensor([1 - density, density], dtype=torch.float64)
    values = torch.tensor([0.0, 1.0], dtype=torch.float64)
    target = GATES[gate](values[:, None], values[None, :])
    weights = p[:, None] * p[None, :] * torch.where(target == 1, ones, 1.0)
    contrast = abs(target[1, 1] - target[1, 0] - target[0, 1] + target[0, 0])
    return float(contrast**power / (weights ** (-1 / (power - 1))).sum() ** (power - 1))


@dataclass(frozen=True)
class ReadOff:
    """y = features W + b, for each instance."""

    W: Float[Tensor, "instances d outputs"]
    """Weights."""
    b: Float[Tensor, "instances outputs"]
    """Offset."""

    def __call__(self, features: Float[Tensor, "instances rows d"]) -> Float[Tensor, "instances rows outputs"]:
        """The answer."""
        return torch.baddbmm(self.b[:, None], features, self.W)  # (I, B, d) @ (I, d, outputs)


def least_squares(features: Features, source: Source, *, batches: int = 4, ridge: float = 1e-6) -> ReadOff:
    """The affine read-off of least squared error over `batches` of 4,096 rows, by the normal equations in float64.

    Args:
        ridge: added to the mean squares, so that neurons that never fire do no harm.
    """
    square, cross = torch.zeros(()), torch.zeros(())
    for step in range(batches):
        x, y, _ = source.batch(step, _ROWS)
        h = features(x).double()
        h = torch.cat([h, torch.ones_like(h[..., :1])], -1)
        square = square + h.mT @ h / _ROWS / batches  # (I, d+1, d+1)
        cross = cross + h.mT @ y.double() / _ROWS / batches  # (I, d+1, outputs)
    solution = torch.linalg.solve(square + ridge * torch.eye(square.shape[-1], dtype=torch.float64), cross).float()
    return ReadOff(solution[:, :-1], solution[:, -1])


def sign_readoff(W: Float[Tensor, "instances inputs d"], gate: str) -> ReadOff:
    """A read-off made of indicator functions, without data, for h = ReLU(x W) with Gaussian W.

    Neurons are split by the signs of their weights from i and j. Let a = E|z| and b = E ReLU(|z| - |z'|) for weights
    of unit variance. On the states 00, 10, 01, 11 the mean of h is (0, a, a, 2a) over the quadrant ++, (0, a, 0, b)
    over +-, (0, 0, a, b) over -+, and 0 over --. So (++) + (--) - (+-) - (-+) is (0, 0, 0, 2a - 2b), an AND, and
    (++) + (+-) - (-+) - (--) is 2a x_i; XOR is x_i + x_j - 2 AND. Other inputs add noise of mean zero where x_i or
    x_j is 0, since h then has the same law in two quadrants of opposite sign. Indicator functions of neurons serve as
    read-offs in Vaintrob, Mendel and Haenni 2024 ("Toward a mathematical framework for computation in superposition").
    """
    instances, inputs, d = W.shape
    a, b = math.sqrt(2 / math.pi), (2 - math.sqrt(2)) / math.sqrt(math.pi)
    i, j = torch.triu_indices(inputs, inputs, offset=1)
    sign = W.sign() * 4 / d  # a quadrant holds d/4 neurons
    conjunction = sign[:, i] * W[:, j].sign() / (2 * a - 2 * b)  # (I, pairs, d)
    either = (sign[:, i] + sign[:, j]) / (2 * a)
    readoff = {"and": conjunction, "xor": either - 2 * conjunction}[gate]
    deviation = W.square().mean((1, 2))[:, None, None].sqrt()
    return ReadOff((readoff / deviation).mT.contiguous(), torch.zeros(instances, len(i)))


def held_out(answer: Features, source: Source, *, power: float = 2.0, batches: int = 4) -> Float[Tensor, " instances"]:
    """Mean weighted |error|^power of an output on rows that no training or fit has seen."""
    total = torch.zeros(source.instances)
    for step in range(batches):
        batch = source.batch(EVALUATION + step, _ROWS)
        total += error(answer(batch.x), batch, power) / source.outputs / batches
    return total


def states(inputs: int, most: int) -> Float[Tensor, "states inputs"]:
    """Every Boolean row with at most `most` ones."""
    rows = [on for count in range(most + 1) for on in combinations(range(inputs), count)]
    return torch.stack([torch.zeros(inputs).index_fill(0, torch.tensor(on, dtype=torch.long), 1.0) for on in rows])
