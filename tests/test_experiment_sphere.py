"""N5: the planted network is what it says, its spikes are found and no random ones, words follow the numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.checks import interval
from experiments.network import sphere, sphere_report
from experiments.network.latent_directions import Dictionary, Gaussian, among, as_far_along
from experiments.network.sphere import SMOKE, Settings, measure
from experiments.network.sphere_measures import FAMILIES, _cosines_across, _exchanged, along_circles, maxima
from experiments.network.sphere_report import PLANTED, checks
from experiments.network.sphere_scenes import ON as AT_ONCE
from experiments.network.sphere_scenes import THRESHOLD, planted
from experiments.network.sphere_scores import LIKE, MATCHED, OFF, ON, more, peaks, per_place
from toolkit.errors import UserError
from toolkit.sphere_search import unit_rows

ANGLES = (np.arange(24) - 11) * (2 * np.pi / 24)
ALONE = {"network": PLANTED, "at": ""}


def group(seed=0, **changed):
    return [measure(replace(SMOKE, places=24, **changed), ALONE, seed)]


def test_the_planted_network_moves_with_a_direction_that_is_off_only_beyond_its_threshold():
    scene = planted(20, 0)
    rows, on = scene.dictionary.rows, scene.dictionary.on
    assert on.sum(1).tolist() == [AT_ONCE] * 20
    off = (~on).double().argmax(1)
    still = THRESHOLD - (scene.x @ rows.mT).gather(1, off[:, None])[:, 0]  # what is left to its threshold
    short, far = (scene.x + share * still[:, None] * rows[off] for share in (0.2, 3.0))
    moved = scene.divergences(torch.stack([short, far]))
    quiet = (still > 0.3).nonzero()[:, 0]  # others that are nearly on move with it
    assert len(quiet) > 10
    assert (moved[1] > 50 * moved[0])[quiet].double().mean() > 0.9
    torch.testing.assert_close(scene.clean.exp().sum(1), torch.ones(20).double())


@pytest.mark.parametrize("seed", range(3))
def test_the_dictionary_that_is_read_passes_every_check_and_a_random_one_fails(seed):
    found = checks({PLANTED: group(seed)}, True)
    assert len(found) == 5
    assert [check for check in found if not check.passed] == []
    shuffled = checks({PLANTED: group(seed, shuffled=True)}, True)
    assert sum(check.passed for check in shuffled) <= 2


def test_peaks_are_log_ratios_to_thirty_degrees_aside():
    kl = 2 + np.cos(2 * ANGLES)  # 3 at the direction, 2.5 at thirty degrees
    np.testing.assert_allclose(peaks(np.stack([kl, 7 * kl]), ANGLES), np.log(3 / 2.5))
    assert float(peaks(np.zeros(24), ANGLES)) == 0


def test_a_place_where_no_latent_is_on_is_left_out():
    scene = planted(12, 0)
    on = scene.dictionary.on.clone()
    on[3] = False
    scene = replace(scene, dictionary=Dictionary(scene.dictionary.rows, on))
    found = along_circles(scene, (0.1,), count=2, angles=24, seed=0)
    assert found["kl"].shape == (1, len(FAMILIES), 2, 12, 24)
    missing = found["kl"].isnan().any(4)[0].any(1)  # (families, places)
    assert missing.nonzero().tolist() == [[ON, 3], [MATCHED, 3]]
    one = {**found, "documents": torch.arange(12)}
    assert np.isnan(per_place([one], peaks)[ON, 0]).nonzero()[0].tolist() == [3]
    assert len(more([one], peaks, ON)) == 11
    assert len(more([one], peaks, OFF)) == 12


def test_matched_directions_lie_as_far_along_the_activation_and_elsewhere_as_they_were_drawn():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((5, 9)))
    given, drawn = (unit_rows(torch.from_numpy(rng.standard_normal((3, 5, 9)))) for _ in range(2))
    given[0, 0], given[0, 1] = unit_rows(x)[0], -unit_rows(x)[1]
    found = as_far_along(x, given, drawn)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(3, 5).double())
    torch.testing.assert_close((found * x).sum(2), (given * x).sum(2))
    away, drawn_away = (each - (each * x).sum(2, keepdim=True) * x / (x * x).sum(1)[:, None] for each in (found, drawn))
    cosines = (unit_rows(away) * unit_rows(drawn_away)).sum(2)
    cosines[0, :2] = 1  # nothing is left across there
    torch.testing.assert_close(cosines, torch.ones(3, 5).double())


def test_a_network_that_is_blind_along_the_activation_makes_directions_on_there_peak_less_but_not_than_matched_ones():
    scene = planted(200, 0)
    axis = unit_rows(scene.x)

    def rest(rows, at):
        """Reads as much of every direction but the activation's, which it does not read."""
        across = rows - (rows * axis[at]).sum(1, keepdim=True) * axis[at]
        return (across * across).sum(1, keepdim=True).mul(torch.tensor([0.05, 0.0])).log_softmax(1)

    everywhere = torch.arange(200)
    blind = replace(scene, rest=rest, clean=rest(scene.x, everywhere))
    found = along_circles(blind, (0.1,), count=2, angles=24, seed=0)
    one = {**found, "documents": everywhere}
    assert interval(more([one], peaks, ON)).high < 0
    matched = interval(more([one], peaks, ON, MATCHED))
    assert matched.low < 0 < matched.high


