"""Motifs of computation in superposition (Elhage et al. 2022, section 7), measured on one-hidden-layer weights.

W_in is (instances, features, neurons), W_out (instances, neurons, features), as `networks` keeps them. One feature
on alone, with sign s, makes neuron k answer relu(s W_in[i, k]): every effect below is that of a single feature.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SERVED = 0.25
"""A neuron serves a feature whose path through it, |W_in| x W_out, has at least this gain (1 is all of |x|)."""

WIn = Float[Tensor, "instances features neurons"]
WOut = Float[Tensor, "instances neurons features"]


def served(W_in: WIn, W_out: WOut) -> Float[Tensor, "instances neurons features"]:
    """1 where a neuron serves a feature, else 0."""
    return (W_in.mT.abs() * W_out >= SERVED).float()


def asymmetry(W_in: WIn, W_out: WOut) -> Float[Tensor, " instances"]:
    """Mean log2 of interference a -> b over b -> a, where one neuron serves a and b and a comes first (matters more).

    0 is symmetric superposition (W_out = |W_in|^T, as in tied models) and what any asymmetry without regard to
    importance has on average; 2 is a neuron that reads a and b with 2 and 1 and writes them with 1/2 and 1. 0 also
    where no neuron serves two.
    """
    use = served(W_in, W_out)
    gain = torch.where(use > 0, (W_in.mT.abs() / W_out.clamp(min=1e-9)).clamp(min=1e-9).log2(), 0.0)
    after = torch.ones(use.shape[-1], use.shape[-1]).triu(1)
    both = use[..., :, None] * use[..., None, :] * after  # (I, neurons, n, n)
    return (both * (gain[..., :, None] - gain[..., None, :])).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp(min=1)


def false_positives(W_in: WIn, W_out: WOut) -> Float[Tensor, " instances"]:
    """Share of excitation of other features' outputs that inhibition leaves uncancelled, over single-feature inputs.

    Excitation and inhibition are what goes through positive and negative output weights.
    """
    left = total = torch.zeros(len(W_in))
    other = 1 - torch.eye(W_in.shape[1])
    for sign in (1, -1):
        answer = (sign * W_in).relu()
        excited = torch.bmm(answer, W_out.clamp(min=0)) * other  # (I, n, m) @ (I, m, n) -> (I, n, n)
        inhibited = torch.bmm(answer, -W_out.clamp(max=0)) * other
        left = left + (excited - inhibited).relu().sum((1, 2))
        total = total + excited.sum((1, 2))
    return left / total.clamp(min=1e-9)


def shuffled_inhibition(W_out: WOut, *, seed: int) -> WOut:
    """The control: each neuron's negative output weights dealt out anew among the places that are not positive."""
    generator = torch.Generator().manual_seed(seed)
    free = W_out <= 0
    rank = torch.rand(W_out.shape, generator=generator)
    # Both orders put the free places first: the j-th free place in one takes the j-th in the other.
    source = torch.where(free, rank, 2.0).argsort(-1)
    places = torch.where(free, torch.arange(W_out.shape[-1]) / W_out.shape[-1], 2.0).argsort(-1)
    dealt = W_out.clone()
    dealt.scatter_(-1, places, W_out.gather(-1, source))
    return torch.where(free, dealt, W_out)


def relabelled(W_in: WIn, W_out: WOut, *, seed: int) -> tuple[WIn, WOut]:
    """The control of the same weights: within each neuron, the features change places."""
    order = torch.rand(W_out.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    return W_in.mT.gather(-1, order).mT, W_out.gather(-1, order)


def monosemantic(instances: int, features: int, neurons: int, density: float) -> dict[str, Tensor]:
    """|x| by two neurons a feature for the first neurons/2, the rest at their mean density/2, as parameters."""
    W_in, b = torch.zeros(features, neurons), torch.full((features,), density / 2)
    for i in range(neurons // 2):
        W_in[i, 2 * i], W_in[i, 2 * i + 1] = 1.0, -1.0
        b[i] = 0.0
    parameters = {"W_1": W_in, "W_2": W_in.abs().T, "b_2": b}
    return {name: value.expand(instances, *value.shape) for name, value in parameters.items()}


def monosemantic_loss(importances: Float[Tensor, " features"], neurons: int, density: float) -> float:
    """Its loss: the variance of |x|, p/3 - p^2/4 for x off or uniform on (-1, 1), of every feature left out."""
    return float((density / 3 - density**2 / 4) * importances[neurons // 2 :].sum())
