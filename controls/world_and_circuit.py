"""World 5: ANDs and XORs of a ReLU circuit, read and unread, beside ANDs that are linear in any network's input."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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
from controls.world_documents import Documents, document_ids, sticky_labels
from controls.worlds import WorldSample
from toolkit.errors import check_types, require

GATES = (("read", "and"), ("read", "xor"), ("unread", "and"), ("unread", "xor"))
"""The order of the circuit's gates; each stands for `each` gates on two inputs of their own."""


@dataclass(frozen=True)
class Network:
    """bits -> parities -> relu -> the hook, which also holds some Boolean inputs as they are -> the reader."""

    weights: Mapping[str, Tensor]
    """Trained "reads" (variables, bits), "gates" (units, variables), "writes" (d, units); null networks have others."""
    thresholds: Float[Tensor, " units"]
    """Biases of the ReLU layer, kept in null networks."""
    inputs: Float[Tensor, "d inputs"]
    """Where any network holds its Boolean inputs: pairs that are read, then idle pairs."""
    reader: Reader
    """An output for each read AND, each read XOR, and each read pair of inputs: their AND."""


@dataclass(frozen=True)
class AndCircuit:
    """Boolean variables that only a trained layer shows, their ANDs and XORs by ReLUs, written along directions.

    The variables are parities of input bits and are not themselves at the hook. Other Boolean inputs are: the AND of
    two of them is linear in any network (their sum passes 1.5), and the reader computes it for some pairs (inherited)
    and does not see others (dataset).
    """

    name: str = "and-circuit"
    """What reports call it."""
    d: int = 64
    """Width of the hook; half of it is read."""
    each: int = 6
    """Gates of each of GATES, and pairs of inputs of each kind; one of each is asked about, two of the pairs."""
    rate: float = 0.4
    """Share of rows where a variable is on: an AND is on in .16 of them, an XOR in .48."""
    noise: float = 0.1
    """Standard deviation of the noise in each dimension, where features have length 1."""
    effect: float = 1.0
    """How much of its output a used feature decides, the rest being another's (`Reader`); at .3 its C is about .4."""
    documents: Documents = field(default_factory=Documents)
    """How rows hang together."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            self.d >= 8 * self.each >= 16 and 0 < self.rate < 1 and self.noise > 0 and 0 < self.effect <= 1,
            f"expected each >= 2, d >= 8 each, 0 < rate < 1, noise > 0 and 0 < effect <= 1, got {self}",
        )

    def network(self, seed: int) -> Network:
        """The network of a seed."""
        generator = np.random.default_rng([seed, 0])
        read, idle = split_space(self.d, (self.d // 2, self.d - self.d // 2), generator)
        gates = torch.cat([directions(2 * self.each, part, generator) for part in (read, idle)], dim=1)
        inputs = torch.cat([directions(2 * self.each, part, generator) for part in (read, idle)], dim=1)
        layer, thresholds, units = self._layer()
        weights = {
            "reads": parity_weights(8 * self.each, generator),
            "gates": layer,
            "writes": (gates @ units.double()).float(),
        }
        return Network(weights, thresholds, inputs.float(), self._reader(gates, inputs, read))

    def sample(self, seed: int, n: int) -> WorldSample:
        """`n` rows of the network of this seed."""
        network, generator = self.network(seed), np.random.default_rng([seed, 1])
        groups = document_ids(n, documents=self.documents, generator=generator)
        rates = np.full(12 * self.each + 4, self.rate)  # the circuit's variables, the inputs, two absent pairs
        on = sticky_labels(groups, rates, documents=self.documents, generator=generator)
        bits = encode(on[:, : 8 * self.each], network.weights["reads"], fair_bits(n, generator))
        carried = torch.from_numpy(on[:, 8 * self.each : 12 * self.each]).float() @ network.inputs.T
        carried += self.noise * torch.from_numpy(generator.standard_normal((n, self.d), dtype=np.float32))

        def forward(weights: Mapping[str, Tensor]) -> Tensor:
            variables = parities(bits, weights["reads"])
            return carried + (variables @ weights["gates"].T + network.thresholds).relu() @ weights["writes"].T

        first, second = on[:, 0::2], on[:, 1::2]  # pair p holds variables 2p and 2p + 1
        both, one = first & second, first ^ second
        e = self.each
        features = {
            "and read": ("model", both[:, 0], 0),
            "xor read": ("model", one[:, e], e),
            "and unread": ("unread", both[:, 2 * e], 0),
            "xor unread": ("unread", one[:, 3 * e], e),
            **{f"inputs read {i}": ("inherited", both[:, 4 * e + i], 2 * e + i) for i in range(2)},
            **{f"inputs idle {i}": ("dataset", both[:, 5 * e + i], 2 * e + i) for i in range(2)},
            "and absent": ("absent", both[:, 6 * e], 0),
            "xor absent": ("absent", one[:, 6 * e + 1], e),
        }
        return sample_of(forward, network.weights, network.reader, world_seed=seed, features=features, groups=groups)

    def _layer(
        self,
    ) -> tuple[Float[Tensor, "units variables"], Float[Tensor, " units"], Float[Tensor, "gates units"]]:
        """The ReLU layer: relu(x + y - 1) for an AND, relu(x - y) and relu(y - x) for an XOR; and whose each is."""
        layer, thresholds, owner = [], [], []
        for gate in range(4 * self.each):
            is_and = GATES[gate // self.each][1] == "and"
            for signs in ((1.0, 1.0),) if is_and else ((1.0, -1.0), (-1.0, 1.0)):
                row = torch.zeros(8 * self.each)
                row[2 * gate : 2 * gate + 2] = torch.tensor(signs)
                layer.append(row)
                thresholds.append(-1.0 if is_and else 0.0)
                owner.append(gate)
        units = torch.nn.functional.one_hot(torch.tensor(owner), 4 * self.each).T  # (gates, units)
        return torch.stack(layer), torch.tensor(thresholds), units.float()

    def _reader(
        self, gates: Float[Tensor, "d gates"], inputs: Float[Tensor, "d inputs"], read: Float[Tensor, "d read"]
    ) -> Reader:
        p, e = self.rate, self.each
        gate_rates = np.tile(np.repeat([p**2, 2 * p * (1 - p)], e), 2)
        rates = np.append(gate_rates, np.full(4 * e, p))
        vectors = torch.cat([gates, inputs], dim=1)
        used = [*range(2 * e), *range(4 * e, 6 * e)]  # read gates, then both inputs of the read pairs
        rows = readouts(vectors[:, used], covariance_of(vectors, rates * (1 - rates), self.noise), read)
        bias = torch.from_numpy(rates)[used] - rows @ (vectors @ torch.from_numpy(rates))
        sums = [rows[2 * e :: 2] + rows[2 * e + 1 :: 2], bias[2 * e :: 2] + bias[2 * e + 1 :: 2] - 1]
        return Reader(
            torch.cat([rows[: 2 * e], sums[0]]).float(), torch.cat([bias[: 2 * e], sums[1]]).float(), self.effect
        )
