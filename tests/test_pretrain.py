"""Pretraining: the loop against hand-written ones, and what resume, frozen rows and single rows promise."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from toolkit import corpora, pretraining, token_loss
from toolkit.errors import DivergenceError, UserError
from toolkit.pretrain_config import PretrainConfig, PretrainRun, log_grid, spread
from toolkit.pretrain_data import (
    TokenData,
    batch_at,
    joined,
    read_tokens,
    sequences,
    split,
    tokenizer_from,
    total_steps,
    train_tokenizer,
    windows,
)
from toolkit.pretrain_optimiser import learning_rate
from toolkit.pretraining import initial_model, pretrain, randomise_rows, validation_loss
from toolkit.random_rows import default_bound
from toolkit.token_baselines import KneserNey, baselines

TINY = PretrainConfig(
    layers=1, width=16, heads=2, context=16, vocabulary=300, batch=4, steps=12, lr=1e-2, checkpoints=4
)


class Tokenizer:
    """All that a training asks of one."""

    eos_token_id = 0


def token_data(train, validation):
    return TokenData(torch.as_tensor(train), torch.as_tensor(validation), Tokenizer(), ("held",), 2)


@pytest.fixture(scope="module")
def noise():
    draw = np.random.default_rng(0)
    return token_data(draw.integers(0, 300, 1500), draw.integers(0, 300, 200))


def markov_chain(length, states, seed):
    """A chain with sparse random transitions, its tokens and its entropy rate."""
    moves = np.random.default_rng(7).dirichlet(np.full(states, 0.1), size=states)
    draw, tokens = np.random.default_rng(seed), [0]
    steps = moves.cumsum(1)
    for u in draw.random(length - 1):
        tokens.append(min(int(np.searchsorted(steps[tokens[-1]], u)), states - 1))
    tokens = np.array(tokens)
    return tokens, -np.log(moves[tokens[:-1], tokens[1:]]).mean()


class Memory:
    """A checkpoint in memory that keeps every state."""

    def __init__(self):
        self.state = None

    def load(self):
        return None if self.state is None else {name: value.clone() for name, value in self.state.items()}

    def save(self, state):
        self.state = {name: value.clone() for name, value in state().items()}


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


# The loss


@pytest.mark.parametrize("block", [300 * 3, 300 * 100, 1])
def test_the_loss_in_blocks_is_cross_entropy(monkeypatch, block):
    monkeypatch.setitem(token_loss._BLOCK, "cpu", block)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(300, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 300, (10,), generator=draw)
    expected = torch.nn.functional.cross_entropy(hidden @ rows.T, targets)
    found = token_loss.token_loss(hidden, rows, targets)
    assert torch.allclose(found, expected)
    slopes = [torch.autograd.grad(3 * loss, (hidden, rows)) for loss in (expected, found)]
    assert all(torch.allclose(a, b) for a, b in zip(*slopes, strict=True))
    with torch.no_grad():
        assert torch.allclose(token_loss.token_loss(hidden, rows, targets), expected)
    frozen = token_loss.token_loss(hidden, rows.detach(), targets)
    assert torch.allclose(torch.autograd.grad(frozen, hidden)[0], slopes[0][0] / 3)


def test_before_training_every_token_is_as_likely(noise):
    model = initial_model(TINY, seed=0)
    assert validation_loss(model, noise.validation, context=16) == pytest.approx(math.log(300), abs=0.05)


def test_validation_is_the_mean_of_transformers_own_loss(noise):
    model = initial_model(TINY, seed=0).eval()
    tokens = noise.validation[: 3 * 16 + 1]
    expected = []
    for start in (0, 16, 32):
        logits = model(input_ids=tokens[None, start : start + 16]).logits[0]
        expected.append(torch.nn.functional.cross_entropy(logits, tokens[start + 1 : start + 17]).item())
    assert validation_loss(model, tokens, context=16, batch=2) == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_training_is_the_plain_loop(noise):
    """Against transformers' model with its own loss head, torch's cross-entropy and unfused AdamW."""
    found = pretrain(noise, TINY, seed=3)
    model = initial_model(TINY, seed=3)
    decays = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False)
    for step in range(12):
        batch = batch_at(noise.train, TINY, seed=3, step=step)
        logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, 12, TINY)
        optimiser.step()
        assert found.losses[step].item() == pytest.approx(loss.item(), abs=1e-4)
    for name, value in weights(model).items():
        assert torch.allclose(value, found.model.state_dict()[name], atol=2e-4), name


# What it learns, where the truth is known


def test_a_markov_chain_is_learned_down_to_its_entropy_and_no_further():
    train, _ = markov_chain(30_000, 30, seed=0)
    held, entropy = markov_chain(3_000, 30, seed=1)
    config = replace(TINY, width=32, batch=16, steps=250, checkpoints=2)
    found = pretrain(token_data(train, held), config, seed=0)
    simple = baselines(torch.as_tensor(train), torch.as_tensor(held), 300)
    assert entropy - 0.02 < found.final < entropy + 0.15 < simple.unigram
    assert entropy - 0.02 < simple.bigram < entropy + 0.05


def test_noise_is_not_learned(noise):
    found = pretrain(noise, replace(TINY, steps=60), seed=0)
    simple = baselines(noise.train, noise.validation, 300)
    assert found.final > math.log(300) - 0.05
    assert simple.unigram > math.log(300) - 0.05


def test_kneser_ney_by_hand():
    # Pairs of 0 1 0 1 0 2: 01 twice, 10 twice, 02 once; D = 1 / (1 + 2 * 2) = .2.
    # Contexts: 0 after 1, 1 after 0, 2 after 0: one each, D' = 3 / 3 = 1, so q is uniform: 1/3.
    model = KneserNey(np.array([0, 1, 0, 1, 0, 2]), 3)
    found = model(np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 0, 0]))
    left = 0.2 * 2 / 3
    expected = [left / 3, 1.8 / 3 + left / 3, 0.8 / 3 + left / 3, 1.8 / 2 + 0.2 / 2 / 3, 1 / 3]
    assert found == pytest.approx(expected)


def test_baselines_are_probabilities():
    tokens = np.random.default_rng(0).zipf(1.5, 5000) % 40
    model = KneserNey(tokens, 45)
    for before in (0, 1, 39, 44):
        assert model(np.full(45, before), np.arange(45)).sum() == pytest.approx(1)
        assert model(np.full(45, before), np.arange(45)).min() > 0
    same = torch.as_tensor(tokens)
    counts = np.bincount(tokens, minlength=45) + 0.5
    assert baselines(same, same, 45).unigram == pytest.approx(-np.log((counts / counts.sum())[tokens[1:]]).mean())


# Text and its order


def test_an_epoch_predicts_every_token_of_its_cut_once():
    tokens = torch.arange(1000)
    each = sequences(tokens, TINY) // TINY.batch
    epochs = [torch.cat([batch_at(tokens, TINY, seed=0, step=e * each + i) for i in range(each)]) for e in (0, 1)]
    for epoch in epochs:
        assert all(torch.equal(row, torch.arange(int(row[0]), int(row[0]) + 17)) for row in epoch)
        targets = epoch[:, 1:].flatten()
        assert len(targets.unique()) == len(targets)
        assert len(targets) > 1000 - 16 * (TINY.batch + 2)
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[1][:4], batch_at(tokens, TINY, seed=0, step=each))
    assert not torch.equal(epochs[0][:4], batch_at(tokens, TINY, seed=1, step=0))


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 200])
def test_windows_predict_every_token_but_the_first_once(length):
    found = list(windows(torch.arange(length), 16, 3))
    assert torch.cat([window[:, 1:].flatten() for window in found]).tolist() == list(range(1, length))
    assert all((window[:, 1:] == window[:, :-1] + 1).all() for window in found)


def test_steps_cover_the_epochs():
    tokens = torch.zeros(10_000, dtype=torch.long)
    steps = total_steps(tokens, replace(TINY, steps=0, epochs=3.0))
    assert 3 <= steps * 4 * 16 / 10_000 < 3 + 64 / 10_000


def test_the_split_is_of_whole_documents_and_large_ones_stay():
    sizes = [100] * 50 + [5000]
    held = [split(sizes, 0.05, seed=seed) for seed in range(100)]
    assert not any(50 in out for out in held)
    assert {sum(sizes[at] for at in out) for out in held} == {500}
    assert split(sizes, 0.05, seed=0) == held[0] != held[1]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of forty short documents."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), size)) for size in draw.integers(2, 7, 200)]
    stories = [" ".join(draw.choice(words, 120)) for _ in range(40)]
    path = tmp_path_factory.mktemp("text") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories))
    return path


def test_text_becomes_tokens_and_back(text):
    data = read_tokens([str(text)], TINY, seed=0)
    documents = {document.name: document.text for document in corpora.documents(text)}
    assert data.documents == len(documents) == 40
    held = [documents[name] for name in data.held_out]
    assert "".join(held) == data.tokenizer.decode(data.validation).replace("<|endoftext|>", "")
    assert (data.validation == 0).sum() == len(held) + 1
    assert data.validation[0] == data.validation[-1] == 0
    seen = data.tokenizer.decode(data.train)
    assert not any(story in seen for story in held)
    again = read_tokens([str(text)], TINY, seed=0, tokenizer=data.tokenizer)
    assert again.fingerprint == data.fingerprint != read_tokens([str(text)], TINY, seed=1).fingerprint


def test_the_tokenizer_takes_any_text_and_gives_it_back(tmp_path):
    config = replace(TINY, vocabulary=270)
    tokenizer = train_tokenizer(["the cat sat on the mat and the other cat sat there"] * 3, config)
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), "utf-8")
    tokenizer = tokenizer_from(tmp_path / "tokenizer.json", 16)
    for case in (" the cat", "Ünïcode — 漢字 🙂", "tabs\tand\n\nlines", "don't"):
        assert tokenizer.decode(joined([case], tokenizer)[1:-1]) == case
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
    assert len(tokenizer) == 270


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": 4000}, "too small"),
        ({"batch": 4000}, "fewer than a batch of 4000"),
        ({"vocabulary": 50_000}, r"vocabulary of 50,000 is too large .* use --vocabulary \d+"),
        ({"validation": 0.001}, "cannot hold out 0% of the text in whole documents: 40 documents"),
    ],
)
def test_text_that_does_not_fit_is_refused(text, settings, message):
    with pytest.raises(UserError, match=message):
        read_tokens([str(text)], replace(TINY, **settings), seed=0)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 130}, "width=130 is not divisible by heads=4"),
        ({"layers": 0}, "layers must be a whole number"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"lr": 0.0}, "lr must be a positive number"),
        ({"lr": math.nan}, "lr must be a positive number"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"validation": 1.0}, "validation is a share"),
        ({"vocabulary": 100}, "256 bytes"),
        ({"freeze_embedding": "randon"}, "did you mean 'random'"),
        ({"cosine_bound": 0.4}, "belongs to freeze_embedding=random"),
        ({"freeze_embedding": "random", "cosine_bound": 1.5}, r"\(0, 1\]"),
        ({"checkpoints": 1}, "at least 2"),
    ],
)
def test_settings_that_contradict_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PretrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": "rows"}, "--train rows needs --randomise-rows"),
        ({"randomise_rows": (1,)}, "needs --from"),
        ({"corpus": ("a", "b"), "licences": ("MIT",)}, "1 licences for 2 corpora"),
        ({"keep_models": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_runs_that_contradict_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        PretrainRun(**settings)


def test_the_grid_halves_down_from_the_last_step():
    assert log_grid(64, 8) == (0, 1, 2, 4, 8, 16, 32, 64)
    assert log_grid(5, 8) == (0, 1, 2, 5)
    assert log_grid(1000, 2) == (0, 1000)
    assert spread(log_grid(64, 8), 3) == (0, 8, 64)
    assert spread((0, 1), 5) == (0, 1)
    assert spread((0, 1, 2), 1) == (2,)


def test_the_rate_rises_and_falls_to_a_tenth():
    config = replace(TINY, warmup=0.1, lr=2.0)
    rates = [learning_rate(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[100] == rates[99] == pytest.approx(2.0)
    assert rates[550] == pytest.approx(2.0 * 0.55)
    assert rates[-1] == pytest.approx(0.2, abs=1e-3)
    assert all(a > b for a, b in pairwise(rates[100:]))


# Resume


@pytest.mark.parametrize("stop", [1, 6, 11])
@pytest.mark.parametrize("kind", ["all", "frozen", "rows"])
def test_a_stopped_training_goes_on_to_the_same_numbers(noise, kind, stop):
    config = replace(TINY, freeze_embedding="random") if kind == "frozen" else TINY
    rows = [5, 7] if kind == "rows" else None
    kept, memory = {}, Memory()

    def interrupt(done):
        interrupt.count += done
        if interrupt.count > stop:
            raise KeyboardInterrupt

    interrupt.count = 0
    whole = pretrain(noise, config, seed=2, only_rows=rows)
    with pytest.raises(KeyboardInterrupt):
        pretrain(noise, config, seed=2, only_rows=rows, checkpoint=memory, progress=interrupt)
    assert len(memory.state["history"]) == stop
    resumed = pretrain(
        noise,
        config,
        seed=2,
        only_rows=rows,
        checkpoint=memory,
        keep=lambda step, model: kept.update({step: weights(model)}),
    )
    assert_equal(weights(whole.model), weights(resumed.model))
    assert torch.equal(whole.losses, resumed.losses)
    assert whole.validation == resumed.validation
    assert max(kept) == 12
    assert min(kept) >= stop


def test_the_same_seed_gives_the_same_model_and_another_does_not(noise):
    first, again, other = (pretrain(noise, TINY, seed=seed) for seed in (1, 1, 2))
    assert_equal(weights(first.model), weights(again.model))
    assert not torch.equal(first.losses, other.losses)


def test_losses_that_wait_to_be_read_change_nothing_and_are_never_saved_unread(noise, monkeypatch):
    """As on a GPU. Only one of several processes saves, so saving must not need the others."""
    at_once = pretrain(noise, TINY, seed=0)
    monkeypatch.setattr(pretraining, "_patience", lambda device: 5)
    lengths = []

    class Watched(Memory):
        def save(self, state):
            with monkeypatch.context() as alone:
                alone.setattr(pretraining, "summed", lambda *_: pytest.fail("a save waits for other processes"))
                super().save(state)
            lengths.append(len(self.state["history"]))

    memory = Watched()
    waited = pretrain(noise, TINY, seed=0, checkpoint=memory)
    assert torch.equal(waited.losses, at_once.losses)
    assert_equal(weights(waited.model), weights(at_once.model))
    assert 0 < len(lengths) < 12
    resumed = pretrain(noise, TINY, seed=0, checkpoint=memory)
    assert torch.equal(resumed.losses, at_once.losses)


def test_dropout_of_a_model_to_go_on_from_is_left_out(noise):
    start = initial_model(TINY, seed=0)
    for module in start.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    first, second = (pretrain(noise, TINY, seed=0, model=start) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    assert torch.equal(first.losses, pretrain(noise, TINY, seed=0).losses)


def test_the_callback_sees_the_grid(noise):
    seen = {}
    found = pretrain(noise, TINY, seed=0, keep=lambda step, model: seen.update({step: weights(model)}))
    assert tuple(seen) == tuple(found.validation) == log_grid(12, 4)
    assert_equal(seen[0], weights(initial_model(TINY, seed=0)))
    assert_equal(seen[12], weights(found.model))


def test_divergence_keeps_the_last_state(noise):
    memory = Memory()
    with pytest.raises(DivergenceError, match="language model diverged: its loss is not finite at step"):
        pretrain(noise, replace(TINY, lr=1e30), seed=0, checkpoint=memory)
    assert memory.state["history"].isfinite().all()


# Frozen and single rows


def test_a_frozen_embedding_never_moves(noise):
    config = replace(TINY, freeze_embedding="random")
    seen = {}
    found = pretrain(noise, config, seed=0, keep=lambda step, model: seen.update({step: weights(model)}))
    first, last = seen[0], weights(found.model)
    assert torch.equal(first["transformer.wte.weight"], last["transformer.wte.weight"])
    assert torch.equal(last["transformer.wte.weight"], last["lm_head.weight"])
    moved = [name for name in first if not torch.equal(first[name], last[name])]
    assert set(moved) == set(first) - {"transformer.wte.weight", "lm_head.weight"}
    rows, initial = last["transformer.wte.weight"], initial_model(TINY, seed=0).transformer.wte.weight
    assert torch.allclose(rows.norm(dim=1), initial.norm(dim=1), rtol=1e-5)
    unit = torch.nn.functional.normalize(rows)
    assert (unit @ unit.T - torch.eye(300)).abs().max() <= default_bound(300, 16) + 1e-5
    assert not torch.equal(rows, initial)


def test_an_embedding_that_is_not_frozen_moves(noise):
    found = pretrain(noise, TINY, seed=0)
    start = initial_model(TINY, seed=0)
    assert (found.model.transformer.wte.weight != start.transformer.wte.weight).any(1).all()


def test_only_the_named_rows_move(noise):
    start = initial_model(TINY, seed=0)
    before = weights(start)
    found = weights(pretrain(noise, TINY, seed=0, model=start, only_rows=[3, 299]).model)
    moved = (found["transformer.wte.weight"] != before["transformer.wte.weight"]).any(1)
    assert moved.nonzero().flatten().tolist() == [3, 299]
    tied = {"transformer.wte.weight", "lm_head.weight"}
    assert_equal({k: v for k, v in found.items() if k not in tied}, {k: v for k, v in before.items() if k not in tied})
    assert_equal(weights(start), before)


def test_a_row_alone_takes_the_steps_of_adam(noise):
    """The first step of a row is Adam's: its rate, against the sign of the gradient, and the decay."""
    start, config = initial_model(TINY, seed=0), replace(TINY, steps=1, warmup=0.0, weight_decay=0.1)
    found = pretrain(noise, config, seed=0, model=start, only_rows=[5])
    batch = batch_at(noise.train, config, seed=0, step=0)
    probe = copy.deepcopy(start)
    logits = probe(input_ids=batch[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten()).backward()
    slope = probe.transformer.wte.weight.grad[5]
    row = start.transformer.wte.weight.detach()[5]
    expected = row * (1 - 1e-2 * 0.1) - 1e-2 * slope / (slope.abs() + 1e-8)
    assert torch.allclose(found.model.transformer.wte.weight[5], expected, atol=1e-5)


def test_randomised_rows_keep_their_norm_and_the_rest(noise):
    start = initial_model(TINY, seed=0)
    before = weights(start)
    found = randomise_rows(start, [3, 7], seed=1)
    assert_equal(weights(start), before)
    old, new = before["transformer.wte.weight"], found.transformer.wte.weight.detach()
    assert (old != new).any(1).nonzero().flatten().tolist() == [3, 7]
    assert torch.allclose(old.norm(dim=1), new.norm(dim=1))
    assert found.lm_head.weight is found.transformer.wte.weight
    assert torch.equal(new, randomise_rows(start, [3, 7], seed=1).transformer.wte.weight)
    for rows, message in (
        ([300], "outside the vocabulary"),
        ([-1], "outside"),
        ([3, 3], "given twice"),
        ([], "no token"),
    ):
        with pytest.raises(UserError, match=message):
            randomise_rows(start, rows, seed=0)


def test_a_start_of_other_sizes_is_refused(noise):
    with pytest.raises(UserError, match="layers: 1 -> 2"):
        pretrain(noise, replace(TINY, layers=2), seed=0, model=initial_model(TINY, seed=0))


def test_the_model_is_transformers_own(noise, tmp_path):
    model = pretrain(noise, TINY, seed=0).model
    assert type(model) is GPT2LMHeadModel
    model.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=noise.train[None, :16]).logits, model(input_ids=noise.train[None, :16]).logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_learns_the_same(noise):
    on_cpu, on_gpu = (pretrain(noise, TINY, seed=0, device=device) for device in ("cpu", "cuda"))
    assert torch.allclose(on_cpu.losses, on_gpu.losses, rtol=0.02)
