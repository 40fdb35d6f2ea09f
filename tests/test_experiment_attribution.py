"""N8: what is measured at a place, what checks and words make of it, both ways."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.network.attribution import EXPERIMENT, Settings, cells, measure
from experiments.network.attribution_parts import probes
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


def test_an_sae_with_too_few_latents_on_to_be_ranked_is_told(settings):
    with pytest.raises(UserError, match="at most 3 latents of the SAE are on at a place, and 4 are needed"):
        measure(replace(settings, k=3), cells(settings)[0], 0)


@pytest.fixture(scope="module")
def labelled(settings, tmp_path_factory):
    """Twenty documents of five sentences, each word with a part of speech."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("trees")
    words = {"cat": "NOUN", "sat": "VERB", "on": "ADP", "the": "DET", "mat": "PROPN"}
    lines = []
    for sentence in range(100):
        lines += [f"# newdoc id = {sentence // 5}"] * (sentence % 5 == 0)
        for n, word in enumerate(rng.permutation([*words, *words]).tolist(), 1):
            lines.append(f"{n}\t{word}\t{word}\t{words[word]}\t_\t_\t0\troot\t_\t_")
        lines.append("")
    (folder / "trees.conllu").write_text("\n".join(lines) + "\n")
    names = tuple(f"upos={value}" for value in words.values())
    return replace(settings, corpus=str(folder / "trees.conllu"), labels=names[:4], networks=("trained", "random"))


def test_probes_of_labels_may_take_the_latents_place(labelled):
    found = [measure(labelled, cell, 0) for cell in cells(labelled)]
    here, one = ground(labelled, HOOK), found[0]
    directions = probes(here, labelled.labels)
    assert one["ablation"].shape == (1, len(here.x), 4)
    assert (one["missing"] <= TOLERANCE * one["change"].abs() + FLOOR).all()
    # taking a probe's coordinate away moves along its direction alone, and no other probe's coordinate
    coordinates = (here.x - here.mean) @ torch.linalg.pinv(directions)
    best, at = here.clean.argmax(1), torch.arange(len(here.x))
    gone = here.outputs(here.x - coordinates[:, 2:3] * directions[2], at)
    change = (here.clean - gone).gather(1, best[:, None])[:, 0]
    torch.testing.assert_close(one["ablation"][0, :, 2], change, atol=1e-4, rtol=0)
    told = summarise(labelled, cells(labelled), found)
    assert "rank probes as ablation does" in told.conclusion
    assert "zero latents" not in told.table
    truth = here.text.labels("upos=VERB")
    score = here.learn @ directions[1]
    assert score[truth == 1].mean() > score[truth == 0].mean() + score.std()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"labels": ("upos=NOUN", "upos=VERB")}, "at least 4 are needed to be ranked"),
        ({"corpus": ""}, "without --corpus: name a text that has them"),
        ({"sae": "x"}, "beside an SAE: the basis is of one or the other"),
        ({"networks": ("randm",)}, "unknown network 'randm'"),
    ],
)
def test_labels_that_will_not_do_are_told(labelled, changed, says):
    with pytest.raises(UserError, match=says):
        replace(labelled, **changed)


def test_a_label_that_no_row_has_is_told(labelled, monkeypatch):
    here = ground(labelled, HOOK)
    nothing = replace(here, text=replace(here.text, labelled=None))
    monkeypatch.setattr(type(nothing.text), "labels", lambda self, name: np.zeros(len(self.rows), int))
    with pytest.raises(UserError, match=r"0 of \d+ rows to learn from have upos=NOUN: a probe needs some with and"):
        probes(nothing, labelled.labels)


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
