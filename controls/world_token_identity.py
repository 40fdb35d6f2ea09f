"""World 4: labels that only say which token it is, at full accuracy in any network, beside what context alone tells."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from controls.world_circuits import (
    SHARED_BITS,
    Reader,
    covariance_of,
    directions,
    encode,
    fair_bits,
    parity_weights,
    readouts,
    sample_of,
    split_space,
    written,
)
from controls.world_documents import Documents, document_ids, first_rows, sticky_labels
from controls.worlds import WorldSample
from toolkit.errors import check_types, require

ZIPF_OFFSET = 20
"""Mandelbrot's offset: type r has a share proportional to 1 / (r + 20), so that no type rules a label by itself."""


@dataclass(frozen=True)
class Vocabulary:
    """The token types."""

    shares: Float[np.ndarray, " types"]
    """How frequent each type is."""
    labels: Bool[np.ndarray, "types features"]
    """Type-level labels: the read (inherited) ones, then the idle (dataset) ones."""
    directions: Float[Tensor, "d features"]
    """Where the embedding of a type holds each label, length 1."""
    embedding: Float[Tensor, "types d"]
    """The input of any network: the directions of a type's labels, and a vector of its own that nothing reads."""


@dataclass(frozen=True)
class Network:
    """The network of a seed."""

    vocabulary: Vocabulary
    """Types and their embedding."""
    weights: Mapping[str, Tensor]
    """"reads" and "writes" of the contextual features: the read (model) ones, then the others (unread)."""
    reader: Reader
    """An output for each read contextual feature, then one for each read type-level label."""


@dataclass(frozen=True)
class TokenIdentity:
    """Zipf tokens whose type decides some labels, and contextual variables that are independent of the token.

    A contextual feature is the parity of bits of this position and the one before: the trained layer attends to the
    previous position. Null networks keep the embedding, their input, and draw the layer anew.
    """

    name: str = "token-identity"
    """What reports call it."""
    d: int = 64
    """Width of the hook; half of it is read."""
    types: int = 400
    """Token types: several times d, so that not every labelling of them is linear in the embedding."""
    each: int = 8
    """Features of each kind; all kinds together are fewer than d, so type-level labels are there without an error."""
    labelled: int = 2
    """Features of each kind with labels, and absent ones."""
    type_rate: float = 0.25
    """Share of types that a type-level label holds for."""
    rate: float = 0.2
    """Share of rows where a contextual feature is on."""
    own: float = 0.5
    """Length of each type's own vector, where features have length 1."""
    burstiness: float = 50.0
    """Concentration of the Dirichlet law of a document's tokens about the shares of all: small is bursty."""
    noise: float = 0.05
    """Standard deviation of the noise in each dimension."""
    effect: float = 1.0
    """How much of its output a used feature decides, the rest being another's (`Reader`); at .3 its C is about .4."""
    documents: Documents = field(default_factory=Documents)
    """How rows hang together."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            1 <= self.labelled <= self.each and 4 * self.each <= self.d,
            f"expected 1 <= labelled <= each and 4 each <= d, got {self}",
        )
        require(
            1 <= round(self.type_rate * self.types) < self.types and 0 < self.rate < 1,
            f"expected labels that hold for some types and not for all, and 0 < rate < 1, got {self}",
        )
        require(
            self.noise > 0 and self.burstiness > 0 and self.own >= 0 and 0 < self.effect <= 1,
            f"expected noise and burstiness > 0, own >= 0 and 0 < effect <= 1, got {self}",
        )

    def network(self, seed: int) -> Network:
        """The network of a seed."""
        generator = np.random.default_rng([seed, 0])
        read, idle = split_space(self.d, (self.d // 2, self.d - self.d // 2), generator)
        vectors = torch.cat([directions(self.each, part, generator) for part in (read, idle, read, idle)], dim=1)
        vocabulary = self._vocabulary(vectors[:, 2 * self.each :], idle, generator)
        type_rates = vocabulary.shares @ vocabulary.labels
        rates = np.concatenate([np.full(2 * self.each, self.rate), type_rates])
        used = [*range(self.each), *range(2 * self.each, 3 * self.each)]
        rows = readouts(vectors[:, used], covariance_of(vectors, rates * (1 - rates), self.noise), read)
        bias = torch.from_numpy(rates)[used] - rows @ (vectors @ torch.from_numpy(rates))
        weights = {"reads": parity_weights(2 * self.each, generator), "writes": vectors[:, : 2 * self.each].float()}
        return Network(vocabulary, weights, Reader(rows.float(), bias.float(), self.effect))

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        tokens = self._tokens(network.vocabulary.shares, groups, generator)
        rates = np.full(2 * self.each + self.labelled, self.rate)  # the last ones are absent
        context = sticky_labels(groups, rates, documents=self.documents, generator=generator)
        bits = encode(context[:, : 2 * self.each], network.weights["reads"], two_positions(groups, generator))
        noise = self.noise * torch.from_numpy(generator.standard_normal((n, self.d), dtype=np.float32))
        forward = written(network.vocabulary.embedding[torch.from_numpy(tokens)] + noise, bits)
        labels = {
            "model": context,
            "unread": context[:, self.each :],
            "inherited": network.vocabulary.labels[tokens],
            "dataset": network.vocabulary.labels[tokens][:, self.each :],
            "absent": context[:, 2 * self.each :],
        }
        features = {
            f"{kind} {i}": (kind, on[:, i], self.each + i if kind in ("inherited", "dataset") else i)
            for kind, on in labels.items()
            for i in range(self.labelled)
        }
        return sample_of(
            forward, network.weights, network.reader, world_seed=seed, features=features, groups=groups, tokens=tokens
        )

    def _vocabulary(
        self, vectors: Float[Tensor, "d features"], idle: Float[Tensor, "d idle"], generator: np.random.Generator
    ) -> Vocabulary:
        shares = 1 / (ZIPF_OFFSET + np.arange(1, self.types + 1))
        holds = np.arange(self.types) < round(self.type_rate * self.types)
        labels = generator.permuted(np.tile(holds, (vectors.shape[1], 1)), axis=1).T
        own = self.own * directions(self.types, idle, generator).T  # (types, d)
        embedding = torch.from_numpy(labels).double() @ vectors.T + own
        return Vocabulary(shares / shares.sum(), labels, vectors.float(), embedding.float())

    def _tokens(
        self, shares: Float[np.ndarray, " types"], groups: Int[np.ndarray, " n"], generator: np.random.Generator
    ) -> Int[np.ndarray, " n"]:
        """Tokens of documents, each with frequencies of its own."""
        local = generator.dirichlet(self.burstiness * shares, size=int(groups[-1]) + 1)  # (documents, types)
        ends = local.cumsum(1)
        ends[:, -1] = 1
        ends += np.arange(len(ends))[:, None]  # one increasing line: document g covers g to g + 1
        drawn = np.searchsorted(ends.ravel(), groups + generator.random(len(groups)), side="right")
        return drawn - groups * self.types


def two_positions(groups: Int[np.ndarray, " n"], generator: np.random.Generator) -> Bool[np.ndarray, "n bits"]:
    """Bits of each position beside those of the one before; a document starts after a position of its own."""
    half = SHARED_BITS // 2
    here, start = np.split(fair_bits(len(groups), generator), [half], axis=1)
    before = np.where(first_rows(groups)[:, None], start, np.roll(here, 1, axis=0))
    return np.concatenate([here, before], axis=1)
