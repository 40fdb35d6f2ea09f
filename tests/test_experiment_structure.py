"""Jumps, motifs and groups against planted truths and brute force."""

import numpy as np
import pytest
import torch

from toolkit import motifs
from toolkit.configs import ToyTraining
from toolkit.errors import UserError
from toolkit.groups import cosines_within, interference_within, weight_in_sums
from toolkit.jumps import coincidence, covered, jumps, steady, threshold
from toolkit.networks import Layer, Network, error, forward, train_network
from toolkit.sources import sparse

BINS = 120


def decline(rng: np.random.Generator, noise: float) -> np.ndarray:
    """A speed that only falls, as of a smooth curve, with noise."""
    return 0.05 / (1 + np.arange(BINS) / 10) + noise * rng.standard_normal(BINS)


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_false_alarms_on_constant_speed_keep_to_the_stated_rate(alpha: float) -> None:
    rng = np.random.default_rng(7)
    alarms = [bool(jumps(rng.standard_normal(BINS), alpha=alpha)) for _ in range(2000)]
    assert 0 < np.mean(alarms) < alpha + 3 * np.sqrt(alpha / 2000)


def test_smooth_curves_raise_fewer_alarms_than_stated() -> None:
    rng = np.random.default_rng(8)
    alarms = [bool(jumps(decline(rng, 1e-4))) for _ in range(500)]
    assert np.mean(alarms) <= 0.01


def test_planted_jumps_are_found_where_they_are() -> None:
    rng = np.random.default_rng(9)
    places = np.arange(BINS)
    for _ in range(50):
        first, second = rng.integers(25, 45), rng.integers(70, 95)
        bumps = sum(0.03 * np.exp(-((places - at) ** 2) / 18) for at in (first, second))
        found = jumps(decline(rng, 1e-4) + bumps, least=0.01)
        assert len(found) == 2
        assert np.abs(np.array(found) - (first, second)).max() <= 2


def test_a_jump_too_small_to_matter_is_left_out() -> None:
    speed = 0.001 * np.exp(-((np.arange(BINS) - 60) ** 2) / 18) + 1e-6 * np.random.default_rng(1).standard_normal(BINS)
    assert len(jumps(speed)) == 1
    assert jumps(speed, least=0.1) == []


def test_steady_keeps_the_sum_and_loses_the_jump() -> None:
    rng = np.random.default_rng(2)
    speed = decline(rng, 1e-4) + 0.03 * np.exp(-((np.arange(BINS) - 60) ** 2) / 18)
    assert jumps(speed)
    assert not jumps(steady(speed, seed=0), least=0.01)
    assert steady(speed, seed=0).sum() == pytest.approx(speed.sum(), rel=0.1)


def test_threshold_falls_with_the_rate_allowed() -> None:
    assert threshold(BINS, 0.01) > threshold(BINS, 0.1)


def test_coincidence_and_its_chance_level() -> None:
    assert coincidence([10, 50], [12, 80], 5) == [True, False]
    assert coincidence([10], [], 5) == [False]
    assert covered([50], 5, 100) == pytest.approx(0.11)
    assert covered([], 5, 100) == 0


def test_groups_against_hand_made_weights() -> None:
    sets = ((0, 1), (2, 3))
    orthogonal = torch.eye(4)[None]
    merged = torch.tensor([[[1.0, 1, 0, 0], [0, 0, 1, 1]]]) / 2**0.5
    opposite = torch.tensor([[[1.0, -1, 0, 0], [0, 0, 1, -1]]])
    crossed = torch.tensor([[[1.0, 0, -1, 0], [0, 1, 0, -1]]])
    assert weight_in_sums(orthogonal, sets).item() == pytest.approx(0.5)
    assert weight_in_sums(merged, sets).item() == pytest.approx(1)
    assert weight_in_sums(opposite, sets).item() == pytest.approx(0)
    assert cosines_within(opposite, sets).flatten().tolist() == pytest.approx([-1] * 4)
    assert interference_within(opposite, sets).item() == pytest.approx(1)
    assert interference_within(crossed, sets).item() == pytest.approx(0)


