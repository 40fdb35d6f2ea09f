"""Circular order: regular polygons by hand, exact permutation laws, rotations, and lines that are no circles."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from toolkit.circularity import circular_rank_correlation, circularity, first_harmonic, principal_plane
from toolkit.errors import UserError

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _the_same_draws_whatever_ran_before():
    RNG.bit_generator.state = START


def polygon(m, d=2):
    angles = 2 * math.pi * torch.arange(m, dtype=torch.float64) / m
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    basis = torch.linalg.qr(torch.from_numpy(RNG.standard_normal((d, 2))))[0]
    return points @ basis.T


@pytest.mark.parametrize("m", [3, 5, 7, 12])
def test_a_regular_polygon_scores_one_wherever_it_lies_and_whichever_way_round(m):
    rows = polygon(m, 20) * 3 + torch.from_numpy(RNG.standard_normal(20))
    for given in (rows, rows.flip(0), rows.roll(2, 0)):
        assert first_harmonic(given).item() == pytest.approx(1)
        assert circular_rank_correlation(principal_plane(given)).item() == pytest.approx(1)


def test_the_plane_keeps_the_distances_of_rows_in_a_plane_and_is_the_leading_one():
    rows = polygon(9, 15)
    torch.testing.assert_close(torch.cdist(principal_plane(rows), principal_plane(rows)), torch.cdist(rows, rows))
    x = torch.from_numpy(RNG.standard_normal((30, 6)))
    _, values, right = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    projected = (x - x.mean(0)) @ right[:2].T
    torch.testing.assert_close(principal_plane(x).abs(), projected.abs())
    assert principal_plane(x.expand(4, 30, 6)).shape == (4, 30, 2)
    assert values[0] > values[1]


def test_a_swap_in_a_pentagon_by_hand():
    points = polygon(5)[[1, 0, 2, 3, 4]]
    turns = [2 * math.pi / 5 * s for s in (1, -1, 0, 0, 0)]
    assert circular_rank_correlation(points).item() == pytest.approx(
        abs(sum(complex(math.cos(t), math.sin(t)) for t in turns)) / 5
    )


def test_both_scores_with_an_order_are_those_of_the_rows_put_in_that_order():
    rows = torch.from_numpy(RNG.standard_normal((7, 4)))
    orders = np.array(list(itertools.permutations(range(7)))[::501], float)
    put = torch.stack([rows[torch.from_numpy(order.argsort())] for order in orders])
    torch.testing.assert_close(first_harmonic(rows, orders), first_harmonic(put))
    plane = principal_plane(rows)
    each = torch.stack([plane[torch.from_numpy(order.argsort())] for order in orders])
    torch.testing.assert_close(circular_rank_correlation(plane, orders), circular_rank_correlation(each))


def test_over_all_orders_the_harmonic_has_its_mean_and_the_rank_score_the_same_law_for_any_points():
    orders = np.array(list(itertools.permutations(range(6))), float)
    rows = torch.from_numpy(RNG.standard_normal((6, 5)))
    assert first_harmonic(rows, orders).mean().item() == pytest.approx(2 / 5)
    laws = [circular_rank_correlation(principal_plane(x), orders).sort().values for x in (rows, polygon(6, 5))]
    torch.testing.assert_close(*laws)
    assert (laws[0] > 1 - 1e-9).sum() == 12  # six rotations, either way round


def test_the_harmonic_is_the_power_of_a_discrete_fourier_transform():
    x = RNG.standard_normal((10, 3))
    power = np.square(np.abs(np.fft.fft(x - x.mean(0), axis=0))).sum(1)
    assert first_harmonic(torch.from_numpy(x)).item() == pytest.approx((power[1] + power[-1]) / power.sum())


def test_p_values_are_uniform_where_there_is_nothing_and_small_for_a_noisy_circle():
    pool = torch.from_numpy(RNG.standard_normal((300, 30)))
    p_values = {"permuted": [], "random": []}
    for seed in range(150):
        rows = torch.from_numpy(RNG.standard_normal((8, 30)))
        found = circularity(rows, pool, draws=99, seed=seed)
        for null, values in p_values.items():
            values.append((1 + (getattr(found, f"harmonic_{null}") >= found.harmonic).sum()) / 100)
    for values in p_values.values():
        assert stats.kstest(values, "uniform").pvalue > 0.001
    noisy = 3 * polygon(8, 30) + 0.3 * torch.from_numpy(RNG.standard_normal((8, 30)))
    found = circularity(noisy, pool, draws=999, seed=0)
    for score, null in itertools.product(("order", "harmonic"), ("permuted", "random")):
        assert (getattr(found, f"{score}_{null}") >= getattr(found, score)).mean() < 0.01
    assert found.closing == pytest.approx(1, abs=0.3)


def test_an_arc_scores_as_a_circle_does_and_closing_tells_them_apart():
    angles = math.pi * torch.arange(9, dtype=torch.float64) / 8
    arc = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = circularity(arc, arc, draws=9, seed=0)
    assert found.order == pytest.approx(1)
    assert found.closing == pytest.approx(1 / math.sin(math.pi / 16))


def test_too_few_rows_are_refused():
    with pytest.raises(UserError, match="at least 3 rows, got 2"):
        principal_plane(torch.zeros(2, 4))
    with pytest.raises(UserError, match="random sets of 7 need a pool"):
        circularity(polygon(7), polygon(5), draws=9, seed=0)
