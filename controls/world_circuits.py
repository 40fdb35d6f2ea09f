"""The networks of planted worlds: parities that only trained weights compute, a reader, and weights drawn anew.

A written feature is the parity of `PARITY_BITS` input bits. Any smaller set of these bits says nothing about it, so a
network with random weights does not show it: for fair bits the mean of a unit sin²(πu/2), u = w·bits, differs between
the feature's two values by at most Π |sin(π w_j / 2)| over the feature's bits times Π |cos(π w_j / 2)| over all
others, and for weights drawn anew this is below 1e-6. Random features cannot represent parities, trained ones can
(Daniely and Malach 2020, Learning parities with neural networks).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from controls.weights import gaussian, haar, spectrum_matched
from controls.worlds import NULL_KINDS, WorldSample
from toolkit.errors import unknown

PARITY_BITS = 12
"""Bits of a parity, one of them its own: so many that no amount of rows shows it in a random layer."""
SHARED_BITS = 64
"""Bits that all parities draw on: enough for their sets to be different."""
Forward = Callable[[Mapping[str, Tensor]], Tensor]
"""Weights by name -> activations (rows, d); the inputs are fixed in it."""


@dataclass(frozen=True)
class Reader:
    """A ReLU network of one hidden layer, two units a readout rows[j] @ h + bias[j]: a ramp from 0 to 1 as it goes from
    1/4 to 3/4, flat outside. Output j is `effect` times ramp j and 1 - effect times that of a readout a quarter on."""

    rows: Float[Tensor, "outputs d"]
    """What each output reads."""
    bias: Float[Tensor, " outputs"]
    """Brings a readout to 0 where its feature is off."""
    effect: float
    """How much of an output its own readout decides: for features alike, C is effect / √(effect² + (1 - effect)²)."""

    def __call__(self, activations: Float[Tensor, "rows d"]) -> Float[Tensor, "rows outputs"]:
        """The outputs, in the precision of the activations."""
        readout = activations @ self.rows.to(activations.dtype).T + self.bias.to(activations.dtype)
        ramps = 2 * ((readout - 0.25).relu() - (readout - 0.75).relu())
        return self.effect * ramps + (1 - self.effect) * ramps.roll(-max(1, len(self.bias) // 4), 1)


def readouts(
    directions: Float[Tensor, "d used"], covariance: Float[Tensor, "d d"], basis: Float[Tensor, "d read"]
) -> Float[Tensor, "used d"]:
    """For each direction the best linear readout that sees span(basis) alone.

    Row j is B S⁻¹ Bᵀ v_j with S = Bᵀ covariance B, scaled so that row_j · v_j = 1: linear discriminant analysis in
    the subspace. What is orthogonal to the basis moves no readout.
    """
    inside = torch.linalg.solve(basis.T @ covariance @ basis, basis.T @ directions)  # (read, used)
    rows = (basis @ inside).T  # (used, d)
    return rows / (rows * directions.T).sum(1, keepdim=True)


def directions(count: int, basis: Float[Tensor, "d r"], generator: np.random.Generator) -> Float[Tensor, "d count"]:
    """Unit vectors drawn uniformly from span(basis), whose columns are orthonormal (float64)."""
    drawn = basis @ torch.from_numpy(generator.standard_normal((basis.shape[1], count)))  # (d, count)
    return drawn / drawn.norm(dim=0)


def split_space(d: int, sizes: tuple[int, ...], generator: np.random.Generator) -> tuple[Float[Tensor, "d part"], ...]:
    """Orthonormal bases of orthogonal subspaces of these sizes, turned at random (float64)."""
    return torch.split(haar(d, d, generator=generator)[:, : sum(sizes)], sizes, dim=1)


def covariance_of(
    vectors: Float[Tensor, "d features"], variances: Float[np.ndarray, " features"], noise: float
) -> Float[Tensor, "d d"]:
    """The covariance of independent variables along these vectors, and of isotropic noise."""
    return (vectors * torch.from_numpy(variances)) @ vectors.T + noise**2 * torch.eye(len(vectors)).double()


def parity_weights(features: int, generator: np.random.Generator) -> Float[Tensor, "features bits"]:
    """Which bits each feature is the parity of, with random signs: its own bit, and others that all may share."""
    order = generator.random((features, SHARED_BITS)).argsort(1)
    chosen = np.concatenate([np.eye(features, dtype=bool), order < PARITY_BITS - 1], axis=1)
    signs = generator.choice((-1.0, 1.0), size=chosen.shape)
    return torch.from_numpy(np.where(chosen, signs, 0.0)).float()


def fair_bits(rows: int, generator: np.random.Generator) -> Bool[np.ndarray, "rows bits"]:
    """Fair coins for the bits that parities share."""
    return generator.integers(0, 2, size=(rows, SHARED_BITS), dtype=np.int8) == 1


def encode(
    labels: Bool[np.ndarray, "rows features"],
    weights: Float[Tensor, "features bits"],
    shared: Bool[np.ndarray, "rows shared"],
) -> Float[Tensor, "rows bits"]:
    """Input bits whose parities are the labels: each feature's own bit makes up for the shared ones."""
    drawn_on = np.abs(weights[:, -shared.shape[1] :].numpy())
    others = (shared.astype(np.float32) @ drawn_on.T).astype(np.int8) % 2 == 1
    return torch.from_numpy(np.concatenate([labels ^ others, shared], axis=1)).float()


