"""From a hook on, one token a row, says what whole runs say."""

import pytest
import torch

from toolkit.downstream import LanguageDownstream
from toolkit.errors import UserError
from toolkit.interventions import Patch, record, run
from toolkit.language import load_model

HOOKS = ["hook_embed", "blocks.0.hook_resid_pre", "blocks.2.hook_resid_post", "blocks.1.hook_mlp_out",
         "blocks.3.hook_resid_post", "blocks.1.hook_resid_mid"]  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def sequences(model):
    gen = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocabulary, (3, 12), generator=gen)
    places = torch.tensor([[0, 0], [0, 11], [1, 5], [2, 3], [2, 8]])
    return tokens, places


def patched(model, hook, tokens, place, row):
    """Log-probabilities by a whole run with one activation written over."""
    values = record(model, tokens, [hook])[hook]
    values[place[0], place[1]] = row.view(values.shape[2:])
    logits = run(model, tokens, [Patch(hook, values, positions=[int(place[1])])])
    return logits[place[0], place[1]].log_softmax(0)


@pytest.mark.parametrize("hook", HOOKS)
def test_clean_activations_give_the_clean_run(model, sequences, hook):
    tokens, places = sequences
    rest = LanguageDownstream(model, hook, tokens, places)
    clean = run(model, tokens).log_softmax(2)[places[:, 0], places[:, 1]]
    assert rest.is_cached == (not hook.endswith("resid_mid"))
    torch.testing.assert_close(rest(rest.activations, torch.arange(5)), clean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("hook", HOOKS)
def test_changed_activations_give_what_patching_gives(model, sequences, hook):
    tokens, places = sequences
    rest = LanguageDownstream(model, hook, tokens, places)
    at = torch.tensor([4, 1, 1, 0])
    gen = torch.Generator().manual_seed(1)
    moved = rest.activations[at] + rest.activations.std() * torch.randn(4, model.d_model, generator=gen)
    found = rest(moved, at)
    for row, place, value in zip(moved, places[at], found, strict=True):
        torch.testing.assert_close(value, patched(model, hook, tokens, place, row), atol=1e-4, rtol=0)
    assert (found[1] - found[2]).abs().max() > 0.01  # the same place, otherwise changed


def test_gradients_reach_the_activations(model, sequences):
    tokens, places = sequences
    rest = LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, places)
    x = rest.activations.clone().requires_grad_()
    (slope,) = torch.autograd.grad(rest(x, torch.arange(5))[:, 7].sum(), x)
    step = 1e-2 * slope / slope.norm(dim=1, keepdim=True)
    with torch.no_grad():
        rise = (rest(x + step, torch.arange(5)) - rest(x - step, torch.arange(5)))[:, 7] / 2
    torch.testing.assert_close(rise, (slope * step).sum(1), rtol=0.02, atol=1e-4)


def test_rows_say_the_same_with_gradients_and_without_and_after_any_other_rows(model, sequences):
    tokens, places = sequences
    rest = LanguageDownstream(model, "blocks.0.hook_resid_post", tokens, places)
    at = torch.tensor([1, 3, 4, 1])
    rows = rest.activations[at] * torch.tensor([1.0, 1.2, 0.8, 1.5])[:, None]
    with_gradients = rest(rows, at).detach()
    many = torch.arange(40) % 5
    with torch.no_grad():
        first = rest(rows, at)
        kept = first.clone()
        others = rest(rest.activations[many], many)  # more rows than had room before
        assert torch.equal(first, kept)
        assert torch.equal(rest(rows, at), first)
    torch.testing.assert_close(first, with_gradients, rtol=0, atol=1e-5)
    torch.testing.assert_close(others[:5], others[5:10], rtol=0, atol=1e-5)


def test_many_rows_of_a_hook_that_is_run_whole_are_what_each_is_alone(model, sequences):
    tokens, places = sequences
    rest = LanguageDownstream(model, "blocks.1.hook_resid_mid", tokens, places)
    assert not rest.is_cached
    at = torch.arange(37) % 5
    rows = rest.activations[at] + 0.1 * torch.randn(37, model.d_model, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([rest(rows[i : i + 1], at[i : i + 1]) for i in range(37)])
    torch.testing.assert_close(rest(rows, at), alone, rtol=0, atol=1e-4)


def test_a_pretrained_model_with_rotary_positions_and_shared_keys(real_model):
    model = load_model(str(real_model))
    tokens = torch.arange(24).reshape(2, 12) * 37 % model.vocabulary  # (24,) -> (2, 12)
    places = torch.tensor([[0, 2], [1, 11]])
    hook = f"blocks.{model.bridge.cfg.n_layers // 2}.hook_resid_post"
    rest = LanguageDownstream(model, hook, tokens, places)
    moved = rest.activations * 1.1
    assert rest.is_cached
    expected = torch.stack([patched(model, hook, tokens, p, row) for p, row in zip(places, moved, strict=True)])
    torch.testing.assert_close(rest(moved, torch.arange(2)), expected, atol=1e-3, rtol=0)


class Elsewhere(torch.Tensor):
    """A tensor that can be asked its shape and brought to the CPU, and nothing else, as on a device without CUDA."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.cpu:
                return args[0].as_subclass(torch.Tensor)
            if func.__name__ == "__get__":
                return func(*args, **(kwargs or {}))
        raise RuntimeError(f"{func.__name__} of tensors on two devices")


def test_places_may_lie_on_another_device(model, sequences):
    tokens, places = sequences
    with pytest.raises(RuntimeError, match="two devices"):
        places.as_subclass(Elsewhere).lt(torch.tensor([3, 12]))
    rest = LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, places.as_subclass(Elsewhere))
    expected = LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, places)
    torch.testing.assert_close(rest.activations, expected.activations)


def test_places_outside_the_sequences_and_unknown_hooks_are_refused(model, sequences):
    tokens, _ = sequences
    with pytest.raises(UserError, match=r"places must be \(n, 2\)"):
        LanguageDownstream(model, "blocks.1.hook_resid_post", tokens, torch.tensor([[0, 12]]))
    with pytest.raises(UserError, match="resid_post"):
        LanguageDownstream(model, "blocks.1.hook_resid_pst", tokens, torch.tensor([[0, 1]]))
