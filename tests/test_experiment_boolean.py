import itertools

import pytest
import torch

from toolkit.boolean import (
    affine_error,
    boolean,
    gates,
    held_out,
    least_squares,
    nearly_orthogonal,
    sign_readoff,
    states,
)
from toolkit.errors import UserError


@pytest.mark.parametrize(("gate", "truth"), [("and", lambda a, b: a and b), ("xor", lambda a, b: a != b)])
def test_gates_are_those_of_every_pair_in_order(gate, truth):
    x = states(4, 4)
    wanted = [[float(truth(row[i], row[j])) for i, j in itertools.combinations(range(4), 2)] for row in x.tolist()]
    assert torch.equal(gates(x, gate), torch.tensor(wanted))


def test_an_unknown_gate_is_named():
    with pytest.raises(UserError, match="and"):
        gates(torch.zeros(2, 3), "andd")


def test_states_are_all_rows_with_few_ones():
    assert len(states(4, 4).unique(dim=0)) == 16
    assert len(states(10, 3)) == 1 + 10 + 45 + 120
    assert states(10, 3).sum(-1).max() == 3


def test_inputs_are_on_as_often_as_asked_and_independent():
    densities = torch.tensor([0.1, 0.5])
    x, y, weight = boolean(densities, 5, "and", seed=0, ones=3.0).batch(0, 20_000)
    assert torch.allclose(x.mean(1), densities[:, None].expand(-1, 5), atol=0.015)
    assert torch.allclose(y.mean(1), densities.square()[:, None].expand(-1, 10), atol=0.015)
    assert torch.equal(weight, 1 + 2 * y)


def test_shuffled_targets_know_nothing_of_the_inputs():
    x, y, _ = boolean(torch.tensor([0.5]), 4, "and", seed=0, shuffled=True).batch(0, 20_000)
    assert y.mean().item() == pytest.approx(0.25, abs=0.01)
    assert (x[..., 0] * y[..., 0]).mean().item() == pytest.approx(0.125, abs=0.01)
    told, truth, _ = boolean(torch.tensor([0.5]), 4, "and", seed=0).batch(0, 20_000)
    assert (told[..., 0] * truth[..., 0]).mean().item() == pytest.approx(0.25, abs=0.01)


def test_directions_are_orthogonal_only_where_there_is_room():
    full, half = nearly_orthogonal(2, 8, 8, seed=0), nearly_orthogonal(2, 8, 4, seed=0)
    assert torch.allclose(full @ full.mT, torch.eye(8).expand(2, -1, -1), atol=1e-5)
    assert torch.allclose(half.norm(dim=-1), torch.ones(2, 8), atol=1e-5)
    assert (half @ half.mT - torch.eye(8)).abs().max() > 0.3
    assert not torch.equal(full[0], full[1])
    with pytest.raises(UserError, match="1 to 8"):
        nearly_orthogonal(2, 8, 9, seed=0)


@pytest.mark.parametrize("gate", ["and", "xor"])
@pytest.mark.parametrize(
    ("density", "power", "ones"), [(0.5, 2, 1), (0.1, 2, 1), (0.2, 3, 1), (0.3, 4, 10), (0.1, 2, 20)]
)
def test_the_affine_error_is_the_minimum_that_descent_finds(gate, density, power, ones):
    x = states(2, 2).double()
    y = gates(x, gate)[:, 0]
    chance = torch.where(x == 1, density, 1 - density).prod(-1) * torch.where(y == 1, ones, 1.0)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS(
        [w], max_iter=500, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def value():
        descent.zero_grad()
        loss = (chance * (w[0] + x @ w[1:] - y).abs().pow(power)).sum()
        loss.backward()
        return loss

    descent.step(value)
    assert affine_error(density, gate, power=power, ones=ones) == pytest.approx(value().item(), rel=1e-4)


def test_fair_inputs_leave_a_quarter_for_and_and_all_of_xor():
    assert affine_error(0.5, "and") ** 0.5 == pytest.approx(1 / 4)
    assert affine_error(0.5, "xor") == pytest.approx(1 / 4)  # the variance of a fair coin: nothing is explained
    assert affine_error(0.3, "and", power=500) ** (1 / 500) == pytest.approx(1 / 4, rel=0.02)  # sup-norm
    assert affine_error(0.3, "xor", power=500) ** (1 / 500) == pytest.approx(1 / 2, rel=0.02)


def test_least_squares_reaches_the_closed_form_and_with_the_products_zero():
    source = boolean(torch.tensor([0.2, 0.5]), 4, "and", seed=0)
    affine = least_squares(lambda x: x, source)
    expected = torch.tensor([affine_error(0.2, "and"), affine_error(0.5, "and")])
    assert torch.allclose(held_out(affine, source), expected, rtol=0.03)
    told = least_squares(lambda x: gates(x, "and"), source)
    assert held_out(lambda x: told(gates(x, "and")), source).max() < 1e-6


@pytest.mark.parametrize("gate", ["and", "xor"])
def test_the_sign_readoff_is_exact_with_many_neurons(gate):
    W = torch.randn(1, 4, 1_000_000, generator=torch.Generator().manual_seed(0)) * 3
    pairs_only = states(4, 2)
    answer = sign_readoff(W, gate)((pairs_only[None] @ W).relu())
    of_the_pair = gates(pairs_only, gate)
    alone = torch.stack([pairs_only[:, i] + pairs_only[:, j] for i, j in itertools.combinations(range(4), 2)], -1)
    clean = alone == pairs_only.sum(-1, keepdim=True)  # no third input is on
    assert (answer[0] - of_the_pair)[clean].abs().max() < 0.05
    assert (answer[0] - of_the_pair)[(alone < 2) & (of_the_pair == 0)].abs().max() < 0.05  # noise has mean zero
