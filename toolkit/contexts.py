"""Features that matter in one context only: the first half in a comedy, the second in a tragedy (james__p 2025).

```python
from toolkit.contexts import Play, contextual
source = contextual(Play(values="zeroed"), instances=8, seed=0)
```
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, factorial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import brentq, linear_sum_assignment
from torch import Tensor

from toolkit.configs import ToyTraining
from toolkit.descent import EVALUATION
from toolkit.errors import check_types, require
from toolkit.metrics import gram
from toolkit.networks import Network, TrainedNetwork, autoencoder, error, forward, train_network
from toolkit.sources import Batch, Source, uniforms


@dataclass(frozen=True)
class Play:
    """Sparse features (on with probability `density`, then uniform on (0, 1)) and what their context does."""

    features: int = 20
    """n, of which the first half belongs to comedies and the second to tragedies."""
    density: float = 0.1
    """Probability that a feature is on."""
    decay: float = 0.7
    """Feature k of either half, counted from 1, weighs decay**k where it matters."""
    rule: Literal["coin", "sum", "first"] = "coin"
    """A comedy is: a coin's head, independent of x; sum x above its median; x_1 > 0."""
    comedies: float = 0.5
    """Probability of the coin's head."""
    importance: Literal["conditional", "average", "fixed"] = "conditional"
    """Zero for the half that does not belong; its mean over the coin; decay**k whatever the context."""
    values: Literal["kept", "zeroed", "doubled"] = "kept"
    """As drawn; the other half set to zero; z = (x, 0) in a comedy and (0, x) in a tragedy, 2n entries, where a
    conditional importance of x is a constant one of z, zero for the n in the middle."""
    shown: Literal["nothing", "context", "coin"] = "nothing"
    """One more input after x: none; 1 in a comedy and 0 in a tragedy; an independent coin, which tells nothing."""
    detached: bool = False
    """Feature i's context comes from a row of fresh draws with x_i put in: P(it matters | x_i) is as before, and
    the other features say nothing about it."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.features > 0 and self.features % 2 == 0, f"features must be positive, even: got {self.features}")
        for name in ("density", "decay", "comedies"):
            value = getattr(self, name)
            require(0 < value <= 1, f"{name} must lie in (0, 1], got {value}")
        plain = self.values == "kept" and self.shown == "nothing" and self.rule != "coin"
        require(plain or not self.detached, "detached contexts are for contexts deduced from x, with nothing else")
        averaged = self.rule == "coin" and self.values != "doubled"
        require(averaged or self.importance != "average", "the average importance is taken over a coin, of x itself")

    @property
    def first(self) -> Bool[Tensor, " features"]:
        """Which features belong to comedies."""
        return torch.arange(self.features) < self.features // 2

    @property
    def importances(self) -> Float[Tensor, " features"]:
        """Weight of each feature where it matters: decay, decay**2, ... twice."""
        return self.decay ** torch.arange(1, self.features // 2 + 1).float().repeat(2)

    @property
    def average(self) -> Float[Tensor, " features"]:
        """Mean weight of each feature over the coin."""
        return self.importances * torch.where(self.first, self.comedies, 1 - self.comedies)


def median_sum(play: Play) -> float:
    """Median of sum x: a binomial mixture of Irwin-Hall laws (Johnson, Kotz and Balakrishnan 1995, section 26.9)."""
    n, p = play.features, play.density

    def below(s: float) -> float:
        return sum(comb(n, k) * p**k * (1 - p) ** (n - k) * _irwin_hall(k, s) for k in range(n + 1))

    return 0.0 if below(0.0) >= 0.5 else float(brentq(lambda s: below(s) - 0.5, 0.0, n))


def _irwin_hall(k: int, s: float) -> float:
    """P(sum of k uniforms <= s)."""
    if s >= k:
        return 1.0
    return sum((-1) ** j * comb(k, j) * (s - j) ** k for j in range(int(s) + 1)) / factorial(k)


def contextual(play: Play, *, instances: int, seed: int) -> Source:
    """Batches of a play; the features are the same for the same seed whatever the context does."""
    threshold = median_sum(play) if play.rule == "sum" else 0.0
    width = 2 * play.features if play.values == "doubled" else play.features

    def draw(step: int, rows: int, at: int) -> Tensor:
        on, value = (
            uniforms(instances, rows, play.features, seed=seed, step=step, draw=at + i) for i in (0, 1)
        )  # (I, B, n)
        return (on < play.density) * value

    def coin(step: int, rows: int, at: int, chance: float) -> Tensor:
        return uniforms(instances, rows, 1, seed=seed, step=step, draw=at) < chance  # (I, B, 1)

    def batch(step: int, rows: int) -> Batch:
        x = draw(step, rows, 0)
        if play.rule == "coin":
            comedy = coin(step, rows, 2, play.comedies)
        else:
            comedy = _deduced(play, x, draw(step, rows, 3) if play.detached else None, threshold)
        matters = comedy == play.first  # (I, B, n)
        y, weight = _perform(play, x, comedy, matters)
        told = {"nothing": [], "context": [comedy.float()], "coin": [coin(step, rows, 5, 0.5).float()]}[play.shown]
        return Batch(torch.cat([y, *told], -1) if told else y, y, weight)

    return Source(instances, width + (play.shown != "nothing"), width, batch)


def _deduced(play: Play, x: Tensor, others: Tensor | None, threshold: float) -> Tensor:
    """Whether it is a comedy, (I, B, 1); detached from the other features, (I, B, n)."""
    if play.rule == "first":
        if others is None:
            return x[..., :1] > 0
        return torch.cat([x[..., :1], others[..., :1].expand(*x.shape[:2], play.features - 1)], -1) > 0
    total = x.sum(-1, keepdim=True) if others is None else others.sum(-1, keepdim=True) - others + x
    return total > threshold


def _perform(play: Play, x: Tensor, comedy: Tensor, matters: Tensor) -> tuple[Tensor, Tensor]:
    """Features and their weights."""
    if play.values == "doubled":
        belongs = torch.cat([play.first, ~play.first]) | (play.importance == "fixed")
        return torch.cat([x * comedy, x * ~comedy], -1), (play.importances.repeat(2) * belongs).expand(len(x), 1, -1)
    y = x * matters if play.values == "zeroed" else x
    if play.importance == "conditional":
        return y, play.importances * matters
    weights = play.average if play.importance == "average" else play.importances
    return y, weights.expand(len(x), 1, -1)


def train_play(
    play: Play, training: ToyTraining, *, instances: int, seed: int, hidden: int = 10, snapshots: Sequence[int] = ()
) -> TrainedNetwork:
    """Tied autoencoders of a play; those of one seed start alike and see the same features."""
    source = contextual(play, instances=instances, seed=seed)
    return train_network(autoencoder(source.inputs, hidden), source, training, seed=seed, snapshots=snapshots)


@torch.no_grad()
def play_loss(
    network: Network, parameters: dict[str, Tensor], play: Play, *, seed: int, batches: int = 16
) -> Float[Tensor, " instances"]:
    """Mean loss of any parameters over batches of 4,096 rows that no training sees."""
    source = contextual(play, instances=len(parameters["W_1"]), seed=seed)
    total = torch.zeros(source.instances)
    for step in range(EVALUATION + 100, EVALUATION + 100 + batches):
        batch = source.batch(step, 4096)
        total += error(forward(network, parameters, batch.x)[-1], batch) / batches
    return total


@torch.no_grad()
def reach(network: Network, parameters: dict[str, Tensor], features: int) -> Float[Tensor, "instances 2 features"]:
    """Length that each feature, alone and at 1/2, adds to the second layer with a further input at 1 and at 0."""
    lengths = []
    for shown in (1.0, 0.0):
        alone = torch.cat([torch.zeros(1, features), 0.5 * torch.eye(features)])
        rows = torch.cat([alone, torch.full((features + 1, 1), shown)], -1)
        h = forward(network, parameters, rows.repeat(len(parameters["W_1"]), 1, 1))[1]  # (I, 1 + n, hidden)
        lengths.append((h[:, 1:] - h[:, :1]).norm(dim=-1))
    return torch.stack(lengths, 1)


def leak(reached: Float[Tensor, "instances 2 features"]) -> Float[Tensor, " instances"]:
    """How far features reach out of their context over how far in it: 0 for a perfect gate, 1 for none."""
    first = torch.arange(reached.shape[-1]) < reached.shape[-1] // 2
    comedy, tragedy = reached.unbind(1)
    return torch.where(first, tragedy, comedy).sum(-1) / torch.where(first, comedy, tragedy).sum(-1)


@dataclass(frozen=True)
class Interference:
    """Sums of (W_i . W_j)^2 over pairs of features i < j, where the pairs are of one half or of both."""

    within: Float[Tensor, "*instances"]
    """Both of one half."""
    across: Float[Tensor, "*instances"]
    """One of each half."""
    largest_within: Float[Tensor, "*instances"]
    """Largest |W_i . W_j| of one half."""


def interference(W: Float[Tensor, "*instances hidden features"]) -> Interference:
    """How features overlap within the halves and across them."""
    G = gram(W)
    G = G - torch.diag_embed(G.diagonal(dim1=-2, dim2=-1))
    half = G.shape[-1] // 2
    blocks = torch.stack([G[..., :half, :half], G[..., half:, half:]])
    across = G[..., :half, half:].square().sum((-2, -1))
    return Interference(blocks.square().sum((0, -2, -1)) / 2, across, blocks.abs().amax((0, -2, -1)))


def random_directions(W: Float[Tensor, "*instances hidden features"], *, seed: int) -> Tensor:
    """Random directions with the norms of W."""
    draws = torch.from_numpy(np.random.default_rng(seed).standard_normal(W.shape)).float()
    return torch.nn.functional.normalize(draws, dim=-2) * W.norm(dim=-2, keepdim=True)


def opposed(W: Float[Tensor, "hidden features"]) -> Float[Tensor, "hidden features"]:
    """W with the second half reordered so that each feature stands where its antipode in the first half does."""
    half = W.shape[-1] // 2
    order = linear_sum_assignment(gram(W)[:half, half:].numpy())[1]
    return torch.cat([W[:, :half], W[:, half:][:, torch.from_numpy(order)]], -1)


def shared_direction_loss(cosine: Float[Tensor, " cosines"], density: float) -> Float[Tensor, " cosines"]:
    """Loss of two features, both of weight 1, with unit directions at a cosine g and no bias.

    x_1' = ReLU(x_1 + g x_2): the error of x_1 is g^2 x_2^2 for g >= 0, else min(x_1, |g| x_2)^2. Its mean over uniforms
    is g^2/3 where x_2 is on, and g^2/3 - |g|^3/6 where both are (after james__p 2025, "Mathematical Intuition").
    """
    g = cosine.abs()
    return 2 * torch.where(cosine >= 0, density * g**2 / 3, density**2 * (g**2 / 3 - g**3 / 6))


def pairs_at(cosine: Float[Tensor, " cosines"]) -> tuple[Network, dict[str, Tensor]]:
    """Two features with unit directions at each cosine in the plane, no bias: one instance a cosine."""
    first = torch.stack([torch.ones_like(cosine), torch.zeros_like(cosine)], -1)
    second = torch.stack([cosine, (1 - cosine**2).clamp(min=0).sqrt()], -1)
    return autoencoder(2, 2), {"W_1": torch.stack([first, second], 1), "b_2": torch.zeros(len(cosine), 2)}


def random_autoencoders(
    play: Play, *, instances: int, seed: int, hidden: int = 10
) -> tuple[Network, dict[str, Tensor]]:
    """Networks that nobody trained, of column norms from .1 to 3, with biases."""
    draws = np.random.default_rng(seed)
    scale = np.logspace(-1, 0.5, instances)[:, None, None] / hidden**0.5
    W = torch.from_numpy(scale * draws.standard_normal((instances, play.features, hidden))).float()
    b = torch.from_numpy(0.2 * draws.standard_normal((instances, play.features))).float()
    return autoencoder(play.features, hidden), {"W_1": W, "b_2": b}