def parities(bits: Float[Tensor, "rows bits"], weights: Float[Tensor, "units bits"]) -> Float[Tensor, "rows units"]:
    """The layer sin²(π u / 2), u = weights · bits; for weights of -1, 0 and 1 it is the parity of the chosen bits."""
    return 0.5 - 0.5 * torch.cos(torch.pi * (bits @ weights.T))


def redrawn(weights: Mapping[str, Tensor], kind: str, *seeds: int) -> dict[str, Tensor]:
    """Every matrix drawn anew: "init" Gaussian with its entries' mean and variance, "spectrum" with its own spectrum.

    Raises:
        UserError: no such kind.
    """
    if kind not in NULL_KINDS:
        raise unknown("kind of null", kind, NULL_KINDS)
    draw = gaussian if kind == "init" else spectrum_matched
    states = np.random.SeedSequence([NULL_KINDS.index(kind), *seeds]).generate_state(len(weights))
    return {name: draw(matrix, seed=int(s)) for (name, matrix), s in zip(weights.items(), states, strict=True)}


def written(carried: Float[Tensor, "rows d"], bits: Float[Tensor, "rows bits"]) -> Forward:
    """A residual stream: what the input carries, plus the parities of "reads", each along its column of "writes"."""
    return lambda weights: carried + parities(bits, weights["reads"]) @ weights["writes"].T


def sample_of(
    forward: Forward,
    weights: Mapping[str, Tensor],
    outputs: Callable[[Tensor], Tensor],
    *,
    world_seed: int,
    features: Mapping[str, tuple[str, np.ndarray, int]],
    groups: Int[np.ndarray, " rows"],
    tokens: Int[np.ndarray, " rows"] | None = None,
) -> WorldSample:
    """The sample of a network: `forward` runs the inputs, fixed, through any weights.

    Args:
        world_seed: null networks are drawn from it and a seed of their own, so that worlds share none.
        features: name -> (truth, labels (rows,), target output).
    """

    def null_sample(kind: str, seed: int) -> Tensor:
        return forward(redrawn(weights, kind, world_seed, seed))

    return WorldSample(
        activations=forward(weights),
        labels={name: labels.astype(np.int64) for name, (_, labels, _) in features.items()},
        groups=groups,
        tokens=tokens,
        outputs=outputs,
        targets={name: target for name, (_, _, target) in features.items()},
        truth={name: truth for name, (truth, _, _) in features.items()},
        null_sample=null_sample,
    )
