"""World 3: a dormant pathway. A probe's weight vector moves an output, and the network does not use the feature."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.world_circuits import Reader, covariance_of, sample_of
from controls.world_documents import document_ids
from controls.world_four_kinds import KINDS, FourKinds, Network
from controls.worlds import WorldSample
from toolkit.errors import require

LARGEST = 4.0
"""Where the noise of a dormant dimension is cut off, in standard deviations: no row of any sample wakes it."""
GAIN = 4.0
"""How strongly a dormant dimension is read: it wakes its output at 1/4 / GAIN = .0625 of a feature's length."""


@dataclass(frozen=True)
class DormantReader:
    """The reader of used features, and pathways that wake only far outside what the data ever shows."""

    reader: Reader
    """Reads the used features."""
    dormant: Reader
    """Reads each dormant dimension."""
    targets: tuple[int, ...]
    """The output of `reader` that each of them adds to."""

    def __call__(self, activations: Float[Tensor, "rows d"]) -> Float[Tensor, "rows outputs"]:
        """The outputs."""
        woken = self.dormant(activations)
        return self.reader(activations).index_add(1, torch.tensor(self.targets), woken)


@dataclass(frozen=True)
class Dormant(FourKinds):
    """Features along v = (disconnected + dormant) / √2 in the eyes of a probe (Makelov et al. 2023, section 3).

    Each labelled unread or dataset feature lies along a disconnected direction, which nothing reads, and has a trace
    in a dormant dimension of its own, which is read but hardly varies: its noise is .01, cut off at 4 standard
    deviations. The trace is so small (about .001) that the dimension stays asleep in every row, and so chosen that the
    weights of linear discriminant analysis weigh both alike (to a few percent, for the traces of the others): patching
    along them moves the output. In truth the feature's presence changes no output in any row.
    """

    name: str = "dormant"
    """What reports call it."""
    labelled: int = 2
    """Features of each kind with labels, and absent ones; each unread and dataset one has a dormant dimension."""
    dormant_noise: float = 0.01
    """Standard deviation of a dormant dimension."""

    def __post_init__(self) -> None:
        super().__post_init__()
        spare = 2 * self.labelled
        require(
            1 <= self.labelled <= self.each and self.d - spare >= 16,
            f"expected 1 <= labelled <= each and 16 dimensions beside the {spare} dormant ones, got {self}",
        )
        require(
            0 < self.dormant_noise <= 0.0125,
            f"dormant_noise {self.dormant_noise} would wake the dormant pathway, expected more than 0, at most .0125",
        )

    def network(self, seed: int, *, spare: int = 0) -> Network:
        """The network of a seed, with the features' traces in dormant dimensions; `spare` further ones stay empty."""
        plain = super().network(seed, spare=spare + 2 * self.labelled)
        vectors = torch.cat([plain.weights["writes"], plain.inputs], dim=1).double()
        covariance = covariance_of(vectors, plain.rates * (1 - plain.rates), self.noise)
        for trace, column in zip(plain.spare.T, self._illusions(), strict=False):
            own = plain.rates[column] * (1 - plain.rates[column]) * torch.outer(vectors[:, column], vectors[:, column])
            probe = torch.linalg.solve(covariance - own, vectors[:, column])  # its weights off the dormant dimension
            vectors[:, column] += self.dormant_noise**2 * probe.norm() * trace
        writes, inputs = vectors.float().split(2 * self.each, dim=1)
        return replace(plain, weights={**plain.weights, "writes": writes}, inputs=inputs)

    def outputs(self, network: Network) -> DormantReader:
        """The rest of the network."""
        traces = network.spare[:, : 2 * self.labelled].float()
        dormant = Reader(GAIN * traces.T, torch.zeros(2 * self.labelled), self.effect)
        targets = tuple(self.target(kind, i) for kind in ("unread", "dataset") for i in range(self.labelled))
        return DormantReader(network.reader, dormant, targets)

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        on = self.features_on(network, groups, absent=self.labelled, generator=generator)
        forward = self.forward(network, on, self._noise(n, network, generator), generator)
        features = {
            f"{kind} {i}": (kind, on[:, k * self.each + i], self.target(kind, i))
            for k, kind in enumerate((*KINDS, "absent"))
            for i in range(self.labelled)
        }
        return sample_of(
            forward, network.weights, self.outputs(network), world_seed=seed, features=features, groups=groups
        )

    def _illusions(self) -> list[int]:
        """Columns of the features with a dormant dimension: the first unread ones, then the first dataset ones."""
        return [k * self.each + i for k in (1, 3) for i in range(self.labelled)]

    def _noise(self, n: int, network: Network, generator: np.random.Generator) -> Float[Tensor, "n d"]:
        """Isotropic, except in the dormant dimensions."""
        noise, traces = self.isotropic(n, generator), network.spare.float()
        asleep = (noise @ traces / self.noise).clamp(-LARGEST, LARGEST) * self.dormant_noise  # (n, dormant)
        return noise - noise @ traces @ traces.T + asleep @ traces.T
