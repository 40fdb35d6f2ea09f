"""Great circles and maxima over spheres: theorems of quadratic functions, a dense scan as oracle, what is refused."""

import numpy as np
import pytest
import torch

from toolkit import sphere_search
from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.language import load_model
from toolkit.sphere_search import great_circles, sphere_maxima, spikes, unit_rows


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def planted(f, x):
    """A network whose KL(clean || moved) is f(movement, place): its one output has probability 1, then exp(-f)."""

    def rest(rows, at):
        return -f(rows - x[at], at)[:, None]

    return rest, torch.zeros(len(x), 1).double()


def forms(places, d, seed=0):
    """Positive definite, eigenvalues 1, 2, 4, ... a place."""
    q = torch.linalg.qr(draw(places, d, d, seed=seed)).Q
    values = 2.0 ** torch.arange(d).double()
    return (q * values) @ q.mT, q[:, :, -1], values[-1]


def quadratic(G):
    return lambda v, at: (v * (G[at] @ v[:, :, None])[:, :, 0]).sum(1) / 2


@pytest.mark.parametrize("radius", [1e-3, 1.0, 50.0])
def test_the_maximum_of_a_quadratic_divergence_is_the_top_eigenvector_on_every_sphere(radius):
    G, top, largest = forms(5, 6)
    x = draw(5, 6, seed=1)
    rest, clean = planted(quadratic(G), x)
    found = sphere_maxima(rest, x, clean, draw(3, 5, 6, seed=2), radius=radius, tolerance=1e-3)
    assert found.is_settled.all()
    torch.testing.assert_close((found.directions * top).sum(2).abs(), torch.ones(3, 5).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.divergence, (radius**2 * largest / 2).expand(3, 5), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.directions.norm(dim=2), torch.ones(3, 5).double())


def bumpy(v, at):
    """Not convex, and with several maxima over a sphere."""
    return (1 + torch.sin(4 * v[:, 0]) * torch.cos(3 * v[:, 1]) + 0.5 * v[:, 2]).clamp(min=0) + 0.1 * (1 + at)


def test_the_best_of_many_climbs_is_the_maximum_of_a_dense_scan():
    x = draw(2, 3, seed=3)
    rest, clean = planted(bumpy, x)
    found = sphere_maxima(rest, x, clean, draw(40, 2, 3, seed=4), radius=1.0, steps=200, tolerance=0.01)
    scan = unit_rows(draw(200_000, 3, seed=5))
    for place in range(2):
        highest = bumpy(scan, torch.full((len(scan),), place)).max()
        assert float(found.divergence[:, place].max()) == pytest.approx(float(highest), abs=2e-3)
    assert found.divergence.std(0).min() > 0.01  # several maxima: one climb alone would not do


def test_no_climb_ever_goes_down_and_each_is_its_own():
    x = draw(4, 3, seed=6)
    rest, clean = planted(bumpy, x)
    starts = draw(7, 4, 3, seed=7)
    found = sphere_maxima(rest, x, clean, starts, radius=2.0, steps=7)
    at = torch.arange(4).repeat(7)
    began = bumpy(2 * unit_rows(starts).flatten(0, 1), at).view(7, 4)
    torch.testing.assert_close(found.began, began)
    assert (found.divergence >= found.began).all()
    reached = bumpy(2 * found.directions.flatten(0, 1), at).view(7, 4)
    torch.testing.assert_close(found.divergence, reached)
    alone = sphere_maxima(rest, x, clean, starts[2:3], radius=2.0, steps=7)
    torch.testing.assert_close(alone.directions, found.directions[2:3])


def test_blocks_change_nothing(monkeypatch):
    x = draw(4, 3, seed=6)
    rest, clean = planted(bumpy, x)
    whole = sphere_maxima(rest, x, clean, draw(3, 4, 3, seed=7), radius=1.0)
    monkeypatch.setattr(sphere_search, "BLOCK", 5)
    parts = sphere_maxima(rest, x, clean, draw(3, 4, 3, seed=7), radius=1.0)
    torch.testing.assert_close(parts.directions, whole.directions)


def test_where_nothing_moves_climbs_stay_where_they_began():
    x = draw(2, 3)
    rest, clean = planted(lambda v, at: 0 * v.sum(1), x)
    starts = unit_rows(draw(2, 2, 3, seed=1))
    found = sphere_maxima(rest, x, clean, starts, radius=1.0)
    torch.testing.assert_close(found.directions, starts)
    assert found.divergence.abs().max() == 0


