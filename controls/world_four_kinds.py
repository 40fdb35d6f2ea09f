"""What worlds 1 to 3 share: four kinds of sparse features in superposition, half written, half of them read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from controls.world_circuits import (
    Forward,
    Reader,
    covariance_of,
    directions,
    encode,
    fair_bits,
    parity_weights,
    readouts,
    split_space,
    written,
)
from controls.world_documents import Documents, sticky_labels
from toolkit.errors import check_types, require

KINDS = ("model", "unread", "inherited", "dataset")
"""The order of features: two kinds written by weights, two in any network's input; the first of each two is read."""


@dataclass(frozen=True)
class Network:
    """h = features in the input · inputsᵀ + noise + parities(bits) · writesᵀ, and what reads it."""

    weights: Mapping[str, Tensor]
    """Trained "reads" (features, bits) and "writes" (d, features); drawn anew in null networks."""
    inputs: Float[Tensor, "d in_input"]
    """Where the input puts its features, in any network."""
    reader: Reader
    """The rest of the network: an output for each model feature, then one for each inherited feature."""
    rates: Float[np.ndarray, " features"]
    """How often each feature is on, in the order of KINDS."""
    read: Float[Tensor, "d read"]
    """Basis of what the reader sees, float64."""
    spare: Float[Tensor, "d spare"]
    """Basis of dimensions without features, which the reader does not see, float64."""


@dataclass(frozen=True)
class FourKinds:
    """Settings of such a network, and how it is drawn and run."""

    d: int = 64
    """Width of the hook."""
    each: int = 24
    """Features of each kind: 4 · 24 = 96 are 1.5 times the width."""
    rate: float = 0.15
    """Mean share of rows where a feature is on; single ones lie between 2/3 and 4/3 of it."""
    noise: float = 0.1
    """Standard deviation of the noise in each dimension, where features have length 1."""
    effect: float = 1.0
    """How much of its output a used feature decides, the rest being another's (`Reader`); at .3 its C is about .4."""
    documents: Documents = field(default_factory=Documents)
    """How rows hang together."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.d >= 16 and self.each >= 1 and 0 < self.rate < 0.75 and self.noise > 0 and 0 < self.effect <= 1,
            f"expected d >= 16, each >= 1, 0 < rate < .75, noise > 0 and 0 < effect <= 1, got {self}",
        )

    def network(self, seed: int, *, spare: int = 0) -> Network:
        """The network of a seed, with some dimensions left empty; half of the others is read."""
        generator = np.random.default_rng([seed, 0])
        half = (self.d - spare) // 2
        read, idle, empty = split_space(self.d, (half, self.d - spare - half, spare), generator)
        vectors = torch.cat([directions(self.each, part, generator) for part in (read, idle, read, idle)], dim=1)
        drawn = self.rate * generator.uniform(2 / 3, 4 / 3, size=(2, 1, self.each))
        rates = np.broadcast_to(drawn, (2, 2, self.each)).flatten()  # a read feature and its idle partner share a rate
        used = [*range(self.each), *range(2 * self.each, 3 * self.each)]
        rows = readouts(vectors[:, used], covariance_of(vectors, rates * (1 - rates), self.noise), read)
        bias = torch.from_numpy(rates)[used] - rows @ (vectors @ torch.from_numpy(rates))  # an off feature reads 0
        weights = {
            "reads": parity_weights(2 * self.each, generator),
            "writes": vectors[:, : 2 * self.each].float(),
        }
        return Network(
            weights=weights,
            inputs=vectors[:, 2 * self.each :].float(),
            reader=Reader(rows.float(), bias.float(), self.effect),
            rates=rates,
            read=read,
            spare=empty,
        )

    def features_on(
        self, network: Network, groups: Int[np.ndarray, " n"], *, absent: int, generator: np.random.Generator
    ) -> Bool[np.ndarray, "n features"]:
        """Every feature's labels, independent of each other, then those of absent ones, with the first ones' rates."""
        rates = np.append(network.rates, network.rates[:absent])
        return sticky_labels(groups, rates, documents=self.documents, generator=generator)

    def forward(
        self,
        network: Network,
        on: Bool[np.ndarray, "n features"],
        noise: Float[Tensor, "n d"],
        generator: np.random.Generator,
    ) -> Forward:
        """The input of these features, ready to be run through trained or other weights."""
        bits = encode(on[:, : 2 * self.each], network.weights["reads"], fair_bits(len(on), generator))
        inputs = torch.from_numpy(on[:, 2 * self.each : 4 * self.each]).float()
        return written(noise + inputs @ network.inputs.T, bits)

    def isotropic(self, n: int, generator: np.random.Generator) -> Float[Tensor, "n d"]:
        """Noise in every dimension."""
        return self.noise * torch.from_numpy(generator.standard_normal((n, self.d), dtype=np.float32))

    def target(self, kind: str, i: int) -> int:
        """A used feature's own output; for any other the output of its used partner, as a wrong guess would name."""
        return self.each + i if kind in ("inherited", "dataset") else i
