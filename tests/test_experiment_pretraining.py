"""Experiments on pretraining, on planted truths: errors against the spectrum, paired arms, one token in its text."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from controls import weights as nulls
from experiments import registry
from experiments.embedding import (
    checkpoints,
    frozen_arms,
    frozen_report,
    one_row_report,
    pretraining_report,
    texts,
    token_lessons,
)
from experiments.embedding.learning_curve import LearningCurve
from experiments.running import How, compute
from toolkit.errors import UserError
from toolkit.pretraining import initial_model, pretrain, validation_loss

ERROR, FROZEN, ROW = (registry.chosen([n])[0] for n in ("error-over-pretraining", "frozen-embedding", "one-row"))


def by_claim(outcome):
    return {check.claim: check for check in outcome.checks}


# Question 2


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A pretraining folder of four checkpoints, two of them whole models' worth of rows kept alone."""
    import shutil

    path = shutil.copytree(tiny_model, tmp_path / "model")
    rows = torch.randn(300, 16, generator=torch.Generator().manual_seed(0)).half()
    save_file({f"step_{step}": rows + step for step in (0, 7, 100)}, path / "embeddings.safetensors")
    return path


def test_checkpoints_are_the_folders_own_in_rising_order(folder):
    assert checkpoints.steps(str(folder)) == (0, 7, 100)
    settings = replace(ERROR.scales["smoke"], model=str(folder))
    first, last = (checkpoints.vocabulary_at(settings, step, 0) for step in (0, 100))
    torch.testing.assert_close(last.rows, (first.rows.half() + 100).float())
    assert torch.equal(first.train, last.train)
    assert first.rows.dtype == torch.float32
    assert {cell["step"] for cell in ERROR.cells(settings) if "step" in cell} == {0, 7, 100}


def test_a_model_without_checkpoints_is_told_what_to_have(tiny_model):
    assert "has no checkpoints: expected a folder that toolkit.pretrain wrote" in checkpoints.lacking(str(tiny_model))
    assert checkpoints.lacking("") == checkpoints.lacking("EleutherAI/pythia-70m-deduped") == ""
    assert checkpoints.lacking("stanford-crfm/alias-gpt2-small-x21") == ""
    assert "gpt2 has no checkpoints" in checkpoints.lacking("gpt2")


def test_planted_checkpoints_keep_their_covariance_while_rows_become_sparse():
    settings = ERROR.scales["smoke"]
    each = [checkpoints.vocabulary_at(settings, step, 0).rows for step in checkpoints.PLANTED]
    last = torch.cov(each[-1].T)
    for rows in each[:-1]:
        assert (torch.cov(rows.T) - last).norm() < 0.25 * last.norm()  # sampling noise of 2,560 rows
    torch.testing.assert_close(each[-1], checkpoints.vocabulary(settings, 0).rows)


def test_a_spectrum_that_grows_steeper_lowers_the_error_and_not_its_share_of_the_nulls(tmp_path, monkeypatch):
    """Gaussian rows at every checkpoint: what PCA explains falls under the spectrum, and the relative error says so."""

    def steeper(rows, step, seed):
        decay = torch.exp(-torch.arange(rows.shape[1]) * step / 1500.0)
        return nulls.gaussian(rows, seed=seed + step) * decay

    monkeypatch.setattr(checkpoints, "_planted", steeper)
    settings = replace(ERROR.scales["smoke"], epochs=2)
    found = by_claim(compute(ERROR, settings, How(quiet=True), tmp_path))
    assert found["FVU at the first checkpoint, less that at the last"].passed
    assert not found["FVU over the same covariance's: first checkpoint, less the last"].passed
    assert abs(found["last checkpoint: FVU of the same covariance, less the embedding's"].measured) < 0.02


def test_error_is_weighted_by_the_weights_of_the_held_out_tokens():
    one = {"tokens": torch.tensor([2, 0]), "errors.observed": torch.tensor([1.0, 4.0]),
           "squares.observed": torch.tensor([2.0, 4.0])}  # fmt: skip
    weights = torch.tensor([1.0, 7.0, 3.0], dtype=torch.float64)
    assert pretraining_report._fvu(one, "observed", weights) == pytest.approx((3 * 1 + 1 * 4) / (3 * 2 + 1 * 4))


# Question 4


@pytest.fixture(scope="module")
def small():
    settings = replace(
        FROZEN.scales["smoke"], steps=4, every=2, tokens=600, held_out=300, width=16, context=16, batch=4
    )
    return settings, texts.read(settings, settings.tokens, settings.held_out, 0)