def test_documents_change_places_whole_with_others_of_as_many_places():
    documents = np.array([0, 0, 1, 2, 2, 3, 4, 4])
    rng, seen = np.random.default_rng(0), set()
    for _ in range(200):
        order = _exchanged(documents, rng)
        assert sorted(order) == list(range(8))
        for pair in ([0, 1], [3, 4], [6, 7]):
            assert order[pair].tolist() in ([0, 1], [3, 4], [6, 7])
        seen.add(tuple(order))
    assert len(seen) == 12  # 3! orders of those with two places, 2! of those with one


def test_cosines_across_the_activation_are_those_of_projected_vectors():
    rng = np.random.default_rng(0)
    x, rows = torch.from_numpy(rng.standard_normal((4, 6))), unit_rows(torch.from_numpy(rng.standard_normal((7, 6))))
    points = unit_rows(torch.from_numpy(rng.standard_normal((2, 3, 4, 6))))
    found = _cosines_across(x, points, rows)
    for place in range(4):
        onto = torch.eye(6).double() - torch.outer(x[place], x[place]) / (x[place] @ x[place])
        expected = unit_rows(points[:, :, place] @ onto) @ unit_rows(rows @ onto).mT
        torch.testing.assert_close(found[:, :, place], expected.abs())


def test_great_circles_begin_at_the_directions_and_the_radius_is_in_typical_distances():
    scene = planted(6, 1)
    found = along_circles(scene, (0.1, 1.0), count=1, angles=24, seed=0)
    at = int(np.flatnonzero(np.abs(found["angles"].numpy()) < 1e-9)[0])
    which, _ = among(scene.dictionary.on, 1, np.random.default_rng([0, 79]))
    for r, radius in enumerate((0.1, 1.0)):
        rows = scene.x + radius * scene.typical * scene.dictionary.rows[which[0]]
        torch.testing.assert_close(found["kl"][r, ON, 0, :, at], scene.divergences(rows[None])[0])
    assert float(scene.covariance.trace()) == pytest.approx(scene.typical**2)


