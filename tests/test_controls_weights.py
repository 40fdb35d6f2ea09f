"""Nulls of a weight matrix: what each keeps is kept, what it takes away is gone, and a planted matrix has it."""

import numpy as np
import pytest
import torch
from scipy import stats

from controls import weights
from toolkit.errors import UserError
from toolkit.planted_embedding import Planting, plant

PLANTED = plant(Planting(tokens=600, d=24, atoms=48, active=2, clusters=4), seed=0)
MATRIX = PLANTED.rows + torch.linspace(-1, 2, 24)  # a mean that is not zero
NAMES = ("covariance_matched", "columns_shuffled", "entries_shuffled", "gaussian", "step_zero", "spectrum_matched")
ALL = {name: getattr(weights, name) for name in NAMES}
each = pytest.mark.parametrize("null", ALL.values(), ids=ALL)


def kurtosis(rows):
    """Mean excess kurtosis of projections on the planted atoms: large while rows hold an atom or do not."""
    return float(np.mean(stats.kurtosis((rows - rows.mean(0)) @ PLANTED.dictionary.T)))


def covariance(rows):
    return torch.cov(rows.T, correction=0)


@each
def test_same_type_out_as_in_by_the_seed_and_the_argument_is_left_alone(null):
    before = MATRIX.clone()
    a, b, c = null(MATRIX, seed=1), null(MATRIX, seed=1), null(MATRIX, seed=2)
    assert torch.equal(MATRIX, before)
    assert (a.shape, a.dtype, a.device) == (MATRIX.shape, MATRIX.dtype, MATRIX.device)
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)
    assert not torch.allclose(a, MATRIX)


@each
def test_what_makes_a_planted_matrix_is_taken_away(null):
    assert kurtosis(MATRIX) > 1  # the positive control
    assert abs(kurtosis(null(MATRIX, seed=3))) < 0.4


def test_covariance_matched_keeps_mean_and_covariance_within_sampling_error():
    drawn = torch.cat([weights.covariance_matched(MATRIX, seed=seed) for seed in range(40)])
    n, S = len(drawn), covariance(MATRIX)
    error = (drawn.mean(0) - MATRIX.mean(0)) / (S.diagonal() / n).sqrt()
    assert error.abs().max() < 4.5
    spread = ((S.square() + S.diagonal()[:, None] * S.diagonal()) / n).sqrt()  # of an entry, Gaussian rows
    assert ((covariance(drawn) - S) / spread).abs().max() < 4.5
    assert (covariance(weights.gaussian(MATRIX, seed=0)) - S).abs().max() > 10 * spread.max()


def test_covariance_matched_takes_rows_that_span_less_than_the_space():
    flat = MATRIX[:, :3] @ torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(weights.covariance_matched(flat, seed=0) - flat.mean(0))
    assert (values[3:] < 1e-3 * values[0]).all()
    assert (values[:3] > 0.01 * values[0]).all()
    with pytest.raises(UserError, match="at least one row"):
        weights.covariance_matched(torch.zeros(0, 3), seed=0)


def test_columns_shuffled_keeps_each_column_and_unties_them():
    tied = torch.stack([torch.arange(500.0), 2 * torch.arange(500.0)], dim=1)
    shuffled = weights.columns_shuffled(tied, seed=0)
    assert torch.equal(shuffled.sort(0).values, tied)
    assert abs(np.corrcoef(shuffled.T)[0, 1]) < 0.2


def test_entries_shuffled_keeps_the_entries_and_mixes_columns():
    shuffled = weights.entries_shuffled(MATRIX, seed=0)
    assert torch.equal(shuffled.flatten().sort().values, MATRIX.flatten().sort().values)
    assert MATRIX.mean(0).std() > 0.5
    assert shuffled.mean(0).std() < 0.1


def test_gaussian_has_the_mean_and_variance_of_the_entries():
    big = MATRIX.repeat(20, 1)
    drawn = weights.gaussian(big, seed=0)
    assert drawn.mean().item() == pytest.approx(big.mean().item(), abs=4.5 * big.std().item() / big.numel() ** 0.5)
    assert drawn.std().item() == pytest.approx(big.std().item(), rel=4.5 / (2 * big.numel()) ** 0.5)
    assert stats.kstest((drawn.flatten() - big.mean()) / big.std(), "norm").pvalue > 0.001


def test_step_zero_forgets_the_matrix():
    drawn = weights.step_zero(MATRIX, seed=0)
    assert torch.equal(drawn, weights.step_zero(torch.zeros_like(MATRIX), seed=0))
    assert drawn.std().item() == pytest.approx(0.02, rel=0.03)
    assert torch.allclose(weights.step_zero(MATRIX, seed=0, std=0.04), 2 * drawn)


@pytest.mark.parametrize("side", weights.SIDES)
@pytest.mark.parametrize("matrix", [MATRIX, MATRIX[:10]], ids=["tall", "wide"])
def test_spectrum_matched_keeps_the_singular_values_and_its_own_side(side, matrix):
    drawn = weights.spectrum_matched(matrix, seed=0, side=side)
    torch.testing.assert_close(torch.linalg.svdvals(drawn), torch.linalg.svdvals(matrix), rtol=1e-4, atol=1e-4)
    same_right = torch.allclose(drawn.T @ drawn, matrix.T @ matrix, rtol=1e-3, atol=1e-2)
    same_left = torch.allclose(drawn @ drawn.T, matrix @ matrix.T, rtol=1e-3, atol=1e-2)
    assert (same_left, same_right) == {"both": (False, False), "left": (False, True), "right": (True, False)}[side]


def test_a_side_that_is_none_is_named():
    with pytest.raises(UserError, match="unknown side 'lefft': did you mean 'left'"):
        weights.spectrum_matched(MATRIX, seed=0, side="lefft")


def test_haar_columns_are_orthonormal_and_uniform():
    generator = np.random.default_rng(0)
    draws = torch.stack([weights.haar(4, 4, generator=generator) for _ in range(6000)])
    assert torch.allclose(draws.mT @ draws, torch.eye(4, dtype=torch.float64), atol=1e-12)
    # Uniform on the sphere in R^4: mean 0, variance 1/4, fourth moment 3/24; the trace of Haar O(n) has variance 1.
    assert draws.mean(0).abs().max() < 4.5 * 0.5 / 6000**0.5
    assert (draws.square().mean(0) - 1 / 4).abs().max() < 4.5 * (1 / 8 - 1 / 16) ** 0.5 / 6000**0.5
    assert (draws.pow(4).mean(0) - 1 / 8).abs().max() < 0.01
    trace = draws.diagonal(dim1=1, dim2=2).sum(1)
    assert trace.mean().abs() < 4.5 / 6000**0.5
    assert trace.var().item() == pytest.approx(1, abs=0.1)
    assert (torch.linalg.det(draws) > 0).double().mean().item() == pytest.approx(0.5, abs=0.03)


def test_plain_qr_is_not_uniform():
    """The premise of the signs: without them the diagonal has a mean."""
    draws = [torch.linalg.qr(torch.from_numpy(np.random.default_rng(s).standard_normal((4, 4))))[0] for s in range(500)]
    assert torch.stack(draws).mean(0).abs().max() > 0.2


def test_more_columns_than_rows_are_refused():
    with pytest.raises(UserError, match="5 orthonormal columns do not fit into 4 rows"):
        weights.haar(4, 5, generator=np.random.default_rng(0))
