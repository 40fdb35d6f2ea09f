import math

import pytest
import torch

from toolkit.errors import UserError
from toolkit.pretrain_config import PretrainConfig
from toolkit.random_rows import bounded_directions, cosine_tail, default_bound, frozen_rows, redraw


def largest_cosine(rows):
    unit = torch.nn.functional.normalize(rows.double())
    return (unit @ unit.T - torch.eye(len(rows))).abs().max().item()


@pytest.mark.parametrize(("rows", "dimensions"), [(300, 16), (1000, 64), (7, 2), (600, 128)])
def test_no_cosine_is_above_the_bound(rows, dimensions):
    bound = default_bound(rows, dimensions)
    found = bounded_directions(rows, dimensions, bound, seed=0)
    assert found.shape == (rows, dimensions)
    assert largest_cosine(found) <= bound + 1e-6
    assert torch.allclose(found.norm(dim=1), torch.ones(rows), atol=1e-6)


def test_without_rejection_the_bound_is_broken():
    plain = bounded_directions(1000, 64, 1.0, seed=0)
    assert largest_cosine(plain) > default_bound(1000, 64)


def test_a_tighter_bound_than_the_default_can_be_had():
    bound = default_bound(500, 32) - 0.06
    assert largest_cosine(bounded_directions(500, 32, bound, seed=0)) <= bound + 1e-6


def test_the_same_seed_gives_the_same_rows_and_another_others():
    first, again, other = (bounded_directions(200, 32, 0.8, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_directions_are_spread_evenly():
    rows, dimensions = 4000, 32
    found = bounded_directions(rows, dimensions, default_bound(rows, dimensions), seed=0).double()
    # The mean of n uniform directions has length about n^(-1/2).
    assert found.mean(0).norm() < 4 / math.sqrt(rows)
    spread = torch.linalg.eigvalsh(found.T @ found / rows) * dimensions
    edge = math.sqrt(dimensions / rows)  # Marchenko-Pastur
    assert (1 - edge) ** 2 - 0.05 < spread[0]
    assert spread[-1] < (1 + edge) ** 2 + 0.05


def test_lopsided_directions_would_be_noticed():
    found = bounded_directions(4000, 32, 1.0, seed=0).double()
    found[:, 0] = found[:, 0].abs()
    assert found.mean(0).norm() > 4 / math.sqrt(4000)


def test_the_tail_is_that_of_random_cosines():
    draw = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(200_000, 8, generator=draw, dtype=torch.float64))
    for bound in (0.2, 0.5, 0.8):
        assert (unit[:, 0].abs() > bound).double().mean().item() == pytest.approx(cosine_tail(bound, 8), abs=0.005)
    # On a circle the angle is uniform: P(|cos| > cos a) = 2a / pi.
    assert cosine_tail(math.cos(0.3), 2) == pytest.approx(0.6 / math.pi)
    assert cosine_tail(0.9, 1) == 1


def test_the_default_bound_rejects_one_last_draw_in_fifty():
    assert 500 * cosine_tail(default_bound(500, 24), 24) == pytest.approx(0.02)
    assert default_bound(4096, 128) == pytest.approx(0.39, abs=0.005)


@pytest.mark.parametrize(("rows", "dimensions", "bound"), [(4096, 128, 0.2), (50, 2, 0.99), (50_257, 768, 0.05)])
def test_a_bound_out_of_reach_is_one_line(rows, dimensions, bound):
    with pytest.raises(UserError, match=r"cannot be drawn .* raise the cosine bound") as caught:
        bounded_directions(rows, dimensions, bound, seed=0)
    assert "\n" not in str(caught.value)


def test_frozen_rows_have_the_norms_they_are_given():
    config = PretrainConfig(vocabulary=300, width=16, freeze_embedding="random")
    like = torch.randn(300, 16, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, 300)[:, None]
    by_rows, by_norms = frozen_rows(like, config, seed=0), frozen_rows(like.norm(dim=1), config, seed=0)
    assert torch.allclose(by_rows.norm(dim=1), like.norm(dim=1), rtol=1e-5)
    assert torch.equal(by_rows, by_norms)
    assert largest_cosine(by_rows) <= default_bound(300, 16) + 1e-6
    with pytest.raises(UserError, match="299 norms for 300 rows"):
        frozen_rows(like.norm(dim=1)[1:], config, seed=0)


def test_redrawn_rows_keep_their_norms_and_nothing_else():
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(1))
    fresh = redraw(rows, seed=0)
    assert torch.allclose(fresh.norm(dim=1), rows.norm(dim=1), rtol=1e-5)
    cosines = torch.cosine_similarity(fresh, rows)
    assert cosines.mean().abs() < 4 / math.sqrt(2000 * 16)
    assert torch.equal(fresh, redraw(rows, seed=0))
