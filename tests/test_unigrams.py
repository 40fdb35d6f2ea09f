"""Token frequencies from a model whose next-token distribution is known, and against a plain loop without a cache."""

import shutil
from pathlib import Path

import pytest
import torch

from toolkit.corpora import effective_size
from toolkit.errors import UserError
from toolkit.unigrams import model_unigram


@pytest.fixture
def changed(tiny_model, tmp_path):
    """The tiny model saved again after a change to it."""
    from transformers import GPT2LMHeadModel

    def save(change):
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model, folder)
        model = GPT2LMHeadModel.from_pretrained(tiny_model)
        with torch.no_grad():
            change(model)
        model.save_pretrained(folder)
        return str(folder), model

    return save


def zeroed(model):
    for parameter in model.parameters():
        parameter.zero_()


def test_a_model_of_zeros_writes_every_token_alike(changed):
    found = model_unigram(changed(zeroed)[0], sequences=2, length=5, seed=0)
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.full_like(found, 1 / len(found)), rtol=1e-6)
    assert effective_size(found) == pytest.approx(len(found))


def test_a_model_that_always_says_the_same_is_read_off_exactly(changed):
    def constant(model):
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.linspace(-20, 20, 16))

    folder, model = changed(constant)
    expected = (model.lm_head.weight @ torch.linspace(-20, 20, 16)).softmax(0)
    assert expected.max() > 5 * expected.min()
    assert torch.allclose(model_unigram(folder, sequences=3, length=4, seed=1), expected, rtol=1e-4)


def test_rows_that_no_token_stands_for_have_no_share(changed):
    def padded(model):
        model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
        zeroed(model)

    folder, model = changed(padded)
    found = model_unigram(folder, sequences=2, length=3, seed=0)
    assert len(found) == model.config.vocab_size - 7
    assert found.sum() == pytest.approx(1)


def test_the_mean_is_that_of_a_plain_loop_without_a_cache(changed):
    folder, model = changed(lambda model: model.transformer.wte.weight.mul_(40))
    generator, total = torch.Generator().manual_seed(3), 0
    ids = torch.zeros(8, 1, dtype=torch.long)
    for _ in range(12):
        with torch.no_grad():
            chances = model.eval()(input_ids=ids).logits[:, -1].softmax(-1)
        total = total + chances.mean(0) / 12
        ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    found = model_unigram(folder, sequences=8, length=12, seed=3)
    assert torch.allclose(found, total, atol=1e-5)
    assert effective_size(found) < 0.9 * len(found)


def test_it_is_a_function_of_the_seed(changed):
    folder, _ = changed(lambda model: model.transformer.wte.weight.mul_(40))
    first, again, other = (model_unigram(folder, sequences=4, length=8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)
    assert first.sum() == pytest.approx(1, abs=1e-5)


def test_a_model_without_a_tokenizer_draws_among_all_rows_and_needs_no_first_token(changed):
    def nameless(model):
        model.config.bos_token_id = model.config.eos_token_id = None
        model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
        zeroed(model)

    folder, model = changed(nameless)
    for file in Path(folder).glob("token*"):
        file.unlink()
    found = model_unigram(folder, sequences=4, length=2, seed=0)
    assert torch.allclose(found, torch.full((model.config.vocab_size,), 1 / model.config.vocab_size), rtol=1e-6)


def test_sequences_end_with_the_context_and_there_must_be_some(tiny_model):
    short, whole = (model_unigram(str(tiny_model), sequences=2, length=length, seed=0) for length in (40, 32))
    assert torch.equal(short, whole)
    with pytest.raises(UserError, match="length=0: expected a whole number of at least 1"):
        model_unigram(str(tiny_model), length=0, seed=0)
    with pytest.raises(UserError, match="sequences=0"):
        model_unigram(str(tiny_model), sequences=0, length=2, seed=0)