def test_arms_of_a_seed_differ_in_their_embedding_alone(small, monkeypatch):
    settings, _ = small
    started = []

    def noted(data, config, *, seed, keep, **how):
        def first(step, model):
            if step == 0:
                weights = {name: value.clone() for name, value in model.transformer.state_dict().items()}
                started.append((weights.pop("wte.weight"), weights, data.fingerprint, seed))
            keep(step, model)

        return pretrain(data, config, seed=seed, keep=first, **how)

    monkeypatch.setattr(frozen_arms, "pretrain", noted)
    found = FROZEN.measure(settings, {"seed": 0}, 0)
    rows, weights, data, seeds = zip(*started, strict=True)
    assert len(rows) == len(frozen_report.ARMS) == 6
    assert len(set(data)) == len(set(seeds)) == 1
    assert all(torch.equal(value, weights[0][name]) for each in weights for name, value in each.items())
    names = list(frozen_report.ARMS)
    assert (
        len({tuple(each[:, 0].tolist()) for each in rows}) == len(names) - 1
    )  # two have the same rows: untied, random
    assert all(f"curve.{arm}" in found for arm in frozen_report.ARMS)


def test_frozen_rows_stay_and_have_the_learned_norms(small):
    settings, text = small
    config = settings.training(text)
    rows = torch.randn(257, 16, generator=torch.Generator().manual_seed(1))
    start = frozen_arms.frozen_at(initial_model(config, seed=0), rows)
    others = initial_model(config, seed=0).state_dict()
    assert all(
        torch.equal(v, others[k]) for k, v in start.state_dict().items() if "wte" not in k and "lm_head" not in k
    )
    done = pretrain(text.data(), config, seed=0, model=start).model
    assert torch.equal(done.get_input_embeddings().weight, rows)
    assert not torch.equal(done.transformer.h[0].mlp.c_fc.weight, others["transformer.h.0.mlp.c_fc.weight"])
    random = settings.training(text, freeze_embedding="random")
    drawn = pretrain(text.data(), random, seed=0, norms=rows.norm(dim=1)).model.get_input_embeddings().weight
    torch.testing.assert_close(drawn.norm(dim=1), rows.norm(dim=1))


def test_an_untied_output_is_trained_while_the_frozen_rows_stay(small):
    settings, text = small
    config = settings.training(text)
    rows = torch.randn(257, 16, generator=torch.Generator().manual_seed(1))
    start = frozen_arms.frozen_at(frozen_arms.untied(initial_model(config, seed=0)), rows)
    output = start.lm_head.weight.detach().clone()
    assert torch.equal(output, initial_model(config, seed=0).get_input_embeddings().weight)
    done = pretrain(text.data(), config, seed=0, model=start).model
    assert torch.equal(done.get_input_embeddings().weight, rows)
    assert not torch.equal(done.lm_head.weight, output)


def test_a_learning_curve_is_the_validation_loss_at_even_steps_and_changes_nothing(small):
    settings, text = small
    config = settings.training(text)
    curve = LearningCurve(text.held_out, config, 2, "cpu")
    watched = pretrain(text.data(), config, seed=0, keep=curve.keep, progress=curve.progress)
    alone = pretrain(text.data(), config, seed=0)
    assert len(curve.losses) == 3
    assert curve.losses[0] == alone.validation[0]
    assert curve.losses[-1] == alone.final == watched.final
    again = validation_loss(alone.model, text.held_out, context=config.context, batch=config.batch)
    assert curve.losses[-1] == pytest.approx(again)


def test_a_curve_has_settled_once_its_last_fifth_takes_next_to_nothing_off():
    falling, flat = torch.linspace(5, 4, 21), torch.full((21,), 4.0)
    rising = torch.cat([torch.linspace(5, 4, 10), torch.linspace(4, 4.5, 11)])
    assert frozen_report._settled(torch.stack([falling, flat, rising])).tolist() == [False, True, True]


# Question 5