def test_a_minimum_is_no_maximum():
    x = torch.zeros(1, 2).double()
    rest, clean = planted(lambda v, at: 2 - v[:, 0], x)  # highest at (-1, 0); at (1, 0) the gradient points inwards
    found = sphere_maxima(rest, x, clean, torch.tensor([[[1.0, 0.0]], [[1.0, 0.1]]]).double(), radius=1.0)
    assert found.is_settled[:, 0].tolist() == [False, True]
    torch.testing.assert_close(found.directions[1, 0], torch.tensor([-1.0, 0.0]).double(), atol=0.06, rtol=0)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_a_sphere_without_a_radius_is_refused(radius):
    x = draw(2, 3)
    rest, clean = planted(bumpy, x)
    with pytest.raises(UserError, match="a sphere's radius must be above 0 and finite, got"):
        sphere_maxima(rest, x, clean, draw(1, 2, 3), radius=radius)


def test_great_circles_go_through_both_directions_at_the_angle_between_them():
    u, w = draw(4, 5), draw(4, 5, seed=1)
    between = (unit_rows(u) * unit_rows(w)).sum(1).arccos()
    points = great_circles(u, w, torch.cat([torch.zeros(1).double(), between]))
    torch.testing.assert_close(points.norm(dim=2), torch.ones(4, 5).double())
    torch.testing.assert_close(points[:, 0], unit_rows(u))
    for place in range(4):
        torch.testing.assert_close(points[place, 1 + place], unit_rows(w)[place])
    parallel = great_circles(u, 2 * u, torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(parallel[:, 1], np.cos(1.0) * unit_rows(u))


ANGLES = (np.arange(24) - 11) * (2 * np.pi / 24)


def circle(f):
    """f along circles through random directions, (8, 24)."""
    points = great_circles(draw(8, 4), draw(8, 4, seed=1), torch.from_numpy(ANGLES))
    return f(points.flatten(0, 1)).view(8, 24).numpy()


def test_quadratic_and_cubic_functions_have_no_spikes_anywhere():
    G, _, _ = forms(1, 4)
    w = draw(4, seed=9)
    for f in (quadratic(G), lambda v, at: 3 + (v @ w) ** 3 + v[:, 0] * v[:, 1]):
        values = circle(lambda v, f=f: f(v, torch.zeros(len(v), dtype=torch.long)))
        np.testing.assert_allclose(spikes(values, ANGLES, within=np.pi / 12), 0, atol=1e-12)
    fifth = circle(lambda v: 3 + (v @ w) ** 5)  # the premise is needed
    assert np.abs(spikes(fifth, ANGLES, within=np.pi / 12)).min() > 1e-4


def test_a_spike_is_its_height_over_the_circles_mean():
    smooth = 2 + np.cos(2 * ANGLES)
    spiked = smooth + 5 * (np.abs(ANGLES) < 1e-9)
    found = spikes(np.stack([smooth, spiked, 3 * spiked]), ANGLES, within=np.pi / 12)
    np.testing.assert_allclose(found, [0, 5 / spiked.mean(), 5 / spiked.mean()], atol=1e-12)


def test_circles_that_spikes_cannot_be_told_from_are_refused():
    with pytest.raises(UserError, match="angle 0"):
        spikes(np.ones(24), ANGLES + 0.1, within=0.1)
    with pytest.raises(UserError, match="7 are needed"):
        spikes(np.ones(24), ANGLES, within=np.pi - 0.5)


def test_on_a_language_model_climbs_end_where_the_gradient_points_outwards(tiny_model):
    model = load_model(str(tiny_model))
    tokens = torch.tensor([[0, 5, 9, 30], [0, 7, 70, 8]])
    rest = LanguageDownstream(model, "blocks.0.hook_resid_pre", tokens, torch.tensor([[0, 2], [1, 3]]))
    x, at = rest.activations, torch.arange(2)
    clean = rest(x, at).detach()
    found = sphere_maxima(rest, x, clean, draw(3, 2, 16).float(), radius=0.1, steps=100)
    assert found.is_settled.all()
    moved = rest(x + 0.1 * found.directions[1], at)
    kl = (clean.exp() * (clean - moved)).sum(1).double()
    torch.testing.assert_close(kl, found.divergence[1], rtol=1e-3, atol=1e-7)
    for seed in range(5):
        other = x + 0.1 * unit_rows(found.directions[1] + 0.3 * draw(2, 16, seed=seed).float())
        assert ((clean.exp() * (clean - rest(other, at))).sum(1) < kl).all()
