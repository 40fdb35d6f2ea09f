"""Spectra, cosines and shared offsets against theory, brute force and cases worked by hand."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from toolkit.errors import UserError
from toolkit.spectra import (
    cosines,
    covariance_eigenvalues,
    marchenko_pastur_edge,
    marchenko_pastur_quantiles,
    shared_offset,
)

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_draws_whatever_ran_before():
    RNG.bit_generator.state = START


def normal(*shape):
    return torch.from_numpy(RNG.standard_normal(shape)).float()


def test_independent_entries_follow_marchenko_and_pastur_and_a_spike_stands_out():
    rows = normal(4000, 400)
    values = covariance_eigenvalues(5 * rows + 1)
    expected = marchenko_pastur_quantiles(4000, 400)
    assert np.abs(values.numpy() - expected).max() < 0.02
    edge = marchenko_pastur_edge(4000, 400)
    assert edge == pytest.approx((1 + 0.1**0.5) ** 2)
    assert (values > edge + 4 * 4000 ** (-2 / 3)).sum() == 0
    spiked = rows + 2 * normal(4000, 1) @ torch.nn.functional.normalize(normal(1, 400))
    assert (covariance_eigenvalues(spiked) > edge + 0.1).sum() == 1


@pytest.mark.parametrize("rows", [100, 250, 10_000])
def test_the_quantiles_are_those_of_the_density(rows):
    d = 100
    ratio, found = d / rows, marchenko_pastur_quantiles(rows, d)
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2
    assert (np.diff(found) < 0).all()
    assert found.mean() == pytest.approx(1, abs=0.01)
    for at in (10, 60):

        def density(angle):  # x by its angle, so that the edges are smooth
            x = low + (high - low) * (1 - np.cos(angle)) / 2
            return ((high - low) / 2 * np.sin(angle)) ** 2 / (2 * np.pi * ratio * max(x, 1e-300))

        upto = np.arccos(1 - 2 * (found[at] - low) / (high - low))
        assert integrate.quad(density, upto, np.pi)[0] == pytest.approx((at + 0.5) / d, abs=1e-3)


def test_fewer_rows_than_columns_have_no_such_quantiles():
    with pytest.raises(UserError, match="at least as many rows as columns, got 3 rows and 4 columns"):
        marchenko_pastur_quantiles(3, 4)


@pytest.mark.parametrize("rows", [8, 200, 1500])
def test_cosines_are_those_of_brute_force(rows):
    x = normal(rows, 12) + 3
    unit = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    whole = (unit @ unit.T).numpy()
    pairs = whole[~np.eye(rows, dtype=bool)]
    found = cosines(x)
    assert found.counts.sum() == rows * (rows - 1)
    assert found.kurtosis == pytest.approx(stats.kurtosis(pairs), abs=1e-3)
    np.fill_diagonal(whole, -2)
    np.testing.assert_allclose(found.nearest, whole.max(1), atol=1e-5)
    assert found.above(0.5) == pytest.approx((np.abs(pairs) >= 0.5).mean(), abs=1e-4)
    limit = found.beyond(0.01)
    assert (np.abs(pairs) >= limit).mean() <= 0.01 <= (np.abs(pairs) >= limit - 0.002).mean()


def test_cosines_in_few_dimensions_have_the_kurtosis_of_theory():
    # A coordinate of the sphere in R^d has excess kurtosis -6 / (d + 2).
    assert cosines(normal(1500, 4)).kurtosis == pytest.approx(-1, abs=0.02)
    assert cosines(normal(1500, 4) * normal(1500, 1)).kurtosis == pytest.approx(-1, abs=0.05)  # lengths do not matter
    tight = normal(20, 30).repeat(40, 1) + 0.1 * normal(800, 30)
    assert cosines(tight).kurtosis > 1  # but clusters do
    with pytest.raises(UserError, match="at least 2, got 1"):
        cosines(normal(1, 4))


def test_shared_offset_by_hand_and_held_out():
    constant = torch.ones(20, 3)
    torch.testing.assert_close(shared_offset(constant, folds=4, seed=0), torch.ones(4))
    x = normal(4000, 50) + 1  # the offset holds half of the squared length
    assert shared_offset(x, folds=8, seed=0).mean().item() == pytest.approx(0.5, abs=0.01)
    without = shared_offset(normal(400, 50), folds=8, seed=0)
    assert without.mean() < 0  # a mean fitted in the same part would explain something
    signs = torch.from_numpy(RNG.choice([-1.0, 1.0], (4000, 1))).float()
    assert shared_offset(signs * x, folds=8, seed=0).mean().item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(shared_offset(x, folds=8, seed=0), shared_offset(x, folds=8, seed=1))


@pytest.mark.parametrize(
    ("pairs", "folds", "words"), [(10, 1, "at least 2 parts"), (5, 3, "need at least 6 pairs, got 5")]
)
def test_too_few_pairs_are_refused(pairs, folds, words):
    with pytest.raises(UserError, match=words):
        shared_offset(normal(pairs, 3), folds=folds, seed=0)
