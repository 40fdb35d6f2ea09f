"""Harvested rows are those of the Hugging Face model run on one window at a time, and say where they come from."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import DOCUMENTS, TEXTS, write_small
from transformers import AutoModelForCausalLM

from toolkit import windows
from toolkit.activations import harvest
from toolkit.corpora import Document
from toolkit.errors import UserError
from toolkit.forward import forward_to
from toolkit.language import load_model
from toolkit.targets import mapped_target
from toolkit.windows import batches_of

CONTEXT = 16
PRE, POST = "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"
END = "<|endoftext|>"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def folder(request, tiny_model, tmp_path_factory):
    return write_small(request.param, tiny_model, tmp_path_factory.mktemp("small") / request.param)


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def gpt2(tiny_model, tmp_path_factory):
    return load_model(write_small("gpt2", tiny_model, tmp_path_factory.mktemp("one") / "gpt2"))


def cut_by_hand(model):
    """(document, place in it of the first token, tokens) of every window, from the tokenizer alone."""
    for number, text in enumerate(TEXTS):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), CONTEXT - 1):
            yield number, start, ids[start : start + CONTEXT - 1]


def expected_rows(folder, model):
    """Document, position, token and both hooks' rows of every kept token: one window at a time, nothing padded."""
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = model.tokenizer.convert_tokens_to_ids(END)
    for number, start, ids in cut_by_hand(model):
        with torch.no_grad():
            states = network(torch.tensor([[end, *ids]]), output_hidden_states=True).hidden_states
        for at, token in enumerate(ids):
            if token != end:
                yield number, start + at, token, states[1][0, at + 1], states[2][0, at + 1]


def test_rows_are_those_of_the_hugging_face_model_document_by_document(folder, model):
    found = harvest(model, DOCUMENTS, [PRE, POST], context=CONTEXT, batch=64)
    numbers, positions, tokens, pre, post = zip(*expected_rows(folder, model), strict=True)
    assert found.documents.tolist() == list(numbers)
    assert found.positions.tolist() == list(positions)
    assert found.tokens.tolist() == list(tokens)
    for hook, wanted in ((PRE, torch.stack(pre)), (POST, torch.stack(post))):
        rows = found.rows(hook)
        assert rows.dtype == np.float16
        assert wanted.std() > 0.05
        # One unit in the last place of float16 for rounding, and float32's noise near zero.
        np.testing.assert_allclose(rows, wanted.numpy(), rtol=2**-10, atol=2e-6)
    assert not np.allclose(found.rows(PRE), found.rows(POST), atol=0.05)


@pytest.mark.parametrize(
    "hook",
    ["hook_embed", "blocks.0.hook_resid_pre", "blocks.1.attn.hook_q", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out",
     "blocks.1.hook_resid_mid", "blocks.1.mlp.hook_post", "blocks.2.hook_mlp_out", "ln_final.hook_normalized",
     "blocks.2.hook_resid_post"],
)  # fmt: skip
@pytest.mark.parametrize("processing", [{}, {"fold_layer_norm": True}])
def test_any_hook_gives_what_the_bridge_gives(hook, processing, folder):
    model = load_model(folder, **processing)
    if hook not in model.hook_names:
        pytest.skip("this kind of model has no such hook")
    found = harvest(model, DOCUMENTS[2:3], [hook], context=CONTEXT)
    end = model.tokenizer.bos_token_id
    for start in range(0, len(found.tokens), CONTEXT - 1):
        window = torch.tensor([[end, *found.tokens[start : start + CONTEXT - 1]]])
        with torch.no_grad():
            cached = model.bridge.run_with_cache(window, names_filter=hook)[1][hook][0, 1:]
        wanted = cached.flatten(1)
        np.testing.assert_allclose(found.rows(hook)[start : start + len(wanted)], wanted, rtol=2**-9, atol=1e-4)


def test_the_residual_stream_is_read_from_the_plain_model(model):
    assert forward_to(model, [PRE, POST]).is_plain
    assert forward_to(model, [PRE]).widths == {PRE: 16}


