"""The samplers' moments against closed forms, in standard errors, and their draws as pure functions of the seed."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from toolkit.samplers import sample, sample_rows, uniform

ROWS = 20_000
DENSITIES = [1.0, 0.5, 0.05, 0.003]


def draw(density, *, instances=4, features=8, rows=ROWS, seed=3, step=0):
    return sample(torch.full((instances, features), density), rows, seed=seed, step=step).double()


def z_score(values, expected, variance):
    """Distance of a mean from its expectation, in standard errors."""
    return abs(values.mean().item() - expected) / (variance / values.numel()) ** 0.5


@pytest.mark.parametrize("p", DENSITIES)
def test_moments_are_those_of_a_uniform_value_switched_on_with_probability_p(p):
    x = draw(p)
    assert z_score(x, p / 2, p / 3 - p**2 / 4) < 4
    assert z_score(x**2, p / 3, p / 5 - p**2 / 9) < 4
    assert z_score((x > 0).double(), p, p * (1 - p) + 1e-30) < 4
    # The yardstick can tell: against the moments of a density one tenth off, the same draws fail.
    assert z_score(x, 1.1 * p / 2, p / 3 - p**2 / 4) > 4


@pytest.mark.parametrize("p", DENSITIES)
def test_values_that_are_on_are_uniform(p):
    on = draw(p, rows=ROWS)
    on = on[on > 0].numpy()
    assert stats.kstest(on, "uniform").pvalue > 1e-3
    assert stats.kstest(on**1.2, "uniform").pvalue < 1e-3


def test_every_value_lies_strictly_between_zero_and_one():
    x = draw(1.0, rows=50_000)
    assert x.min() > 0
    assert x.max() < 1
    assert uniform(np.uint64(0)) > 0
    assert uniform(np.uint64(2**64 - 1)) < 1


def test_features_of_one_instance_keep_their_own_densities():
    chances = torch.tensor([[1.0, 0.5, 0.1, 0.01], [0.02, 0.2, 0.02, 0.3]])
    x = sample(chances, 50_000, seed=1).double()
    share = (x > 0).double().mean(1)
    error = (chances * (1 - chances) / 50_000).sqrt().clamp(min=1e-12)
    assert ((share - chances).abs() / error).max() < 4
    # Thinning picks by the low bits of the word whose high bits are the value: the value must not notice.
    for i in range(2):
        for j in range(4):
            values = x[i, :, j]
            assert stats.kstest(values[values > 0].numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("p", [1.0, 0.3, 0.05])
def test_features_rows_and_instances_are_independent(p):
    x = draw(p, instances=3, features=6, rows=ROWS)
    flat = x.transpose(1, 2).reshape(18, ROWS)  # every feature of every instance is a variable
    bound = 4.5 / ROWS**0.5  # 153 correlations, each with standard error 1 / sqrt(rows)
    off_diagonal = torch.corrcoef(flat) - torch.eye(18)
    assert off_diagonal.abs().max() < bound
    lagged = [torch.corrcoef(torch.stack([row[1:], row[:-1]]))[0, 1].abs() for row in flat]
    assert max(lagged) < bound
    next_step = draw(p, instances=3, features=6, rows=ROWS, step=1).transpose(1, 2).reshape(18, ROWS)
    assert max(torch.corrcoef(torch.stack([a, b]))[0, 1].abs() for a, b in zip(flat, next_step, strict=True)) < bound
    # The bound can tell: a variable mixed with a tenth of another is found out.
    assert torch.corrcoef(torch.stack([flat[0], flat[1] + 0.1 * flat[0]]))[0, 1] > bound


def test_the_number_of_features_on_in_a_row_is_binomial():
    count = (draw(0.2, instances=1, rows=ROWS) > 0).sum(-1).flatten()
    observed = torch.bincount(count, minlength=9)[:6].tolist()
    expected = stats.binom.pmf(range(6), 8, 0.2) * ROWS
    chi_squared = (((observed - expected) ** 2) / expected).sum()
    assert chi_squared < stats.chi2.ppf(0.999, 6)
    assert (((observed - stats.binom.pmf(range(6), 8, 0.21) * ROWS) ** 2) / expected).sum() > stats.chi2.ppf(0.999, 6)


def test_the_same_seed_and_step_give_the_same_batch_and_others_do_not():
    x = draw(0.5, rows=50, seed=7, step=9)
    assert torch.equal(x, draw(0.5, rows=50, seed=7, step=9))
    for other in (draw(0.5, rows=50, seed=8, step=9), draw(0.5, rows=50, seed=7, step=10)):
        assert (other != x).float().mean() > 0.5
    assert not torch.equal(draw(0.5, rows=50, seed=7, step=9), draw(0.5, rows=50, seed=9, step=7))


def test_an_instance_sees_the_same_batch_alone_and_among_many_and_no_two_see_the_same():
    chances = torch.tensor([0.5, 0.1, 0.9, 0.5])[:, None].expand(-1, 6).contiguous()
    many = sample(chances, 100, seed=2, step=5)
    assert torch.equal(many[:1], sample(chances[:1], 100, seed=2, step=5))
    assert torch.equal(many[:2], sample(chances[:2], 100, seed=2, step=5))
    assert not torch.equal(many[0], many[3])


def compressed(density, rows, *, seed=0, instance=0, step=0):
    starts = np.empty(rows + 1, np.int64)
    features, values = np.empty(rows * len(density), np.int32), np.empty(rows * len(density), np.float32)
    count = sample_rows(seed, instance, step, rows, np.asarray(density, np.float32), starts, features, values)
    return starts, features[:count], values[:count]


@pytest.mark.parametrize(("density", "rows"), [([1.0] * 3, 5), ([0.5, 0.01, 0.2], 300), ([1e-4] * 5, 1000)])
def test_compressed_rows_are_well_formed_and_hold_the_dense_batch(density, rows):
    starts, features, values = compressed(density, rows, seed=4, step=3)
    assert starts[0] == 0
    assert starts[-1] == len(features)
    assert (np.diff(starts) >= 0).all()
    for first, last in pairwise(starts):
        assert (np.diff(features[first:last]) > 0).all()  # each feature at most once, in order
    dense = np.zeros((rows, len(density)), np.float32)
    dense[np.repeat(np.arange(rows), np.diff(starts)), features] = values
    np.testing.assert_array_equal(dense, sample(torch.tensor([density]), rows, seed=4, step=3)[0])


@pytest.mark.parametrize("p", [1e-9, 1e-12, 1e-15])
def test_a_density_too_small_to_be_met_gives_empty_rows(p):
    starts, features, _ = compressed([p] * 4, 50)
    assert starts.tolist() == [0] * 51
    assert len(features) == 0


def test_a_density_below_the_reach_of_an_integer_jump_gives_empty_rows_too():
    # In a process of its own: a jump that overflows writes outside its arrays.
    code = """
import torch
from toolkit.samplers import sample
for p in (1e-18, 1e-20, 1e-30, 1e-42):
    on = int((sample(torch.full((2, 4), p), 1000, seed=0) > 0).sum())
    assert on == 0, f"{on} features on at density {p}"
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
