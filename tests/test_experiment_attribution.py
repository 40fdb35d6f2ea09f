"""N8: what is measured at a place, what checks and words make of it, both ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.network import attribution as module
from experiments.network.attribution import EXPERIMENT, Settings, cells, measure
from experiments.network.attribution_report import WAYS, checks, correlations, summarise
from experiments.network.ground import ground
from toolkit.attribution import FLOOR, TOLERANCE
from toolkit.errors import UserError

HOOK = "blocks.0.hook_resid_post"
PLACES, LATENTS, DOCUMENTS = 60, 16, 20


@pytest.fixture(scope="module")
def settings(tiny_model, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for number in range(20):
        (folder / f"{number:02}.txt").write_text(" ".join(rng.choice(["the", "cat", "sat", "on", "a", "mat"], 40)))
    size = {"rows": 800, "places": 20, "width": 32, "k": 5, "steps": 30, "layers": 1}
    return Settings(model=str(tiny_model), corpus=str(folder), hook=HOOK, networks=("trained",), **size)


@pytest.fixture(scope="module")
def measured(settings):
    return measure(settings, cells(settings)[0], 0)


def test_what_is_measured_is_each_active_latents_ablation_and_sums_to_the_change(settings, measured):
    here = ground(settings, HOOK)
    latents, at = here.latents(here.x), torch.arange(20)
    best = here.clean.argmax(1)
    assert measured["ablation"].shape == (2, 20, int((latents > 0).sum(1).max()))
    assert (measured["missing"] <= TOLERANCE * measured["change"].abs() + FLOOR).all()
    for place in (0, 7, 19):
        on = latents[place].nonzero()[:, 0]
        rows = here.x[place] - latents[place, on, None] * here.sae.W_dec[0, on]
        logs = here.outputs(rows, at[place].repeat(len(on)))[:, best[place]]
        found = measured["ablation"][0, place]
        torch.testing.assert_close(found[: len(on)], here.clean[place, best[place]] - logs, atol=1e-5, rtol=0)
        assert found[len(on) :].isnan().all()
        assert measured["size"][0, place, : len(on)].tolist() == pytest.approx(latents[place, on].tolist(), abs=1e-5)
    nothing = here.outputs(here.sae.decode(torch.zeros(1, 1, 32))[0].expand(20, -1), at)
    change = (here.clean - nothing).gather(1, best[:, None])[:, 0]
    torch.testing.assert_close(measured["change"][0], change, atol=1e-4, rtol=0)


def test_attributions_dealt_anew_are_the_same_numbers_elsewhere(measured):
    torch.testing.assert_close(
        measured["permuted"].sort(2).values, measured["integrated"].sort(2).values, equal_nan=True
    )
    assert (measured["permuted"] != measured["integrated"]).any()
    assert (measured["elsewhere"] - measured["integrated"]).abs().nan_to_num().max() > 0


def test_shuffled_settings_put_them_in_the_place_of_the_real_ones(settings, measured):
    found = measure(replace(settings, shuffled=True), cells(settings)[0], 0)
    torch.testing.assert_close(found["integrated"], measured["permuted"], equal_nan=True)
    torch.testing.assert_close(found["gradient"], measured["gradient"], equal_nan=True)


def test_the_error_alone_is_the_rest(settings, measured):
    here = ground(settings, HOOK)
    best = here.clean.argmax(1)[:, None]
    without = here.outputs(here.rebuilt(here.x), torch.arange(20))
    expected = (here.clean - without).gather(1, best)[:, 0]
    torch.testing.assert_close(measured["rest_ablation"][0], expected, atol=1e-4, rtol=0)


def test_an_sae_of_which_nothing_is_on_is_told(settings, monkeypatch):
    monkeypatch.setattr(module, "latent_parts", lambda sae, x, rows=None: replace_values(x))
    with pytest.raises(UserError, match="no latent of the SAE is on at any of 20 places"):
        measure(settings, cells(settings)[0], 0)


def replace_values(x):
    from toolkit.attribution import Parts

    zero = torch.zeros(len(x), 3)
    return Parts(torch.zeros_like(x), zero, zero[0], torch.eye(3, x.shape[1]), x)


def cell(better, block=0, seed=0, **changed):
    """Measurements of which integrated gradients, or one gradient, are nearly ablation, the other half noise."""
    rng = np.random.default_rng(seed)
    ablation = rng.standard_normal((2, PLACES, LATENTS))
    near, far = (ablation + size * rng.standard_normal(ablation.shape) for size in (0.1, 1.0))
    found = {"integrated": near, "gradient": far} if better == "integrated" else {"integrated": far, "gradient": near}
    for way in ("size", "elsewhere", "permuted"):
        found[way] = rng.standard_normal(ablation.shape)
    found |= {"ablation": ablation, "insertion": found["integrated"] * 2 - ablation}
    found |= {"change": np.ones((2, PLACES)), "missing": np.full((2, PLACES), 1e-4), "steps": np.full((2, PLACES), 24)}
    found |= {"rest_integrated": np.full((2, PLACES), 0.2), "block": np.array(block)}
    found |= {"documents": np.arange(PLACES) % DOCUMENTS} | changed
    return {name: torch.as_tensor(value) for name, value in found.items()}


def test_correlations_are_spearmans_over_the_latents_that_are_there():
    one = cell("integrated")
    one["integrated"][0, 0, :3], one["ablation"][0, 1, 9:], one["integrated"][0, 2] = 0.5, torch.nan, 1.0
    one["ablation"][0, 3, 3:] = torch.nan
    found = correlations(one, "integrated", 0)
    a, b = one["integrated"][0].numpy(), one["ablation"][0].numpy()
    assert found[0] == pytest.approx(stats.spearmanr(a[0], b[0]).statistic)
    assert found[1] == pytest.approx(stats.spearmanr(a[1, :9], b[1, :9]).statistic)
    loose = stats.spearmanr(one["gradient"][0, 1, :9].numpy(), b[1, :9]).statistic
    assert abs(loose) < 0.99
    assert correlations(one, "gradient")[1] == pytest.approx(loose)
    assert np.isnan(found[2:4]).all()  # all alike; three latents
    assert np.isfinite(found[4:]).all()
    assert found[4:].mean() > 0.9 > correlations(one, "gradient", 0)[4:].mean()
    assert correlations(one, "integrated", end="both")[4:].min() == pytest.approx(1)  # as `cell` makes it


def outcome(*measured, settings=None):
    settings = settings or Settings(networks=("trained",), layers=len(measured))
    return summarise(settings, cells(settings), list(measured))


def test_words_and_checks_follow_the_numbers_both_ways():
    good = outcome(cell("integrated", 0), cell("integrated", 1, seed=1))
    assert good.conclusion.count("integrated gradients are closer, by 0.") == 2
    assert good.conclusion.endswith(".")
    fate = {check.claim: check.passed for check in good.checks}
    assert fate["after block 0: above gradient x activation"]
    assert fate["after block 1: above gradient x activation"]
    bad = outcome(cell("gradient", 0), cell("gradient", 1, seed=1))
    assert bad.conclusion.count("integrated gradients are less close, by -0.") == 2
    fate = {check.claim: check.passed for check in bad.checks}
    assert not fate["after block 0: above gradient x activation"]
    assert fate["after block 0: correlation with the mean of ablation and insertion above that with ablation"]
    same = cell("integrated")
    same["gradient"] = same["integrated"] + 1e-9 * torch.randn(same["gradient"].shape)
    assert "integrated gradients are not told apart, by " in outcome(same).conclusion


def test_early_against_late_is_by_document():
    claim = "more above gradient x activation at the first hook than at the last"
    for first, last, passes in (("integrated", "gradient", True), ("gradient", "integrated", False)):
        found = outcome(cell(first, 0), cell(last, 2, seed=1))
        (check,) = (each for each in found.checks if each.claim == claim)
        assert check.passed == passes
        assert check.values == DOCUMENTS


def test_incomplete_or_permuted_attributions_fail():
    fates = {}
    broken = cell("integrated")
    broken["integrated"] = broken["permuted"]
    missing = cell("integrated", missing=np.full((2, PLACES), 2e-3))
    for name, one in (("whole", cell("integrated")), ("broken", broken), ("missing", missing)):
        fates[name] = [check.passed for check in outcome(one).checks]
    assert fates["whole"] == [True] * 4
    assert fates["broken"] == [True, False, False, True]
    assert fates["missing"] == [False, True, True, True]
    assert "at most 1.8 of what is allowed" in outcome(missing).conclusion


def test_hooks_are_named_as_they_were_given_and_every_way_is_drawn():
    settings = Settings(hook="blocks.1.hook_mlp_out", networks=("trained", "random"))
    found = outcome(cell("integrated"), cell("gradient"), settings=settings)
    assert found.conclusion.startswith("blocks.1.hook_mlp_out integrated gradients")
    assert {name.split(",")[0] for name in found.metrics} == {"trained", "random"}
    (figure,) = found.figures
    assert {series.name for series in figure.panels[0].series} == set(WAYS.values())
    assert [series.name for series in figure.panels[2].series] == ["trained", "random"]
    (check,) = (each for each in found.checks if "sum to the change" in each.claim)
    assert check.values == 2 * 2 * PLACES


def test_the_first_network_is_the_one_that_claims_are_about():
    assert EXPERIMENT.scales["default"].networks[0] == "trained"
    every = {("trained", "0"): cell("integrated"), ("random", "0"): cell("gradient")}
    claims = [check.claim for check in checks(every, {"0": every["trained", "0"]})]
    assert len(claims) == len(set(claims)) == 4
