"""N3 and N4: ratios over documents, words that follow the numbers both ways, an SAE of its own for each network."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.network import latent_subjects, over_layers
from experiments.network.latent_moves import EXPERIMENT as MOVES_EXPERIMENT
from experiments.network.latent_moves import Settings as MoveSettings
from experiments.network.latent_subjects import COVARIANCE, ISOTROPIC, LEARNED, LIKE_ROWS, MOVES, UNIFORM
from experiments.network.over_layers import (
    log_ratio,
    own_sae,
    pooled_excess,
    pooled_log_ratio,
    pooled_ratio,
    ratio_of_means,
)
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
    kl = [draws(3, (1, 1, PLACES), 1), 1e-4 * draws(3, (1, 1, PLACES), 2)]
    control = [draws(1, (1, DRAWS, PLACES), 3), 1e-4 * draws(1, (1, DRAWS, PLACES), 4)]
    assert pooled_ratio(kl, control, DOCUMENTS).mean == pytest.approx(3, rel=0.08)
    assert pooled_log_ratio(kl, control, DOCUMENTS).mean == pytest.approx(np.log(3), abs=0.08)
    assert ratio_of_means(kl[1][0], control[1][0], DOCUMENTS).mean == pytest.approx(3, rel=0.12)
    alone = pooled_ratio(kl[:1], control[:1], DOCUMENTS)
    same = ratio_of_means(kl[0][0], control[0][0], DOCUMENTS)
    assert [alone.mean, alone.low, alone.high] == pytest.approx([same.mean, same.low, same.high])


def from_dictionaries(seed, *, count=4, layers=3, spread=0.3):
    """Divergences of dictionaries whose logarithms of their ratio scatter about 0, and of their controls."""
    rng = np.random.default_rng([seed, 5])
    own = np.exp(spread * rng.standard_normal((layers, count, 1, 1)))
    return (
        [torch.from_numpy(each) * draws(1, (count, DRAWS, PLACES), 50 * seed + i) for i, each in enumerate(own)],
        [draws(1, (count, DRAWS, PLACES), 50 * seed + 10 + i) for i in range(layers)],
    )


def width(found):
    return found.high - found.low


def test_intervals_over_dictionaries_hold_the_mean_of_all_that_could_have_been_drawn():
    """95% are meant; with four of them at three layers the spread itself is known from nine differences only."""
    found = [from_dictionaries(seed) for seed in range(60)]
    logs = [pooled_log_ratio(*pairs, DOCUMENTS) for pairs in found]
    assert sum(i.low <= 0 <= i.high for i in logs) >= 49
    expected = 0.3 / np.sqrt(12)  # of the mean over dictionaries, beside which that over documents is small
    assert np.mean([width(i) for i in logs]) == pytest.approx(2 * 1.96 * expected, rel=0.12)
    ratios = [pooled_ratio(*pairs, DOCUMENTS) for pairs in found]
    assert sum(i.low <= np.exp(0.3**2 / 2) <= i.high for i in ratios) >= 49
    as_one = [([one.flatten(0, 1)[None] for one in side] for side in pairs) for pairs in found]  # documents alone
    alone = [pooled_log_ratio(*pairs, DOCUMENTS) for pairs in as_one]
    assert sum(i.low <= 0 <= i.high for i in alone) < 30


def test_what_goes_beyond_random_dictionaries_is_over_them_too():
    random = from_dictionaries(0)
    learned = ([draws(2, (1, DRAWS, PLACES), 900 + i) for i in range(3)], random[1])
    learned = (learned[0], [one[:1] for one in learned[1]])
    first, second = (list(zip(*pairs, strict=True)) for pairs in (learned, random))
    found = pooled_excess(first, second, DOCUMENTS)
    apart = [pooled_log_ratio(*pairs, DOCUMENTS) for pairs in (learned, random)]
    assert found.mean == pytest.approx(apart[0].mean - apart[1].mean)
    assert width(found) > 0.8 * width(apart[1]) > 2 * width(apart[0])
    assert pooled_excess(second, first, DOCUMENTS).mean == pytest.approx(-found.mean)


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
        count = 4 if name in (UNIFORM, LIKE_ROWS) else 1
        shape = (count, len(MOVES), 3, DRAWS, PLACES)
        found[f"{name}: kl"] = draws(1, shape, 10 * number)
        for i, control in enumerate((ISOTROPIC, COVARIANCE), start=1):
            factor = np.array(over.get(control, [1.0, 1.0]))[:, None, None, None]
            found[f"{name}: {control}"] = draws(1 / factor, shape, 10 * number + i)
        found[f"{name}: norms"] = torch.ones(shape)
        for key in ("unexplained", "l0", "mismatch", "broken"):
            found[f"{name}: {key}"] = torch.zeros(count)
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


@pytest.mark.parametrize("strays", [False, True])
def test_dictionaries_that_differ_much_fail_a_check_that_their_mean_alone_would_pass(strays):
    """1.1 on average; with one of four at 2 the interval reaches above 1.3."""
    settings = MoveSettings(layers=1, networks=("trained",))
    found = moves_found([2, 2], [2, 2])
    by_dictionary = torch.tensor([0.8, 0.8, 0.8, 2.0] if strays else [1.1] * 4)
    found[f"{UNIFORM}: kl"] = found[f"{UNIFORM}: {ISOTROPIC}"] * by_dictionary[:, None, None, None, None]
    outcome = MOVES_EXPERIMENT.summarise(settings, MOVES_EXPERIMENT.cells(settings), [found])
    checks = [check for check in outcome.checks if f"{UNIFORM}: KL" in check.claim]
    assert [check.measured for check in checks] == pytest.approx([1.1, 1.1], rel=1e-4)
    assert [check.passed for check in checks] == [not strays] * 2
    said = "(0.80 to 2.00)" if strays else "(1.10 to 1.10)"
    assert outcome.conclusion.count(said) == 2
    assert said in outcome.table
    each = outcome.metrics["trained, block 1"][UNIFORM][MOVES[0]]["0.3"][ISOTROPIC]["by_dictionary"]
    assert each == pytest.approx(by_dictionary.tolist(), rel=1e-4)


def test_every_dictionary_has_a_seed_of_its_own():
    seeds = [
        latent_subjects.seed_of(f"blocks.{block}.hook_resid_post", kind, number, seed)
        for block in range(3)
        for kind in (UNIFORM, LIKE_ROWS)
        for number in range(8)
        for seed in range(3)
    ]
    assert len(set(seeds)) == len(seeds) == 144
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert latent_subjects.seed_of("hook_embed", UNIFORM, 1, 0) == latent_subjects.seed_of("hook_embed", UNIFORM, 1, 0)


class Latents:
    """Stands in for a ground and its SAE: rows are latents already, of which the third is never on."""

    hook = "blocks.1.hook_resid_post"
    model = SimpleNamespace(processing=("fold_layer_norm",))
    learn = torch.from_numpy(np.random.default_rng(0).random((10_000, 12))) * (torch.arange(12) != 2)
    learn[:, 6:] *= torch.arange(10_000)[:, None] >= 5_000  # on in the last blocks of rows alone
    most = 0

    def latents(self, rows):
        self.most = max(self.most, len(rows))
        return rows


def test_the_size_of_an_sae_is_counted_over_blocks_of_rows():
    g = Latents()
    on = g.learn != 0
    assert over_layers.size_of_sae(g) == (11, round(float(on.sum(1).double().mean()))) == (11, 8)
    assert g.most == over_layers.AT_ONCE


def test_networks_other_than_the_trained_one_get_an_sae_of_their_own_like_the_one_named(monkeypatch):
    asked = []
    monkeypatch.setattr(over_layers, "ground", lambda *given: asked.append(given) or Latents())
    named = Settings(model="tiny-gpt2", sae="somewhere")
    assert own_sae(named, "trained", "") is named
    own = own_sae(named, "random", "")
    assert (own.sae, own.hook, own.width, own.k) == ("", "blocks.1.hook_resid_post", 11, 8)
    assert own.processing == ("fold_layer_norm",)
    assert asked == [(named, "")]  # the trained network's
    plain = Settings()
    assert own_sae(plain, "random", "0") is plain
    assert len(asked) == 1


def test_frequencies_are_of_all_blocks_and_the_mismatch_is_that_of_the_swaps_used(monkeypatch):
    used, sizes = [], []
    monkeypatch.setattr(latent_subjects, "_kl", lambda g, clean, base, steps: torch.zeros(len(steps), len(base)))
    swap = latent_subjects.swapped
    monkeypatch.setattr(latent_subjects, "swapped", lambda *a, **how: used.append(swap(*a, **how)) or used[-1])
    g, rng = Latents(), np.random.default_rng(1)
    g.learn = g.learn * torch.from_numpy(rng.random(g.learn.shape) < np.linspace(0.1, 0.9, 12))
    g.x = g.learn[::100] * torch.from_numpy(rng.random((100, 12)) < 0.4)
    g.covariance, g.outputs = torch.cov(g.learn.mT), lambda rows, at: rows
    same = SimpleNamespace(encode=lambda rows: sizes.append(rows.shape[1]) or rows, decode=lambda z: z)
    found = latent_subjects.moved(g, same, shares=(0.2, 0.6), draws=2, rebuilt=False, seed=0)
    assert len(used) == 4
    assert found.mismatch == pytest.approx(np.mean([each.mismatch for each in used]))
    assert len({each.mismatch for each in used}) == 4
    torch.testing.assert_close(used[0].rates, (g.learn != 0).double().mean(0), rtol=0, atol=0)
    assert max(sizes) == over_layers.AT_ONCE


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Settings, {"draws": 1}, "draws must be at least 2"),
        (Settings, {"errors": "none"}, "errors must be sae or isotropic"),
        (MoveSettings, {"draws": 0}, "draws must be at least 1"),
        (MoveSettings, {"shares": (0.5, 1.2)}, r"shares lie in \(0, 1\]"),
        (MoveSettings, {"subject": "none"}, "subject must be 'trained' or 'random decoder'"),
        (MoveSettings, {"k": 0}, "k must be at least 1"),
        (MoveSettings, {"dictionaries": 1}, "dictionaries must be at least 2, got 1"),
        (MoveSettings, {"decoders": ("trained",)}, "decoders must be some of 'random decoder' and .*got .'trained'"),
        (MoveSettings, {"decoders": ()}, "decoders must be some of"),
        *(
            each
            for kind in (Settings, MoveSettings)
            for each in (
                (kind, {"networks": ("random",)}, r"must name 'trained', which the claim is about, got \('random',\)"),
                (kind, {"networks": ()}, "networks are empty"),
                (kind, {"networks": ("trained", "radnom")}, "unknown network 'radnom': did you mean 'random'"),
            )
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, given, message):
    with pytest.raises(UserError, match=message):
        kind(**given)


@pytest.mark.parametrize("kind", [Settings, MoveSettings])
def test_checkpoints_are_networks_too(kind):
    assert kind(networks=("step_424", "trained")).networks == ("step_424", "trained")


@pytest.mark.parametrize(("hook", "block"), [("blocks.11.hook_resid_post", 11), ("hook_embed", -1)])
def test_the_block_of_a_hook(hook, block):
    assert int(over_layers.block_of(hook)) == block
