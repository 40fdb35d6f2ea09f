"""Modular addition is learned and generalises; networks are as told; frequencies are found."""

import math

import pytest
import torch

from toolkit.descent import EVALUATION
from toolkit.errors import UserError
from toolkit.modular_addition import _batch, frequency_shares, train_addition


@pytest.fixture(scope="module")
def trained():
    return train_addition(23, instances=3, steps=600, seed=0)


def test_it_generalises_and_an_untrained_network_does_not(trained):
    assert trained.held_out.mean() > 0.7
    assert train_addition(23, instances=3, steps=0, seed=0).held_out.mean() < 0.2


def test_each_learns_from_its_own_four_fifths(trained):
    assert trained.is_trained_on.sum(1).tolist() == [423] * 3
    assert not torch.equal(trained.is_trained_on[0], trained.is_trained_on[1])
    for step, told in ((0, trained.is_trained_on), (EVALUATION, ~trained.is_trained_on)):
        batch = _batch(23, trained.is_trained_on, step, 0)
        for instance in range(3):
            a, b = batch.x[instance, :, :23].argmax(1), batch.x[instance, :, 23:].argmax(1)
            assert (a * 23 + b).tolist() == told[instance].nonzero()[:, 0].tolist()
            assert torch.equal(batch.y[instance].argmax(1), (a + b) % 23)


def test_unrolled_layers_are_the_network(trained):
    p = trained.p
    for instance in range(3):
        activations, layers = trained.unrolled(instance)
        assert [x.shape[1] for x in activations] == [24, 64, p]
        torch.testing.assert_close(layers[1](layers[0](activations[0])), activations[2])
        right = (activations[2].argmax(1) == trained.sums)[~trained.is_trained_on[instance]]
        assert float(right.float().mean()) == pytest.approx(float(trained.held_out[instance]))
    assert trained.sums[trained.pairs.tolist().index([20, 5])] == 2


def test_a_seed_is_a_training():
    one, again, other = (train_addition(5, instances=1, steps=20, seed=s).trained.W for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_waves_of_one_frequency_have_all_their_power_in_it_and_noise_little():
    p = 13
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(p)).double().T
    turn = 2 * math.pi / p
    waves = [
        3 + torch.cos(2 * turn * (a + b)),
        torch.sin(5 * turn * a) - 2 * torch.cos(5 * turn * b),
        torch.cos(turn * a) + torch.cos(2 * turn * a),
    ]
    noise = torch.randn(p * p, generator=torch.Generator().manual_seed(0)).double()
    found = frequency_shares(torch.stack([*waves, noise], 1), p)
    torch.testing.assert_close(found[:3], torch.tensor([1.0, 1.0, 0.5]).double())
    assert found[3] < 0.25


def test_a_modulus_must_leave_something_to_add():
    with pytest.raises(UserError, match="at least 3, got 2"):
        train_addition(2, instances=1)
