"""N9 where the truth is known, and on modular addition."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.network.block_network import BlockNetwork, block_network
from experiments.network.interaction_measures import BASES, LOCAL, Pair, all_bases, quantities, squared_of
from toolkit.interaction_basis import InteractionBasis, Layer, jacobians
from toolkit.modular_addition import TrainedAddition, frequency_shares, train_addition

KINDS = {"planted": 6, "nothing idle": 0}
"""Kinds of planted networks, and how many idle directions a layer has."""
LOST, WRONG = 0.05, 0.01
"""What edges left out may cost: of the variance of a planted network's outputs; of additions, more that are wrong."""
ROWS, FITTED, MEASURED = 4_000, 1_000, 200
"""Of planted networks: rows for variances, of them for Jacobians, and others to measure on; of additions, pairs to
measure on, where all pairs are fitted on."""
SHOWN = 1
"""The pair of layers whose interactions are drawn: hidden to hidden."""
ELSEWHERE = 500
"""How far the seed of another network lies."""


def measure_planted(kind: str, independent: bool, *, seed: int) -> dict[str, Tensor]:
    """QUANTITIES (bases, pairs, quantities); the share of interaction across blocks (bases, pairs); of the interaction
    basis what it keeps, what there is to be kept, and what leaving the rest out costs (pairs, 3)."""
    own, other = (
        block_network(rows=ROWS + MEASURED, idle=KINDS[kind], independent=independent, seed=s)
        for s in (seed, seed + ELSEWHERE)
    )
    fitted, new = [x[MEASURED:] for x in own.activations], [x[:MEASURED] for x in own.activations]
    steps, others = (_steps(net.layers, [x[:FITTED] for x in fitted]) for net in (own, other))
    bases = all_bases(fitted, steps, others, seed)
    variance = fitted[-1].var(0).sum()

    def lost(outputs: Tensor) -> float:
        return float((outputs - new[-1]).square().sum(1).mean() / variance)

    pairs = _pairs(own.layers, new, lost, LOST)
    squared = [squared_of(pair, bases, at, steps=8) for at, pair in enumerate(pairs)]
    across = torch.stack([_across(own, bases[b], [s[b] for s in squared]) for b in BASES])
    kept = [[len(b.reads), len(own.blocks), p.harm(p.layer(b.from_basis(b.to_basis(p.x))))]
            for b, p in zip(bases[LOCAL], pairs, strict=False)]  # fmt: skip
    shown = {f"squared {b}": squared[SHOWN][b] for b in BASES}
    return {"quantities": _all(pairs, bases, squared), "across": across, "kept": torch.tensor(kept), **shown}


def _steps(layers: Sequence[Layer], activations: Sequence[Tensor]) -> list[Tensor]:
    return [jacobians(layer, x) for layer, x in zip(layers, activations, strict=False)]


def _pairs(
    layers: Sequence[Layer], activations: Sequence[Tensor], harm: Callable[[Tensor], float], tolerance: float
) -> list[Pair]:
    """Every layer with the next; harm is done to the outputs."""

    def onward(at: int) -> Callable[[Tensor], float]:
        def done(reached: Tensor) -> float:
            for layer in layers[at:]:
                reached = layer(reached)
            return harm(reached)

        return done

    return [Pair(layer, activations[at], onward(at + 1), tolerance) for at, layer in enumerate(layers)]


def _all(
    pairs: Sequence[Pair], bases: dict[str, list[InteractionBasis]], squared: Sequence[dict[str, Tensor]]
) -> Tensor:
    """QUANTITIES, (bases, pairs, quantities)."""
    found = [
        [
            quantities(pair, bases[b][at], bases[b][at + 1], squared[at][b], ranked=squared[at][b])
            for at, pair in enumerate(pairs)
        ]
        for b in BASES
    ]
    return torch.stack([torch.stack(each) for each in found])


def _across(network: BlockNetwork, bases: Sequence[InteractionBasis], squared: Sequence[Tensor]) -> Tensor:
    """Share of the squared interaction between unlike blocks, (pairs,); 2/3 where three blocks are mixed evenly."""
    of = [_blocks(network, basis, at) for at, basis in enumerate(bases)]
    return torch.stack([(e * (1 - of[at + 1] @ of[at].mT)).sum() / e.sum() for at, e in enumerate(squared)])


def _blocks(network: BlockNetwork, basis: InteractionBasis, at: int) -> Tensor:
    """How much of what a direction reads of blocks is of each one, in standard deviations squared: (kept, blocks)."""
    true = network.activations[at] @ network.rotations[at]
    read = (basis.reads @ network.rotations[at] * true.std(0)).square()[:, : len(network.blocks)]
    each = torch.nn.functional.one_hot(network.blocks).to(read)  # (active, blocks)
    return read @ each / read.sum(1, keepdim=True)


def measure_addition(p: int, *, instances: int, steps: int, seed: int) -> dict[str, Tensor]:
    """QUANTITIES (instances, bases, pairs, quantities), the share of a direction's power in one frequency at the
    embeddings' sum and the hidden layer, by importance (instances, bases, 2), and accuracy held out (instances,)."""
    trained = train_addition(p, instances=instances, steps=steps, seed=seed)
    drawn = train_addition(p, instances=instances, steps=0, seed=seed + ELSEWHERE)
    found = [_one_addition(trained, drawn, one) for one in range(instances)]
    names = ("quantities", "frequencies")
    return {"held_out": trained.held_out} | {
        name: torch.stack([one[at] for one in found]) for at, name in enumerate(names)
    }


def _one_addition(trained: TrainedAddition, drawn: TrainedAddition, instance: int) -> tuple[Tensor, Tensor]:
    activations, layers = trained.unrolled(instance)
    bases = all_bases(
        activations, _steps(layers, activations), _steps(drawn.unrolled(instance)[1], activations), instance
    )

    some = torch.randperm(len(trained.sums), generator=torch.Generator().manual_seed(instance))[:MEASURED]
    new, sums = [x[some] for x in activations], trained.sums[some]

    def wrong(logits: Tensor) -> float:
        return float((logits.argmax(1) != sums).double().mean())

    pairs = _pairs(layers, new, wrong, wrong(new[-1]) + WRONG)
    squared = [squared_of(pair, bases, at, steps=8) for at, pair in enumerate(pairs)]
    shares = [
        [float((frequency_shares(b.to_basis(x), trained.p) * b.importance).sum() / b.importance.sum())
         for b, x in zip(bases[name][:-1], activations[:-1], strict=True)]
        for name in BASES
    ]  # fmt: skip
    return _all(pairs, bases, squared), torch.tensor(shares)
