"""What networks are trained on: frequencies, values, and the coins that sets of features share."""

import pytest
import torch
from scipy import stats

from toolkit.errors import UserError
from toolkit.sources import grouped, sparse, uniforms

ROWS = 100_000


def test_uniforms_are_uniform_independent_and_a_function_of_seed_step_and_draw():
    one = uniforms(2, ROWS, 3, seed=1, step=5)
    assert stats.kstest(one.flatten()[:50_000].numpy(), "uniform").pvalue > 1e-3
    assert torch.corrcoef(one.transpose(0, 1).reshape(ROWS, 6).T).fill_diagonal_(0).abs().max() < 0.02
    assert torch.equal(one, uniforms(2, ROWS, 3, seed=1, step=5))
    assert torch.equal(one[:1], uniforms(1, ROWS, 3, seed=1, step=5))
    for other in ({"seed": 2, "step": 5}, {"seed": 1, "step": 6}, {"seed": 1, "step": 5, "draw": 1}):
        assert abs(torch.corrcoef(torch.stack([one.flatten(), uniforms(2, ROWS, 3, **other).flatten()]))[0, 1]) < 0.01


@pytest.mark.parametrize("signed", [False, True])
def test_sparse_features_have_their_densities_and_moments(signed):
    source = sparse(torch.tensor([[0.1, 0.5, 1.0]]), torch.ones(1, 3), seed=0, signed=signed)
    x = source.batch(0, ROWS).x[0]
    assert torch.allclose((x != 0).float().mean(0), torch.tensor([0.1, 0.5, 1.0]), atol=0.01)
    assert x.square().sum(0).div((x != 0).sum(0)).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert (x.min() < -0.9) == signed


def test_the_target_is_a_function_of_the_input_and_the_importances_are_kept():
    source = sparse(torch.ones(1, 2), torch.tensor([[1.0, 0.25]]), seed=0, signed=True, target=torch.abs)
    batch = source.batch(3, 10)
    assert torch.equal(batch.y, batch.x.abs())
    assert batch.weight.tolist() == [[[1.0, 0.25]]]


@pytest.mark.parametrize(("kind", "together"), [("independent", 0.04), ("correlated", 0.2), ("anticorrelated", 0.0)])
def test_sets_share_coins_and_keep_the_features_marginals(kind, together):
    source = grouped(torch.tensor([0.2, 0.2]), [[0, 3], [1, 2, 4]], kind=kind, seed=0)
    on = (source.batch(0, ROWS).x[0] > 0).double()
    both = on.T @ on / ROWS
    assert both.diagonal().tolist() == pytest.approx([0.2] * 5, abs=0.01)
    for i, j in ((0, 3), (1, 2), (1, 4), (2, 4)):
        assert both[i, j].item() == pytest.approx(together, abs=0.01)
    for i, j in ((0, 1), (3, 4), (0, 2)):  # across sets: always independent
        assert both[i, j].item() == pytest.approx(0.04, abs=0.01)


def test_values_within_a_correlated_set_are_independent():
    x = grouped(torch.tensor([1.0]), [[0, 1]], kind="correlated", seed=0).batch(0, ROWS).x[0]
    assert abs(torch.corrcoef(x.T)[0, 1]) < 0.02


def test_sets_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="each of 3 features once"):
        grouped(torch.tensor([0.1]), [[0, 1], [1]], kind="correlated", seed=0)
    with pytest.raises(UserError, match=r"size x density, which is 1\.2"):
        grouped(torch.tensor([0.4]), [[0, 1, 2]], kind="anticorrelated", seed=0)


def test_sets_that_fill_their_whole_probability_are_taken():
    """Five of .2 each: rounded to single precision their sum is a little more than 1."""
    source = grouped(torch.tensor([0.2]), ((0, 1, 2, 3, 4),), kind="anticorrelated", seed=0)
    on = (source.batch(0, 4000).x[0] > 0).sum(-1)
    assert (on == 1).float().mean() > 0.99