def test_a_plain_model_that_says_otherwise_is_not_used(gpt2, monkeypatch):
    from toolkit import forward

    made = forward.unwrapped

    def spoilt(original):
        network = made(original)
        block = network.h[0].mlp.c_proj
        block.weight = torch.nn.Parameter(block.weight + 0.01)
        return network

    right = forward_to(gpt2, [POST])
    monkeypatch.setattr(forward, "unwrapped", spoilt)
    other = forward_to(gpt2, [POST])
    assert (right.is_plain, other.is_plain) == (True, False)
    tokens = torch.arange(1, 13).reshape(2, 6)
    torch.testing.assert_close(other(tokens)[POST], right(tokens)[POST], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hooks", [[PRE], [PRE, POST], ["blocks.1.attn.hook_pattern"]])
def test_nothing_is_computed_beyond_the_last_hook(hooks, gpt2, monkeypatch):
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    ran, forward = [], GPT2Block.forward
    if "pattern" in hooks[0]:  # the bridge's own pass
        hooks = ["blocks.1.attn.hook_z"]
    made = forward_to(gpt2, hooks)
    assert made.is_plain == (hooks[0] == PRE)
    monkeypatch.setattr(GPT2Block, "forward", lambda self, *a, **k: (ran.append(1), forward(self, *a, **k))[1])
    made(torch.arange(1, 7)[None])
    assert len(ran) == (1 if hooks == [PRE] else 2)


def test_special_tokens_and_padding_are_masked_and_counted(gpt2):
    found = harvest(gpt2, DOCUMENTS, [PRE], context=CONTEXT, batch=64)
    by_hand = list(cut_by_hand(gpt2))
    end = gpt2.tokenizer.bos_token_id
    inside = sum(ids.count(end) for _, _, ids in by_hand)
    assert inside == 1
    assert found.counted.special == inside + len(by_hand)
    assert found.counted.rows == sum(len(ids) for _, _, ids in by_hand) - inside
    assert (found.counted.documents, found.counted.windows) == (len(TEXTS), len(by_hand))
    assert end not in found.tokens
    places = [batch.mask.numel() for batch in found.batches()]
    kept = found.counted.rows + found.counted.special
    assert sum(len(b.tokens) for b in found.batches()) == len(by_hand)
    # A corpus of one block: what was padded can be had from its batches.
    assert found.cache.blocks > 1 or sum(places) - kept == found.counted.padding
    one = harvest(gpt2, DOCUMENTS, [PRE], context=CONTEXT, batch=4096)
    assert one.cache.blocks == 1
    assert one.counted.padding == sum(b.mask.numel() for b in one.batches()) - kept > 0


@pytest.mark.parametrize("batch", [1, 40, 4096])
def test_batches_and_blocks_change_nothing_but_rounding(batch, gpt2):
    found, other = (harvest(gpt2, DOCUMENTS, [POST], context=CONTEXT, batch=size) for size in (100, batch))
    assert found.documents.tolist() == other.documents.tolist()
    np.testing.assert_allclose(found.rows(POST), other.rows(POST), rtol=2**-10, atol=2e-6)


def test_windows_come_back_as_batches_of_chosen_documents(gpt2):
    found = harvest(gpt2, DOCUMENTS, [PRE], context=CONTEXT)
    for chosen in ([2], [5, 0], [4, 3, 2], list(range(6))):
        wanted = sorted(found.tokens[np.isin(found.documents, chosen)].tolist())
        batches = found.batches(chosen, batch=40)
        assert sorted(t for b in batches for t in b.tokens[b.mask].tolist()) == wanted
        assert all((b.tokens[:, 0] == gpt2.tokenizer.bos_token_id).all() and not b.mask[:, 0].any() for b in batches)
    one = found.batches([2], places=17)
    assert sum(len(b.tokens) for b in one) == 2
    assert found.batches([1]) == []  # an empty document


def test_rows_can_be_limited_to_whole_documents(gpt2):
    found = harvest(gpt2, DOCUMENTS, [PRE], context=CONTEXT, rows=60)
    whole = harvest(gpt2, DOCUMENTS, [PRE], context=CONTEXT)
    count = found.counted.rows
    assert 60 <= count < whole.counted.rows
    assert set(found.documents) == {0, 2}
    assert np.array_equal(found.rows(PRE), whole.rows(PRE)[:count])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 200))
