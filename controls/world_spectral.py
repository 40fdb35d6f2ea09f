"""World 6: principal components that any matrix of that spectrum has, beside sparse features that need its vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from controls.weights import haar
from controls.world_circuits import (
    Reader,
    covariance_of,
    directions,
    encode,
    fair_bits,
    parities,
    parity_weights,
    readouts,
    sample_of,
    split_space,
)
from controls.world_documents import Documents, document_ids, sticky_labels, sticky_normals
from controls.worlds import WorldSample
from toolkit.errors import check_types, require

SLOPE = 2.0
"""How steeply the reader's ramp goes through a component's threshold: from off to on within a quarter deviation."""


@dataclass(frozen=True)
class Network:
    """h = map · dense input + parities(bits) · writesᵀ + noise, and what reads it."""

    weights: Mapping[str, Tensor]
    """Trained "map" (d, dense), "reads" (features, bits) and "writes" (d, features); drawn anew in null networks."""
    inputs: Float[Tensor, "dense two"]
    """Right singular vectors of the two large singular values: what of the input the first components show."""
    reads_first: bool
    """Whether the first component is the one that is read, and the second idle; else the other way round."""
    reader: Reader
    """An output for each read sparse feature, then one for the component that is read."""


@dataclass(frozen=True)
class Spectral:
    """A dense Gaussian input through a matrix with two large singular values, and sparse features beside it.

    Any other matrix of this shape shows the same input: it has full rank, and the noise is small beside its least
    singular value. So the labels "the component is high" are in every network; one component is read (inherited), the
    other is not (dataset), and chance decides which is the first. Sparse features are parities of input bits, written
    along singular vectors of their own: read (model) or not (unread).
    """

    name: str = "spectral"
    """What reports call it."""
    d: int = 64
    """Width of the hook; half of it is read."""
    dense: int = 16
    """Dimensions of the Gaussian input."""
    large: tuple[float, float] = (12.0, 8.0)
    """The two large singular values; all others are `small`."""
    small: float = 4.0
    """The other singular values: far above the noise and what sparse features add to it."""
    each: int = 12
    """Sparse features, read and as many unread."""
    labelled: int = 2
    """Sparse features of each kind with labels."""
    rate: float = 0.15
    """Share of rows where a sparse feature is on, and where a component counts as high."""
    noise: float = 0.1
    """Standard deviation of the noise in each dimension, where sparse features have length 1."""
    effect: float = 1.0
    """How much of its output a used feature decides, the rest being another's (`Reader`); at .3 its C is about .4."""
    documents: Documents = field(default_factory=Documents)
    """How rows hang together."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            1 <= self.labelled <= self.each and 2 <= self.dense <= self.d // 2 and 0 < self.rate < 1 and self.noise > 0,
            f"expected 1 <= labelled <= each, 2 <= dense <= d / 2, 0 < rate < 1 and noise > 0, got {self}",
        )
        require(0 < self.effect <= 1, f"expected 0 < effect <= 1, got {self}")
        require(
            self.large[0] > self.large[1] > self.small > 0,
            f"expected large[0] > large[1] > small > 0, got large={self.large} and small={self.small}",
        )

    @property
    def threshold(self) -> float:
        """Where a component counts as high, in standard deviations."""
        return NormalDist().inv_cdf(1 - self.rate)

    def network(self, seed: int) -> Network:
        """The network of a seed."""
        generator = np.random.default_rng([seed, 0])
        read, idle = split_space(self.d, (self.d // 2, self.d - self.d // 2), generator)
        reads_first = bool(generator.integers(2))
        shown = [read[:, :1], idle[:, :1]] if reads_first else [idle[:, :1], read[:, :1]]
        left = torch.cat([*shown, idle[:, 1 : self.dense - 1]], dim=1)  # (d, dense), orthonormal
        right = haar(self.dense, self.dense, generator=generator)
        values = torch.tensor([*self.large, *[self.small] * (self.dense - 2)]).double()
        sparse = torch.cat([directions(self.each, part, generator) for part in (read, idle)], dim=1)
        weights = {
            "map": ((left * values) @ right.T).float(),
            "reads": parity_weights(2 * self.each, generator),
            "writes": sparse.float(),
        }
        reader = self._reader(sparse, left, values, read, component=0 if reads_first else 1)
        return Network(weights, right[:, :2].float(), reads_first, reader)

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        rates = np.full(2 * self.each + 1, self.rate)  # the last one is absent
        on = sticky_labels(groups, rates, documents=self.documents, generator=generator)
        normals = sticky_normals(groups, self.dense + 1, documents=self.documents, generator=generator)
        dense, alone = torch.from_numpy(normals[:, : self.dense]), normals[:, self.dense]
        bits = encode(on[:, : 2 * self.each], network.weights["reads"], fair_bits(n, generator))
        noise = self.noise * torch.from_numpy(generator.standard_normal((n, self.d), dtype=np.float32))

        def forward(weights: Mapping[str, Tensor]) -> Tensor:
            return noise + dense @ weights["map"].T + parities(bits, weights["reads"]) @ weights["writes"].T

        high = (dense @ network.inputs).numpy() > self.threshold  # (n, 2)
        sparse = {
            f"{kind} {i}": (kind, on[:, k * self.each + i], i)
            for k, kind in enumerate(("model", "unread"))
            for i in range(self.labelled)
        }
        names = ("inherited", "dataset") if network.reads_first else ("dataset", "inherited")
        features = {
            **sparse,
            **{f"component {i + 1}": (kind, high[:, i], self.each) for i, kind in enumerate(names)},
            "absent": ("absent", on[:, -1], 0),
            "absent component": ("absent", alone > self.threshold, self.each),
        }
        return sample_of(forward, network.weights, network.reader, world_seed=seed, features=features, groups=groups)

    def _reader(
        self,
        sparse: Float[Tensor, "d features"],
        left: Float[Tensor, "d dense"],
        values: Float[Tensor, " dense"],
        read: Float[Tensor, "d read"],
        *,
        component: int,
    ) -> Reader:
        vectors = torch.cat([sparse, left * values], dim=1)
        rates = np.full(sparse.shape[1], self.rate)
        variances = np.append(rates * (1 - rates), np.ones(len(values)))
        used = [*range(self.each), sparse.shape[1] + component]
        rows = readouts(vectors[:, used], covariance_of(vectors, variances, self.noise), read)
        bias = -rows @ sparse @ torch.from_numpy(rates)
        bias[:-1] += self.rate
        rows[-1], bias[-1] = SLOPE * rows[-1], SLOPE * (bias[-1] - self.threshold) + 0.5
        return Reader(rows.float(), bias.float(), self.effect)
