"""Small networks that add modulo p, many in one program.

```python
trained = train_addition(13, instances=3, seed=0)
trained.held_out                         # accuracy on pairs not trained on, one an instance
pairs, (embedded, hidden, logits), layers = trained.pairs, *trained.unrolled(0)
```

One-hot numbers a and b go through embeddings whose sum is the first layer, through one hidden layer of ReLUs, to p
outputs, trained on the squared error to the one-hot sum with weight decay, on all training pairs at each step (Power et
al. 2022; Gromov 2023 for the squared error). There is no early stop: the number of steps is fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from toolkit.configs import ToyTraining
from toolkit.descent import EVALUATION, Progress
from toolkit.errors import require
from toolkit.networks import Layer, Network, TrainedNetwork, train_network
from toolkit.sources import Batch, Source

F = torch.nn.functional
EMBEDDED, HIDDEN = 24, 64
"""Sizes of the sum of embeddings and of the hidden layer."""
SHARE = 0.8
"""Of all pairs, those trained on."""


@dataclass(frozen=True, eq=False)
class TrainedAddition:
    """Networks that add modulo p."""

    p: int
    """The modulus."""
    trained: TrainedNetwork
    """Their weights."""
    is_trained_on: Bool[Tensor, "instances pairs"]
    """Which pairs each learned from; pair a p + b is (a, b)."""

    @property
    def pairs(self) -> Int[Tensor, "pairs 2"]:
        """All (a, b)."""
        return torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p))

    @property
    def sums(self) -> Int[Tensor, " pairs"]:
        """a + b modulo p."""
        return self.pairs.sum(1) % self.p

    @property
    def held_out(self) -> Float[Tensor, " instances"]:
        """Accuracy on pairs not trained on."""
        answers = self.trained(_one_hot(self.p).expand(len(self.is_trained_on), -1, -1)).argmax(2)
        right = (answers == self.sums) & ~self.is_trained_on
        return right.sum(1) / (~self.is_trained_on).sum(1)

    def unrolled(self, instance: int) -> tuple[list[Tensor], tuple[Callable[[Tensor], Tensor], ...]]:
        """One network: activations of its layers on all pairs (pairs, d), the sum of embeddings first and the outputs
        last, and what leads from each to the next, all in float64."""
        weights = {name: value[instance].double() for name, value in self.trained.parameters.items()}
        layers: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: F.relu(x @ weights["W_2"] + weights["b_2"]),
            lambda x: x @ weights["W_3"] + weights["b_3"],
        )
        reached = [_one_hot(self.p).double() @ weights["W_1"]]
        for layer in layers:
            reached.append(layer(reached[-1]))
        return reached, layers


def train_addition(
    p: int,
    *,
    instances: int,
    steps: int = 1500,
    rate: float = 1e-2,
    weight_decay: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedAddition:
    """Train networks side by side, each on its own random pairs; 0 steps leave them as they are drawn.

    Raises:
        UserError: a modulus below 3.
        DivergenceError: see `train_network`.
    """
    require(p >= 3, f"addition modulo p needs a p of at least 3, got {p}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(instances, p * p, generator=generator).argsort(1)
    trained_on = order.argsort(1) < round(SHARE * p * p)
    source = Source(instances, 2 * p, p, partial(_batch, p, trained_on))
    network = Network(2 * p, (Layer(EMBEDDED, "linear", bias=False), Layer(HIDDEN), Layer(p, "linear")))
    training = ToyTraining(toy_steps=max(1, steps), toy_batch=p * p, toy_lr=rate if steps else 1e-12)
    trained = train_network(network, source, training, seed=seed, weight_decay=weight_decay, progress=progress)
    return TrainedAddition(p, trained, trained_on)


def _batch(p: int, trained_on: Tensor, step: int, rows: int) -> Batch:
    """All training pairs at each step, and the others to measure."""
    chosen = trained_on if step < EVALUATION else ~trained_on
    at = chosen.nonzero()[:, 1].view(len(chosen), -1)  # (instances * pairs,) -> (instances, pairs)
    sums = torch.cartesian_prod(torch.arange(p), torch.arange(p)).sum(1) % p
    return Batch(_one_hot(p)[at], F.one_hot(sums, p).float()[at], torch.ones(len(at), 1, p))


def _one_hot(p: int) -> Float[Tensor, "pairs inputs"]:
    """One row a pair: a, then b."""
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    return F.one_hot(pairs, p).flatten(1).float()  # (pairs, 2, p) -> (pairs, 2 p)


def frequency_shares(values: Float[Tensor, "pairs directions"], p: int) -> Float[Tensor, " directions"]:
    """How much of each direction's power over all pairs lies in its strongest frequency; 1 for cos(2 pi k (a + b) / p).

    Frequency k holds all waves whose two numbers are 0, k or -k; the mean counts for nothing.
    """
    grid = (values - values.mean(0)).T.reshape(-1, p, p)  # (pairs, n) -> (n, p, p)
    power = torch.fft.fft2(grid).abs().square()
    number = torch.arange(p).minimum(p - torch.arange(p))
    totals = []
    for k in range(1, p // 2 + 1):
        of = (number == 0) | (number == k)
        totals.append(power[:, of][:, :, of].sum((1, 2)) - power[:, 0, 0])
    return torch.stack(totals).amax(0) / power.sum((1, 2)).clamp(min=torch.finfo(power.dtype).tiny)
