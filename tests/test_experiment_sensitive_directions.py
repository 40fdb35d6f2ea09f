"""N7: families are what they say, distances are compared place by place, words follow the numbers."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.network import sensitive_directions, sensitive_families
from experiments.network.ground import ground
from experiments.network.latent_directions import dictionary
from experiments.network.sensitive_directions import SMOKE, Settings, measure, usual
from experiments.network.sensitive_directions_report import _conclusion, _pair, checks, further, predicted, summarise
from experiments.network.sensitive_families import (
    ANY,
    DATA,
    FAMILIES,
    LONG,
    MATCHED,
    MEANS,
    NEXT,
    OFF,
    ON,
    PCA,
    TOP,
    families,
)
from toolkit.errors import UserError

TINY = replace(SMOKE, rows=1_100, places=16, steps=20, width=64, k=8)


@pytest.fixture(scope="module")
def place():
    return ground(TINY, "0", seed=0)


@pytest.fixture(scope="module")
def found():
    return measure(TINY, {"network": "trained", "at": "0"}, 0)


def test_every_family_has_unit_directions_of_its_own_kind(place):
    given = families(place, 3, seed=0)
    assert tuple(given) == FAMILIES
    assert [len(units) for units in given.values()] == [1, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    for units in given.values():
        torch.testing.assert_close(units.norm(dim=2), torch.ones(units.shape[:2]), atol=1e-4, rtol=0)
    sae = dictionary(place)
    for name, mask in ((ON, sae.on), (OFF, ~sae.on)):
        cosines = given[name] @ sae.rows.mT  # (3, places, latents)
        which = cosines.argmax(2)
        torch.testing.assert_close(cosines.amax(2), torch.ones(3, 16), atol=1e-4, rtol=0)
        assert mask.gather(1, which.mT).all()
    torch.testing.assert_close((given[MATCHED] * place.x).sum(2), (given[ON] * place.x).sum(2), atol=1e-3, rtol=0)
    variances = torch.linalg.eigvalsh(place.covariance).flip(0)[: sensitive_families.LEADING]
    along = (given[PCA].double() @ place.covariance * given[PCA].double()).sum(2)
    assert (along >= variances[-1] * 0.999).all()
    assert (given[TOP][0] * given[NEXT][0]).sum(1).abs().max() < 1e-3


def test_differences_of_means_are_between_two_documents(place):
    counts = np.bincount(place.learned)
    averages = torch.stack([place.learn[torch.from_numpy(place.learned == d)].mean(0) for d in range(len(counts))])
    pairs = averages[:, None] - averages[None]
    pairs = (pairs / pairs.norm(dim=2, keepdim=True).clamp(min=1e-9)).flatten(0, 1)
    units = families(place, 3, seed=0)[MEANS].flatten(0, 1)
    torch.testing.assert_close((units @ pairs.mT).amax(1), torch.ones(len(units)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((LONG + 5, 3, 0, 7, 2), [0, 3]), ((1, 0, 2, 1), [2, 3]), ((LONG, 3, LONG, LONG + 1), [0, 2, 3])],
    ids=["one is long", "none is", "three are"],
)
def test_differences_are_between_long_documents_or_the_two_longest(lengths, expected):
    rng = np.random.default_rng(0)
    averages = torch.from_numpy(rng.standard_normal((len(lengths), 8)))
    learned = np.repeat(np.arange(len(lengths)), lengths)
    text = SimpleNamespace(learned=learned, learn=averages[torch.from_numpy(learned)])
    units = sensitive_families._differences(text, (30, 4), rng).flatten(0, 1)
    used = {(a, b): averages[b] - averages[a] for a in expected for b in expected if a != b}
    found = (units @ torch.stack([v / v.norm() for v in used.values()]).mT).max(1)
    torch.testing.assert_close(found.values, torch.ones(120).double())
    assert len(found.indices.unique()) == len(used)


def test_distances_reach_the_thresholds_and_no_less(place, found):
    typical, units = float(found["typical"]), families(place, 3, seed=0)[PCA]
    distances = found[f"{PCA}.distance"]
    assert distances.shape == (5, 3, 16)
    t = 1
    at, before = (
        place.divergences(place.x + (share * distances[t][:, :, None] * typical * units).float())
        for share in (1, 2 ** (-1 / 64))  # both ends of the bracket
    )
    wanted = float(found["thresholds"][t])
    assert wanted == pytest.approx(TINY.nats[t])
    assert (at >= wanted * 0.999).all()
    assert (before <= wanted * 1.001).all()
    assert float(found["thresholds"][3]) == pytest.approx(TINY.shares[0] * usual(place), rel=1e-5)


@pytest.mark.slow
def test_isotropic_directions_in_the_place_of_all_fail_checks():
    broken = replace(TINY, shuffled=True)
    cells = sensitive_directions.cells(broken)
    outcome = summarise(broken, cells, [measure(broken, cells[0], 0)])
    assert not all(check.passed for check in outcome.checks)


def test_smoke_checks_hold_even_where_all_is_small(found):
    outcome = summarise(TINY, sensitive_directions.cells(TINY), [found])
    assert [check for check in outcome.checks if not check.passed] == []
    assert outcome.conclusion.endswith(".")


def made(**distances):
    """Measurements of 6 documents with two places each, all families at 1 but those given."""
    one = {"documents": torch.arange(6).repeat(2), "typical": torch.tensor(2.0)}
    one["thresholds"] = torch.tensor([0.01, 0.1, 0.5, 0.02, 0.2])
    noise = 1 + 0.01 * torch.from_numpy(np.random.default_rng(0).standard_normal((len(FAMILIES), 5, 2, 12)))
    for i, family in enumerate(FAMILIES):
        one[f"{family}.distance"] = distances.get(family, 1.0) * noise[i]
        one[f"{family}.fisher"] = torch.ones(2, 12).double()
    return one


def test_comparisons_are_paired_and_words_say_which_way():
    group = [made(**{ON: 0.5, PCA: 1.0})]
    np.testing.assert_allclose(np.exp(further(group, ON, PCA, 1, 4.0)), 2, rtol=0.02)
    assert "SAE, on there is more sensitive than PCA (2.0" in _pair(group, ON, PCA, 1, 4.0)
    assert "PCA is less sensitive than SAE, on there (0.5" in _pair(group, PCA, ON, 1, 4.0)
    same = [made()]
    same[0][f"{PCA}.distance"] = same[0][f"{ON}.distance"]
    assert "SAE, on there is not told from PCA (1.00" in _pair(same, ON, PCA, 1, 4.0)
    text = _conclusion({"trained": group}, Settings())
    assert text.startswith("In the trained network outputs move by 0.1 nats at these typical distances: SAE, on there")


def test_what_is_censored_counts_as_the_furthest_and_is_left_out_of_predictions():
    one = made()
    one[f"{ANY}.distance"][:] = torch.inf
    np.testing.assert_allclose(np.exp(further([one], DATA, ANY, 1, 4.0)), 4, rtol=0.02)
    assert len(predicted([one], ANY, 0)) == 0
    np.testing.assert_allclose(predicted([one], DATA, 0), 1 / np.sqrt(0.02), rtol=0.02)


def test_every_network_must_have_its_jacobian_first():
    good = made(**{TOP: 0.3, NEXT: 0.6})
    bad = made(**{TOP: 1.3})
    found = checks({"trained": [good], "random": [bad]}, Settings())
    assert [check.passed for check in found[:2]] == [True, False]
    assert "next sensitive" in found[0].claim


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nats": (0.1, 0.0)}, "nats are thresholds above 0"),
        ({"shares": ()}, "shares are thresholds above 0, one at least"),
        ({"furthest": 0.0}, "furthest must be above 0, got 0"),
        ({"directions": 1}, "directions must be at least 2, got 1"),
        ({"k": 600}, "k=600 is more than width=512"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(changed, message):
    with pytest.raises(UserError, match=message) as raised:
        Settings(**changed)
    assert "\n" not in str(raised.value)
