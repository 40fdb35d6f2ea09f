"""Contexts: what matters when, the median of the sum, the closed form of overlap, the identity of averages."""

import pytest
import torch

from toolkit.contexts import (
    Play,
    contextual,
    interference,
    leak,
    median_sum,
    opposed,
    pairs_at,
    play_loss,
    random_autoencoders,
    random_directions,
    reach,
    shared_direction_loss,
)
from toolkit.errors import UserError
from toolkit.metrics import gram
from toolkit.networks import Layer, Network

ROWS = 20_000


def batch(play, *, instances=2, rows=ROWS, seed=3):
    return contextual(play, instances=instances, seed=seed).batch(0, rows)


@pytest.mark.parametrize("chance", [0.5, 0.1])
def test_one_half_matters_at_a_time_and_as_often_as_the_coin_says(chance):
    weight = batch(Play(comedies=chance)).weight
    comedy = weight[..., 0] > 0
    assert torch.equal(comedy, weight[..., :10].amin(-1) > 0)
    assert torch.equal(comedy, weight[..., 10:].amax(-1) == 0)
    assert abs(comedy.float().mean() - chance) < 4 * (chance * (1 - chance) / comedy.numel()) ** 0.5
    assert torch.allclose(weight[comedy][0, :10], 0.7 ** torch.arange(1, 11))
    average = batch(Play(comedies=chance, importance="average")).weight
    assert torch.allclose(weight.mean((0, 1)), average[0, 0], rtol=0.1)


@pytest.mark.parametrize("density", [0.1, 0.5, 1.0, 0.01])
def test_half_of_all_sums_lie_above_the_median(density):
    play = Play(density=density, rule="sum")
    comedies = (batch(play).weight[..., 0] > 0).float().mean().item()
    expected = 0.5 if median_sum(play) > 0 else 1 - (1 - density) ** 20  # mostly all off: the median is 0
    assert abs(comedies - expected) < 0.02


@pytest.mark.parametrize("rule", ["sum", "first"])
def test_detached_contexts_keep_what_a_feature_says_of_its_own_and_lose_the_rest(rule):
    told, detached = (batch(Play(rule=rule, detached=d)) for d in (False, True))
    assert torch.equal(told.x, detached.x)
    on = told.x > 0
    for i in (0, 12):
        own = [(b.weight[..., i] > 0)[on[..., i]].float().mean() for b in (told, detached)]
        assert abs(own[0] - own[1]) < 0.04
    first = [(b.weight[..., 5] > 0)[on[..., 0]].float().mean() for b in (told, detached)]
    assert first[0] > first[1] + 0.1  # x_1 says that it is a comedy, and detached it does not


def test_zeroed_doubled_and_shown_rows_are_those_of_the_same_features():
    plain, zeroed, doubled = (batch(Play(values=v)) for v in ("kept", "zeroed", "doubled"))
    shown = batch(Play(shown="context"))
    matters = plain.weight > 0
    assert torch.equal(zeroed.x, plain.x * matters)
    assert torch.equal(doubled.x[..., :20] + doubled.x[..., 20:], plain.x)
    assert torch.equal(torch.cat([doubled.x[..., :10], doubled.x[..., 30:]], -1), zeroed.x)
    assert doubled.weight[0, 0, 10:30].abs().max() == 0
    assert torch.equal(shown.x[..., 20] == 1, matters[..., 0])
    assert torch.equal(shown.y, plain.x)
    coin = batch(Play(shown="coin")).x[..., 20]
    assert abs(torch.corrcoef(torch.stack([coin.flatten(), matters[..., 0].flatten().float()]))[0, 1]) < 0.03


def test_overlap_costs_what_the_closed_form_says_and_half_of_it_one_at_a_time():
    g = torch.tensor([-1.0, -0.6, 0.0, 0.3, 1.0])
    for importance, factor in (("fixed", 1.0), ("conditional", 0.5)):
        play = Play(features=2, decay=1.0, importance=importance)
        measured = play_loss(*pairs_at(g), play, seed=1, batches=40)
        assert torch.allclose(measured, factor * shared_direction_loss(g, 0.1), rtol=0.06, atol=1e-6)


def test_the_average_importance_gives_the_loss_of_a_coin_and_not_that_of_a_sum():
    network = random_autoencoders(Play(), instances=8, seed=0)
    plays = Play(importance="average"), Play(), Play(rule="sum")
    average, coin, told = (play_loss(*network, p, seed=0) for p in plays)
    assert (coin / average - 1).abs().max() < 0.03
    assert (told / average - 1).abs().max() > 0.1


def test_interference_counts_each_pair_once():
    W = torch.eye(3)[:, [0, 1, 0, 2]]
    W[:, 2] *= -0.5  # features 1 | 3 overlap, across the halves
    found = interference(W)
    assert (found.within, found.across, found.largest_within) == (0, 0.25, 0)
    assert torch.allclose(random_directions(W, seed=0).norm(dim=0), W.norm(dim=0))


def test_lining_up_antipodes_undoes_any_order():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    shuffled = torch.cat([torch.eye(10), -torch.eye(10)[:, order]], -1)
    assert torch.equal(gram(opposed(shuffled))[:10, 10:], -torch.eye(10))


def test_a_gate_by_context_does_not_leak():
    network = Network(21, (Layer(20), Layer(10, "linear", bias=False), Layer(20)))
    sign = torch.tensor([1.0] * 10 + [-1.0] * 10)
    gate = torch.cat([torch.eye(20), sign[None]])[None]  # relu(x_i + c - 1) and relu(x_i - c)
    parameters = {"W_1": gate, "b_1": torch.where(sign > 0, -1.0, 0.0)[None], "W_2": torch.eye(10).repeat(2, 1)[None]}
    parameters |= {"W_3": torch.eye(10).repeat(1, 2)[None], "b_3": torch.zeros(1, 20)}
    assert leak(reach(network, parameters, 20)) == 0
    assert play_loss(network, parameters, Play(shown="context"), seed=0) < 1e-10  # 20 neurons are enough
    assert play_loss(network, parameters, Play(shown="coin"), seed=0) > 1e-3
    open_gate = parameters | {"W_1": torch.cat([torch.eye(20), torch.zeros(1, 20)])[None], "b_1": torch.zeros(1, 20)}
    assert leak(reach(network, open_gate, 20)) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"rule": "summ"}, {"features": 3}, {"rule": "sum", "importance": "average"}, {"detached": True}, {"density": 0.0}],
)
def test_contradictions_are_refused(wrong):
    with pytest.raises(UserError):
        Play(**wrong)
