"""N6: lines lead where they say, all networks are asked at the same places, and its words follow its numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.checks import Interval
from experiments.network import plateaus_report
from experiments.network.ground import ground
from experiments.network.plateaus import SMOKE, Settings, cells, measure
from experiments.network.plateaus_lines import COVARIANCE, ENDS, RANDOM_END, REAL, between, blocks_after, line_ends
from experiments.network.plateaus_report import MEASURES, summarise
from toolkit.errors import UserError

SMALL = replace(SMOKE, rows=2_000, places=24)


@pytest.fixture(scope="module")
def here():
    return ground(SMALL, SMALL.hook)


def test_real_ends_are_activations_of_other_documents_each_used_once(here):
    ends = line_ends(here, 0)[REAL]
    source = torch.cdist(ends, here.x).argmin(1)
    torch.testing.assert_close(ends, here.x[source])
    assert sorted(source.tolist()) == list(range(len(here.x)))
    assert (here.documents[source.numpy()] != here.documents).all()


def test_random_ends_are_as_far_from_the_mean_as_real_ones_and_point_anywhere(here):
    ends = line_ends(here, 0)
    lengths = {name: (ends[name] - here.mean).norm(dim=1) for name in ends}
    torch.testing.assert_close(lengths[RANDOM_END], lengths[REAL], rtol=1e-4, atol=1e-4)
    units = (ends[RANDOM_END] - here.mean) / lengths[RANDOM_END][:, None]
    cosines = (units @ units.mT)[~torch.eye(len(units), dtype=torch.bool)]
    assert cosines.std().item() == pytest.approx(here.x.shape[1] ** -0.5, rel=0.2)


def test_ends_from_the_covariance_have_it(here):
    from experiments.network.ground import Ground

    drawn = torch.cat([line_ends(here, seed)[COVARIANCE] for seed in range(60)])
    assert isinstance(here, Ground)
    values, vectors = torch.linalg.eigh(here.covariance)
    top = vectors[:, -5:]
    along = ((drawn - here.mean).double() @ top).square().mean(0)
    torch.testing.assert_close(along, values[-5:], rtol=0.2, atol=0)  # 1,440 draws: a relative error of .04
    assert not torch.equal(line_ends(here, 0)[COVARIANCE], line_ends(here, 1)[COVARIANCE])


def test_one_document_with_most_places_is_refused(here):
    crowded = replace(here, documents=np.where(np.arange(len(here.documents)) < 20, 0, here.documents))
    with pytest.raises(UserError, match=r"\d+ of 24 places stand in one document"):
        line_ends(crowded, 0)


def test_checkpoints_after_the_first_are_asked_evenly(tmp_path):
    assert between("tiny-gpt2") == ["step_424"]
    for step in (0, 1, 2, 4, 8, 16):
        (tmp_path / "checkpoints" / f"step_{step}").mkdir(parents=True)
    assert between(str(tmp_path)) == ["step_1", "step_4", "step_16"]
    assert between("no/such-model") == []


def test_cells_ask_every_network_at_every_hook():
    found = cells(Settings(model="tiny-gpt2", layers=2))
    assert [(cell["network"], cell["at"]) for cell in found] == [
        (kind, at) for kind in ("trained", "random", "step_424", "spectrum") for at in "01"]  # fmt: skip
    assert [cell["network"] for cell in cells(replace(SMOKE, network="random"))] == ["random", "random"]


def test_a_cell_measures_curves_that_begin_at_0_and_end_at_1(here):
    found = measure(SMALL, {"network": "trained", "at": SMALL.hook, "role": 0}, 0)
    assert found["after"].item() == blocks_after(here) == 3
    for end in ENDS:
        for distance in ("logits", "kl", "norm"):
            curves = found[f"{end}.{distance}.curves"]
            assert curves.shape == (24, SMALL.points)
            assert curves[:, 0].abs().max() < 2e-3
            assert (curves[:, -1] == 1).all()
            assert found[f"{end}.{distance}.measures"].shape == (24, len(MEASURES))
    # what the curves end at is what the ground says of the ends
    nats = here.divergences(line_ends(here, 0)[REAL][None])[0]
    torch.testing.assert_close(found["real.kl.reach"].double().square(), nats, rtol=1e-3, atol=1e-5)


def planted(slope, *, width=0.1, after=3.0, seed=0):
    """What a cell yields where every line has about this slope and width."""
    generator = torch.Generator().manual_seed(seed)
    found = {"documents": torch.arange(40) // 2, "after": torch.tensor(after)}
    for end in ENDS:
        found[f"{end}.length"] = torch.ones(40)
        for distance in ("logits", "kl", "norm"):
            values = torch.tensor([width, slope, width, slope, 0.0])
            found[f"{end}.{distance}.measures"] = values + 0.01 * torch.randn(40, 5, generator=generator)
            found[f"{end}.{distance}.curves"] = torch.linspace(0, 1, 11).expand(40, -1)
            found[f"{end}.{distance}.reach"] = torch.ones(40)
    return found


@pytest.mark.parametrize(
    ("own", "bare", "said", "passed"),
    [
        (2.0, 1.2, "trained steeper (+0.", True),
        (1.2, 1.2, "trained neither steeper nor less steep (", False),
        (1.1, 1.3, "trained less steep (-0.", False),
    ],
)
def test_the_conclusion_follows_the_numbers_both_ways(own, bare, said, passed):
    settings = replace(SMALL, hook="a, b")
    asked = [{"role": role, "network": kind, "at": at} for role, kind in enumerate(("trained", "random"))
             for at in settings.at]  # fmt: skip
    found = [planted(own, width=0.3, seed=1), planted(own, width=0.3, after=1.0, seed=2), planted(bare, seed=3),
             planted(bare, after=1.0, seed=4)]  # fmt: skip
    outcome = summarise(settings, asked, found)
    assert said in outcome.conclusion
    assert "Widths: trained wider (+0." in outcome.conclusion
    assert "With 3 blocks after the hook neither steeper nor less steep (" in outcome.conclusion
    assert ") than with 1 block after the hook." in outcome.conclusion
    assert outcome.checks[0].passed == passed
    plateaus = "100% [100%, 100%] of lines" if own > plateaus_report.SLOPE else "0% [0%, 0%] of lines"
    assert plateaus in outcome.conclusion


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.1, 0.3, "it steeper ("), (-0.1, 0.5, "it neither steeper nor"), (-0.3, -0.1, "it less steep (")],
)
def test_a_difference_goes_a_way_only_where_its_whole_interval_does(low, high, said):
    assert plateaus_report._sharper("it", Interval((low + high) / 2, low, high)).startswith(said)
    assert plateaus_report._sharper("it", Interval(-0.2, -0.5, 0.1)).startswith("it neither")


def test_training_weights_and_depth_are_claimed_where_all_networks_are_asked():
    settings = Settings(model="tiny-gpt2", layers=2)
    slopes = {("trained", "0"): 2.0, ("trained", "1"): 1.5, ("step_424", "0"): 1.6, ("spectrum", "0"): 2.1}
    asked = cells(settings)
    found = [planted(slopes.get((cell["network"], cell["at"]), 1.1), seed=i) for i, cell in enumerate(asked)]
    outcome = summarise(settings, asked, found)
    fate = {check.claim: check.passed for check in outcome.checks}
    assert fate["largest slope, trained less step_424"]
    assert not fate["largest slope, trained less spectrum"]
    assert fate["largest slope, first hook less last"]
    assert outcome.conclusion.endswith(".")
    assert len(outcome.table.splitlines()) == 2 + len(asked) * len(ENDS)


def test_depth_is_that_of_the_network_however_hooks_are_named():
    deep, shallow = "blocks.2.hook_resid_post", "blocks.0.hook_resid_post"
    fates = []
    for hooks in ((deep, shallow), (shallow, deep)):
        settings = Settings(model="tiny-gpt2", hook=",".join(hooks))
        asked = cells(settings)
        found = [planted(2.0 if c["at"] == shallow else 1.5, after=3.0 if c["at"] == shallow else 1.0) for c in asked]
        fates.append([(c.claim, c.passed) for c in summarise(settings, asked, found).checks])
    assert fates[0] == fates[1]
    assert dict(fates[0])["largest slope, first hook less last"]


def test_the_stream_before_a_block_has_that_block_after_it(here):
    assert blocks_after(replace(here, hook="blocks.0.hook_resid_pre")) == 4
    assert blocks_after(replace(here, hook="blocks.0.hook_mlp_out")) == 3
    assert blocks_after(replace(here, hook="hook_embed")) == 4
    assert np.isnan(blocks_after(replace(here, hook="ln_final.hook_normalized")))


def test_too_few_points_are_refused():
    with pytest.raises(UserError, match="points must be at least 5, got 4"):
        Settings(points=4)
