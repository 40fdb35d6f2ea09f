"""The ground of experiments on directions: what is learned from, what is moved, divergences, mistakes in one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.checks import interval
from experiments.network import ground as module
from experiments.network import networks, subjects
from experiments.network.by_document import bounded, means, ratio
from experiments.network.ground import FEWEST, ground, hook_of
from experiments.network.networks import RANDOM, SPECTRUM, TRAINED, keeps_first, network
from experiments.network.over_layers import own_sae
from experiments.network.subject import Subject
from toolkit.errors import UserError
from toolkit.interventions import Patch, record, run
from toolkit.language import load_model

HOOK = "blocks.0.hook_resid_post"
WORDS = ("the", "cat", "sat", "on", "a", "mat")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Thirty short texts, a file each, none like another."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    for number in range(30):
        (folder / f"{number:02}.txt").write_text(" ".join(rng.choice(WORDS, 40)))
    return str(folder)


@pytest.fixture(scope="module")
def settings(tiny_model, corpus):
    return Subject(model=str(tiny_model), corpus=corpus, hook=HOOK, rows=1200, places=40, width=32, k=4, steps=30)


@pytest.fixture(scope="module")
def here(settings):
    return ground(settings, HOOK)


def sequences(found):
    """The tokens that lead up to each place, as text."""
    return [tuple(found.rest.tokens[s, : p + 1].tolist()) for s, p in found.rest.places.tolist()]


def test_what_is_learned_from_and_what_is_moved_are_of_other_documents(settings, here, monkeypatch):
    dealt = {}
    original = module._dealt

    def note(text, *others):
        dealt["text"] = text
        dealt["learned"], dealt["moved"] = found = original(text, *others)
        return found

    monkeypatch.setattr(module, "_dealt", note)
    again = ground.__wrapped__(settings, HOOK)
    groups, position = dealt["text"].groups, dealt["text"].rows[:, 1].numpy()
    learned, moved = set(groups[dealt["learned"]]), set(groups[dealt["moved"]])
    assert learned & moved == set()
    assert min(len(learned), len(moved)) >= FEWEST
    assert (position[dealt["learned"]] > 0).all()
    assert (position[dealt["moved"]] > 0).all()
    assert len(again.x) == len(again.documents) == len(again.positions) == 40
    assert len(again.learn) == len(again.learned) == len(dealt["learned"])
    torch.testing.assert_close(again.x, here.x)
    counts = np.bincount(again.documents)
    assert counts.max() - counts.min() <= 1  # every document has its part


def test_rows_are_what_the_network_holds_where_they_stand(here):
    tokens, places = here.rest.tokens, here.rest.places
    whole = record(here.model, tokens, [HOOK])[HOOK]
    torch.testing.assert_close(here.x, whole[places[:, 0], places[:, 1]])
    torch.testing.assert_close(here.positions, places[:, 1].numpy())
    clean = run(here.model, tokens).log_softmax(2)[places[:, 0], places[:, 1]]
    torch.testing.assert_close(here.clean, clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(here.mean, here.learn.mean(0))
    expected = np.cov(here.learn.double().numpy().T)
    np.testing.assert_allclose(here.covariance.numpy(), expected, atol=1e-9)


def test_divergence_is_that_of_a_plain_whole_pass_with_a_hook(here):
    generator = torch.Generator().manual_seed(0)
    at = torch.tensor([0, 7, 7, 39, 12])
    moved = here.x[at] + 2 * here.x.std() * torch.randn(5, here.x.shape[1], generator=generator)
    found = here.divergence(moved, at)
    for row, place, value in zip(moved, at.tolist(), found.tolist(), strict=True):
        sequence, position = here.rest.places[place].tolist()
        tokens = here.rest.tokens[sequence : sequence + 1, : position + 1]
        values = record(here.model, tokens, [HOOK])[HOOK]
        values[0, position] = row
        patched = run(here.model, tokens, [Patch(HOOK, values, positions=[position])])[0, position]
        clean = run(here.model, tokens)[0, position].log_softmax(0)
        plain = torch.nn.functional.kl_div(patched.log_softmax(0), clean, log_target=True, reduction="sum")
        assert value == pytest.approx(plain.item(), abs=1e-4)
    assert found.max() > 1e-3
    assert here.divergence(here.x[at], at).max() < 1e-5


def test_many_ways_are_many_rows(here):
    ways = torch.stack([here.x, here.x + 1.0, here.x.flip(0)])
    found = here.divergences(ways)
    assert found.shape == (3, 40)
    places = torch.arange(40)
    for way, values in zip(ways, found, strict=True):
        torch.testing.assert_close(values, here.divergence(way, places))
    assert (found[2] > 1e-6).all()


def test_text_that_a_model_says_is_of_its_own_distribution():
    model = load_model("tiny-gpt2")
    said = subjects.said(model, rows=1_500, context=64, seed=0)
    assert said.tokens.shape == (-(-1_500 // 63), 64)
    assert (said.tokens[:, 0] == model.tokenizer.bos_token_id).all()
    assert torch.equal(said.tokens, subjects.said(model, rows=1_500, context=64, seed=0).tokens)
    assert not torch.equal(said.tokens, subjects.said(model, rows=1_500, context=64, seed=1).tokens)
    logs = run(model, said.tokens).log_softmax(2)[:, :-1].double()
    entropy = -(logs.exp() * logs).sum(2)
    surprise = -logs.gather(2, said.tokens[:, 1:, None])[:, :, 0]
    excess = (surprise - entropy).mean(1)  # of each sequence: a martingale's mean, 0 for its own text
    error = excess.std() / len(excess) ** 0.5
    assert excess.mean().abs() < 4 * error
    others = said.tokens[:, torch.randperm(63, generator=torch.Generator().manual_seed(0)) + 1]
    logs = run(model, torch.cat([said.tokens[:, :1], others], 1)).log_softmax(2)[:, :-1].double()
    foreign = -logs.gather(2, others[:, :, None]).mean()
    assert foreign - surprise.mean() > 1  # the same tokens in another order are not
    np.testing.assert_array_equal(said.groups, said.rows[:, 0].numpy())


def test_only_the_position_asked_for_is_moved(settings):
    found = ground(replace(settings, position=5), HOOK)
    assert set(found.positions) == {5}
    with pytest.raises(UserError, match="no sequence has position 99: the longest has 32 tokens, counted from 0"):
        ground(replace(settings, position=99), HOOK)


def test_too_few_documents_are_refused_with_their_number(settings, tmp_path):
    for number in range(2 * FEWEST - 1):
        (tmp_path / f"{number}.txt").write_text("the cat sat on the mat " * (number + 2))
    with pytest.raises(UserError, match=f"the text has {2 * FEWEST - 1} documents, and {2 * FEWEST} are needed"):
        ground(replace(settings, corpus=str(tmp_path)), HOOK)
    (tmp_path / "last.txt").write_text("a mat, a cat " * 5)
    module._reading.cache_clear()  # the folder is another one now
    assert len(ground(replace(settings, corpus=str(tmp_path)), HOOK).x) > 0


def test_an_unknown_hook_is_named_with_the_nearest(settings):
    with pytest.raises(UserError, match=r"did you mean 'blocks\.0\.hook_resid_post'"):
        ground(replace(settings, hook="blocks.0.hook_resid_pots"), "blocks.0.hook_resid_pots")


def saved(folder, rows, hook, **said):
    sae = subjects.trained(rows, width=32, k=4, steps=60, seed=0)
    replace(sae, metadata={"hook_name": hook, **said} if hook else {}).save(folder)
    return str(folder)


def test_an_sae_is_read_where_its_own_hook_is(settings, here, tmp_path):
    sae = saved(tmp_path / "own", here.learn, HOOK)
    asked = replace(settings, sae=sae, hook="")
    assert asked.at == [HOOK]
    found = ground(asked, HOOK)
    assert found.hook == HOOK
    assert found.latents(found.x).shape == (40, 32)
    torch.testing.assert_close(found.rebuilt(found.x), found.sae(found.x[None])[0])
    assert found.rebuilt(found.x).shape == found.x.shape


def test_an_sae_of_a_model_with_centred_weights_is_asked_in_such_a_model(settings, tmp_path):
    """Layer norm takes the mean away: what is written along d may be centred, and no output changes."""
    raw = ground(settings, HOOK)
    rows = raw.learn - raw.learn.mean(1, keepdim=True)
    loaded = {"center_writing_weights": True, "device": "cpu"}
    asked = replace(settings, sae=saved(tmp_path / "centred", rows, HOOK, model_from_pretrained_kwargs=loaded))
    found = ground(asked, HOOK)
    assert found.model.processing == ("centre_writing_weights",)
    assert raw.x.mean(1).abs().max() > 0.01
    for plain, centred in ((raw.x, found.x), (raw.learn, found.learn)):
        torch.testing.assert_close(centred, plain - plain.mean(1, keepdim=True), rtol=0, atol=1e-5)
    step = 0.5 * torch.randn(found.x.shape, generator=torch.Generator().manual_seed(1))
    at = torch.arange(len(step))
    told = found.divergence(found.x + step, at)
    assert told.mean() > 1e-3
    torch.testing.assert_close(told, raw.divergence(raw.x + step, at), rtol=1e-3, atol=1e-6)
    own = own_sae(asked, SPECTRUM, HOOK)  # networks beside it are loaded as it was, each with an SAE of its own
    for kind in (RANDOM, SPECTRUM):
        assert ground(own, HOOK, kind=kind).model.processing == ("centre_writing_weights",)
        assert ground(own, HOOK, kind=kind).x.mean(1).abs().max() < 1e-5


def test_an_sae_of_another_width_hook_or_none_is_told_in_one_line(settings, here, tmp_path):
    other = saved(tmp_path / "other", here.learn, "blocks.0.hook_resid_pre")
    with pytest.raises(UserError, match=f"was trained on blocks.0.hook_resid_pre, and this is {HOOK}: --hook blocks"):
        _ = ground(replace(settings, sae=other), HOOK).sae
    wide = saved(tmp_path / "wide", torch.randn(256, 24, generator=torch.Generator().manual_seed(0)), "")
    with pytest.raises(UserError, match=f"reads rows of 24 numbers, and {HOOK} of .* holds 16"):
        _ = ground(replace(settings, sae=wide), HOOK).sae
    with pytest.raises(UserError, match="does not say which hook it was trained on: give --hook"):
        _ = replace(settings, sae=wide, hook="").at
    shifted = saved(tmp_path / "shifted", here.learn + 10, "")
    with pytest.raises(UserError, match=f"of the variance of {HOOK} of .*: it explains nothing, so it is"):
        _ = ground(replace(settings, sae=shifted), HOOK).sae
    fits = saved(tmp_path / "fits", here.learn, "")
    assert ground(replace(settings, sae=fits), HOOK).sae.W_dec.shape == (1, 32, 16)
    with pytest.raises(UserError, match=r"no SAE at \./none"):
        _ = ground(replace(settings, sae="./none"), HOOK).sae


def test_saes_trained_here_leave_every_fifth_document_aside_and_those_named_none(settings, here, tmp_path):
    aside, documents = here.aside.numpy(), here.learned
    assert len(here.unseen) == aside.sum() > 0
    assert {d % 5 == 0 for d in documents[aside]} == {True}
    assert {d % 5 == 0 for d in documents[~aside]} == {False}
    own = subjects.trained(here.learn[~here.aside], width=32, k=4, steps=30, seed=0)
    torch.testing.assert_close(own.W_dec, here.sae.W_dec)
    named = ground(replace(settings, sae=saved(tmp_path / "own", here.learn, HOOK)), HOOK)
    assert torch.equal(named.unseen, named.learn)


def test_an_sae_trained_here_explains_rows_of_documents_it_never_saw():
    model = load_model("tiny-gpt2")
    found = ground(Subject(rows=2_000, places=64, width=64, k=8, steps=100, layers=1), "0")
    assert found.hook == "blocks.1.hook_resid_post"
    assert found.model.name == model.name
    assert ((found.latents(found.x) > 0).sum(1) <= 8).all()
    assert set(np.bincount(found.learned)) == {63}  # of 64 tokens: the first is left out on both sides
    assert found.positions.min() > 0
    left = (found.x - found.rebuilt(found.x)).square().sum() / (found.x - found.mean).square().sum()
    assert left < 0.7
    shuffled = found.x[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert (found.x - shuffled).square().sum() / (found.x - found.mean).square().sum() > 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 33}, "k=33 is more than width=32"),
        ({"position": -1}, "position must not be negative, got -1: positions count from 0"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"places": -3}, "places must be at least 1, got -3"),
        ({"sae": "x", "hook": "a,b"}, "one SAE stands at one hook, got a,b: name one --hook"),
        ({"processing": ("centre_writing",)}, "did you mean 'centre_writing_weights'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, changed, message):
    with pytest.raises(UserError, match=message):
        replace(settings, **changed)


def test_hooks_are_named_or_evenly_spaced_and_the_last_block_is_left_out():
    model = load_model("tiny-gpt2")
    assert Subject(hook="a, b").at == ["a", "b"]
    assert Subject(layers=3).at == ["0", "1", "2"]
    many = [hook_of(Subject(layers=3), model, at) for at in "012"]
    assert many == [f"blocks.{block}.hook_resid_post" for block in range(3)]
    assert hook_of(Subject(layers=1), model, "0") == "blocks.1.hook_resid_post"
    assert hook_of(Subject(), model, "blocks.3.hook_mlp_out") == "blocks.3.hook_mlp_out"


def test_networks_are_the_trained_one_its_beginning_a_checkpoint_or_one_with_its_spectra():
    trained = network("tiny-gpt2", TRAINED)
    assert keeps_first("tiny-gpt2")
    first = network("tiny-gpt2", RANDOM)
    assert first.weights_hash == network("tiny-gpt2", "step_0").weights_hash != trained.weights_hash
    assert network("tiny-gpt2", "step_424").weights_hash not in (first.weights_hash, trained.weights_hash)
    drawn = network("tiny-gpt2", SPECTRUM, seed=1)
    values = [torch.linalg.svdvals(each.bridge.blocks[1].mlp.W_in) for each in (trained, drawn)]
    torch.testing.assert_close(*values, rtol=1e-3, atol=1e-4)
    assert (drawn.bridge.blocks[1].mlp.W_in - trained.bridge.blocks[1].mlp.W_in).abs().max() > 0.1
    with pytest.raises(UserError, match="unknown network 'randm': did you mean 'random'"):
        network("tiny-gpt2", "randm")


def test_a_model_without_checkpoints_is_drawn_anew_by_its_own_architecture(tiny_model):
    assert not keeps_first(str(tiny_model))
    drawn = [network(str(tiny_model), RANDOM, seed=seed).weights_hash for seed in (0, 1)]
    networks._network.cache_clear()
    assert network(str(tiny_model), RANDOM, seed=0).weights_hash == drawn[0] != drawn[1]
    with pytest.raises(UserError, match="step_7"):
        network(str(tiny_model), "step_7")


def test_networks_of_every_kind_are_moved_at_the_same_places(settings):
    grounds = [ground(settings, HOOK, kind=kind, seed=1) for kind in (TRAINED, RANDOM, SPECTRUM)]
    assert sequences(grounds[0]) == sequences(grounds[1]) == sequences(grounds[2])
    assert (grounds[0].x - grounds[1].x).abs().max() > 0.01


def test_means_are_of_each_documents_places_and_leave_out_what_is_not_known():
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, 7.0])
    documents = np.array([4, 4, 4, 9, 2, 9])
    np.testing.assert_array_equal(means(values, documents), [2.0, 6.0])
    assert len(means(np.full(3, np.nan), np.array([0, 1, 2]))) == 0
    found = ratio(values, np.ones(6), documents, seed=0)
    assert found.low <= found.mean <= found.high


def test_a_ratios_interval_covers_the_truth_as_often_as_it_says_and_documents_matter(monkeypatch):
    monkeypatch.setattr("experiments.network.by_document.DRAWS", 400)
    hits, alone, cases, truth = 0, 0, 200, 2.0
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        documents = np.repeat(np.arange(40), 6)
        level = rng.gamma(2.0, 1.0, 40)[documents]
        below = level * rng.gamma(4.0, 0.25, 240)
        above = truth * level * rng.gamma(4.0, 0.25, 240) * rng.gamma(20.0, 1 / 20, 40)[documents]
        found = ratio(above, below, documents, seed=seed)
        hits += found.low <= truth <= found.high
        plain = ratio(above, below, np.arange(240), seed=seed)
        alone += plain.low <= truth <= plain.high
    assert 0.90 <= hits / cases <= 0.98
    assert alone / cases < hits / cases - 0.03  # as if places were independent: too narrow


def test_a_check_on_an_interval_passes_as_it_is_told_to():
    found = interval([1.0, 2.0, 3.0])
    assert bounded("c", "> 0", found, 3, lambda one: one.mean > 0).passed
    assert not bounded("c", "> 0", found, 3, lambda one: one.low > 0).passed
    assert bounded("c", "> 0", found, 3, lambda one: True).values == 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hook": "3"}, "expected different names"),
        ({"hook": "blocks.0.hook_resid_post,"}, "expected different names"),
        ({"hook": "blocks.0.hook_resid_post,blocks.0.hook_resid_post"}, "expected different names"),
    ],
)
def test_hooks_are_names_and_each_once(settings, says):
    with pytest.raises(UserError, match=says):
        Subject(**settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"hook": "blocks.0.attn.hook_pattern"}, "has shape"),
        (
            {"hook": "blocks.0.ln1.hook_scale"},
            "holds one number a token, which has no directions",
        ),
        ({"layers": 4}, "3 blocks before its last: --set layers=3"),
        ({"places": 5}, "places of 5 documents would be moved"),
    ],
)
def test_what_would_end_in_a_wrong_number_is_refused_before_anything_is_measured(settings, says):
    asked = Subject(**{"rows": 2_000, "places": 48, **settings})
    with pytest.raises(UserError, match=says):
        ground(asked, asked.at[0])


def test_the_trained_model_is_read_once_however_it_is_asked_for():
    assert network("tiny-gpt2") is network("tiny-gpt2", "trained", seed=7)