def test_nearness_is_the_largest_cosine_and_own_directions_are_some_of_all():
    scene = planted(10, 0)
    found = maxima(scene, (0.1,), restarts=3, draws=7, seed=0)
    assert found["near"].shape == found["own"].shape == found["own_across"].shape == (2, 10)
    assert found["near_null"].shape == found["own_null"].shape == found["own_across_null"].shape == (2, 7)
    assert (found["own"] <= found["near"] + 1e-12).all()
    assert (found["own_across"] - found["own"]).abs().max() > 0.01
    whole = replace(scene, dictionary=Dictionary(scene.dictionary.rows, torch.ones_like(scene.dictionary.on)))
    same = maxima(whole, (0.1,), restarts=3, draws=7, seed=0)
    torch.testing.assert_close(same["own"], same["near"])  # all are on everywhere
    assert float((same["own_null"] - same["own"].mean(1)[:, None]).abs().max()) < 1e-12


def test_latents_are_drawn_from_those_marked_without_repeats_while_there_are_enough():
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    which, held = among(mask, 3, np.random.default_rng(0))
    assert sorted(which[:, 0].tolist()) == [0, 2, 3]
    assert which[:, 1].tolist() == [1, 1, 1]
    assert held.tolist() == [True, True, False]


def test_random_directions_have_the_mean_and_covariance_they_are_drawn_with():
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.standard_normal((4000, 3)) * [0.3, 0.1, 0.05] + [3, 1, 0])
    z = Gaussian.like(rows)
    torch.testing.assert_close(z.root.mT @ z.root, torch.cov(rows.mT))
    units = z.units((2, 5000), rng)
    torch.testing.assert_close(units.norm(dim=2), torch.ones(2, 5000).double())
    expected = rows / rows.norm(dim=1, keepdim=True)
    torch.testing.assert_close(units.mean((0, 1)), expected.mean(0), atol=0.01, rtol=0)
    about_0 = Gaussian.of(torch.diag(torch.tensor([4.0, 1.0, 0.0]))).units((4000,), rng)
    assert about_0[:, 2].abs().max() == 0
    assert about_0.mean(0).abs().max() < 0.05


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"radii": (0.1, 0.0)}, "a sphere's radius must be above 0 and finite, got 0"),
        ({"radii": (-1.0,)}, "a sphere's radius must be above 0 and finite, got -1"),
        ({"radii": ()}, "no radius given"),
        ({"radii": (1.0, 0.1)}, "radii must rise"),
        ({"angles": 30}, "angles must be 24, 36, 48"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"places": 0}, "places must be at least 1, got 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(changed, message):
    with pytest.raises(UserError, match=message) as raised:
        Settings(**changed)
    assert "\n" not in str(raised.value)


def test_other_networks_are_asked_at_the_middle_hook():
    cells = sphere.cells(Settings(model="tiny-gpt2"))
    assert [cell["network"] for cell in cells] == [PLANTED, "trained", "trained", "trained", "random"]
    assert [cell["at"] for cell in cells] == ["", "0", "1", "2", "1"]


def test_words_follow_the_numbers_both_ways():
    found = group()[0]
    text = sphere_report._of(PLANTED, [found])
    assert "peaks more than at random ones like them" in text
    assert "peaks more than at random ones as far along the activation" in text
    assert "maxima lie nearer to the dictionary" in text
    turned = found["kl"].clone()
    turned[:, [ON, LIKE, MATCHED]] = turned[:, [LIKE, ON, ON]]
    worse = {**found, "kl": turned, "near": found["near"] * 0}
    text = sphere_report._of(PLANTED, [worse])
    assert "peaks less than at random ones like them" in text
    assert "peaks less than at random ones as far along the activation" in text
    assert "maxima lie no nearer to the dictionary" in text
    level = {**found, "kl": found["kl"][:, [LIKE] * len(FAMILIES)]}
    assert "peaks not measurably more than at random ones" in sphere_report._of(PLANTED, [level])


def test_claims_about_an_sae_are_checked_where_a_model_is_named_alone():
    found = group()
    few = checks({PLANTED: found, "trained": found}, False)
    many = checks({PLANTED: found, "trained": found}, True)
    assert (len(few), len(many)) == (6, 13)
