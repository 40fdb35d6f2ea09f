"""A property that never predicts the target is decodable and unused, and one that does is decodable and used."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy import stats

from controls import noise_property
from controls.case import Case
from controls.noise_property import PROPERTY, TARGETS, drawn_bits, trained, tried

NAMES = ("noise property", "used property")
each = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def networks():
    return {name: trained(TARGETS[name], seed=0) for name in NAMES}


@pytest.fixture(scope="module")
def outcomes():
    return {name: tried(name, seed=0, draws=99) for name in NAMES}


def fresh(networks, rows=2000, seed=5):
    """Bits, hidden layer and logits of inputs that no network has seen."""
    draw = torch.Generator().manual_seed(seed)
    bits = drawn_bits(rows, draw)
    hidden = networks.hidden(networks.inputs(bits, draw))
    return bits, hidden, networks.logits(hidden)


@each
def test_every_network_learned_its_target_and_only_one_target_tells_of_the_property(networks, name):
    bits, _, logits = fresh(networks[name])
    wanted = bits[..., list(TARGETS[name])].sum(-1) > 0
    assert ((logits > 0) == wanted).float().mean(1).min() > 0.97
    with_it = wanted[bits[..., PROPERTY] > 0].float().mean()
    assert with_it == pytest.approx(0.5 if name == "noise property" else 0.75, abs=0.02)


@each
def test_both_are_decodable(outcomes, name):
    decodable = outcomes[name][0]
    assert decodable.observed > 0.8
    assert decodable.p == 0.01
    assert decodable.feature == name


def test_only_the_one_that_predicts_is_used(outcomes):
    noise, used = (outcomes[name][1] for name in NAMES)
    assert used.p == 0.01
    assert noise.p > 0.5
    assert noise.observed < 0.1 < 0.5 < used.observed


def test_flipping_the_property_in_the_input_agrees_with_steering_the_hidden_layer(networks):
    """Another way to ask for use, which no read-out has a part in."""
    moved = {}
    for name in NAMES:
        draw = torch.Generator().manual_seed(1)
        bits = drawn_bits(1000, draw)
        other = bits.clone()
        other[..., PROPERTY] *= -1
        pair = [networks[name].inputs(b, torch.Generator().manual_seed(2)) for b in (bits, other)]
        before, after = (networks[name].logits(networks[name].hidden(x)) for x in pair)
        moved[name] = float(((after - before).abs().mean(1) / before.std(1)).mean())
    assert moved["noise property"] < 0.15
    assert moved["used property"] > 0.5


@each
def test_a_shuffled_property_is_found_as_often_as_chance_has_it(outcomes, name):
    """The mean over networks of correlations of 1500 independent pairs, each of deviation 1500 ** -.5."""
    null = outcomes[name][0].null
    assert abs(null.mean()) < 4 / (1500 * 8 * 99) ** 0.5 * 2
    assert null.std() < 2 / (1500 * 8) ** 0.5


def test_a_property_that_is_not_in_the_input_is_not_decodable():
    """The planted null: of labels that hidden layers know nothing of, p is any number."""
    rng = np.random.default_rng(3)
    hidden = torch.randn(2, 300, 10, generator=torch.Generator().manual_seed(0))
    p = []
    for _ in range(60):
        r, null = noise_property._decoded(hidden, torch.from_numpy(rng.random((2, 300)) < 0.5), 39, rng)
        p.append((1 + (null >= r).sum()) / 40)
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_a_random_direction_is_used_like_any_other(networks):
    """The planted null of use: the property replaced by a coin, so that the step is a random one of the data's own."""
    _, hidden, _ = fresh(networks["used property"])
    draw = torch.Generator().manual_seed(7)
    coin = torch.rand(hidden.shape[:2], generator=draw) < 0.5
    use, null = noise_property._used(networks["used property"], hidden, coin, 39, draw)
    assert use < 0.2
    assert null.max() < 0.2


def test_the_seed_decides_and_both_targets_begin_alike(monkeypatch):
    monkeypatch.setattr(noise_property, "STEPS", 5)
    first, again, other = (trained(TARGETS["noise property"], seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.mixing, other.mixing)
    assert torch.equal(first.mixing, trained(TARGETS["used property"], seed=3).mixing)


def test_the_control_reports_both_properties_whatever_the_case_is():
    found = noise_property.noise_property(Mock(spec=Case, seed=1, draws=19))
    assert [outcome.feature for outcome in found] == [NAMES[0], NAMES[0], NAMES[1], NAMES[1]]
    assert {outcome.control for outcome in found} == {"training.noise-property"}
    assert all(len(outcome.null) == 19 for outcome in found)
