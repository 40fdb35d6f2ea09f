"""Peaks and plateaus on known densities; the optimal attack against projected gradient ascent; ranks; jumps."""

import numpy as np
import pytest
import torch

from experiments.toy.one_feature_report import jump
from experiments.toy.phase_by_sparsity import FEATURES, HIDDEN, principal_components
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import feature_dimensionality
from toolkit.plateaus import attack, peak, rank_correlation, stay
from toolkit.samplers import sample
from toolkit.toy import train


def test_peak_on_known_densities():
    assert peak(torch.full((7,), 0.5), 0.5) == pytest.approx(0.8)
    assert peak(torch.full((7,), 0.7), 0.5) == 0
    assert peak(torch.empty(0), 0.5) == 0
    assert peak(torch.linspace(0, 1, 100001), 0.5) == pytest.approx(0, abs=1e-4)


def test_peak_is_the_share_less_that_of_a_jittered_copy():
    values = torch.rand(300, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    jitter = torch.rand(4000, 300, generator=torch.Generator().manual_seed(1)) * 0.1 - 0.05
    near = [((v - 0.5).abs() <= 0.01).double().mean().item() for v in (values, values + jitter)]
    assert peak(values, 0.5) == pytest.approx(near[0] - near[1], abs=2e-3)


def test_stay_measures_the_flat_part():
    x = torch.tensor([0.0, 1.0, 3.0])
    assert stay(x, torch.tensor([1.0, 1.0, 0.0]), 1.0) == pytest.approx(1.1, abs=2e-3)
    assert stay(x, torch.tensor([1.0, 1.0, 1.0]), 0.5) == 0


def test_rank_correlation_by_hand():
    x = torch.arange(5.0)
    assert rank_correlation(x, x**3) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, torch.ones(5)) == 0


def _errors(W, b, x, delta):
    return (((x + delta) @ W.mT @ W + b).relu() - x).square().sum(-1)


def _ascent(W, b, x, size, steps=100):
    """Projected gradient ascent through autograd, the best of several random starts."""
    best = torch.zeros(len(x))
    for start in range(4):
        delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(start))
        delta = size * torch.nn.functional.normalize(delta, dim=-1)
        for _ in range(steps):
            delta.requires_grad_()
            errors = _errors(W, b, x, delta)
            (slope,) = torch.autograd.grad(errors.sum(), delta)
            best = torch.maximum(best, errors.detach())
            delta = delta.detach() + 0.1 * size * torch.nn.functional.normalize(slope, dim=-1)
            delta = delta * (size / delta.norm(dim=-1, keepdim=True)).clamp(max=1)
    return best


def test_the_attack_is_at_least_as_strong_as_projected_gradient_ascent():
    toy = train(ToyModel(20, 5, 1, density=(0.1,)), ToyTraining(toy_steps=600, toy_batch=256, toy_lr=1e-2), seed=0)
    W, b, x = toy.W[0], toy.b[0], sample(toy.densities, 64, seed=3)[0]
    for size in (0.1, 0.5):
        delta = attack(W, b, x, size)
        assert (delta.norm(dim=-1) <= size * 1.0001).all()
        ours, theirs = _errors(W, b, x, delta), _ascent(W, b, x, size)
        assert (ours >= theirs - 1e-4).double().mean() >= 0.98
        assert ours.mean() >= theirs.mean() - 1e-4


def test_a_linear_attack_without_superposition_is_the_norm():
    W, x = torch.eye(2, 4), torch.tensor([[0.3, 0.0, 0.0, 0.0]])
    delta = attack(W, torch.zeros(4), x, 0.1, relu=False)
    assert ((x + delta) @ W.mT @ W - x).square().sum().item() == pytest.approx(0.01, abs=1e-6)


def test_an_output_moves_along_its_row_by_norm_over_root_dimensionality():
    W = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = W.square().sum(0) / feature_dimensionality(W).sqrt()
    torch.testing.assert_close((W.mT @ W).norm(dim=1), expected)


def test_no_gram_of_that_rank_beats_the_principal_components():
    importances = 0.7 ** torch.arange(FEATURES)

    def loss(G):
        return (importances[:, None] * (torch.eye(FEATURES) - G).square()).sum()

    least = loss(principal_components())
    torch.testing.assert_close(least, importances[HIDDEN:].sum())
    for seed in range(20):
        W = torch.randn(HIDDEN, FEATURES, generator=torch.Generator().manual_seed(seed)) / FEATURES**0.5
        near = torch.eye(HIDDEN, FEATURES) + 0.1 * W
        assert loss(W.mT @ W) > least
        assert loss(near.mT @ near) > least


def test_a_jump_is_found_where_two_branches_cross():
    x = np.linspace(0, 1, 11)
    losses = np.minimum(2 * x, 0.7 + 0.1 * x) + 0.01 * x**2
    at, size, kink = jump(x, (2 * x > 0.7 + 0.1 * x) + 0.01 * x, losses)
    assert at == 3
    assert min(size, kink) > 50
    assert jump(x, x, x**2)[1] == pytest.approx(1)
