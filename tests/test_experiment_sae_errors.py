"""N3 and N4: ratios over documents, words that follow the numbers both ways, an SAE of its own for each network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.network import over_layers
from experiments.network.latent_moves import EXPERIMENT as MOVES_EXPERIMENT
from experiments.network.latent_moves import Settings as MoveSettings
from experiments.network.latent_subjects import COVARIANCE, ISOTROPIC, LEARNED, LIKE_ROWS, MOVES, UNIFORM
from experiments.network.over_layers import log_ratio, pooled_log_ratio, pooled_ratio, ratio_of_means, with_own_sae
from experiments.network.sae_errors import EXPERIMENT, Settings
from experiments.network.sae_errors_report import CONTROLS
from toolkit.errors import UserError

PLACES, DRAWS = 120, 4
DOCUMENTS = torch.arange(PLACES) // 3
POSITIONS = torch.arange(PLACES) % 60 + 1


def draws(factor, shape, seed):
    """Log-normal divergences about a factor."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(factor * 0.1 * np.exp(0.3 * noise)).float()


def test_a_change_that_is_another_draw_has_ratio_1_and_logarithm_0():
    ratios = [ratio_of_means(draws(1, (1, PLACES), s), draws(1, (DRAWS, PLACES), 99 + s), DOCUMENTS) for s in range(40)]
    logs = [log_ratio(draws(1, (1, PLACES), s), draws(1, (DRAWS, PLACES), 99 + s), DOCUMENTS) for s in range(40)]
    assert np.mean([i.mean for i in ratios]) == pytest.approx(1, abs=0.02)
    assert np.mean([i.mean for i in logs]) == pytest.approx(0, abs=0.02)
    assert sum(i.low <= 1 <= i.high for i in ratios) >= 33
    assert sum(i.low <= 0 <= i.high for i in logs) >= 33


def test_a_factor_comes_back_whatever_the_layers_size():
    kl = [draws(3, (1, PLACES), 1), 1e-4 * draws(3, (1, PLACES), 2)]
    control = [draws(1, (DRAWS, PLACES), 3), 1e-4 * draws(1, (DRAWS, PLACES), 4)]
    assert pooled_ratio(kl, control, DOCUMENTS).mean == pytest.approx(3, rel=0.08)
    assert pooled_log_ratio(kl, control, DOCUMENTS).mean == pytest.approx(np.log(3), abs=0.08)
    assert ratio_of_means(kl[1], control[1], DOCUMENTS).mean == pytest.approx(3, rel=0.12)
    alone = pooled_ratio(kl[:1], control[:1], DOCUMENTS)
    same = ratio_of_means(kl[0], control[0], DOCUMENTS)
    assert [alone.mean, alone.low, alone.high] == pytest.approx([same.mean, same.low, same.high])


def errors_found(isotropic, covariance):
    """What a cell of N3 yields, with these ratios."""
    over = dict.fromkeys(CONTROLS, 1.0) | {ISOTROPIC: 1 / isotropic, COVARIANCE: 1 / covariance}
    found = {name: draws(factor, (DRAWS, PLACES), seed) for seed, (name, factor) in enumerate(over.items())}
    kept = {name: torch.ones(PLACES) for name in ("norms", "lengths")}
    ones = {"unexplained": torch.tensor(0.2), "block": torch.tensor(2), "directions": torch.tensor(5)}
    return found | kept | ones | {"kl": draws(1, (PLACES,), 77), "documents": DOCUMENTS, "positions": POSITIONS}


@pytest.mark.parametrize(
    ("isotropic", "covariance", "first", "second", "passed"),
    [
        (3.0, 1.0, "at 1 of 1 layers, within the published 2 to 4.5 at 1", "no worse at 1.", [True, True]),
        (1.6, 1.0, "at 1 of 1 layers, within the published 2 to 4.5 at 0", "no worse at 1.", [True, True]),
        (1.0, 1.0, "at 0 of 1 layers, within the published 2 to 4.5 at 0", "no worse at 1.", [False, True]),
        (3.0, 2.0, "at 1 of 1 layers", "worse here too at 1.", [True, False]),
        (3.0, 1.3, "at 1 of 1 layers", "not settled at 1.", [True, False]),
    ],
)
def test_words_on_errors_follow_the_numbers(isotropic, covariance, first, second, passed):
    settings = Settings(layers=1, networks=("trained",))
    outcome = EXPERIMENT.summarise(settings, EXPERIMENT.cells(settings), [errors_found(isotropic, covariance)])
    assert first in outcome.conclusion
    assert second in outcome.conclusion
    assert [check.passed for check in outcome.checks] == [*passed, True]
    assert "block 2" in outcome.table
    bins = outcome.metrics["trained, block 2"]["ratio_by_position"]
    assert list(bins) == ["1 to 7", "8 to 23", "24 to 60"]


