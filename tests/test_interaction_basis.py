"""The local interaction basis: what it does not change with, what may be dropped, blocks, Jacobians, edges."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian

from experiments.network.block_network import block_network
from toolkit.errors import UserError
from toolkit.interaction_basis import (
    InteractionBasis,
    interaction_bases,
    interaction_basis,
    jacobians,
    neuron_basis,
    principal_basis,
    rotated_basis,
)
from toolkit.interactions import attributions, edges_needed, fewest, interactions, keep_edges, path_jacobians, sparsity


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bases_of(layers, activations):
    steps = [jacobians(layer, x) for layer, x in zip(layers, activations, strict=False)]
    return interaction_bases(activations, steps)


def run(layers, x):
    reached = [x]
    for layer in layers:
        reached.append(layer(reached[-1]))
    return reached


@pytest.fixture(scope="module")
def plain():
    """Two layers with an elementwise non-linearity, and what they hold."""
    A, B = drawn(6, 5, seed=1), drawn(4, 6, seed=2)
    layers = [lambda x: torch.tanh(x @ A.mT), lambda x: torch.nn.functional.gelu(x @ B.mT)]
    return layers, run(layers, drawn(300, 5) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2]))


def reparametrised(layers, activations, maps):
    """The same network with hidden activations x replaced by x @ T, absorbed by the next layer."""

    def layer(at):
        before, after = (maps.get(i, torch.eye(activations[i].shape[1]).double()) for i in (at, at + 1))
        return lambda x: layers[at](x @ torch.linalg.inv(before)) @ after

    changed = [layer(at) for at in range(len(layers))]
    return changed, run(changed, activations[0] @ maps.get(0, torch.eye(activations[0].shape[1]).double()))


def test_coordinates_do_not_change_with_an_invertible_map_of_hidden_layers_and_those_of_others_do(plain):
    layers, activations = plain
    maps = {0: drawn(5, 5, seed=3), 1: drawn(6, 6, seed=4)}
    changed, moved = reparametrised(layers, activations, maps)
    torch.testing.assert_close(moved[2], activations[2])
    before, after = bases_of(layers, activations), bases_of(changed, moved)
    for at in (0, 1):
        c, d = before[at].to_basis(activations[at]), after[at].to_basis(moved[at])
        signs = (c * d).sum(0).sign()
        torch.testing.assert_close(c, d * signs, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(before[at].importance, after[at].importance)
        pc, pd = (principal_basis(x).to_basis(x) for x in (activations[at], moved[at]))
        assert (pc - pd * (pc * pd).sum(0).sign()).abs().max() > 0.1


def test_equal_importances_leave_the_directions_open():
    x = torch.linalg.qr(drawn(50, 3) - drawn(50, 3).mean(0)).Q
    found = [bases_of([lambda x: x], [x @ torch.linalg.qr(drawn(3, 3, seed=s)).Q] * 2)[0] for s in (1, 2)]
    for one in found:
        torch.testing.assert_close(one.importance, one.importance[:1].expand(3))


def test_coordinates_are_uncorrelated_with_their_importance_as_variance_and_steps_are_orthogonal_on_average(plain):
    layers, activations = plain
    bases = bases_of(layers, activations)
    for at in (0, 1):
        basis = bases[at]
        spread = torch.cov(basis.to_basis(activations[at]).mT)
        torch.testing.assert_close(spread, basis.importance.diag(), atol=1e-9, rtol=1e-6)
        steps = bases[at + 1].reads @ jacobians(layers[at], activations[at]) @ basis.writes
        mean = torch.einsum("rki,rkj->ij", steps, steps) / len(steps)
        torch.testing.assert_close(mean, torch.eye(len(mean)).double(), atol=1e-8, rtol=1e-6)
        torch.testing.assert_close(basis.reads @ basis.writes, torch.eye(len(mean)).double(), atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(basis.importance, basis.importance.sort(descending=True).values)


def test_what_is_dropped_does_not_matter_to_the_next_layer_and_more_would():
    layers, (x, *_) = _with_idle()
    bases = bases_of(layers, run(layers, x))
    assert len(bases[0].importance) == 3  # of seven: three are read, two idle ones correlate with them, two do not vary
    rebuilt = bases[0].from_basis(bases[0].to_basis(x))
    assert (rebuilt - x).abs().max() > 1
    torch.testing.assert_close(layers[0](rebuilt), layers[0](x))
    fewer = bases[0].to_basis(x) * torch.tensor([1.0, 1.0, 0.0])
    assert (layers[0](bases[0].from_basis(fewer)) - layers[0](x)).abs().max() > 1e-2
    largest = principal_basis(x)
    top = largest.to_basis(x) * (torch.arange(len(largest.importance)) < 3)
    assert (layers[0](largest.from_basis(top)) - layers[0](x)).abs().max() > 0.1


def _with_idle():
    b = drawn(400, 3)
    idle = 10 * (b @ drawn(3, 2, seed=1) + drawn(400, 2, seed=2))
    R = torch.linalg.qr(drawn(7, 7, seed=3)).Q
    x = torch.cat([b, idle, torch.full((400, 2), 4.0)], 1) @ R.mT
    W = drawn(3, 3, seed=4)
    layers = [lambda x: torch.tanh((x @ R)[:, :3] @ W)]
    return layers, run(layers, x)


def grid(values):
    """Every state of one block with every state of the other: independent in the sample, not only on average."""
    one, other = values
    i, j = torch.meshgrid(torch.arange(len(one)), torch.arange(len(other)), indexing="ij")
    return torch.cat([one[i.flatten()], other[j.flatten()]], 1)


@pytest.mark.parametrize("touching", [0.0, 1.0])
def test_independent_blocks_give_a_block_diagonal_interaction_matrix_and_touching_ones_do_not(touching):
    W = torch.block_diag(drawn(2, 2, seed=1), drawn(3, 3, seed=2))
    W[:2, 2:] += touching
    R, S = (torch.linalg.qr(drawn(5, 5, seed=s)).Q for s in (5, 6))
    x = grid([drawn(20, 2, seed=3), drawn(21, 3, seed=4)]) @ R.mT
    layers = [lambda x: torch.tanh(x @ R @ W) @ S.mT, lambda x: (x @ S).square()]
    activations = run(layers, x)
    bases = bases_of(layers, activations)
    paths = path_jacobians(layers[0], x, bases[0].mean)
    found = interactions(x, paths, bases[0], bases[1], metric=bases[1].metric).mean(0)
    of = [(b.reads @ rotation)[:, :2].square().sum(1) > (b.reads @ rotation)[:, 2:].square().sum(1)
          for b, rotation in zip(bases, (R, S), strict=False)]  # fmt: skip
    across = found[of[1][:, None] != of[0]].sum() / found.sum()
    assert (across < 1e-12) == (touching == 0)
    neurons = [neuron_basis(a) for a in activations]
    dense = interactions(x, paths, neurons[0], neurons[1], metric=bases[1].metric).mean(0)
    assert sparsity(dense).effective > (2 if touching == 0 else 1) * sparsity(found).effective


def test_the_planted_network_is_what_it_says():
    found = block_network(rows=50, independent=True, seed=0)
    x = found.activations[1]
    true = x @ found.rotations[1]
    for block in range(3):
        moved = true.clone()
        moved[:, :12][:, found.blocks == block] += 1
        moved[:, 12:] += 1
        changed = (found.layers[1](moved @ found.rotations[1].mT) - found.activations[2]) @ found.rotations[2]
        assert changed[:, :12][:, found.blocks != block].abs().max() < 1e-10
        assert changed[:, :12][:, found.blocks == block].abs().max() > 0.1
    touching = block_network(rows=50, independent=False, seed=0)
    step = touching.rotations[2].mT @ jacobians(touching.layers[1], x) @ touching.rotations[1]
    assert step[:, :4, 4:12].abs().max() > 0.1


def test_jacobians_are_torch_s_row_by_row(plain):
    layers, (x, *_) = plain
    found = jacobians(layers[0], x[:4])
    for row, one in zip(x, found, strict=False):
        torch.testing.assert_close(one, jacobian(lambda v: layers[0](v[None])[0], row))


def test_attributions_add_up_to_the_change_in_every_basis(plain):
    layers, (x, y, _) = plain
    local = bases_of(layers[:1], [x, y])
    paths = path_jacobians(layers[0], x, x.mean(0), steps=32)
    change = layers[0](x) - layers[0](x.mean(0)[None])
    for pair in (local, [rotated_basis(x, seed=1), principal_basis(y)], [neuron_basis(x), neuron_basis(y)]):
        found = attributions(x, paths, *pair).sum(2)
        torch.testing.assert_close(found, change @ pair[1].reads.mT, atol=1e-4, rtol=1e-4)


def test_interactions_do_not_change_with_the_length_of_directions(plain):
    layers, (x, y, _) = plain
    paths = path_jacobians(layers[0], x, x.mean(0))
    one, following = neuron_basis(x), neuron_basis(y)
    longer = [InteractionBasis(b.mean, b.reads / 7, b.writes * 7, b.importance, b.metric) for b in (one, following)]
    metric = torch.eye(6).double()
    torch.testing.assert_close(
        interactions(x, paths, one, following, metric=metric), interactions(x, paths, *longer, metric=metric)
    )


def test_sparsity_by_hand():
    found = sparsity(torch.tensor([[6.0, 3.0], [0.5, 0.5]]))
    assert (found.edges, found.for_90, found.for_99) == (4, 2, 4)
    assert found.effective == pytest.approx(100 / 45.5)
    assert sparsity(torch.eye(5)).effective == pytest.approx(5)
    with pytest.raises(UserError, match="no direction acts"):
        sparsity(torch.zeros(2, 2))


def test_all_edges_give_what_the_layer_gives_and_none_a_constant(plain):
    layers, (x, y, _) = plain
    pair = neuron_basis(x), principal_basis(y)
    full = torch.ones(6, 5, dtype=torch.bool)
    torch.testing.assert_close(keep_edges(layers[0], x, *pair, full), y)
    none = keep_edges(layers[0], x, *pair, ~full)
    torch.testing.assert_close(none, layers[0](x.mean(0)[None]).expand_as(none))


def test_an_edge_is_all_that_a_target_sees():
    x = drawn(30, 3)
    x = x - x.mean(0)
    layer = lambda x: torch.stack([x[:, 0] + x[:, 1] * x[:, 2], x[:, 1] - x[:, 0]], 1)  # noqa: E731
    mask = torch.tensor([[True, True, False], [False, True, False]])
    found = keep_edges(layer, x, _raw(x), _raw(layer(x)), mask)
    torch.testing.assert_close(found, torch.stack([x[:, 0], x[:, 1]], 1))


def _raw(y):
    """The neurons in their own order."""
    d = y.shape[1]
    eye = torch.eye(d).double()
    return InteractionBasis(y.mean(0), eye, eye, torch.ones(d).double(), eye)


def test_the_fewest_edges_are_found():
    squared = torch.tensor([[4.0, 1.0], [3.0, 2.0]])
    masks = []
    harm = lambda mask: masks.append(mask) or float((squared * ~mask).sum())  # noqa: E731
    assert edges_needed(harm, squared, tolerance=1.5) == 3
    assert edges_needed(harm, squared, tolerance=10) == 0
    assert edges_needed(harm, squared, tolerance=-1) == math.inf
    for needed in (1, 2, 17, 18):
        assert fewest(lambda count, needed=needed: float(count < needed), 18, tolerance=0) == needed
    assert 5_000 <= fewest(lambda count: float(count < 5_000), 100_000, tolerance=0) <= 5_250


def test_a_random_rotation_is_one_and_the_same_for_layers_of_a_size(plain):
    x = plain[1][0]
    one, other = rotated_basis(x, seed=0), rotated_basis(2 * x[:, [1, 0, 2, 3, 4]], seed=0)
    torch.testing.assert_close(one.reads @ one.reads.mT, torch.eye(5).double())
    torch.testing.assert_close(one.reads.sort(0).values.sum(), other.reads.sort(0).values.sum())
    assert (one.reads @ rotated_basis(x, seed=1).reads.mT).abs().max() < 0.999


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: principal_basis(torch.ones(5, 3)), "do not vary"),
        (lambda: principal_basis(torch.ones(1, 3)), "at least two rows of activations, got 1"),
        (lambda: interaction_bases([drawn(9, 3), drawn(9, 2)], [drawn(9, 3, 2)]), r"must be \[\(2, 3\)\], got"),
        (
            lambda: interaction_basis(drawn(9, 3), torch.zeros(9, 2, 3), principal_basis(drawn(9, 2))),
            "no direction of these activations has an effect",
        ),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