def random_weights(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 7, 4, generator=generator), torch.randn(2, 4, 7, generator=generator)


def test_asymmetry_against_loops_and_planted_neurons() -> None:
    W_in, W_out = random_weights(0)
    for i, value in enumerate(motifs.asymmetry(W_in, W_out).tolist()):
        terms = []
        for k in range(4):
            path = [abs(W_in[i, a, k].item()) * W_out[i, k, a].item() for a in range(7)]
            for a in range(7):
                for b in range(a + 1, 7):
                    if path[a] >= motifs.SERVED and path[b] >= motifs.SERVED:
                        there = abs(W_in[i, a, k].item()) * W_out[i, k, b].item()
                        back = abs(W_in[i, b, k].item()) * W_out[i, k, a].item()
                        terms.append(np.log2(there / back))
        assert value == pytest.approx(np.mean(terms), abs=1e-4)
    planted = torch.tensor([[[2.0], [1.0]]]), torch.tensor([[[0.5, 1.0]]])
    assert motifs.asymmetry(*planted).item() == pytest.approx(2)
    assert motifs.asymmetry(W_in, W_in.abs().mT).tolist() == pytest.approx([0, 0], abs=1e-5)


def test_false_positives_against_a_forward_pass() -> None:
    W_in, W_out = random_weights(1)
    left = total = 0.0
    for a in range(7):
        for sign in (1.0, -1.0):
            answer = (sign * W_in[0, a]).relu()
            for b in set(range(7)) - {a}:
                left += max(0.0, (answer @ W_out[0, :, b]).item())
                total += (answer @ W_out[0, :, b].clamp(min=0)).item()
    assert motifs.false_positives(W_in, W_out)[0].item() == pytest.approx(left / total, rel=1e-4)


def test_shuffles_keep_magnitudes_and_positive_weights() -> None:
    W_in, W_out = random_weights(2)
    dealt = motifs.shuffled_inhibition(W_out, seed=0)
    assert torch.equal(dealt.sort(-1).values, W_out.sort(-1).values)
    assert torch.equal(dealt.clamp(min=0), W_out.clamp(min=0))
    assert not torch.equal(dealt, W_out)
    moved_in, moved_out = motifs.relabelled(W_in, W_out, seed=0)
    paths, moved = W_in.mT * W_out, moved_in.mT * moved_out
    assert torch.allclose(paths.sort(-1).values, moved.sort(-1).values)


def test_the_monosemantic_network_costs_what_its_formula_says() -> None:
    importances = (0.8 ** torch.arange(12)).repeat(4, 1)
    source = sparse(torch.full_like(importances, 0.3), importances, seed=0, signed=True, target=torch.abs)
    network = Network(12, (Layer(6, "relu", bias=False), Layer(12)))
    batch = source.batch(0, 20000)
    measured = error(forward(network, motifs.monosemantic(4, 12, 6, 0.3), batch.x)[-1], batch).mean().item()
    assert measured == pytest.approx(motifs.monosemantic_loss(importances[0], 6, 0.3), rel=0.02)


def test_a_mirrored_layer_starts_as_the_one_before_without_signs() -> None:
    importances = torch.ones(2, 5)
    source = sparse(torch.full_like(importances, 0.3), importances, seed=0)
    network = Network(5, (Layer(3, "relu", bias=False), Layer(5, mirrored=True)))
    begun = train_network(network, source, ToyTraining(toy_steps=2), snapshots=(0, 2)).snapshots
    assert torch.equal(begun["W_2"][0], begun["W_1"][0].mT.abs())
    assert not torch.equal(begun["W_2"][1], begun["W_1"][1].mT.abs())
    with pytest.raises(UserError, match="mirror"):
        Network(5, (Layer(3), Layer(4, mirrored=True)))
