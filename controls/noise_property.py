"""A property that is in the input and never predicts the target: the network encodes it all the same, and ignores it.

Ravichander, Belinkov and Hovy 2021, Probing the probing paradigm: does probing accuracy entail task relevance?,
section 5. Small networks are trained on one and the same input twice, with the property in the target and without.
Whoever calls the second one used because a read-out finds it would call anything used that the input holds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.case import Case
from controls.decoding import FOLDS, Deal, deal, folded
from controls.outcomes import Outcome
from controls.registry import control

NETWORKS = 8
"""Trained at once with each target; what is reported is their mean."""
BITS, INPUT, WIDTH = 6, 24, 48
"""Independent properties of an input, its numbers, and units of each of two hidden layers."""
NOISE = 0.5
"""Standard deviation of what is added to each number of an input, whose own part has one of 1."""
PROPERTY = 0
"""The bit that is asked for."""
TARGETS = {"noise property": (1, 2, 3), "used property": (PROPERTY, 1, 2)}
"""Bits whose majority is the target: without the property, and with it, which is the positive control."""
STEPS, BATCH, RATE = 300, 256, 5e-3
"""Of Adam, on new inputs at each step, so that nothing can be learned by heart."""
ROWS = 1500
"""New inputs on which the hidden layer is read."""


@dataclass(frozen=True)
class Networks:
    """Several networks of two hidden layers, side by side."""

    mixing: Float[Tensor, "networks bits input"]
    """From bits of -1 and 1 to an input."""
    weights: tuple[Float[Tensor, "networks _ _"], ...]
    """Into the first hidden layer, the second, and the logit of the target."""
    biases: tuple[Float[Tensor, "networks 1 _"], ...]
    """Of the same three."""

    def inputs(
        self, bits: Float[Tensor, "networks rows bits"], draw: torch.Generator
    ) -> Float[Tensor, "networks rows input"]:
        """Inputs with these properties."""
        mixed = bits @ self.mixing
        return mixed + NOISE * torch.randn(mixed.shape, generator=draw)

    def hidden(self, x: Float[Tensor, "networks rows input"]) -> Float[Tensor, "networks rows width"]:
        """The first hidden layer, of which decodability and use are asked."""
        return (x @ self.weights[0] + self.biases[0]).relu()

    def logits(self, hidden: Float[Tensor, "networks rows width"]) -> Float[Tensor, "networks rows"]:
        """Of the target, from the first hidden layer on."""
        second = (hidden @ self.weights[1] + self.biases[1]).relu()
        return (second @ self.weights[2] + self.biases[2])[..., 0]


@control(
    "training.noise-property",
    null="what a hidden layer tells of a property is what the network uses of it",
    mind="of small networks trained here, whatever model is audited: the noise property has to come out decodable and "
    "unused, the used one decodable and used",
)
def noise_property(case: Case) -> list[Outcome]:
    """Decodability against the property shuffled, and use against random directions, with each of TARGETS."""
    return [outcome for name in TARGETS for outcome in tried(name, seed=case.seed, draws=case.draws)]


def tried(name: str, *, seed: int, draws: int) -> list[Outcome]:
    """Decodability and use of the property in networks trained on one of TARGETS; the mean over NETWORKS of both.

    Decodability is r, the held-out correlation of the property and its linear read-out. Use is the mean change of the
    target's logit, whatever its sign, when the hidden layer is moved by the difference of its means with and without
    the property, in standard deviations of the logit; the null moves it as far in directions drawn at random.
    """
    networks = trained(TARGETS[name], seed=seed)
    draw, rng = _generator(seed, 1), np.random.default_rng([seed, 137, 2])
    bits = drawn_bits(ROWS, draw)
    hidden, present = networks.hidden(networks.inputs(bits, draw)), bits[..., PROPERTY] > 0
    r, null_r = _decoded(hidden, present, draws, rng)
    use, null_use = _used(networks, hidden, present, draws, draw)
    control = "training.noise-property"
    read = f"{NETWORKS} networks trained here, not the model"
    return [
        Outcome(control, name, "held-out r of property and linear read-out", r, null_r, note=read),
        Outcome(
            control, name, "change of the target's logit when steered, in its deviations", use, null_use, note=read
        ),
    ]


def trained(target: tuple[int, ...], *, seed: int) -> Networks:
    """Networks after training on the majority of some bits; their start and their inputs are the seed's alone."""
    draw = _generator(seed, 0)
    networks = _begun(draw)
    parameters = [*networks.weights, *networks.biases]
    optimiser = torch.optim.Adam([p.requires_grad_() for p in parameters], lr=RATE)
    for _ in range(STEPS):
        bits = drawn_bits(BATCH, draw)
        wanted = (bits[..., list(target)].sum(-1) > 0).float()
        logits = networks.logits(networks.hidden(networks.inputs(bits, draw)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        optimiser.zero_grad()
        loss.mean(1).sum().backward()
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return networks


def drawn_bits(rows: int, draw: torch.Generator) -> Float[Tensor, "networks rows bits"]:
    """Independent properties of -1 or 1, as often the one as the other."""
    return torch.randint(2, (NETWORKS, rows, BITS), generator=draw).float() * 2 - 1


def _generator(seed: int, place: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.default_rng([seed, 137, place]).integers(2**31)))


def _begun(draw: torch.Generator) -> Networks:
    """Orthonormal directions for the bits, of variance 1 a number in all; weights by He et al. 2015."""
    mixing = torch.linalg.qr(torch.randn(NETWORKS, INPUT, BITS, generator=draw)).Q.mT * (INPUT / BITS) ** 0.5
    sizes = ((INPUT, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))
    weights = tuple(torch.randn(NETWORKS, *size, generator=draw) * (2 / size[0]) ** 0.5 for size in sizes)
    return Networks(mixing, weights, tuple(torch.zeros(NETWORKS, 1, size[1]) for size in sizes))


def _decoded(
    hidden: Float[Tensor, "networks rows width"],
    present: Tensor,
    draws: int,
    rng: np.random.Generator,
) -> tuple[float, Float[np.ndarray, " draws"]]:
    """r of the property, and of the property shuffled over rows, which are independent."""
    found = []
    for layer, own in zip(hidden, present.float(), strict=True):
        orders = rng.permuted(np.tile(np.arange(len(own)), (draws, 1)), axis=1)
        Y = torch.cat([own[None], own[torch.from_numpy(orders)]]).mT  # (1 + draws, rows) -> (rows, 1 + draws)
        found.append(folded(layer, _folds(len(own))).r(Y.contiguous()))
    r = torch.stack(found).mean(0).numpy()
    return float(r[0]), r[1:]


def _folds(rows: int) -> Deal:
    fold_of: Int[np.ndarray, " rows"] = np.arange(rows) % FOLDS
    return deal(fold_of)


def _used(
    networks: Networks, hidden: Float[Tensor, "networks rows width"], present: Tensor, draws: int, draw: torch.Generator
) -> tuple[float, Float[np.ndarray, " draws"]]:
    """Mean |change| of the logit along the property, and along random directions of its length."""
    with_it = present[..., None].float()
    step = (hidden * with_it).sum(1) / with_it.sum(1) - (hidden * (1 - with_it)).sum(1) / (1 - with_it).sum(1)
    before = networks.logits(hidden)

    def change(steps: Float[Tensor, "networks width"]) -> float:
        moved = (networks.logits(hidden + steps[:, None]) - before).abs().mean(1)
        return float((moved / before.std(1)).mean())

    random = torch.randn(draws, *step.shape, generator=draw)
    random *= step.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
    return change(step), np.array([change(steps) for steps in random])