def test_batches_hold_every_window_once_and_no_more_places_than_allowed(lengths, batch):
    lengths = np.array(lengths)
    made = batches_of(lengths, batch)
    assert sorted(np.concatenate(made).tolist()) == list(range(len(lengths)))
    assert all(len(some) == 1 or len(some) * lengths[some].max() <= batch for some in made)
    assert all(np.array_equal(a, b) for a, b in zip(made, batches_of(lengths.copy(), batch), strict=True))


class Repeated:
    """Many documents, made as they are asked for."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return (Document(str(i), f"the cat {i} sat on the mat " * 10) for i in range(self.count))


def test_memory_does_not_grow_with_the_corpus(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr(windows, "_CHARACTERS", 5000)
    peaks = []
    for count in (15, 30, 240):  # the first warms up
        tracemalloc.start()
        harvest(gpt2, Repeated(count), [PRE], context=32, batch=512, cache=tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows = 240 * 100 * 16 * 2
    assert peaks[2] < 1.3 * peaks[1] < rows


@pytest.mark.parametrize(
    ("hook", "parts"),
    [
        ("blocks.1.hook_resid_past", ["unknown hook", "did you mean 'blocks.1.hook_resid_post'"]),
        ("blocks.9.hook_resid_post", ["unknown hook", "did you mean 'blocks.", "hook_resid_post"]),
        ("blocks.1.attn.hook_pattern", ["blocks.1.attn.hook_pattern", "shape", "(windows, tokens, heads, d)"]),
    ],
)
def test_a_hook_that_gives_no_rows_is_refused(hook, parts, gpt2):
    with pytest.raises(UserError) as refused:
        harvest(gpt2, DOCUMENTS, [hook])
    assert all(part in str(refused.value) for part in parts)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 2000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"documents": []}, "no text"),
        ({"documents": [Document("a", ""), Document("b", END)]}, "no text"),
        ({"documents": iter(DOCUMENTS)}, "twice"),
        ({"hooks": []}, "no hook"),
        ({"context": 1}, "context=1"),
        ({"batch": 0}, "batch"),
    ],
)
def test_what_cannot_be_harvested_is_refused(change, said, gpt2):
    given = {"documents": DOCUMENTS, "hooks": [PRE], "context": CONTEXT, "batch": 64, **change}
    with pytest.raises(UserError, match=said):
        harvest(gpt2, given.pop("documents"), given.pop("hooks"), **given)


def test_a_model_without_a_tokenizer_is_refused(gpt2):
    with pytest.raises(UserError, match="tokenizer"):
        harvest(replace(gpt2, tokenizer=None), DOCUMENTS, [PRE])


@pytest.mark.parametrize("factor", [1e6, 1e30])
def test_values_beyond_float16_are_refused_with_their_document(factor, tiny_model, tmp_path):
    model = load_model(write_small("gpt2", tiny_model, tmp_path / "large"))
    token = model.tokenizer(" sat", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.bridge.W_E[token] *= factor
    fits = harvest(model, [Document("a", "the mat")], [PRE])
    assert np.isfinite(fits.rows(PRE)).all()
    largest = (model.bridge.W_E[token].abs().max()).item()
    assert largest > 65504 * 0.1
    with pytest.raises(UserError, match=r"document 1.*65504"):
        harvest(model, [Document("a", "the mat"), Document("b", "the cat sat")], [PRE])


def test_a_target_of_stored_rows_is_a_pure_function_of_seed_and_step():
    rows = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float16)
    index, mean = np.arange(5, 35), torch.tensor([1.0, 2.0, 3.0])
    first, again, other = (mapped_target(rows, index, mean=mean, scale=2.0, seed=seed) for seed in (1, 1, 2))
    steps = {step: first.batches(step, 10) for step in range(6)}
    assert all(torch.equal(again.batches(step, 10), steps[step]) for step in (5, 0, 3))
    assert not torch.equal(other.batches(0, 10), steps[0])
    wanted = (torch.from_numpy(rows[5:35]).float() - mean) * 2
    for epoch in ((0, 1, 2), (3, 4, 5)):  # each row once
        seen = torch.cat([steps[step][0] for step in epoch])
        assert torch.equal(seen.sort(dim=0).values, wanted.sort(dim=0).values)
    assert not torch.equal(torch.cat([steps[s] for s in (0, 1, 2)]), torch.cat([steps[s] for s in (3, 4, 5)]))
