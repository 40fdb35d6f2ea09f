"""A model before training: the architecture's own draw, with the same hooks and tokenizer; the model left alone."""

import pytest
import torch

from controls.initialised import initialised
from toolkit.activations import harvest
from toolkit.corpora import Document
from toolkit.language import load_model


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-gpt2")


def test_it_is_what_transformers_draws_and_the_seed_decides(model):
    own = model.bridge.original_model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        wanted = type(own)(own.config).eval()
    tokens = torch.arange(14).reshape(2, 7) + 50
    drawn, again, other = (initialised(model, seed=seed) for seed in (3, 3, 4))
    with torch.no_grad():
        torch.testing.assert_close(drawn.bridge(tokens), wanted(tokens).logits)
        assert not torch.allclose(drawn.bridge(tokens), model.bridge(tokens))
    assert drawn.weights_hash == again.weights_hash != other.weights_hash


def test_its_weights_have_the_law_of_the_checkpoint_at_step_zero(model):
    """GPT-2's: N(0, .02), residual projections smaller by the root of twice the layers; layer norms 1 and 0."""
    begun, drawn = load_model("tiny-gpt2", revision="step_0"), initialised(model, seed=0)
    both = [dict(m.bridge.original_model.named_parameters()) for m in (begun, drawn)]
    assert both[0].keys() == both[1].keys()
    for name, weight in both[0].items():
        assert both[1][name].shape == weight.shape
        assert both[1][name].std().item() == pytest.approx(weight.std().item(), rel=0.05, abs=1e-6), name
        assert both[1][name].mean().item() == pytest.approx(weight.mean().item(), abs=2e-3), name
    assert begun.weights_hash != drawn.weights_hash


def test_hooks_tokenizer_and_random_state_are_as_before_and_the_model_is_untouched(model):
    before, state = model.weights_hash, torch.get_rng_state()
    drawn = initialised(model, seed=0)
    assert model.weights_hash == before
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.hook_names == model.hook_names
    assert drawn.tokenizer is model.tokenizer
    assert (drawn.d_model, drawn.context, drawn.vocabulary) == (model.d_model, model.context, model.vocabulary)
    assert drawn.name == "tiny-gpt2, initialised with seed 0"
    text = [Document("a", "The cat sat on the mat.")]
    hooks = ["hook_embed", "blocks.1.hook_resid_post"]
    rows = [harvest(m, text, hooks).rows(hooks[1]) for m in (model, drawn)]
    assert rows[0].shape == rows[1].shape
    assert not (rows[0] == rows[1]).all()


def test_a_name_will_do(tiny_model):
    assert initialised(str(tiny_model), seed=0).d_model == 16


def test_of_a_model_with_processed_weights_it_is_the_same_draw_processed_likewise(tiny_model):
    options = {"fold_layer_norm": True, "centre_writing_weights": True}
    plain, processed = initialised(str(tiny_model), seed=3), load_model(str(tiny_model), **options)
    drawn = initialised(processed, seed=3)
    assert drawn.processing == processed.processing == tuple(options)
    assert drawn.bridge.W_E.mean(1).abs().max() < 1e-6 < plain.bridge.W_E.mean(1).abs().max()
    tokens = torch.arange(20)[None]
    said = [model.bridge(tokens).log_softmax(-1) for model in (plain, drawn, processed)]
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=1e-4)
    assert (said[1] - said[2]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.real_model
def test_a_llama_is_drawn_as_a_llama(real_model):
    model = load_model(str(real_model))
    drawn = initialised(model, seed=0)
    tied = drawn.bridge.original_model
    assert drawn.hook_names == model.hook_names
    assert tied.get_input_embeddings().weight.std().item() == pytest.approx(tied.config.initializer_range, rel=0.01)
