"""Dependent features, absorption and hedging by hand, variants of SAEs and their starts."""

import pytest
import torch

from toolkit.configs import PRESETS, ToyModel, ToyTraining
from toolkit.hierarchies import (
    absorption,
    correlated_pairs,
    feature_directions,
    hedging,
    hierarchy,
    unit_rows,
)
from toolkit.sae import SAE
from toolkit.toy import train
from toolkit.tying import chance_matching, compared, configured, fit_variant, random_toy


@pytest.mark.parametrize("linked", [True, False])
def test_children_are_as_frequent_linked_or_not_and_need_their_parent_only_when_linked(linked: bool) -> None:
    data = hierarchy(2, 3, 2, parent=0.3, child=0.5, linked=linked, spread=0.1, seed=0)
    on = data.draw(0, 20_000) > 0
    torch.testing.assert_close(on.float().mean((0, 1)), torch.tensor([0.3] * 3 + [0.15] * 6), atol=0.01, rtol=0)
    orphans = (on[..., 3:] & ~on[..., list(data.depends_on[3:])]).float().mean()
    assert orphans == 0 if linked else orphans > 0.08


def test_the_coins_of_a_pair_have_the_correlation_asked_for() -> None:
    on = (correlated_pairs(1, 2, density=0.2, correlation=0.6, spread=0.1, seed=0).draw(0, 50_000)[0] > 0).float()
    found = torch.corrcoef(on.T)
    assert found[0, 2] == pytest.approx(0.6, abs=0.02)
    assert abs(found[0, 1]) < 0.02


def test_amplitudes_lie_within_the_spread_and_directions_are_orthonormal_where_there_is_room() -> None:
    x = correlated_pairs(1, 2, density=0.5, correlation=0.5, spread=0.1, seed=0).draw(0, 1000)
    assert x[x > 0].min() >= 0.9
    assert x.max() <= 1.1
    room = feature_directions(2, 4, 4, seed=0)
    torch.testing.assert_close(room @ room.mT, torch.eye(4).expand(2, 4, 4), atol=1e-5, rtol=0)


def test_absorption_is_one_for_a_child_latent_that_writes_its_parent_and_zero_for_the_truth() -> None:
    data = hierarchy(1, 1, 1, parent=0.5, child=0.5, linked=True, spread=0.0, seed=0)
    features, directions = data.draw(0, 500), torch.eye(2)[None]
    assert absorption(data, directions, features, features, directions) == 0
    absorbing = torch.nn.functional.normalize(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]), dim=-1)
    latents = torch.stack([features[..., 0] - features[..., 1], 2**0.5 * features[..., 1]], -1)
    assert absorption(data, directions, features, latents, absorbing) == 1


def test_hedging_is_the_cosine_with_the_partner() -> None:
    data = correlated_pairs(1, 2, density=0.2, correlation=0.5, spread=0.0, seed=0)
    mixed = torch.tensor([[[0.8, 0.0, 0.6, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    assert hedging(data, torch.eye(4)[None], mixed).item() == pytest.approx(0.3)


def test_unit_rows_have_norm_one_and_are_the_same_again() -> None:
    x = unit_rows(2, 300, 50, 0.05, seed=3)
    assert x.shape == (2, 300, 50)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(2, 300))
    assert torch.equal(x, unit_rows(2, 300, 50, 0.05, seed=3))


def test_words_configure_a_variant() -> None:
    config = configured("jumprelu untied full narrow", PRESETS["pentagon"].sae, 5)
    assert (config.architecture, config.tied, config.resample, config.width) == ("jumprelu", False, True, 5)
    assert config.resample_encoder == 1.0
    assert not configured("l1 unsampled", config, 5).resample


def test_variants_start_where_they_say_and_the_truth_scores_full_marks() -> None:
    toy = train(ToyModel(instances=2), ToyTraining(toy_steps=200, toy_batch=64), seed=0)
    base = configured("topk untied", PRESETS["pentagon"].sae, 5)
    fits = {
        name: fit_variant(toy, name, configured(name, base, 5).__class__(**{**vars(base), "steps": 1}), seed=0)
        for name in ("topk untied", "topk untied apart")
    }
    cosines = {n: torch.cosine_similarity(s.parameters["W_enc"], s.W_dec, dim=-1).mean() for n, s in fits.items()}
    assert cosines["topk untied"] > 0.99
    assert abs(cosines["topk untied apart"]) < 0.9
    drawn = random_toy(toy, seed=0)
    truth = {"W_enc": drawn.W.mT, "W_dec": drawn.W.mT, "b_enc": torch.zeros(2, 5), "b_dec": torch.zeros(2, 2)}
    perfect = SAE(fits["topk untied"].config, "truth", truth, torch.zeros(10, 2))
    assert compared(drawn, perfect, seed=0)["recovered"].tolist() == [1, 1]
    assert (chance_matching(drawn, 10, seed=0)["matching"] < 0.97).all()