def test_the_planted_language_is_the_chain_it_claims_to_be():
    tokens = texts.planted_language(200_000, 0).numpy()
    classes, wanted = (tokens - 1) % 8, texts.class_transitions()
    seen = np.zeros((8, 8))
    np.add.at(seen, (classes[:-1], classes[1:]), 1)
    assert seen / seen.sum(1, keepdims=True) == pytest.approx(wanted, abs=0.02)
    places = np.bincount((tokens - 1) // 8) / len(tokens)
    assert places * np.arange(1, 33) == pytest.approx(places[0], rel=0.15)  # Zipf's law
    assert (tokens.min(), tokens.max()) == (1, 256)


def test_streams_share_no_document_and_too_little_text_is_one_line(tmp_path, tiny_model):
    from toolkit.corpora import documents
    from toolkit.pretrain_folder import load_start

    (tmp_path / "text.txt").write_text("\n<|endoftext|>\n".join(letter * 40 for letter in "abcdefgh"))
    source, (_, tokenizer) = str(tmp_path / "text.txt"), load_start(str(tiny_model))
    assert len(documents(source)) == 8
    train, held_out = texts._parts(source, tokenizer, (60, 100), 0)
    assert (len(train), len(held_out)) == (60, 100)
    assert set(train.tolist()) & set(held_out.tolist()) == {tokenizer.eos_token_id}
    with pytest.raises(UserError, match=r"text.txt has too little text: 500 tokens are needed .* 8 documents gave 328"):
        texts._parts(source, tokenizer, (200, 300), 0)


def test_tokens_of_a_band_have_its_frequency_and_no_token_is_in_two():
    tokens = texts.planted_language(30_000, 0)
    text = texts.Text(tokens[:20_000], tokens[20_000:], texts.read(FROZEN.scales["smoke"], 9, 9, 0).tokenizer, 257)
    found = token_lessons.chosen_tokens(text, 4, 3, seed=0)
    counts = np.bincount(text.train, minlength=257)[found]
    assert len(set(found.ravel())) == 12
    assert (counts[:-1].min(1) > counts[1:].max(1)).all()
    with pytest.raises(UserError, match="give more text"):
        token_lessons.chosen_tokens(text, 40, 3, seed=0)


def test_windows_with_a_token_and_text_without_it():
    stream = torch.arange(40) % 10
    held = token_lessons.windows_with(stream, 3, 4, 9)
    assert held.shape == (4, 5)
    assert (held == 3).any(1).all()
    kept = token_lessons.without(stream, 3, 4)
    assert len(kept) == 40
    assert 3 not in kept
    assert kept[:4].tolist() == [4, 5, 6, 7]
    with pytest.raises(UserError, match="token 11 is in no whole window"):
        token_lessons.windows_with(stream, 11, 4, 9)
    with pytest.raises(UserError, match="token 3 is in every piece"):
        token_lessons.without(torch.full((9,), 3), 3, 4)


def test_losses_are_those_at_the_token_as_input_and_as_target(tiny_model):
    from toolkit.pretrain_folder import load_start

    model, _ = load_start(str(tiny_model))
    windows = torch.tensor([[5, 7, 5, 9], [1, 5, 2, 5]])
    logs = -model(input_ids=windows[:, :-1]).logits.log_softmax(-1)
    losses = logs.gather(2, windows[:, 1:, None])[..., 0]
    wanted = torch.stack([losses[[0, 0, 1], [0, 2, 1]].mean(), losses[[0, 1, 1], [1, 0, 2]].mean()])
    torch.testing.assert_close(token_lessons.token_losses(model, windows, 5), wanted.detach())


def test_a_row_that_is_back_has_cosine_one_and_no_damage_left():
    d, draw = 32, torch.Generator().manual_seed(0)
    rows, mean = torch.randn(3, d, generator=draw), torch.ones(d)
    one = {"mean": mean, "token": torch.tensor(4), "counts": torch.tensor([9, 9]), "before": rows}
    one |= {"losses.before": torch.tensor([[2.0, 3.0], [4.0, 5.0], [6.0, 5.0]])}
    back = {"after": rows[[0, 0, 0]], "losses.after": torch.tensor([[2.1, 2.9]] * 3)}
    stuck = {"after": rows, "losses.after": one["losses.before"]}
    whole, none = one_row_report.returned(one | back), one_row_report.returned(one | stuck)
    assert (whole["cosine.after"].item(), whole["meet.after"].item()) == (pytest.approx(1), pytest.approx(1))
    assert one_row_report.undone({k: v[None] for k, v in whole.items()}).item() == pytest.approx(1)
    assert none["cosine.after"] == none["cosine.before"]
    centred = torch.nn.functional.normalize(rows - mean, dim=1).double()
    assert none["cosine.before"].item() == pytest.approx((centred[1:] @ centred[0]).mean().item(), abs=1e-6)
    assert none["meet.before"].item() == pytest.approx((centred[1] @ centred[2]).item(), abs=1e-6)
    assert one_row_report.undone({k: v[None] for k, v in none.items()}).item() == pytest.approx(0)
    assert (whole["damage.input"].item(), whole["damage.target"].item()) == (3.0, 2.0)
