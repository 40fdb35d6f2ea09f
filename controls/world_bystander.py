"""World 2: idle features whose labels nearly are those of used ones, so that a difference of means points at both."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from controls.world_circuits import sample_of
from controls.world_documents import document_ids
from controls.world_four_kinds import KINDS, FourKinds
from controls.worlds import WorldSample
from toolkit.errors import require


@dataclass(frozen=True)
class Bystander(FourKinds):
    """Read and idle, where the first few unread features follow model features and dataset ones inherited features.

    A bystander is written (or put into the input) exactly as its partner is, along a direction of its own that the
    reader does not see; in each row it equals its partner with chance ρ and is drawn independently otherwise.
    """

    name: str = "bystander"
    """What reports call it."""
    correlations: tuple[float, ...] = (0.5, 0.9, 0.99)
    """ρ of each pair, the correlation of the two labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1 <= len(self.correlations) <= self.each and all(0 <= rho <= 1 for rho in self.correlations),
            f"expected 1 to {self.each} correlations from 0 to 1, got {self.correlations}",
        )

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        on = self.features_on(network, groups, absent=1, generator=generator)
        self._follow(on, generator)
        forward = self.forward(network, on, self.isotropic(n, generator), generator)
        features = {
            f"{kind} at {rho:g}": (kind, on[:, k * self.each + i], self.target(kind, i))
            for k, kind in enumerate(KINDS)
            for i, rho in enumerate(self.correlations)
        }
        features["absent"] = ("absent", on[:, -1], 0)
        return sample_of(forward, network.weights, network.reader, world_seed=seed, features=features, groups=groups)

    def _follow(self, on: Bool[np.ndarray, "n features"], generator: np.random.Generator) -> None:
        """Ties bystanders to their partners, in place; both have the same rate, so the correlation is ρ."""
        for used, idle in ((0, self.each), (2 * self.each, 3 * self.each)):
            for i, rho in enumerate(self.correlations):
                follows = generator.random(len(on)) < rho
                on[:, idle + i] = np.where(follows, on[:, used + i], on[:, idle + i])
