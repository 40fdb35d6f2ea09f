"""World 1: sparse features in superposition, written by trained weights or in any network's input, read or not read."""

from dataclasses import dataclass

import numpy as np

from controls.world_circuits import sample_of
from controls.world_documents import document_ids
from controls.world_four_kinds import KINDS, FourKinds
from controls.worlds import WorldSample
from toolkit.errors import require


@dataclass(frozen=True)
class ReadAndIdle(FourKinds):
    """96 features in 64 dimensions, a quarter of each kind; `labelled` of each kind are asked about.

    Model: written by trained weights into the subspace that the reader sees. Unread: written outside it. Inherited:
    in the input, inside it. Dataset: in the input, outside it. Absent: labels of the same law that nothing carries.
    """

    name: str = "read-and-idle"
    """What reports call it."""
    labelled: int = 2
    """Features of each kind with labels, and absent ones; the others are there to interfere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.labelled <= self.each, f"expected 1 <= labelled <= each, got {self.labelled}, {self.each}")

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        on = self.features_on(network, groups, absent=self.labelled, generator=generator)
        forward = self.forward(network, on, self.isotropic(n, generator), generator)
        features = {
            f"{kind} {i}": (kind, on[:, k * self.each + i], self.target(kind, i))
            for k, kind in enumerate((*KINDS, "absent"))
            for i in range(self.labelled)
        }
        return sample_of(forward, network.weights, network.reader, world_seed=seed, features=features, groups=groups)