def moves_found(isotropic, covariance, *, uniform=1.0):
    """What a cell of N4 yields, with these ratios of the trained SAE, one for each move."""
    found = {"documents": DOCUMENTS, "block": torch.tensor(1)}
    for number, name in enumerate((LEARNED, "rebuilt", UNIFORM, LIKE_ROWS)):
        over = {ISOTROPIC: isotropic, COVARIANCE: covariance} if name in (LEARNED, "rebuilt") else {}
        over |= {ISOTROPIC: [uniform] * 2} if name == UNIFORM else {}
        shape = (len(MOVES), 3, DRAWS, PLACES)
        found[f"{name}: kl"] = draws(1, shape, 10 * number)
        for i, control in enumerate((ISOTROPIC, COVARIANCE), start=1):
            factor = np.array(over.get(control, [1.0, 1.0]))[:, None, None, None]
            found[f"{name}: {control}"] = draws(1 / factor, shape, 10 * number + i)
        found[f"{name}: norms"] = torch.ones(shape)
        for key in ("unexplained", "l0", "mismatch", "broken"):
            found[f"{name}: {key}"] = torch.tensor(0.0)
    return found


@pytest.mark.parametrize(
    ("isotropic", "covariance", "said", "failed"),
    [
        ([2, 2], [1.5, 1.5], "holds over both, for both moves", 0),
        ([2, 2], [0.7, 1.5], "holds over isotropic noise and holds for 1 of 2 moves over covariance noise", 1),
        ([2, 2], [0.7, 0.7], "holds over isotropic noise and fails over covariance noise", 2),
        ([0.8, 0.8], [0.7, 0.7], "fails over isotropic noise and fails over covariance noise", 4),
    ],
)
def test_words_on_moves_follow_the_numbers(isotropic, covariance, said, failed):
    settings = MoveSettings(layers=1, networks=("trained",))
    cells = MOVES_EXPERIMENT.cells(settings)
    outcome = MOVES_EXPERIMENT.summarise(settings, cells, [moves_found(isotropic, covariance)])
    assert f"The prediction that they are worse {said}." in outcome.conclusion
    assert sum(not check.passed for check in outcome.checks) == failed
    fewer = MOVES_EXPERIMENT.summarise(replace(settings, predicted=False), cells, [moves_found(isotropic, covariance)])
    assert len(fewer.checks) == len(outcome.checks) - 4


def test_a_random_decoder_that_stands_out_fails_its_check():
    settings = MoveSettings(layers=1, networks=("trained",))
    found = [moves_found([2, 2], [2, 2], uniform=1.8)]
    outcome = MOVES_EXPERIMENT.summarise(settings, MOVES_EXPERIMENT.cells(settings), found)
    assert [check.claim for check in outcome.checks if not check.passed] == [
        f"{move}, {UNIFORM}: KL over isotropic noise" for move in MOVES
    ]


def test_networks_other_than_the_trained_one_get_an_sae_of_their_own_at_the_hook_of_the_one_named(monkeypatch):
    monkeypatch.setattr(over_layers, "network", lambda name: name)
    monkeypatch.setattr(over_layers, "hook_of", lambda settings, model, at: "blocks.1.hook_resid_post")
    named = Settings(model="tiny-gpt2", sae="somewhere")
    assert with_own_sae(named, "trained", "") is named
    own = with_own_sae(named, "random", "")
    assert (own.sae, own.hook) == ("", "blocks.1.hook_resid_post")
    plain = Settings()
    assert with_own_sae(plain, "random", "0") is plain


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Settings, {"draws": 1}, "draws must be at least 2"),
        (Settings, {"errors": "none"}, "errors must be sae or isotropic"),
        (MoveSettings, {"draws": 0}, "draws must be at least 1"),
        (MoveSettings, {"shares": (0.5, 1.2)}, r"shares lie in \(0, 1\]"),
        (MoveSettings, {"subject": "none"}, "subject must be 'trained' or 'random decoder'"),
        (MoveSettings, {"k": 0}, "k must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, given, message):
    with pytest.raises(UserError, match=message):
        kind(**given)


@pytest.mark.parametrize(("hook", "block"), [("blocks.11.hook_resid_post", 11), ("hook_embed", -1)])
def test_the_block_of_a_hook(hook, block):
    assert int(over_layers.block_of(hook)) == block
